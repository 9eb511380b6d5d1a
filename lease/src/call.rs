//! What becomes of a call whose session ended before its reply came. Used by the client; decides, never runs anything.
//!
//! The rule: a call runs at most once unless its caller declared it idempotent, and it ends exactly once.

/// What the client knows of a call without a reply, when its session is over and its link has been read to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Known {
    /// The client never wrote the request to the link.
    NotSent,
    /// The executor's last word does not list the call, or the worker answered that it came too late: it did not start.
    NotArrived,
    /// The executor's word: it arrived and did not start.
    NotStarted,
    /// The executor's word: it was running when its worker was killed.
    Started,
    /// The executor's word: it ran to its end. The reply is lost with the session.
    Finished,
    /// The executor's word: its function brought the worker down.
    Faulted,
    /// The request was written, and the session ended without a word.
    Nothing,
}

/// How a call without a reply goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Next {
    /// Runs again on another lease; this spends none of the caller's retries.
    RunAgain,
    /// Ends as FAILED: the function itself is to blame, and would be again.
    Failed,
    /// Ends as EVICTED: it was begun and cut off.
    Evicted,
    /// Ends as UNKNOWN: it may have run, wholly or in part.
    Unknown,
}

impl Known {
    /// Whether the function surely has not begun.
    pub fn untouched(self) -> bool {
        matches!(self, Self::NotSent | Self::NotArrived | Self::NotStarted)
    }

    /// What to do with the call, given whether its caller declared it idempotent.
    pub fn then(self, idempotent: bool) -> Next {
        match self {
            Self::NotSent | Self::NotArrived | Self::NotStarted => Next::RunAgain,
            Self::Faulted => Next::Failed,
            Self::Started | Self::Finished | Self::Nothing if idempotent => Next::RunAgain,
            Self::Started => Next::Evicted,
            Self::Finished | Self::Nothing => Next::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Known; 7] = [
        Known::NotSent,
        Known::NotArrived,
        Known::NotStarted,
        Known::Started,
        Known::Finished,
        Known::Faulted,
        Known::Nothing,
    ];

    #[test]
    fn only_untouched_calls_run_again_unless_idempotent() {
        for known in ALL {
            assert_eq!(known.then(false) == Next::RunAgain, known.untouched(), "{known:?}");
        }
    }

    #[test]
    fn every_verdict_snapshot() {
        let lines: Vec<String> = ALL
            .iter()
            .map(|known| {
                format!("{known:?}: {:?}, idempotent {:?}", known.then(false), known.then(true))
            })
            .collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        NotSent: RunAgain, idempotent RunAgain
        NotArrived: RunAgain, idempotent RunAgain
        NotStarted: RunAgain, idempotent RunAgain
        Started: Evicted, idempotent RunAgain
        Finished: Unknown, idempotent RunAgain
        Faulted: Failed, idempotent Failed
        Nothing: Unknown, idempotent RunAgain
        ");
    }
}
