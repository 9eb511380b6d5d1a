//! The hand-over: the one record by which the keeper makes a waiting worker the worker of a lease, and its one answer.
//!
//! The keeper sends [`Become`] over the socket that it made with the worker; [`crate::worker::sandbox`] receives it,
//! confines the process, and answers with [`Confined`]. Nothing else travels there.

use gleaner_proto::ids::LeaseId;

/// Most cores of one lease.
pub const LEASE_CORES_MAX: usize = 512;
/// Bytes of a [`Become`].
pub const BECOME_LEN: usize = HEAD + 2 * LEASE_CORES_MAX;
/// Bytes of a [`Confined`].
pub const CONFINED_LEN: usize = 16;

const HEAD: usize = 64;
const MAGIC: [u8; 4] = *b"GLB1";

/// Keeper to worker: whose worker it is from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Become {
    /// The lease.
    pub lease_id: LeaseId,
    /// The user to become; never 0.
    pub uid: u32,
    /// The group to become; never 0.
    pub gid: u32,
    /// The lease's memory, bytes.
    pub memory_bytes: u64,
    /// True if no cgroup limits the memory: the worker limits itself.
    pub limit_self: bool,
    cores: [u16; LEASE_CORES_MAX],
    cores_len: u16,
}

impl Become {
    /// A hand-over without cores yet.
    pub fn new(lease_id: LeaseId, uid: u32, gid: u32, memory_bytes: u64, limit_self: bool) -> Self {
        let cores = [0; LEASE_CORES_MAX];
        Self { lease_id, uid, gid, memory_bytes, limit_self, cores, cores_len: 0 }
    }

    /// The CPUs to pin threads to, one a thread. One CPU may stand there more than once if the node offers more cores
    /// than it has.
    pub fn cores(&self) -> &[u16] {
        &self.cores[..usize::from(self.cores_len)]
    }

    /// Adds a CPU; false if the lease has [`LEASE_CORES_MAX`] already.
    pub fn push_core(&mut self, core: u16) -> bool {
        let at = usize::from(self.cores_len);
        let fits = at < LEASE_CORES_MAX;
        if fits {
            self.cores[at] = core;
            self.cores_len += 1;
        }
        fits
    }

    /// The record as it travels.
    pub fn encode(&self) -> [u8; BECOME_LEN] {
        let mut out = [0; BECOME_LEN];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = u8::from(self.limit_self);
        out[6..8].copy_from_slice(&self.cores_len.to_le_bytes());
        out[8..16].copy_from_slice(&self.lease_id.0.to_le_bytes());
        out[16..20].copy_from_slice(&self.uid.to_le_bytes());
        out[20..24].copy_from_slice(&self.gid.to_le_bytes());
        out[24..32].copy_from_slice(&self.memory_bytes.to_le_bytes());
        for (place, core) in out[HEAD..].chunks_exact_mut(2).zip(self.cores()) {
            place.copy_from_slice(&core.to_le_bytes());
        }
        out
    }

    /// Reads a record; `None` if it is none, or names root.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; BECOME_LEN] = bytes.try_into().ok()?;
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let mut read = Self::new(LeaseId(long(8)), word(16), word(20), long(24), bytes[4] != 0);
        let valid = bytes[..4] == MAGIC && read.uid != 0 && read.gid != 0;
        let count = usize::from(half(6));
        let pushed = (0..count)
            .all(|index| index < LEASE_CORES_MAX && read.push_core(half(HEAD + 2 * index)));
        (valid && pushed).then_some(read)
    }
}

/// Worker to keeper: how the confinement went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confined {
    /// 0 if the worker is confined, else the sandbox's step that failed.
    pub step: u32,
    /// The system's error number of that step.
    pub errno: i32,
}

impl Confined {
    /// The answer as it travels.
    pub fn encode(&self) -> [u8; CONFINED_LEN] {
        let mut out = [0; CONFINED_LEN];
        out[..4].copy_from_slice(&MAGIC);
        out[4..8].copy_from_slice(&self.step.to_le_bytes());
        out[8..12].copy_from_slice(&self.errno.to_le_bytes());
        out
    }

    /// Reads an answer.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; CONFINED_LEN] = bytes.try_into().ok()?;
        let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        let read = Self { step: u32::from_le_bytes(word(4)), errno: i32::from_le_bytes(word(8)) };
        (bytes[..4] == MAGIC).then_some(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_over_reads_back_and_root_is_none() {
        let mut wanted = Become::new(LeaseId(7), 1000, 100, 1 << 40, true);
        assert!(wanted.push_core(3) && wanted.push_core(511));
        assert_eq!(Become::decode(&wanted.encode()), Some(wanted));
        for root in [Become { uid: 0, ..wanted }, Become { gid: 0, ..wanted }] {
            assert_eq!(Become::decode(&root.encode()), None);
        }
        let confined = Confined { step: 3, errno: -1 };
        assert_eq!(Confined::decode(&confined.encode()), Some(confined));
    }
}
