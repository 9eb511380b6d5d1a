//! The worker's system-call filter: what foreign code may ask of the kernel. Built and applied by
//! [`sandbox`](super::sandbox) alone.
//!
//! An allow-list. What is not on it fails with EPERM; `clone3`, whose flags a filter cannot read, with ENOSYS, so that
//! glibc falls back to `clone`. Threads, memory, the given descriptors, reading files and one's own signals are there;
//! processes, programs, sockets, other processes, clocks and limits are not. A worker that serves clients by RDMA may also
//! ask its open device for verbs.

use std::os::fd::RawFd;

use libc::{c_int, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op,
    SeccompCondition as Condition, SeccompFilter, SeccompRule, TargetArch,
};

/// Why the filter could not be built or applied.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It was not built.
    #[error("building the system-call filter: {0}")]
    Build(#[from] seccompiler::BackendError),
    /// The kernel did not take it.
    #[error("applying the system-call filter: {0}; a kernel with CONFIG_SECCOMP_FILTER is needed")]
    Apply(#[from] seccompiler::Error),
}

/// Calls without a condition, on every architecture.
const PLAIN: &[c_long] = &[
    // memory
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mlock,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munlock,
    libc::SYS_munmap,
    // threads, time, own signals
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_getcpu,
    libc::SYS_getrandom,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    libc::SYS_times,
    // who and where am I
    libc::SYS_getcwd,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // files that are open, and looking at others
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_eventfd2,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_write,
    libc::SYS_writev,
    // given sockets, and waiting
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    // With an address or without: `sendmsg` takes one too, and its a filter cannot see.
    libc::SYS_sendto,
    libc::SYS_shutdown,
];

/// The older names that only x86-64 has.
#[cfg(target_arch = "x86_64")]
const PLAIN_HERE: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const PLAIN_HERE: &[c_long] = &[];

/// Flags of `open` that change something; `__O_TMPFILE` alone, since `O_TMPFILE` contains `O_DIRECTORY`.
const OPEN_CHANGES: c_int = libc::O_ACCMODE
    | libc::O_CREAT
    | libc::O_TRUNC
    | libc::O_APPEND
    | (libc::O_TMPFILE & !libc::O_DIRECTORY);

/// What `clone` must have to make a thread, and must not have to make anything else.
const THREAD: c_int = libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND;
const NAMESPACES: c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// `PR_SET_VMA`: glibc and others name their mappings by it.
const PR_SET_VMA: c_int = 0x5356_4d41;

/// Condition: argument `index` equals `value`, all 64 bits of it.
fn is(index: u8, value: u64) -> Result<Condition, seccompiler::BackendError> {
    Condition::new(index, Len::Qword, Op::Eq, value)
}

/// Condition: the low 32 bits of argument `index`, under `mask`, equal `value`. The kernel reads an int the same way.
fn bits(index: u8, mask: c_int, value: c_int) -> Result<Condition, seccompiler::BackendError> {
    Condition::new(index, Len::Dword, Op::MaskedEq(u64::from(mask as u32)), u64::from(value as u32))
}

/// Condition: argument `index`, an int, equals `value`.
fn int(index: u8, value: c_int) -> Result<Condition, seccompiler::BackendError> {
    Condition::new(index, Len::Dword, Op::Eq, u64::from(value as u32))
}

type Rules = Vec<(c_long, Vec<SeccompRule>)>;

/// One rule of one or more conditions that must all hold.
fn rule<const N: usize>(
    conditions: [Result<Condition, seccompiler::BackendError>; N],
) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(conditions.into_iter().collect::<Result<_, _>>()?)
}

/// What set-up and tear-down of RDMA objects ask of their device: `RDMA_VERBS_IOCTL`.
const RDMA_VERBS_IOCTL: u64 = 0xc018_1b01;

/// Calls that are allowed with some arguments only. `tgid` is the worker's own, as it sees itself; `verbs` its RDMA device,
/// if it has one.
fn conditional(tgid: u32, verbs: Option<RawFd>) -> Result<Rules, seccompiler::BackendError> {
    let either = |index, values: &[c_int]| -> Result<Vec<_>, seccompiler::BackendError> {
        values.iter().map(|&value| rule([int(index, value)])).collect()
    };
    let descriptor = [
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
        libc::F_DUPFD_CLOEXEC,
        libc::F_GET_SEALS,
    ];
    let request = [libc::FIONBIO as c_int, libc::FIONREAD as c_int, libc::TCGETS as c_int];
    let named = [libc::PR_SET_NAME, libc::PR_GET_NAME, PR_SET_VMA];
    let tcp = [libc::TCP_NODELAY, libc::TCP_QUICKACK];
    let tcp = tcp.map(|option| rule([int(1, libc::IPPROTO_TCP), int(2, option)]));
    let mut ioctl = either(1, &request)?;
    if let Some(device) = verbs {
        ioctl.push(rule([int(0, device), is(1, RDMA_VERBS_IOCTL)])?);
    }
    Ok(vec![
        (libc::SYS_clone, vec![rule([bits(0, THREAD | NAMESPACES, THREAD)])?]),
        (libc::SYS_tgkill, vec![rule([int(0, tgid as c_int)])?]),
        (libc::SYS_openat, vec![rule([bits(2, OPEN_CHANGES, libc::O_RDONLY)])?]),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_open, vec![rule([bits(1, OPEN_CHANGES, libc::O_RDONLY)])?]),
        (libc::SYS_fcntl, either(1, &descriptor)?),
        (libc::SYS_ioctl, ioctl),
        (libc::SYS_prctl, either(0, &named)?),
        (libc::SYS_prlimit64, vec![rule([int(0, 0), is(2, 0)])?]),
        // Into the idle class and never out of it: the sandbox's own last step.
        (libc::SYS_sched_setscheduler, vec![rule([int(0, 0), int(1, libc::SCHED_IDLE)])?]),
        (libc::SYS_setsockopt, tcp.into_iter().collect::<Result<_, _>>()?),
    ])
}

/// The two programs: the allow-list, and the one that gives `clone3` its own error. Takes 100 µs or so: build it while
/// the worker waits.
pub(super) fn build(tgid: u32, verbs: Option<RawFd>) -> Result<[BpfProgram; 2], FilterError> {
    let here = TargetArch::try_from(std::env::consts::ARCH)?;
    let plain = PLAIN.iter().chain(PLAIN_HERE).chain(&[libc::SYS_clone3]);
    let mut rules: Rules = plain.map(|&call| (call, Vec::new())).collect();
    rules.extend(conditional(tgid, verbs)?);
    let denied = SeccompAction::Errno(libc::EPERM as u32);
    let list = SeccompFilter::new(rules.into_iter().collect(), denied, SeccompAction::Allow, here)?;
    let clone3 = [(libc::SYS_clone3, Vec::new())].into_iter().collect();
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    let clone3 = SeccompFilter::new(clone3, SeccompAction::Allow, absent, here)?;
    Ok([clone3.try_into()?, list.try_into()?])
}

/// Puts every thread of this process under both programs, for good.
pub(super) fn apply(programs: &[BpfProgram; 2]) -> Result<(), FilterError> {
    // The allow-list last: it forbids `seccomp` itself.
    for program in programs {
        seccompiler::apply_filter_all_threads(program)?;
    }
    Ok(())
}
