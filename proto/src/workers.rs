//! The node's table of workers: a fixed file that the keeper keeps up to date and the hook reads when the keeper is silent.
//!
//! A process is named by its pid and its start time together, so that a pid which the kernel gave to another process
//! since is left alone. Written in place by the keeper only; a torn entry names no process that exists.

/// The table's file name in the node's runtime directory.
pub const WORKERS_FILE: &str = "workers";
/// Most workers of one node, ready ones included.
pub const WORKERS_MAX: usize = 256;
/// Bytes of one entry.
pub const ENTRY_LEN: usize = 32;
/// Bytes of the table's head.
pub const HEAD_LEN: usize = 512;
/// Bytes of the whole table.
pub const TABLE_LEN: usize = HEAD_LEN + WORKERS_MAX * ENTRY_LEN;
/// Longest path of the node's cgroup, in bytes.
pub const CGROUP_PATH_MAX: usize = HEAD_LEN - CGROUP_AT;

const MAGIC: [u8; 8] = *b"GLWORK01";
const CGROUP_AT: usize = 64;

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Process {
    /// Its pid in the node's own PID namespace; 0 is no process.
    pub pid: u32,
    /// Its start time, field 22 of `/proc/PID/stat`.
    pub start: u64,
}

/// The table's first part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The boot that pids and start times belong to.
    pub boot_id: [u8; 16],
    /// The keeper itself.
    pub keeper: Process,
    /// The node's cgroup directory with `cgroup.kill`, NUL-padded; empty if there is none.
    pub cgroup: [u8; CGROUP_PATH_MAX],
}

/// One worker's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Entry {
    /// The worker.
    pub process: Process,
    /// Its lease; 0 while it waits for one.
    pub lease_id: u64,
}

impl Head {
    /// The head as it lies in the file.
    pub fn encode(&self) -> [u8; HEAD_LEN] {
        let mut out = [0; HEAD_LEN];
        out[..8].copy_from_slice(&MAGIC);
        out[8..24].copy_from_slice(&self.boot_id);
        out[24..32].copy_from_slice(&u64::from(self.keeper.pid).to_le_bytes());
        out[32..40].copy_from_slice(&self.keeper.start.to_le_bytes());
        out[CGROUP_AT..].copy_from_slice(&self.cgroup);
        out
    }

    /// The head in these bytes, if they are a table's.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEAD_LEN)?;
        if bytes[..8] != MAGIC {
            return None;
        }
        let mut boot_id = [0; 16];
        boot_id.copy_from_slice(&bytes[8..24]);
        let mut cgroup = [0; CGROUP_PATH_MAX];
        cgroup.copy_from_slice(&bytes[CGROUP_AT..]);
        let keeper = Process { pid: long(bytes, 24) as u32, start: long(bytes, 32) };
        Some(Self { boot_id, keeper, cgroup })
    }

    /// The cgroup's path without its padding; empty if there is none.
    pub fn cgroup_path(&self) -> &[u8] {
        let end = self.cgroup.iter().position(|&byte| byte == 0);
        &self.cgroup[..end.unwrap_or(CGROUP_PATH_MAX)]
    }
}

impl Entry {
    /// The entry as it lies in the file.
    pub fn encode(&self) -> [u8; ENTRY_LEN] {
        let mut out = [0; ENTRY_LEN];
        out[..8].copy_from_slice(&u64::from(self.process.pid).to_le_bytes());
        out[8..16].copy_from_slice(&self.process.start.to_le_bytes());
        out[16..24].copy_from_slice(&self.lease_id.to_le_bytes());
        out
    }

    /// Where entry `index` lies in the file.
    pub fn offset(index: usize) -> u64 {
        (HEAD_LEN + index * ENTRY_LEN) as u64
    }
}

/// The entries of a table that name a process.
pub fn entries(table: &[u8]) -> impl Iterator<Item = Entry> {
    let rest = table.get(HEAD_LEN..).unwrap_or_default();
    rest.chunks_exact(ENTRY_LEN).take(WORKERS_MAX).filter_map(|bytes| {
        let pid = u32::try_from(long(bytes, 0)).ok().filter(|&pid| pid > 1)?;
        let process = Process { pid, start: long(bytes, 8) };
        Some(Entry { process, lease_id: long(bytes, 16) })
    })
}

/// The start time in the text of `/proc/PID/stat`, and the process's state letter. The command may hold anything.
pub fn parse_stat(stat: &[u8]) -> Option<(u8, u64)> {
    let after = stat.iter().rposition(|&byte| byte == b')')? + 1;
    let mut fields =
        stat.get(after..)?.split(|&byte| byte == b' ').filter(|field| !field.is_empty());
    let state = *fields.next()?.first()?;
    let start = fields.nth(18)?;
    Some((state, std::str::from_utf8(start).ok()?.parse().ok()?))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_reads_back() {
        let mut cgroup = [0; CGROUP_PATH_MAX];
        cgroup[..4].copy_from_slice(b"/a/b");
        let head = Head { boot_id: [1; 16], keeper: Process { pid: 5, start: 6 }, cgroup };
        let entry = Entry { process: Process { pid: 7, start: 8 }, lease_id: 9 };
        let mut table = vec![0; TABLE_LEN];
        table[..HEAD_LEN].copy_from_slice(&head.encode());
        let at = Entry::offset(3) as usize;
        table[at..at + ENTRY_LEN].copy_from_slice(&entry.encode());
        assert_eq!(Head::decode(&table), Some(head));
        assert_eq!(head.cgroup_path(), b"/a/b");
        assert_eq!(entries(&table).collect::<Vec<_>>(), [entry]);
        assert_eq!(entries(&table[..40]).count(), 0);
    }

    #[test]
    fn a_command_that_looks_like_fields_fools_nobody() {
        let stat = b"12 (a) R 1) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20\n";
        assert_eq!(parse_stat(stat), Some((b'S', 4711)));
        assert_eq!(parse_stat(b""), None);
    }
}
