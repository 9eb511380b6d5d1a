//! The hook's message: what the Prolog or Epilog helper and the keeper say to each other, once, on the node.
//!
//! Fixed 64-byte records over a Unix seqpacket socket: the keeper parses nothing larger, and neither side allocates.
//! The reasons are in `docs/src/adr/0005-hook-message.md`.

/// Bytes of a message and of an answer.
pub const HOOK_LEN: usize = 64;
/// The hook protocol's own version: the hook is installed by the site's image, the keeper may be newer.
pub const HOOK_VERSION: u16 = 1;
/// The socket's file name in the node's runtime directory.
pub const HOOK_SOCKET: &str = "hook.sock";

const MAGIC: [u8; 6] = *b"GLEANR";

/// What happened to a batch job on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum HookKind {
    /// A job is starting here: vacate.
    Prolog = 1,
    /// A job has ended here: the node may be available again.
    Epilog = 2,
}

/// Hook to keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HookMessage {
    /// Prolog or epilog.
    pub kind: HookKind,
    /// The job.
    pub job_id: u32,
    /// Its user.
    pub job_uid: u32,
    /// How long the hook waits for the answer, in milliseconds.
    pub bound_ms: u32,
}

/// Keeper to hook, when the node is free of Gleaner's processes (prolog) or the message is noted (epilog).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HookAnswer {
    /// Leases that were ended.
    pub leases: u32,
    /// Processes that were killed and are gone.
    pub processes: u32,
    /// Processes that were not gone when the keeper answered: 0, or the hook goes on to kill by itself.
    pub remaining: u32,
    /// Microseconds from the message's arrival to the end of each step: fence, kill, gone, release.
    pub steps_us: [u32; 4],
}

/// Why bytes are no message or answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHook {
    /// Not 64 bytes, or another program's.
    #[error("not a hook message: wrong length or magic")]
    Magic,
    /// Another version.
    #[error(
        "hook protocol version {0}, expected {HOOK_VERSION}: install the hook and the executor of one release"
    )]
    Version(u16),
    /// A kind that is neither prolog nor epilog.
    #[error("hook kind {0} is unknown")]
    Kind(u8),
}

impl HookMessage {
    /// The message as it travels.
    pub fn encode(&self) -> [u8; HOOK_LEN] {
        let mut out = frame(self.kind as u8);
        out[12..16].copy_from_slice(&self.job_id.to_le_bytes());
        out[16..20].copy_from_slice(&self.job_uid.to_le_bytes());
        out[20..24].copy_from_slice(&self.bound_ms.to_le_bytes());
        out
    }

    /// Reads a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadHook> {
        let bytes = check(bytes)?;
        let kind = match bytes[8] {
            1 => HookKind::Prolog,
            2 => HookKind::Epilog,
            other => return Err(BadHook::Kind(other)),
        };
        Ok(Self {
            kind,
            job_id: word(bytes, 12),
            job_uid: word(bytes, 16),
            bound_ms: word(bytes, 20),
        })
    }
}

const ANSWER: u8 = 0x80;

impl HookAnswer {
    /// The answer as it travels.
    pub fn encode(&self) -> [u8; HOOK_LEN] {
        let mut out = frame(ANSWER);
        let words = [self.leases, self.processes, self.remaining];
        for (index, value) in words.iter().chain(&self.steps_us).enumerate() {
            out[12 + 4 * index..16 + 4 * index].copy_from_slice(&value.to_le_bytes());
        }
        out
    }

    /// Reads an answer.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadHook> {
        let bytes = check(bytes)?;
        if bytes[8] != ANSWER {
            return Err(BadHook::Kind(bytes[8]));
        }
        Ok(Self {
            leases: word(bytes, 12),
            processes: word(bytes, 16),
            remaining: word(bytes, 20),
            steps_us: [word(bytes, 24), word(bytes, 28), word(bytes, 32), word(bytes, 36)],
        })
    }
}

fn frame(kind: u8) -> [u8; HOOK_LEN] {
    let mut out = [0; HOOK_LEN];
    out[..6].copy_from_slice(&MAGIC);
    out[6..8].copy_from_slice(&HOOK_VERSION.to_le_bytes());
    out[8] = kind;
    out
}

fn check(bytes: &[u8]) -> Result<&[u8; HOOK_LEN], BadHook> {
    let bytes: &[u8; HOOK_LEN] = bytes.try_into().map_err(|_| BadHook::Magic)?;
    if bytes[..6] != MAGIC {
        return Err(BadHook::Magic);
    }
    match u16::from_le_bytes([bytes[6], bytes[7]]) {
        HOOK_VERSION => Ok(bytes),
        other => Err(BadHook::Version(other)),
    }
}

fn word(bytes: &[u8; HOOK_LEN], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_round_trip(epilog: bool, job_id: u32, job_uid: u32, bound_ms: u32) {
            let kind = if epilog { HookKind::Epilog } else { HookKind::Prolog };
            let message = HookMessage { kind, job_id, job_uid, bound_ms };
            prop_assert_eq!(HookMessage::decode(&message.encode()), Ok(message));
            prop_assert!(HookAnswer::decode(&message.encode()).is_err());
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            let _ = HookMessage::decode(&bytes);
            let _ = HookAnswer::decode(&bytes);
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = HookAnswer::default().encode();
        bytes[6] = 9;
        assert_eq!(HookAnswer::decode(&bytes), Err(BadHook::Version(9)));
    }
}
