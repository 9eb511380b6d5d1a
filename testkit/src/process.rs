//! Processes that tests start and look at: daemons in the foreground that die with us, and `/proc` as the witness.
//!
//! Used by the private Slurm and the Gleaner service. UNSAFETY: one `pre_exec` closure, which makes system calls only.

use std::{
    borrow::BorrowMut,
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Mutex, OnceLock,
        mpsc::{Sender, channel},
    },
    thread,
    time::Duration,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::{Pid, getppid, sethostname},
};

use crate::poll_until;

/// How long a killed process may take to be gone.
const GONE_BOUND: Duration = Duration::from_secs(5);

/// A daemon that runs in the foreground as our child, in its own process group. Killed on drop, and by the kernel
/// when we die.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
}

impl Daemon {
    /// Starts it. With `host_name`, in a UTS namespace of its own that has this name (needs root).
    pub fn start(name: &str, mut command: Command, host_name: Option<&str>) -> io::Result<Self> {
        let host_name = host_name.map(str::to_owned);
        let parent = Pid::this();
        command.stdin(Stdio::null()).process_group(0);
        // SAFETY: the closure runs in the forked child before exec and makes system calls only: no allocation
        // on the success path, no locks.
        unsafe {
            command.pre_exec(move || {
                prctl::set_pdeathsig(Signal::SIGKILL)?;
                if getppid() != parent {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                if let Some(host_name) = &host_name {
                    unshare(CloneFlags::CLONE_NEWUTS)?;
                    sethostname(host_name)?;
                }
                Ok(())
            });
        }
        Ok(Self { name: name.to_owned(), child: spawn_lasting(command)? })
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Sends it a signal; one that has ended takes it in silence.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.pid()), signal);
    }

    /// Stops it (`SIGSTOP`) and returns when the kernel says that it is stopped.
    pub fn stop(&self) {
        stop(self.pid());
    }

    /// Lets it go on.
    pub fn cont(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Kills it (`SIGKILL`) and reaps it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end (`SIGTERM`) and waits; `None` if it did not within `bound`.
    pub fn terminate(&mut self, bound: Duration) -> Option<ExitStatus> {
        self.signal(Signal::SIGTERM);
        self.wait(bound)
    }

    /// Waits for its end; `None` if it is not over within `bound`.
    pub fn wait(&mut self, bound: Duration) -> Option<ExitStatus> {
        let mut status = None;
        poll_until(bound, || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        });
        status
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.wait(Duration::ZERO).is_some()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Spawns from a thread that lives as long as the process: a parent-death signal comes when the *thread* that
/// forked ends, and test and runtime threads end early.
fn spawn_lasting(command: Command) -> io::Result<Child> {
    type Order = (Command, Sender<io::Result<Child>>);
    static ORDERS: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in inbox {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (answer, result) = channel();
    let sent = orders.lock().is_ok_and(|orders| orders.send((command, answer)).is_ok());
    let gone = || io::Error::other("the thread that starts daemons is gone");
    if sent { result.recv().map_err(|_| gone())? } else { Err(gone()) }
}

/// Where a program lies: on `PATH`, or where daemons are installed, which users' paths often lack.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// Runs a command to its end; kills it and says so when `bound` is over.
pub fn run_bounded(mut command: impl BorrowMut<Command>, bound: Duration) -> io::Result<Output> {
    use io::{Read, Seek};
    let command = command.borrow_mut();
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdin(Stdio::null()).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let mut child = command.spawn()?;
    let mut ended = None;
    let in_time = poll_until(bound, || {
        ended = child.try_wait().transpose();
        ended.is_some()
    });
    if !in_time {
        child.kill()?;
        child.wait()?;
        let message = format!("{command:?} did not end within {bound:?}");
        return Err(io::Error::new(io::ErrorKind::TimedOut, message));
    }
    let status = ended.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))?;
    let mut output = Output { status, stdout: Vec::new(), stderr: Vec::new() };
    for (file, bytes) in [(&mut stdout, &mut output.stdout), (&mut stderr, &mut output.stderr)] {
        file.rewind()?;
        file.read_to_end(bytes)?;
    }
    Ok(output)
}

/// Whether the process runs: neither gone nor a zombie.
pub fn is_alive(pid: i32) -> bool {
    !matches!(state(pid), None | Some('Z' | 'X'))
}

/// The process's state letter (`R`, `S`, `T`, `Z`, ...), `None` when there is no such process.
pub fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Stops a process and returns when the kernel says so.
#[track_caller]
pub fn stop(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
    crate::wait_until(format_args!("process {pid} is stopped"), GONE_BOUND, || {
        matches!(state(pid), None | Some('T' | 'Z'))
    });
}

/// Lets a stopped process go on.
pub fn cont(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
}

/// Kills processes and waits until none is alive; returns those that still are after a while.
pub fn kill_all(pids: &[i32]) -> Vec<i32> {
    for &pid in pids {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    poll_until(GONE_BOUND, || !pids.iter().any(|&pid| is_alive(pid)));
    pids.iter().copied().filter(|&pid| is_alive(pid)).collect()
}

/// Living processes, other than this one, whose environment or command line mentions `path`, by the kernel's word.
pub fn mentioning(path: &Path) -> Vec<i32> {
    let needle = path.as_os_str();
    let own = std::process::id() as i32;
    all_pids()
        .into_iter()
        .filter(|&pid| pid != own && is_alive(pid))
        .filter(|pid| {
            ["environ", "cmdline"].iter().any(|file| {
                fs::read(format!("/proc/{pid}/{file}")).is_ok_and(|text| contains(&text, needle))
            })
        })
        .collect()
}

/// The living children of a process.
pub fn children(pid: i32) -> Vec<i32> {
    all_pids().into_iter().filter(|&child| is_alive(child) && parent(child) == Some(pid)).collect()
}

/// The process's command line, its arguments joined by blanks.
pub fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn all_pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn contains(text: &[u8], needle: &OsStr) -> bool {
    let needle = needle.as_bytes();
    text.windows(needle.len().max(1)).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_outlives_the_thread_that_started_it_and_not_its_owner() {
        let start = || {
            let mut command = Command::new("sleep");
            command.arg("1000");
            Daemon::start("sleep", command, None).unwrap()
        };
        let daemon = thread::spawn(start).join().unwrap();
        let pid = daemon.pid();
        assert!(!poll_until(Duration::from_millis(50), || !is_alive(pid)));
        daemon.stop();
        assert_eq!(state(pid), Some('T'));
        drop(daemon);
        assert!(!is_alive(pid));
    }

    #[test]
    fn a_command_that_hangs_is_killed() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let error = run_bounded(command, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
