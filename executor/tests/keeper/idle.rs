//! Workers give way to everything else that runs on the machine, whatever session or group it is in.

use std::{
    fs,
    process::{Child, Command},
    time::Duration,
};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::support::{Bench, until};

/// CPU time that the batch job must have had before the two are compared.
const ENOUGH: Duration = Duration::from_millis(400);

/// A process of somebody else's session that wants a whole CPU.
struct Busy(Child);

impl Busy {
    fn start() -> Self {
        Self(Command::new("setsid").args(["sh", "-c", "while :; do :; done"]).spawn().unwrap())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The CPU time of all its threads, by the kernel's word.
fn cpu_time(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |task: fs::DirEntry| -> u64 {
        let schedstat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        schedstat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
    };
    Duration::from_nanos(tasks.flatten().map(of).sum())
}

fn pin(pid: u32, cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).unwrap();
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let thread = task.file_name().to_str().unwrap().parse().unwrap();
        sched_setaffinity(Pid::from_raw(thread), &set).unwrap();
    }
}

pub(crate) fn ordinary_processes_come_first() {
    let bench = Bench::start();
    let worker = bench.leased();
    worker.ask("spin");
    let busy = Busy::start();
    let (ours, theirs) = (worker.process.pid, busy.0.id());
    pin(ours, 0);
    pin(theirs, 0);
    // Until its program has been loaded, which takes long in a guest, nobody wants the CPU.
    let runs_for = |time: Duration| {
        let before = cpu_time(theirs);
        until("the batch job has had its time", || {
            (cpu_time(theirs) - before > time).then_some(())
        });
    };
    runs_for(ENOUGH / 10);
    let ours_before = cpu_time(ours);
    runs_for(ENOUGH);
    let taken = cpu_time(ours) - ours_before;
    // An equal would take as much. An emulated CPU is late to interrupt who runs.
    assert!(taken < ENOUGH / 4, "the worker took {taken:?} beside {ENOUGH:?}");
}
