//! The node's group in the CPU controller, which makes its workers idle to the whole machine. Used by [`cgroup`](super::cgroup).
//!
//! A thread in the idle class gives way to the other threads of its own CPU group, and to no others. A worker has a session of
//! its own, which the kernel by default makes a CPU group of its own ("autogroup") that counts like any other: as much as the
//! batch job's. So all workers live in one group that is idle itself. While the node is vacated it counts as an ordinary one,
//! since the dying need a turn to die. After [`IdleGroup::find`] nothing here allocates.

use std::{
    cell::Cell,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;

use super::cgroup::{make, open_at, write_at};

/// How the group stands to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rank {
    Idle,
    Ordinary,
}

/// Which files the group has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Files {
    V1,
    V2,
}

/// The group.
#[derive(Debug)]
pub(super) struct IdleGroup {
    dir: OwnedFd,
    files: Files,
    /// A group in v1's hierarchy is the keeper's to remove.
    own: Option<PathBuf>,
    rank: Cell<Option<Rank>>,
}

impl IdleGroup {
    /// The node's group in v2 if the CPU controller reaches it, else one of that `name` in v1's hierarchy below `parent`.
    pub(super) fn find(v2: Option<&OwnedFd>, parent: Option<PathBuf>, name: &str) -> Option<Self> {
        let has = |dir: &OwnedFd, file| open_at(dir, file, OFlag::O_WRONLY).is_ok();
        let found = |dir, files, own| Self { dir, files, own, rank: Cell::new(None) };
        if let Some(dir) = v2.filter(|dir| has(dir, c"cpu.weight")) {
            return Some(found(dir.try_clone().ok()?, Files::V2, None));
        }
        let (dir, path) = make(&parent?.join(name))?;
        has(&dir, c"cpu.shares").then(|| found(dir, Files::V1, Some(path)))
    }

    /// Changes the group's rank, if it is another. What the kernel refuses stays as it was: the threads' own class remains.
    pub(super) fn set(&self, rank: Rank) {
        if self.rank.replace(Some(rank)) == Some(rank) {
            return;
        }
        let (idle, weight): (&[u8], &[u8]) = match (rank, self.files) {
            (Rank::Idle, Files::V1) => (b"1", b"2"),
            (Rank::Idle, Files::V2) => (b"1", b"1"),
            (Rank::Ordinary, Files::V1) => (b"0", b"1024"),
            (Rank::Ordinary, Files::V2) => (b"0", b"100"),
        };
        let file = match self.files {
            Files::V1 => c"cpu.shares",
            Files::V2 => c"cpu.weight",
        };
        // Before Linux 5.15 a group cannot be idle: then it has the least weight.
        if write_at(&self.dir, c"cpu.idle", idle).is_err() {
            let _ = write_at(&self.dir, file, weight);
        }
    }

    /// v1's `tasks`, for a worker to enter.
    pub(super) fn tasks_v1(&self) -> io::Result<Option<OwnedFd>> {
        match self.files {
            Files::V1 => open_at(self.dir.as_fd(), c"tasks", OFlag::O_WRONLY).map(Some),
            Files::V2 => Ok(None),
        }
    }

    /// The group to remove in the end.
    pub(super) fn own(&self) -> Option<&Path> {
        self.own.as_deref()
    }
}
