//! The baseline of a vacate: plain processes that hold memory and spin, and a plain parent that ends them all at once.
//!
//! Each is this program again, so that it has nothing of its parent's and no more than it was told to hold. They spin in the
//! idle class, pinned by turns, as workers do. Their parent kills them by signal and lets them die in the ordinary class:
//! whoever leaves them in the idle class waits for those that spin beside them.
// UNSAFETY: a thread's class has no safe wrapper.
#![allow(unsafe_code)]

use std::{
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use gleaner_fabric::region::Region;
use nix::{
    sys::{
        prctl::set_pdeathsig,
        signal::{Signal, kill},
    },
    unistd::Pid,
};

use crate::{
    pidfd::{open, wait_ended},
    stage::pin,
};

/// The first word of a member's command line.
const MEMBER: &str = "member";

/// Processes that hold memory and spin.
pub struct Crowd(Vec<Member>);

struct Member {
    child: Child,
    end: OwnedFd,
}

impl Crowd {
    /// Starts so many, spread over so many CPUs; returns when each holds its bytes.
    pub fn gather(members: u32, cpus: usize, held_bytes: u64) -> Result<Self> {
        let start = |number| Member::start(number as usize % cpus, held_bytes);
        let mut crowd = Self((0..members).map(start).collect::<Result<_>>()?);
        crowd.0.iter_mut().try_for_each(Member::wait_filled)?;
        Ok(crowd)
    }

    /// Kills all; returns how long it took from there to the end of the last.
    pub fn end(mut self) -> Result<Duration> {
        let began = Instant::now();
        self.0.iter().try_for_each(Member::kill)?;
        self.0.iter().for_each(|member| set_class(member.pid(), libc::SCHED_OTHER));
        wait_ended(self.0.iter().map(|member| member.end.as_fd()))?;
        let took = began.elapsed();
        self.0.iter_mut().try_for_each(|member| member.child.wait().map(drop))?;
        Ok(took)
    }
}

impl Member {
    fn start(cpu: usize, held_bytes: u64) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([MEMBER.to_owned(), cpu.to_string(), held_bytes.to_string()]);
        let child = command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let child = child.context("start a plain process")?;
        let end = open(child.id() as i32)?;
        Ok(Self { child, end })
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    fn wait_filled(&mut self) -> Result<()> {
        let stdout = self.child.stdout.as_mut().context("it was started without a pipe")?;
        stdout.read_exact(&mut [0]).context("a plain process did not take its memory")
    }

    /// Its parent has not waited for it: the pid is its own.
    fn kill(&self) -> Result<()> {
        kill(self.pid(), Signal::SIGKILL).context("kill a plain process")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Is a member of a crowd, if this process was started as one: then it does not return.
pub fn join() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_none_or(|word| word != MEMBER) {
        return Ok(());
    }
    let [_, cpu, held_bytes] = &words[..] else { bail!("a member is not started by hand") };
    set_pdeathsig(Signal::SIGKILL).context("die with the parent")?;
    pin(cpu.parse()?)?;
    set_class(Pid::from_raw(0), libc::SCHED_IDLE);
    let held = hold(held_bytes.parse()?)?;
    let mut parent = io::stdout();
    parent.write_all(&[1]).and_then(|()| parent.flush()).context("tell the parent")?;
    loop {
        std::hint::black_box(&held);
        std::hint::spin_loop();
    }
}

/// Takes so many bytes, in huge pages where the system gives them.
fn hold(bytes: usize) -> Result<Region> {
    let mut held = Region::anonymous(bytes).context("take memory")?;
    held.advise_huge(0);
    if bytes > 0 {
        held.bytes_mut().fill(1);
    }
    Ok(held)
}

/// One that is gone has no class.
fn set_class(thread: Pid, class: libc::c_int) {
    let parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call reads `parameter` only.
    unsafe { libc::sched_setscheduler(thread.as_raw(), class, &parameter) };
}
