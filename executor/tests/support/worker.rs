//! A worker that confines itself as a real one does, and then tries what the test tells it to.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, Thread},
    time::Duration,
};

use gleaner_executor::{
    sys::{self, Waits},
    worker::sandbox,
};
use gleaner_proto::workers::Process;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use super::until;

const TEXT_MAX: usize = 512;

/// Whether the lanes spin.
static SPIN: AtomicBool = AtomicBool::new(false);

/// The test's end of a worker.
pub(crate) struct Remote {
    pub(crate) process: Process,
    socket: OwnedFd,
}

impl Remote {
    pub(crate) fn new(process: Process, socket: OwnedFd) -> Self {
        Self { process, socket }
    }

    /// Tells it to do something that it does not answer.
    pub(crate) fn tell(&self, text: &str) {
        sys::send_with_fd(self.socket.as_fd(), text.as_bytes(), None).unwrap();
    }

    /// Tells it to do something; returns what came of it.
    pub(crate) fn ask(&self, text: &str) -> String {
        self.tell(text);
        until(text, || {
            let mut bytes = [0; TEXT_MAX];
            match sys::recv_with_fd(self.socket.as_fd(), &mut bytes) {
                Ok((len, _)) => Some(String::from_utf8_lossy(&bytes[..len]).into_owned()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
                Err(error) => panic!("{text}: {error}"),
            }
        })
    }
}

/// The worker process.
pub(crate) fn run() -> ! {
    let keeper = sys::inherited(3).unwrap();
    let agent = sys::inherited(4).unwrap();
    let Ok(confined) = sandbox::enter(keeper, None, |_| lanes()) else { std::process::exit(1) };
    let lanes = confined.prepared;
    loop {
        let mut waits = Waits::<1>::default();
        waits.push(agent.as_fd());
        waits.wait(None).unwrap();
        let mut bytes = [0; TEXT_MAX];
        match sys::recv_with_fd(agent.as_fd(), &mut bytes) {
            Ok((0, _)) => wait_for_ever(),
            Ok((len, _)) => {
                let text = String::from_utf8_lossy(&bytes[..len]).into_owned();
                let answer = obey(&text, &lanes);
                sys::send_with_fd(agent.as_fd(), answer.as_bytes(), None).unwrap();
            }
            Err(_) => {}
        }
    }
}

/// A thread for each CPU, tied to it and in the idle class as a real worker's are, that waits to be told to spin.
fn lanes() -> io::Result<Vec<Thread>> {
    let cpus = sched_getaffinity(Pid::from_raw(0))?;
    let lane = |cpu| -> io::Result<Thread> {
        let mut own = CpuSet::new();
        own.set(cpu)?;
        let (tell, ready) = mpsc::channel();
        let spawned = thread::Builder::new().spawn(move || {
            sched_setaffinity(Pid::from_raw(0), &own).unwrap();
            sys::become_idle().unwrap();
            tell.send(()).unwrap();
            while !SPIN.load(Ordering::Relaxed) {
                thread::park();
            }
            loop {
                std::hint::spin_loop();
            }
        });
        let thread = spawned?.thread().clone();
        // The filter that follows would deny it what it does first.
        ready.recv().map_err(io::Error::other)?;
        Ok(thread)
    };
    (0..CpuSet::count()).filter(|&cpu| cpus.is_set(cpu).unwrap_or(false)).map(lane).collect()
}

/// An agent that closed its end is no reason to go: only the keeper ends a worker.
fn wait_for_ever() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

fn obey(text: &str, lanes: &[Thread]) -> String {
    let mut words = text.split(' ');
    let verb = words.next().unwrap_or_default();
    let number = words.next().and_then(|word| word.parse::<i64>().ok()).unwrap_or(0);
    match verb {
        "ids" => {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let wanted = ["Uid", "Gid", "Groups", "CapEff", "NoNewPrivs", "Seccomp"];
            let lines =
                status.lines().filter(|line| wanted.iter().any(|key| line.starts_with(key)));
            lines.collect::<Vec<_>>().join(" ").replace('\t', " ")
        }
        "environment" => std::env::vars().count().to_string(),
        "spin" => {
            SPIN.store(true, Ordering::Relaxed);
            lanes.iter().for_each(Thread::unpark);
            "spins".to_owned()
        }
        "thread" => std::thread::spawn(|| "ran".to_owned()).join().unwrap(),
        "allocate" => {
            // Each page is touched, else the kernel gives none.
            let mut held = vec![0u8; number as usize];
            held.chunks_mut(4096).for_each(|page| page[0] = 1);
            held.iter().map(|&byte| u64::from(byte)).sum::<u64>().to_string()
        }
        "reserve" => {
            let mut held = Vec::<u8>::new();
            format!("{}", held.try_reserve_exact(number as usize).is_ok())
        }
        "exit" => std::process::exit(number as i32),
        "crash" => std::process::abort(),
        _ => attempt(verb, number),
    }
}

/// One system call: `0` or the error's number.
fn attempt(verb: &str, number: i64) -> String {
    let path = c"/tmp/gleaner-sandbox-test";
    // SAFETY: calls of a test process with constants and NUL-terminated texts; what succeeds is what the test is about.
    let result = unsafe {
        match verb {
            "fork" => i64::from(forked()),
            "vfork-like" => {
                libc::syscall(libc::SYS_clone, libc::CLONE_VM | libc::SIGCHLD, 0, 0, 0, 0)
            }
            "namespace" => i64::from(libc::unshare(libc::CLONE_NEWUSER)),
            "exec" => {
                let program = CString::new("/bin/true").unwrap();
                let words = [program.as_ptr(), std::ptr::null()];
                i64::from(libc::execv(program.as_ptr(), words.as_ptr()))
            }
            "socket" => i64::from(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0)),
            "socketpair" => {
                let mut fds = [0; 2];
                i64::from(libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, fds.as_mut_ptr()))
            }
            "kill" => i64::from(libc::kill(number as i32, 0)),
            "tgkill-other" => libc::syscall(libc::SYS_tgkill, number, number, 0),
            "tgkill-self" => {
                libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::syscall(libc::SYS_gettid), 0)
            }
            "ptrace" => libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0),
            "setuid" => i64::from(libc::setuid(0)),
            "deathsig" => i64::from(libc::prctl(libc::PR_SET_PDEATHSIG, 0)),
            "dumpable" => i64::from(libc::prctl(libc::PR_SET_DUMPABLE, 1)),
            "priority" => i64::from(libc::setpriority(libc::PRIO_PROCESS, 0, 0)),
            "class" => {
                let parameter: libc::sched_param = std::mem::zeroed();
                i64::from(libc::sched_setscheduler(0, libc::SCHED_OTHER, &parameter))
            }
            "affinity" => libc::syscall(libc::SYS_sched_setaffinity, 0, 0, 0),
            "raise-limit" => {
                let limit = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
                i64::from(libc::setrlimit(libc::RLIMIT_CORE, &limit))
            }
            "read-limit" => {
                let mut limit = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
                i64::from(libc::getrlimit(libc::RLIMIT_CORE, &mut limit))
            }
            "create" => i64::from(libc::open(path.as_ptr(), libc::O_CREAT | libc::O_WRONLY, 0o600)),
            "temporary" => {
                i64::from(libc::open(c"/tmp".as_ptr(), libc::O_TMPFILE | libc::O_RDWR, 0o600))
            }
            "write-open" => i64::from(libc::open(c"/dev/null".as_ptr(), libc::O_WRONLY)),
            "read-open" => i64::from(libc::open(c"/etc/hostname".as_ptr(), libc::O_RDONLY)),
            "unlink" => i64::from(libc::unlink(path.as_ptr())),
            "memfd" => i64::from(libc::memfd_create(path.as_ptr(), 0)),
            "io-uring" => libc::syscall(libc::SYS_io_uring_setup, 8, 0),
            "bpf" => libc::syscall(libc::SYS_bpf, 0, 0, 0),
            "keyctl" => libc::syscall(libc::SYS_keyctl, 0, 0, 0),
            "clone3" => libc::syscall(libc::SYS_clone3, 0, 0),
            "process-vm" => libc::syscall(libc::SYS_process_vm_readv, number, 0, 0, 0, 0, 0),
            "set-owner" => i64::from(libc::fcntl(4, libc::F_SETOWN, number as i32)),
            // RDMA_VERBS_IOCTL, which a worker with a device may ask of that alone.
            "verbs" => i64::from(libc::ioctl(4, 0xc018_1b01, 0)),
            "print" => i64::from(libc::puts(c"to nowhere".as_ptr())).min(0),
            "dlopen" => {
                let library = libc::dlopen(c"libm.so.6".as_ptr(), libc::RTLD_NOW);
                if library.is_null() { -1 } else { 0 }
            }
            other => panic!("{other} is no order"),
        }
    };
    if result >= 0 {
        return "0".to_owned();
    }
    let name = nix::errno::Errno::last();
    format!("{name:?}")
}

/// A child that got away would answer in this worker's name: it spins instead, and must be killed with it.
///
/// # Safety
/// None beyond `fork`'s: the child does nothing.
unsafe fn forked() -> libc::pid_t {
    // SAFETY: the child makes no call.
    match unsafe { libc::fork() } {
        0 => loop {
            std::hint::spin_loop();
        },
        result => result,
    }
}
