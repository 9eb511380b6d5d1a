//! Waiting for processes that are not our children, without asking again and again.
// UNSAFETY: pidfd_open has no safe wrapper.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{BorrowedFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A descriptor that is readable once the process has ended.
pub fn open(pid: i32) -> Result<OwnedFd> {
    // SAFETY: a system call that takes no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("watch process {pid}"));
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Returns once all of them have ended.
pub fn wait_ended<'fd>(processes: impl Iterator<Item = BorrowedFd<'fd>>) -> Result<()> {
    for process in processes {
        let mut wait = [PollFd::new(process, PollFlags::POLLIN)];
        while poll(&mut wait, PollTimeout::NONE).context("wait for a process's end")? == 0 {}
    }
    Ok(())
}
