//! What a killed keeper left behind, swept before the next one begins: processes, groups, and the leases that ended unrecorded.
//!
//! Children die with their keeper, so usually only the table tells of them. Called once at the start, under the node's
//! lock; may allocate.

use std::{
    fs,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::Path,
    time::{Duration, Instant},
};

use gleaner_proto::{
    vacates::{Trigger, VacateRecord},
    workers::{Process, parse_stat},
};

use super::{
    table,
    vacate::{random, unix_ms},
};
use crate::sys::{self, Waits};

/// How long the sweep waits for what it kills.
const BOUND: Duration = Duration::from_secs(2);

/// Kills what is left. Returns the record of it, if there was anything.
pub(super) fn sweep(run_dir: &Path, boot_id: [u8; 16]) -> Option<VacateRecord> {
    let stamp_ns = sys::boottime_ns();
    let (head, entries) = table::left_by_the_last(run_dir, boot_id)?;
    let until = Instant::now() + BOUND;
    let since = || super::run::micros(sys::boottime_ns() - stamp_ns);
    let kill_path = head.cgroup_path();
    let group = (!kill_path.is_empty()).then(|| Path::new(std::ffi::OsStr::from_bytes(kill_path)));
    if let Some(group) = group {
        // Fails if the group is gone, which is what is wanted.
        let _ = fs::write(group.join("cgroup.kill"), "1");
    }
    let killed = entries.iter().filter(|entry| kill(entry.process)).count() as u32;
    let kill_us = since();
    let remaining = entries.iter().filter(|entry| !wait_gone(entry.process, until)).count() as u32;
    let gone_us = since();
    let leases = entries.iter().filter(|entry| entry.lease_id != 0).count() as u32;
    (!entries.is_empty()).then(|| VacateRecord {
        id: random(),
        trigger: Trigger::KeeperStart,
        epoch: 0,
        job_id: 0,
        job_uid: 0,
        leases,
        processes: killed,
        remaining,
        memory_bytes: 0,
        steps_us: [0, kill_us, gone_us, gone_us, gone_us],
        stamp_ns,
        unix_ms: unix_ms(),
        boot_id,
    })
}

/// Whether the process still is the one that the table named, and not dead already.
fn lives(process: Process) -> bool {
    let stat = fs::read(format!("/proc/{}/stat", process.pid)).unwrap_or_default();
    parse_stat(&stat).is_some_and(|(state, start)| start == process.start && state != b'Z')
}

/// Kills a process if it still is the one that was named: the handle is opened first, so that what is checked is what
/// is killed.
fn kill(process: Process) -> bool {
    let Ok(pidfd) = sys::pidfd_open(process.pid) else { return false };
    let killed = lives(process) && sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL).is_ok();
    if let (true, Ok(proc_dir)) = (killed, fs::File::open("/proc")) {
        sys::hurry(proc_dir.as_fd(), process.pid);
    }
    killed
}

fn wait_gone(process: Process, until: Instant) -> bool {
    if let Ok(pidfd) = sys::pidfd_open(process.pid)
        && lives(process)
    {
        let mut waits = Waits::<1>::default();
        waits.push(pidfd.as_fd());
        let left = until.saturating_duration_since(Instant::now());
        let _ = waits.wait(Some(left.as_nanos() as u64));
    }
    !lives(process)
}
