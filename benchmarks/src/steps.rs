//! Counting instructions by stepping: two threads that answer each other are let run by turns, one instruction at a time, each
//! until it has posted its next message. So each finds the other's message at its first look, and no spinning is counted: what
//! an end takes from one of its messages to its next is its share of a round trip, from taking a message to asking for the next.
//! A message is posted once its number lies in shared memory; or once a system call has sent it: over a socket, or by telling a device,
//! as Soft-RoCE is told.
//!
//! Works on processes as they are, whatever their sandbox admits. An instruction that repeats itself counts once, as the
//! processor counts it.
// UNSAFETY: ptrace is a system call with numbers for arguments; none of those used here is an address of this process.
#![allow(unsafe_code)]

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::Pid,
};

/// Where a stopped thread's registers are: the address of its next instruction; a system call's number and first argument.
struct Registers {
    address: usize,
    call: usize,
    argument: usize,
}

#[cfg(target_arch = "x86_64")]
const REGISTERS: Option<Registers> = Some(Registers {
    address: std::mem::offset_of!(libc::user_regs_struct, rip),
    call: std::mem::offset_of!(libc::user_regs_struct, rax),
    argument: std::mem::offset_of!(libc::user_regs_struct, rdi),
});
#[cfg(not(target_arch = "x86_64"))]
const REGISTERS: Option<Registers> = None;
/// More than any end takes for one message.
const STEPS_MAX: u64 = 100_000;
/// Longer than a message takes through a socket or a device.
const ON_ITS_WAY: Duration = Duration::from_millis(1);
/// A system call, as the processor reads it.
const SYSCALL: i64 = 0x050f;

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

/// One of the two ends: a thread, and how one sees that it has posted.
struct End {
    thread: Thread,
    posts: Posts,
}

enum Posts {
    /// Its messages leave their numbers in memory; so many have.
    Numbers { memory: File, places: Places, posted: u32 },
    /// It sends them by a system call on one descriptor: that of the first one.
    BySystemCall(Option<i64>),
}

/// Two threads in lock step. Dropped: they run again.
pub struct LockStep {
    client: End,
    worker: End,
}

/// Whether threads can be stepped on this kind of processor.
pub fn are_counted_here() -> bool {
    REGISTERS.is_some()
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
    /// Stops two threads that call each other over shared memory without a pause, and brings them in step. The memory is read in
    /// process `pid`, by whose addresses the places go.
    pub fn over_memory(pid: i32, client: (i32, Places), worker: (i32, Places)) -> Result<Self> {
        // Both at once, or a hot end that looks in vain falls asleep.
        let threads = (Thread::seize(client.0)?, Thread::seize(worker.0)?);
        let end = |thread, places| -> Result<(End, u32)> {
            let memory = memory(pid)?;
            let posted = latest(&memory, places)?;
            Ok((End { thread, posts: Posts::Numbers { memory, places, posted } }, posted))
        };
        let ((client, asked), (mut worker, answered)) =
            (end(threads.0, client.1)?, end(threads.1, worker.1)?);
        if asked != answered {
            ensure!(asked == answered.wrapping_add(1), "more than one message is under way");
            worker.post(&mut |_| {})?;
        }
        Ok(Self { client, worker })
    }

    /// The same of two threads that call each other by system calls. It begins in the middle of a trip.
    pub fn by_system_calls(client: i32, worker: i32) -> Result<Self> {
        let client = Thread::seize(client)?;
        // The other answers what is under way.
        thread::sleep(ON_ITS_WAY);
        let worker = Thread::seize(worker)?;
        let end = |thread| End { thread, posts: Posts::BySystemCall(None) };
        Ok(Self { client: end(client), worker: end(worker) })
    }

    /// One round trip. `see` is told each instruction's address, and whether it is the client's.
    pub fn trip(&mut self, mut see: impl FnMut(bool, u64)) -> Result<Trip> {
        let client = self.client.post(&mut |at| see(true, at))?;
        let worker = self.worker.post(&mut |at| see(false, at))?;
        Ok(Trip { client, worker })
    }
}

impl End {
    /// Runs until the next message is posted; returns the instructions that this took.
    fn post(&mut self, see: &mut dyn FnMut(u64)) -> Result<u64> {
        let (mut steps, mut last) = (0, 0);
        loop {
            let at = self.thread.at()?;
            if at != last {
                see(at);
                steps += 1;
            }
            last = at;
            ensure!(steps < STEPS_MAX, "thread {} posts nothing", self.thread.id);
            let sends = self.sends(at)?;
            self.thread.step()?;
            if sends || self.has_numbered()? {
                break;
            }
        }
        if matches!(self.posts, Posts::BySystemCall(_)) {
            thread::sleep(ON_ITS_WAY);
        }
        Ok(steps)
    }

    /// Whether the instruction there, which is next, sends the next message.
    fn sends(&mut self, at: u64) -> Result<bool> {
        let Posts::BySystemCall(known) = &mut self.posts else { return Ok(false) };
        let Some(descriptor) = self.thread.sends_to(at)? else { return Ok(false) };
        Ok(*known.get_or_insert(descriptor) == descriptor)
    }

    /// Whether the next message has left its number.
    fn has_numbered(&mut self) -> Result<bool> {
        let Posts::Numbers { memory, places, posted } = &mut self.posts else { return Ok(false) };
        let next = posted.wrapping_add(1);
        let has = word(memory, places.of(next))? == next;
        if has {
            *posted = next;
        }
        Ok(has)
    }
}

impl Places {
    fn of(self, number: u32) -> u64 {
        self.first + u64::from(number & (self.count - 1)) * self.stride
    }
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
        let registers = REGISTERS.context("this processor's registers are not known")?;
        Ok(self.read(libc::PTRACE_PEEKUSER, registers.address)? as u64)
    }

    /// The descriptor of the write(2) or send(2) that the instruction there begins, which is next.
    fn sends_to(&self, at: u64) -> Result<Option<i64>> {
        let registers = REGISTERS.context("this processor's registers are not known")?;
        if self.read(libc::PTRACE_PEEKTEXT, at as usize)? & 0xffff != SYSCALL {
            return Ok(None);
        }
        let call = self.read(libc::PTRACE_PEEKUSER, registers.call)?;
        let sends = [libc::SYS_write, libc::SYS_sendto].contains(&call);
        let descriptor = self.read(libc::PTRACE_PEEKUSER, registers.argument)?;
        Ok(sends.then_some(descriptor))
    }

    fn read(&self, what: libc::c_uint, place: usize) -> Result<i64> {
        ask(what, self.id, place, 0).with_context(|| format!("read of thread {}", self.id))
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
    // and the answers of PEEKUSER and PEEKTEXT are what the C library returns.
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

/// The process that another has started.
pub fn only_child(parent: i32) -> Result<i32> {
    let mut children = Vec::new();
    for process in fs::read_dir("/proc").context("read the processes")? {
        let path = process?.path();
        let Some(id) = path.file_name().and_then(|id| id.to_str()?.parse().ok()) else { continue };
        let status = fs::read_to_string(path.join("status")).unwrap_or_default();
        let of = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        if of.is_some_and(|of| of.trim() == parent.to_string()) {
            children.push(id);
        }
    }
    ensure!(children.len() == 1, "process {parent} has {} children", children.len());
    Ok(children[0])
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
