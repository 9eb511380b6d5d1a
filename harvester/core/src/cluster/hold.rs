//! Holds: between a job's prolog and the moment when Slurm's own word can be trusted again, its node is not given out.
//!
//! A prolog reaches the harvester before Slurm's next picture does, so a picture that still says IDLE proves nothing.
//!
//! ```text
//!   starting ─▶ Heard ── picture asked later: occupied ─▶ Seen ── later picture: not occupied ─▶ released
//!                 │                                         │
//!                 └── epilog, or `hold_max` without a sign ─┴── epilog ─▶ released
//! ```

use std::{collections::VecDeque, time::Duration};

use gleaner_lease::clock::Stamp;
use gleaner_proto::ids::JobId;

/// More jobs than this are not held for on one node at a time: the oldest hold goes.
const HOLDS_MAX: usize = 256;
/// So many jobs are remembered as ended, against a prolog's record that comes after the epilog.
const ENDED_MAX: usize = 16;

#[derive(Debug, Clone, Copy)]
struct Hold {
    job: JobId,
    heard: Stamp,
    seen: bool,
}

/// One node's holds.
#[derive(Debug, Default)]
pub(super) struct Holds {
    held: VecDeque<Hold>,
    ended: VecDeque<JobId>,
    /// When a hook last spoke: only a picture asked later says anything about this node.
    spoke: Stamp,
}

impl Holds {
    /// The prolog of a job ran.
    pub(super) fn starting(&mut self, now: Stamp, job: JobId) {
        self.held.retain(|hold| hold.job != job);
        if self.held.len() == HOLDS_MAX {
            self.held.pop_front();
        }
        self.held.push_back(Hold { job, heard: now, seen: false });
        self.ended.retain(|ended| *ended != job);
        self.spoke = now;
    }

    /// The epilog of a job ran.
    pub(super) fn ended(&mut self, now: Stamp, job: JobId) {
        self.held.retain(|hold| hold.job != job);
        if self.ended.len() == ENDED_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back(job);
        self.spoke = now;
    }

    /// Whether the job's epilog has been heard, or it is held for already.
    pub(super) fn knows(&self, job: JobId) -> bool {
        self.ended.contains(&job) || self.held.iter().any(|hold| hold.job == job)
    }

    /// A picture that was asked for at `asked` shows the node occupied by some job, or not.
    pub(super) fn picture(&mut self, asked: Stamp, occupied: bool, hold_max: Duration) {
        self.held.retain_mut(|hold| {
            if asked <= hold.heard {
                return true;
            }
            if occupied {
                hold.seen = true;
                return true;
            }
            !hold.seen && asked < hold.heard.after(hold_max)
        });
    }

    /// The job that the node is held for.
    pub(super) fn job(&self) -> Option<JobId> {
        self.held.front().map(|hold| hold.job)
    }

    /// Whether a picture asked for at `asked` is too old to say anything about this node.
    pub(super) fn outdate(&self, asked: Stamp) -> bool {
        self.spoke > Stamp(0) && asked <= self.spoke
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_secs(60);
    const JOB: JobId = JobId(7);

    fn at(seconds: u64) -> Stamp {
        Stamp(seconds * 1_000_000_000)
    }

    fn held() -> Holds {
        let mut holds = Holds::default();
        holds.starting(at(10), JOB);
        holds
    }

    #[test]
    fn an_idle_picture_does_not_release_a_starting_job() {
        let mut holds = held();
        for asked in [5, 10, 11, 12, 60] {
            holds.picture(at(asked), false, MAX);
            assert_eq!(holds.job(), Some(JOB), "picture asked at {asked}");
        }
    }

    #[test]
    fn a_picture_from_before_the_hook_does_not_count_as_seen() {
        let mut holds = held();
        holds.picture(at(10), true, MAX);
        holds.picture(at(11), false, MAX);
        assert_eq!(holds.job(), Some(JOB));
    }

    #[test]
    fn seen_and_then_gone_releases() {
        let mut holds = held();
        holds.picture(at(11), true, MAX);
        holds.picture(at(12), true, MAX);
        assert_eq!(holds.job(), Some(JOB));
        holds.picture(at(13), false, MAX);
        assert_eq!(holds.job(), None);
    }

    #[test]
    fn a_job_that_never_shows_is_released_at_last() {
        let mut holds = held();
        holds.picture(at(69), false, MAX);
        assert_eq!(holds.job(), Some(JOB));
        holds.picture(at(70), false, MAX);
        assert_eq!(holds.job(), None);
    }

    #[test]
    fn the_epilog_releases_its_own_job_and_wants_a_later_picture() {
        let mut holds = held();
        holds.starting(at(11), JobId(8));
        holds.ended(at(12), JOB);
        assert_eq!(holds.job(), Some(JobId(8)));
        holds.ended(at(13), JobId(8));
        assert_eq!(holds.job(), None);
        assert!(holds.outdate(at(13)) && !holds.outdate(at(14)));
        assert!(holds.knows(JOB));
    }

    #[test]
    fn holds_are_bounded() {
        let mut holds = Holds::default();
        (1..=1000).for_each(|job| holds.starting(at(1), JobId(job)));
        assert_eq!(holds.held.len(), HOLDS_MAX);
        assert_eq!(holds.held.back().map(|hold| hold.job), Some(JobId(1000)));
    }
}
