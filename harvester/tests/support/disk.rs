//! Small disks that can be filled and made read-only; they need root.

use std::{
    fs,
    io::Write,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    fcntl::{FallocateFlags, fallocate},
    mount::{MntFlags, MsFlags, mount, umount2},
};

/// A tmpfs.
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

    /// Fails while a file is open for writing there; see [`FailingDisk`] for one that turns read-only under a daemon.
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

/// An ext4 that turns read-only with files open, as a kernel does it to a disk whose writes fail.
pub struct FailingDisk {
    directory: tempfile::TempDir,
    images: tempfile::TempDir,
}

impl FailingDisk {
    /// `None` without root, loop devices or `mkfs.ext4`.
    pub fn mount(bytes: u64) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            return None;
        }
        let images = tempfile::tempdir().unwrap();
        let disk = Self { directory: tempfile::tempdir().unwrap(), images };
        fs::File::create(disk.image("first")).unwrap().set_len(bytes).unwrap();
        let made = run("mkfs.ext4", &["-q", "-F"], &[&disk.image("first")]);
        (made && disk.mount_image("first")).then_some(disk)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// From now on every write there fails, by descriptors that are open already too.
    pub fn turn_read_only(&self) {
        assert!(run("mount", &["-o", "remount,abort"], &[self.directory.path()]));
    }

    /// Puts a copy of the disk in its place, which can be written.
    pub fn replace(&self) {
        fs::copy(self.image("first"), self.image("second")).unwrap();
        umount2(self.directory.path(), MntFlags::MNT_DETACH).unwrap();
        assert!(self.mount_image("second"));
    }

    fn image(&self, name: &str) -> PathBuf {
        self.images.path().join(name)
    }

    fn mount_image(&self, name: &str) -> bool {
        run("mount", &["-o", "loop"], &[&self.image(name), self.directory.path()])
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        let _ = umount2(self.directory.path(), MntFlags::MNT_DETACH);
    }
}

fn run(program: &str, options: &[&str], paths: &[&Path]) -> bool {
    let status = Command::new(program).args(options).args(paths).status();
    status.is_ok_and(|status| status.success())
}
