//! A small disk that can be filled and made read-only: a tmpfs, which needs root.

use std::{fs, io::Write, os::fd::AsFd, path::PathBuf};

use nix::{
    fcntl::{FallocateFlags, fallocate},
    mount::{MntFlags, MsFlags, mount, umount2},
};

pub struct Disk {
    directory: tempfile::TempDir,
}

impl Disk {
    /// `None` without root.
    pub fn mount(bytes: u64) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let options = format!("size={bytes},mode=0700");
        let (none, kind) = (None::<&str>, Some("tmpfs"));
        mount(none, directory.path(), kind, MsFlags::empty(), Some(options.as_str())).unwrap();
        Some(Self { directory })
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Takes all the space that is left, to the last byte.
    pub fn fill(&self) {
        let mut filler = fs::File::create(self.file("filler")).unwrap();
        let mut at = 0;
        for step in [1 << 20, 64 << 10, 4096] {
            while fallocate(filler.as_fd(), FallocateFlags::empty(), at, step).is_ok() {
                at += step;
            }
        }
        let _ = filler.write(b"x");
    }

    pub fn empty(&self) {
        fs::remove_file(self.file("filler")).unwrap();
    }

    /// Fails while a file is open for writing there; see [`Disk::fill`] for a disk that fails under a running daemon.
    pub fn set_read_only(&self, read_only: bool) -> nix::Result<()> {
        let flags = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
        let none = None::<&str>;
        mount(none, self.directory.path(), none, MsFlags::MS_REMOUNT | flags, none)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(self.directory.path(), MntFlags::MNT_DETACH);
    }
}
