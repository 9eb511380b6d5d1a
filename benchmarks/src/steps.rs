//! Counting instructions by stepping: two threads that answer each other are let run by turns, one instruction at a time, each
//! until it has posted its next message. So each finds the other's message at its first look, and no spinning is counted: what
//! an end takes from one of its messages to its next is its share of a round trip, from taking a message to asking for the next.
//!
//! Works on processes as they are, whatever their sandbox admits. An instruction that repeats itself counts once, as the
//! processor counts it.
// UNSAFETY: ptrace is a system call with numbers for arguments; none of those used here is an address of this process.
#![allow(unsafe_code)]

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::Pid,
};

/// Where a stopped thread's registers hold the address of its next instruction.
#[cfg(target_arch = "x86_64")]
const PROGRAM_COUNTER: Option<usize> = Some(std::mem::offset_of!(libc::user_regs_struct, rip));
#[cfg(not(target_arch = "x86_64"))]
const PROGRAM_COUNTER: Option<usize> = None;
/// More than any end takes for one message.
const STEPS_MAX: u64 = 1_000_000;

/// The places in which one end's messages leave their numbers: each is the address of a word, which holds the message's number
/// once it is posted. Numbers begin with 1.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    /// The place of message 0, if there were one.
    pub first: u64,
    /// Bytes from one place to the next.
    pub stride: u64,
    /// Places, a power of two; then it begins anew.
    pub count: u32,
}

/// One of the two ends: a thread, and where it posts.
struct End {
    thread: Thread,
    places: Places,
    posted: u32,
}

/// Two threads in lock step. Dropped: they run again.
pub struct LockStep {
    client: End,
    worker: End,
    memory: File,
}

/// Whether threads can be stepped on this kind of processor.
pub fn are_counted_here() -> bool {
    PROGRAM_COUNTER.is_some()
}

/// What each end took for one round trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trip {
    /// The client's instructions.
    pub client: u64,
    /// The worker's.
    pub worker: u64,
}

impl Trip {
    /// Both.
    pub fn both(self) -> u64 {
        self.client + self.worker
    }
}

impl LockStep {
    /// Stops two threads that call each other without a pause, and brings them in step. The memory is read in process `pid`,
    /// by whose addresses the places go.
    pub fn begin(pid: i32, client: (i32, Places), worker: (i32, Places)) -> Result<Self> {
        let memory = memory(pid)?;
        // Both at once, or a hot end that looks in vain falls asleep.
        let threads = (Thread::seize(client.0)?, Thread::seize(worker.0)?);
        let end = |thread, places| Ok(End { thread, places, posted: latest(&memory, places)? });
        let (client, worker): (Result<_>, Result<_>) =
            (end(threads.0, client.1), end(threads.1, worker.1));
        let mut both = Self { client: client?, worker: worker?, memory };
        if both.client.posted != both.worker.posted {
            both.worker.post(&both.memory, &mut |_| {})?;
        }
        ensure!(both.client.posted == both.worker.posted, "more than one message is under way");
        Ok(both)
    }

    /// One round trip. `see` is told each instruction's address, and whether it is the client's.
    pub fn trip(&mut self, mut see: impl FnMut(bool, u64)) -> Result<Trip> {
        let client = self.client.post(&self.memory, &mut |at| see(true, at))?;
        let worker = self.worker.post(&self.memory, &mut |at| see(false, at))?;
        Ok(Trip { client, worker })
    }
}

impl End {
    /// Runs until the next message is posted; returns the instructions that this took.
    fn post(&mut self, memory: &File, see: &mut dyn FnMut(u64)) -> Result<u64> {
        let next = self.posted.wrapping_add(1);
        let place = self.places.of(next);
        let (mut steps, mut last) = (0, 0);
        while word(memory, place)? != next {
            let at = self.thread.at()?;
            if at != last {
                see(at);
                steps += 1;
            }
            last = at;
            ensure!(steps < STEPS_MAX, "thread {} posts nothing", self.thread.id);
            self.thread.step()?;
        }
        self.posted = next;
        Ok(steps)
    }
}

impl Places {
    fn of(self, number: u32) -> u64 {
        self.first + u64::from(number & (self.count - 1)) * self.stride
    }
}

/// The number of the last message that a process has posted to these places.
pub fn posted(pid: i32, places: Places) -> Result<u32> {
    latest(&memory(pid)?, places)
}

fn memory(pid: i32) -> Result<File> {
    let path = format!("/proc/{pid}/mem");
    File::open(&path).with_context(|| format!("open {path}"))
}

fn latest(memory: &File, places: Places) -> Result<u32> {
    let numbers = (0..places.count).map(|number| word(memory, places.of(number)));
    let numbers: Vec<u32> = numbers.collect::<Result<_>>()?;
    numbers.into_iter().max().context("no place for messages")
}

fn word(memory: &File, at: u64) -> Result<u32> {
    let mut bytes = [0; 4];
    memory.read_exact_at(&mut bytes, at).context("read the other process's memory")?;
    Ok(u32::from_le_bytes(bytes))
}

/// A thread that is stopped and stepped. Dropped: it runs again.
struct Thread {
    id: Pid,
}

impl Thread {
    fn seize(id: i32) -> Result<Self> {
        let id = Pid::from_raw(id);
        ask(libc::PTRACE_SEIZE, id, 0, 0).with_context(|| format!("trace thread {id}"))?;
        ask(libc::PTRACE_INTERRUPT, id, 0, 0).with_context(|| format!("stop thread {id}"))?;
        let thread = Self { id };
        thread.stopped()?;
        Ok(thread)
    }

    /// One instruction, or one turn of one that repeats itself.
    fn step(&self) -> Result<()> {
        ask(libc::PTRACE_SINGLESTEP, self.id, 0, 0)
            .with_context(|| format!("step thread {}", self.id))?;
        self.stopped()
    }

    /// The address of its next instruction.
    fn at(&self) -> Result<u64> {
        let place = PROGRAM_COUNTER.context("this processor's registers are not known")?;
        let at = ask(libc::PTRACE_PEEKUSER, self.id, place, 0);
        Ok(at.with_context(|| format!("read a register of thread {}", self.id))? as u64)
    }

    fn stopped(&self) -> Result<()> {
        loop {
            match waitpid(self.id, Some(WaitPidFlag::__WALL)) {
                Ok(WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..)) => return Ok(()),
                Ok(other) => bail!("thread {} is no more: {other:?}", self.id),
                Err(Errno::EINTR) => {}
                Err(error) => bail!("wait for thread {}: {error}", self.id),
            }
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        let _ = ask(libc::PTRACE_DETACH, self.id, 0, 0);
    }
}

fn ask(request: libc::c_uint, thread: Pid, address: usize, data: usize) -> nix::Result<i64> {
    Errno::clear();
    // SAFETY: of these requests none writes to this process's memory: SEIZE, INTERRUPT, SINGLESTEP and DETACH take numbers,
    // and PEEKUSER's answer is what the C library returns.
    let answer = unsafe { libc::ptrace(request, thread.as_raw(), address, data) };
    match (answer, Errno::last_raw()) {
        (-1, error) if error != 0 => Err(Errno::from_raw(error)),
        _ => Ok(answer),
    }
}

/// Where a process has mapped the start of the memory file of this name.
pub fn mapped(pid: i32, file: &str) -> Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("read its mappings")?;
    let of_file = maps.lines().filter(|line| line.contains(&format!("/memfd:{file}")));
    let starts = of_file.filter_map(|line| {
        let mut words = line.split_whitespace();
        let (range, offset) = (words.next()?, words.nth(1)?);
        let start = u64::from_str_radix(range.split('-').next()?, 16).ok()?;
        (u64::from_str_radix(offset, 16) == Ok(0)).then_some(start)
    });
    let starts: Vec<u64> = starts.collect();
    ensure!(starts.len() == 1, "process {pid} maps {file} {} times", starts.len());
    Ok(starts[0])
}

/// The threads of a process, by name.
pub fn threads(pid: i32) -> Result<Vec<(String, i32)>> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("read its threads")? {
        let path = task?.path();
        let name = fs::read_to_string(path.join("comm")).context("read a thread's name")?;
        let id = path.file_name().and_then(|id| id.to_str()).and_then(|id| id.parse().ok());
        found.push((name.trim().to_owned(), id.context("a thread's number")?));
    }
    Ok(found)
}
