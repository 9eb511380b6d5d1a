//! Writes the node's table of workers, which the hook reads when the keeper is silent. The format is `proto`'s.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
};

use gleaner_proto::workers::{
    CGROUP_PATH_MAX, Entry, HEAD_LEN, Head, Process, TABLE_LEN, WORKERS_FILE, entries, parse_stat,
};

use super::cgroup::{Name, read_at};

/// The keeper's end of the table.
#[derive(Debug)]
pub(super) struct Table {
    file: File,
    proc_dir: OwnedFd,
}

impl Table {
    /// Starts an empty table with this process as its keeper.
    pub(super) fn create(
        run_dir: &Path,
        boot_id: [u8; 16],
        kill_path: Option<&Path>,
    ) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o644);
        let file = options.open(run_dir.join(WORKERS_FILE))?;
        file.set_len(TABLE_LEN as u64)?;
        let proc_dir = File::open("/proc")?.into();
        let mut table = Self { file, proc_dir };
        let mut cgroup = [0; CGROUP_PATH_MAX];
        let path = kill_path.map(|path| path.as_os_str().as_encoded_bytes()).unwrap_or_default();
        if path.len() < CGROUP_PATH_MAX {
            cgroup[..path.len()].copy_from_slice(path);
        }
        let keeper = table.process(std::process::id());
        table.put(&Head { boot_id, keeper, cgroup }.encode(), 0)?;
        Ok(table)
    }

    /// Names a worker, or with `None` frees its place.
    pub(super) fn set(&mut self, index: usize, worker: Option<(Process, u64)>) -> io::Result<()> {
        let (process, lease_id) = worker.unwrap_or_default();
        self.put(&Entry { process, lease_id }.encode(), Entry::offset(index))
    }

    /// `/proc`, held open.
    pub(super) fn proc_dir(&self) -> BorrowedFd<'_> {
        self.proc_dir.as_fd()
    }

    /// The process that has this pid now.
    pub(super) fn process(&self, pid: u32) -> Process {
        let name = Name::new(format_args!("{pid}/stat"));
        let mut buffer = [0; 1024];
        let stat = read_at(&self.proc_dir, name.as_c_str(), &mut buffer).unwrap_or_default();
        let start = parse_stat(stat).map_or(0, |(_, start)| start);
        Process { pid, start }
    }

    fn put(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }
}

/// What the last keeper left, if it was of this boot.
pub(super) fn left_by_the_last(run_dir: &Path, boot_id: [u8; 16]) -> Option<(Head, Vec<Entry>)> {
    let bytes = fs::read(run_dir.join(WORKERS_FILE)).ok()?;
    let head = Head::decode(bytes.get(..HEAD_LEN)?).filter(|head| head.boot_id == boot_id)?;
    Some((head, entries(&bytes).collect()))
}
