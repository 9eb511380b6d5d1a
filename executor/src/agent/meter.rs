//! What a lease has used: the kernel's figures, and the worker's claims clamped to them.
//!
//! Called by [`super::node`] for heartbeats and at a lease's end. Allocated time is ours, CPU time the kernel's; the split
//! into executing and polling is the worker's word and never adds up to more than its CPU time.

use std::time::Duration;

use gleaner_proto::v1;
use nix::{time::clock_getcpuclockid, unistd::Pid};

use crate::board;

/// The kernel's figures of a lease's processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Kernel {
    pub(super) cpu_ns: u64,
    pub(super) memory_peak_bytes: u64,
}

/// The figures of a worker that lives. Zeros for one that does not.
pub(super) fn live(pid: u32) -> Kernel {
    let clock = clock_getcpuclockid(Pid::from_raw(pid as i32));
    let time = clock.and_then(|clock| clock.now()).map(Duration::from);
    Kernel {
        cpu_ns: time.map_or(0, |time| time.as_nanos() as u64),
        memory_peak_bytes: memory_peak(pid).unwrap_or(0),
    }
}

fn memory_peak(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

/// A lease's usage: `held` is for how long it had its `cores`.
pub(super) fn usage(cores: u32, held: Duration, kernel: Kernel, claims: board::Usage) -> v1::Usage {
    let allocated_core_ns = (held.as_nanos() as u64).saturating_mul(u64::from(cores));
    let cpu_ns = kernel.cpu_ns.min(allocated_core_ns);
    let executing_ns = claims.executing_ns.min(cpu_ns);
    let polling_ns = claims.polling_ns.min(cpu_ns - executing_ns);
    let Kernel { memory_peak_bytes, .. } = kernel;
    let calls = claims.calls;
    v1::Usage { allocated_core_ns, cpu_ns, executing_ns, polling_ns, calls, memory_peak_bytes }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn claims_never_exceed_cpu_time_nor_cpu_time_the_lease(cores in 1u32..64, held_ns in 0u64..1 << 50, cpu_ns: u64, executing_ns: u64, polling_ns: u64) {
            let kernel = Kernel { cpu_ns, memory_peak_bytes: 0 };
            let claims = board::Usage { calls: 1, executing_ns, polling_ns };
            let usage = usage(cores, Duration::from_nanos(held_ns), kernel, claims);
            prop_assert!(usage.executing_ns + usage.polling_ns <= usage.cpu_ns);
            prop_assert!(usage.cpu_ns <= usage.allocated_core_ns);
            prop_assert!(usage.cpu_ns <= cpu_ns);
        }
    }

    #[test]
    fn the_kernel_tells_a_living_process_its_time_and_memory() {
        let before = live(std::process::id());
        assert!(before.memory_peak_bytes > 0);
        let spun: u64 = (0..3_000_000u64).fold(1, |sum, n| std::hint::black_box(sum ^ n));
        assert!(live(std::process::id()).cpu_ns > before.cpu_ns, "{spun}");
        let beyond_pid_max = (1 << 22) + 1;
        assert_eq!(live(beyond_pid_max), Kernel::default());
    }
}
