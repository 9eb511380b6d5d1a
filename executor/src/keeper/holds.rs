//! The batch jobs that hold the node: their prolog was seen, their epilog was not. Nothing starts meanwhile.
//!
//! Each is an empty file `held/<job>` in the node's runtime directory: the hook writes it when it finds no keeper, and
//! the next keeper finds it. The harvester's grant of a newer epoch ends all holds: it has seen the job's end itself.

use std::{fs, io, os::fd::OwnedFd, path::Path};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
    unistd::{UnlinkatFlags, unlinkat},
};

use super::cgroup::Name;

/// The directory's name in the node's runtime directory.
const HELD_DIR: &str = "held";
/// Jobs at a time on one node; beyond them the node stays held until a newer grant.
const HOLDS_MAX: usize = 64;

/// The jobs.
#[derive(Debug)]
pub(super) struct Holds {
    dir: OwnedFd,
    jobs: [u32; HOLDS_MAX],
    len: usize,
    overflowed: bool,
}

impl Holds {
    /// Reads what the last keeper and the hook left.
    pub(super) fn open(run_dir: &Path) -> io::Result<Self> {
        let path = run_dir.join(HELD_DIR);
        fs::create_dir_all(&path)?;
        let dir = fs::File::open(&path)?.into();
        let mut holds = Self { dir, jobs: [0; HOLDS_MAX], len: 0, overflowed: false };
        for entry in fs::read_dir(&path)? {
            if let Some(job) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
                holds.add(job);
            }
        }
        Ok(holds)
    }

    /// A job that holds the node, if there is one.
    pub(super) fn first(&self) -> Option<u32> {
        self.jobs[..self.len].first().copied()
    }

    /// Whether any does.
    pub(super) fn any(&self) -> bool {
        self.len > 0 || self.overflowed
    }

    /// A job starts.
    pub(super) fn add(&mut self, job: u32) {
        if self.jobs[..self.len].contains(&job) {
            return;
        }
        if self.len == HOLDS_MAX {
            self.overflowed = true;
            return;
        }
        self.jobs[self.len] = job;
        self.len += 1;
        let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        // Lost with a full file system: then only a keeper killed before the epilog forgets the job.
        let _ = openat(&self.dir, name(job).as_c_str(), flags, Mode::from_bits_truncate(0o644));
    }

    /// A job has ended.
    pub(super) fn end(&mut self, job: u32) {
        if let Some(index) = self.jobs[..self.len].iter().position(|&held| held == job) {
            self.len -= 1;
            self.jobs[index] = self.jobs[self.len];
        }
        let _ = unlinkat(&self.dir, name(job).as_c_str(), UnlinkatFlags::NoRemoveDir);
    }

    /// The harvester knows better.
    pub(super) fn clear(&mut self) {
        while let Some(job) = self.first() {
            self.end(job);
        }
        self.overflowed = false;
    }
}

fn name(job: u32) -> Name {
    Name::new(format_args!("{job}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_survive_a_restart_and_end_one_by_one_or_together() {
        let dir = tempfile::tempdir().unwrap();
        let mut holds = Holds::open(dir.path()).unwrap();
        assert!(!holds.any());
        holds.add(7);
        holds.add(7);
        holds.add(8);
        let mut holds = Holds::open(dir.path()).unwrap();
        holds.end(7);
        assert_eq!(holds.first(), Some(8));
        let mut holds = Holds::open(dir.path()).unwrap();
        holds.end(8);
        assert!(!holds.any());
        (1..=65).for_each(|job| holds.add(job));
        (1..=64).for_each(|job| holds.end(job));
        assert!(holds.any(), "the 65th is not forgotten");
        holds.clear();
        assert!(!holds.any() && !Holds::open(dir.path()).unwrap().any());
    }
}
