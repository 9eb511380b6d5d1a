//! The node's journal of vacates: fixed 128-byte records that keeper and hook append to one file, and the agent reads.
//!
//! Records outlive a killed keeper or agent: the agent reports each until the harvester has stored it. A record is
//! written by one `write` on an `O_APPEND` descriptor; one that was cut short is found by its checksum and skipped.

/// The journal's file name in the node's runtime directory.
pub const VACATES_FILE: &str = "vacates";
/// Bytes of one record.
pub const VACATE_LEN: usize = 128;

const MAGIC: [u8; 4] = *b"GLV1";
const CHECKED: usize = VACATE_LEN - 4;

/// What made the node vacate. The numbers are those of `gleaner.v1.Trigger`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Trigger {
    /// The hook's message.
    Prolog = 1,
    /// The hook had no answer and killed by itself.
    HookAlone = 2,
    /// The harvester's view of Slurm.
    Poll = 3,
    /// Nobody renewed the grant.
    GrantEnd = 4,
    /// An admin's drain.
    Drain = 5,
    /// The kill switch.
    SwitchOff = 6,
    /// The keeper lost its agent.
    AgentDead = 7,
    /// Leftovers of a killed keeper, swept at the next start.
    KeeperStart = 8,
    /// The executor was asked to stop.
    Shutdown = 9,
}

impl Trigger {
    /// The trigger with that number.
    pub fn decode(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Prolog,
            2 => Self::HookAlone,
            3 => Self::Poll,
            4 => Self::GrantEnd,
            5 => Self::Drain,
            6 => Self::SwitchOff,
            7 => Self::AgentDead,
            8 => Self::KeeperStart,
            9 => Self::Shutdown,
            _ => return None,
        })
    }
}

/// One vacate of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VacateRecord {
    /// Random: the same record is stored once however often it is reported.
    pub id: [u8; 16],
    /// What made it.
    pub trigger: Trigger,
    /// The grant epoch that ended; 0 if the writer knew none.
    pub epoch: u64,
    /// The job that wants the node; 0 if there is none.
    pub job_id: u32,
    /// That job's user.
    pub job_uid: u32,
    /// Leases that were ended.
    pub leases: u32,
    /// Processes that were killed.
    pub processes: u32,
    /// Processes that were not gone at the bound.
    pub remaining: u32,
    /// Bytes that the leases held, as far as the kernel told.
    pub memory_bytes: u64,
    /// Microseconds from the trigger to the end of each step: fence, kill, gone, release, answer.
    pub steps_us: [u32; 5],
    /// When the trigger arrived, on the node's CLOCK_BOOTTIME.
    pub stamp_ns: u64,
    /// The same moment on the node's wall clock, for people.
    pub unix_ms: i64,
    /// The boot that the stamp belongs to.
    pub boot_id: [u8; 16],
}

impl VacateRecord {
    /// The record as it lies in the file.
    pub fn encode(&self) -> [u8; VACATE_LEN] {
        let mut out = [0; VACATE_LEN];
        out[0..4].copy_from_slice(&MAGIC);
        out[4] = self.trigger as u8;
        out[8..24].copy_from_slice(&self.id);
        out[24..40].copy_from_slice(&self.boot_id);
        out[40..48].copy_from_slice(&self.epoch.to_le_bytes());
        out[48..56].copy_from_slice(&self.memory_bytes.to_le_bytes());
        out[56..64].copy_from_slice(&self.stamp_ns.to_le_bytes());
        out[64..72].copy_from_slice(&self.unix_ms.to_le_bytes());
        let counts = [self.job_id, self.job_uid, self.leases, self.processes, self.remaining];
        for (word, value) in
            out[72..112].chunks_exact_mut(4).zip(counts.iter().chain(&self.steps_us))
        {
            word.copy_from_slice(&value.to_le_bytes());
        }
        let sum = checksum(&out[..CHECKED]);
        out[CHECKED..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// The record in these bytes, if they are a whole one.
    pub fn decode(bytes: &[u8; VACATE_LEN]) -> Option<Self> {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if bytes[..4] != MAGIC || word(CHECKED) != checksum(&bytes[..CHECKED]) {
            return None;
        }
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[8..24]);
        let mut boot_id = [0; 16];
        boot_id.copy_from_slice(&bytes[24..40]);
        Some(Self {
            id,
            trigger: Trigger::decode(bytes[4])?,
            epoch: long(40),
            job_id: word(72),
            job_uid: word(76),
            leases: word(80),
            processes: word(84),
            remaining: word(88),
            memory_bytes: long(48),
            steps_us: [word(92), word(96), word(100), word(104), word(108)],
            stamp_ns: long(56),
            unix_ms: long(64) as i64,
            boot_id,
        })
    }
}

/// The first whole record in `bytes` at or after its start, and how many bytes to go on after; `None` if there is no
/// whole one yet. Skips what a killed writer left half-written.
pub fn next_record(bytes: &[u8]) -> Option<(VacateRecord, usize)> {
    let windows = bytes.windows(VACATE_LEN).enumerate();
    windows.filter(|(_, window)| window.starts_with(&MAGIC)).find_map(|(at, window)| {
        let record = VacateRecord::decode(window.try_into().ok()?)?;
        Some((record, at + VACATE_LEN))
    })
}

/// FNV-1a: finds a record that was cut short, defends against nothing else.
fn checksum(bytes: &[u8]) -> u32 {
    let mix = |sum: u32, byte: &u8| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    bytes.iter().fold(0x811c_9dc5, mix)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(job_id: u32) -> VacateRecord {
        VacateRecord {
            id: [7; 16],
            trigger: Trigger::HookAlone,
            epoch: 3,
            job_id,
            job_uid: 1000,
            leases: 2,
            processes: 3,
            remaining: 0,
            memory_bytes: 1 << 40,
            steps_us: [1, 2, 3, 4, 5],
            stamp_ns: 9,
            unix_ms: -1,
            boot_id: [8; 16],
        }
    }

    proptest! {
        #[test]
        fn a_torn_record_is_skipped(cut in 0..VACATE_LEN, job_id: u32) {
            let mut bytes = record(1).encode()[..cut].to_vec();
            bytes.extend(record(job_id).encode());
            let (found, next) = next_record(&bytes).unwrap();
            prop_assert_eq!(found, record(job_id));
            prop_assert_eq!(next, bytes.len());
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            let _ = next_record(&bytes);
        }
    }
}
