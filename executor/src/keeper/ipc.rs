//! What the keeper and its agent say to each other: fixed-size records over a Unix seqpacket socket that the agent inherits.
//!
//! The agent decides, the keeper does: an [`Order`] asks, a [`Notice`] tells what happened. Neither side blocks on the
//! other. An agent that leaves so many notices unread that its socket fills up is killed, with its leases. Times are
//! stamps of this machine's CLOCK_BOOTTIME in nanoseconds.
//!
//! ```text
//! agent → keeper: Grant, Start, Extend, Stop, Vacate
//! keeper → agent: Welcome (first), Started+fd | StartFailed, Gone, Fenced, Vacated, JobEvent
//! ```
//!
//! Each `Start` is answered by exactly one `Started` or `StartFailed`, each `Started` is followed by exactly one `Gone`.
//! A vacate is one `Fenced`, a `Gone` for each lease that lived, and one `Vacated`, in this order.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use gleaner_proto::vacates::{Trigger, VACATE_LEN, VacateRecord};

use crate::sys;

/// Bytes of every order and notice.
pub const IPC_LEN: usize = 192;
/// Version of these records. Both ends are one binary; the version finds one that was replaced while it ran.
const IPC_VERSION: u8 = 1;

/// Agent to keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The grant that this node holds, new or renewed. A newer epoch also ends the hold of a job whose epilog never came:
    /// while a job holds the node, pass on only what the harvester sent after it had acknowledged that job's start.
    Grant {
        /// Its epoch.
        epoch: u64,
        /// When it ends.
        until_ns: u64,
    },
    /// Start a worker for an admitted lease.
    Start {
        /// The lease.
        lease_id: u64,
        /// The grant epoch of its token.
        epoch: u64,
        /// Whose processes it runs. 0 is mapped to the configured worker user.
        uid: u32,
        /// Their group.
        gid: u32,
        /// How many cores.
        cores: u32,
        /// How much memory.
        memory_bytes: u64,
        /// When the lease ends; the grant's end is enforced beside it.
        deadline_ns: u64,
    },
    /// A lease was renewed.
    Extend {
        /// The lease.
        lease_id: u64,
        /// Its new end.
        deadline_ns: u64,
    },
    /// End one lease. Answered by its `Gone`.
    Stop {
        /// The lease.
        lease_id: u64,
    },
    /// Leave the node: kill every worker; the grant's epoch is dead from now on.
    Vacate {
        /// What for.
        trigger: Trigger,
    },
}

/// Why a lease did not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum StartRefusal {
    /// The keeper holds no live grant of that epoch, or the deadline is past.
    Epoch = 1,
    /// A batch job holds the node.
    Held = 2,
    /// The kill switch's file is there.
    SwitchedOff = 3,
    /// No place is left in the table of workers.
    Full = 4,
    /// The uid or gid may not run workers here.
    Identity = 5,
    /// No core, more cores than a lease may have, or no memory.
    Shape = 6,
    /// A lease of that id is there already.
    Duplicate = 7,
    /// The operating system refused; `errno` says how.
    System = 8,
    /// The worker could not confine itself; `errno` says how, `step` which step of the sandbox.
    Sandbox = 9,
    /// The worker was killed or ended before it was ready.
    Died = 10,
}

/// How a lease's worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It exited by itself, with this status.
    Exited(i32),
    /// A signal that the keeper did not send.
    Signalled(i32),
    /// The kernel killed it for its memory limit.
    OutOfMemory,
    /// The keeper: the lease's deadline was over.
    Deadline,
    /// The keeper: the agent said `Stop`.
    Stopped,
    /// The keeper: a vacate.
    Vacated,
}

/// Keeper to agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The first one after the agent's start.
    Welcome {
        /// A job whose prolog was seen and whose epilog was not; 0 if there is none.
        hold_job_id: u32,
        /// The most leases at a time.
        leases_max: u32,
    },
    /// The lease's worker is confined and serves the socket that comes with this notice.
    Started {
        /// The lease.
        lease_id: u64,
        /// The worker.
        pid: u32,
    },
    /// The lease has no worker.
    StartFailed {
        /// The lease.
        lease_id: u64,
        /// Why.
        refusal: StartRefusal,
        /// The system's error number; 0 if it is not the system's.
        errno: i32,
        /// The sandbox's step, for [`crate::worker::sandbox::step_name`]; 0 if it is not the sandbox's.
        step: u32,
    },
    /// The lease's processes are gone, and its slots' states are final.
    Gone {
        /// The lease.
        lease_id: u64,
        /// How it ended.
        end: End,
        /// CPU time of its processes, by the kernel.
        cpu_ns: u64,
        /// The most memory that it held, by the kernel.
        memory_peak_bytes: u64,
    },
    /// A vacate has begun: accept nothing any more under this epoch.
    Fenced {
        /// What made it.
        trigger: Trigger,
        /// The epoch that is dead.
        epoch: u64,
        /// The job that wants the node; 0 if there is none.
        job_id: u32,
        /// When the trigger arrived.
        stamp_ns: u64,
    },
    /// A vacate has ended; the same record lies in the journal.
    Vacated(VacateRecord),
    /// A batch job started (after the vacate, if there was one to do) or ended here.
    JobEvent {
        /// False: prolog; true: epilog.
        ended: bool,
        /// The job.
        job_id: u32,
        /// Its user.
        job_uid: u32,
        /// When the hook's message arrived.
        stamp_ns: u64,
        /// Microseconds from the message to the answer.
        hook_us: u32,
    },
}

/// Bytes that are no order or notice of this version: the two processes are not of one build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the keeper's and the agent's records differ: both must be one executable; restart the executor"
)]
pub struct BadRecord;

/// One end of the socket.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Takes an end that was made by [`pair`](Self::pair) or inherited.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Both ends; neither blocks.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = sys::seqpacket_pair()?;
        Ok((Self(one), Self(other)))
    }

    /// Agent's side: sends an order. `WouldBlock` if the keeper has not read for long.
    pub fn order(&self, order: &Order) -> io::Result<()> {
        sys::send_with_fd(self.as_fd(), &order.encode(), None)
    }

    /// Agent's side: the next notice and the descriptor that came with it. `WouldBlock` if there is none,
    /// `UnexpectedEof` if the keeper is gone.
    pub fn notice(&self) -> io::Result<(Notice, Option<OwnedFd>)> {
        let (bytes, fd) = self.receive()?;
        Ok((Notice::decode(&bytes).map_err(io::Error::other)?, fd))
    }

    /// Keeper's side: sends a notice, and a descriptor with it. `WouldBlock` if the agent has not read for long.
    pub fn notify(&self, notice: &Notice, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        sys::send_with_fd(self.as_fd(), &notice.encode(), fd)
    }

    /// Keeper's side: the next order. `WouldBlock` if there is none, `UnexpectedEof` if the agent is gone.
    pub fn next_order(&self) -> io::Result<Order> {
        let (bytes, _) = self.receive()?;
        Order::decode(&bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    }

    fn receive(&self) -> io::Result<([u8; IPC_LEN], Option<OwnedFd>)> {
        let mut bytes = [0; IPC_LEN];
        let (len, fd) = sys::recv_with_fd(self.as_fd(), &mut bytes)?;
        match len {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            IPC_LEN => Ok((bytes, fd)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Writes fields one after another; a record is never longer than [`IPC_LEN`].
struct Writer {
    bytes: [u8; IPC_LEN],
    at: usize,
}

impl Writer {
    fn new(kind: u8) -> Self {
        let mut bytes = [0; IPC_LEN];
        bytes[..2].copy_from_slice(&[IPC_VERSION, kind]);
        Self { bytes, at: 8 }
    }

    fn put(mut self, value: impl Into<u64>) -> Self {
        self.bytes[self.at..self.at + 8].copy_from_slice(&value.into().to_le_bytes());
        self.at += 8;
        self
    }
}

/// Reads them back.
struct Reader<'a> {
    bytes: &'a [u8; IPC_LEN],
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8; IPC_LEN]) -> Result<(u8, Self), BadRecord> {
        if bytes[0] != IPC_VERSION {
            return Err(BadRecord);
        }
        Ok((bytes[1], Self { bytes, at: 8 }))
    }

    fn long(&mut self) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&self.bytes[self.at..self.at + 8]);
        self.at += 8;
        u64::from_le_bytes(word)
    }

    fn word(&mut self) -> Result<u32, BadRecord> {
        u32::try_from(self.long()).map_err(|_| BadRecord)
    }

    fn byte(&mut self) -> Result<u8, BadRecord> {
        u8::try_from(self.long()).map_err(|_| BadRecord)
    }

    fn trigger(&mut self) -> Result<Trigger, BadRecord> {
        Trigger::decode(self.byte()?).ok_or(BadRecord)
    }
}

impl Order {
    /// The order as it travels.
    pub fn encode(&self) -> [u8; IPC_LEN] {
        match *self {
            Self::Grant { epoch, until_ns } => Writer::new(1).put(epoch).put(until_ns),
            Self::Start { lease_id, epoch, uid, gid, cores, memory_bytes, deadline_ns } => {
                let ids = Writer::new(2).put(lease_id).put(epoch).put(uid).put(gid);
                ids.put(cores).put(memory_bytes).put(deadline_ns)
            }
            Self::Extend { lease_id, deadline_ns } => Writer::new(3).put(lease_id).put(deadline_ns),
            Self::Stop { lease_id } => Writer::new(4).put(lease_id),
            Self::Vacate { trigger } => Writer::new(5).put(trigger as u8),
        }
        .bytes
    }

    /// Reads an order.
    pub fn decode(bytes: &[u8; IPC_LEN]) -> Result<Self, BadRecord> {
        let (kind, mut from) = Reader::new(bytes)?;
        Ok(match kind {
            1 => Self::Grant { epoch: from.long(), until_ns: from.long() },
            2 => Self::Start {
                lease_id: from.long(),
                epoch: from.long(),
                uid: from.word()?,
                gid: from.word()?,
                cores: from.word()?,
                memory_bytes: from.long(),
                deadline_ns: from.long(),
            },
            3 => Self::Extend { lease_id: from.long(), deadline_ns: from.long() },
            4 => Self::Stop { lease_id: from.long() },
            5 => Self::Vacate { trigger: from.trigger()? },
            _ => return Err(BadRecord),
        })
    }
}

impl Notice {
    /// The notice as it travels.
    pub fn encode(&self) -> [u8; IPC_LEN] {
        match *self {
            Self::Welcome { hold_job_id, leases_max } => {
                Writer::new(1).put(hold_job_id).put(leases_max)
            }
            Self::Started { lease_id, pid } => Writer::new(2).put(lease_id).put(pid),
            Self::StartFailed { lease_id, refusal, errno, step } => {
                let head = Writer::new(3).put(lease_id).put(refusal as u8);
                head.put(errno as u32).put(step)
            }
            Self::Gone { lease_id, end, cpu_ns, memory_peak_bytes } => {
                let (kind, value) = end.parts();
                let head = Writer::new(4).put(lease_id).put(kind).put(value as u32);
                head.put(cpu_ns).put(memory_peak_bytes)
            }
            Self::Fenced { trigger, epoch, job_id, stamp_ns } => {
                Writer::new(5).put(trigger as u8).put(epoch).put(job_id).put(stamp_ns)
            }
            Self::Vacated(record) => {
                let mut out = Writer::new(6);
                out.bytes[8..8 + VACATE_LEN].copy_from_slice(&record.encode());
                out
            }
            Self::JobEvent { ended, job_id, job_uid, stamp_ns, hook_us } => {
                let head = Writer::new(7).put(ended).put(job_id).put(job_uid);
                head.put(stamp_ns).put(hook_us)
            }
        }
        .bytes
    }

    /// Reads a notice.
    pub fn decode(bytes: &[u8; IPC_LEN]) -> Result<Self, BadRecord> {
        let (kind, mut from) = Reader::new(bytes)?;
        Ok(match kind {
            1 => Self::Welcome { hold_job_id: from.word()?, leases_max: from.word()? },
            2 => Self::Started { lease_id: from.long(), pid: from.word()? },
            3 => Self::StartFailed {
                lease_id: from.long(),
                refusal: StartRefusal::decode(from.byte()?)?,
                errno: from.word()? as i32,
                step: from.word()?,
            },
            4 => Self::Gone {
                lease_id: from.long(),
                end: End::from_parts(from.byte()?, from.word()? as i32)?,
                cpu_ns: from.long(),
                memory_peak_bytes: from.long(),
            },
            5 => Self::Fenced {
                trigger: from.trigger()?,
                epoch: from.long(),
                job_id: from.word()?,
                stamp_ns: from.long(),
            },
            6 => {
                let mut record = [0; VACATE_LEN];
                record.copy_from_slice(&bytes[8..8 + VACATE_LEN]);
                Self::Vacated(VacateRecord::decode(&record).ok_or(BadRecord)?)
            }
            7 => Self::JobEvent {
                ended: from.byte()? != 0,
                job_id: from.word()?,
                job_uid: from.word()?,
                stamp_ns: from.long(),
                hook_us: from.word()?,
            },
            _ => return Err(BadRecord),
        })
    }
}

impl StartRefusal {
    fn decode(byte: u8) -> Result<Self, BadRecord> {
        Ok(match byte {
            1 => Self::Epoch,
            2 => Self::Held,
            3 => Self::SwitchedOff,
            4 => Self::Full,
            5 => Self::Identity,
            6 => Self::Shape,
            7 => Self::Duplicate,
            8 => Self::System,
            9 => Self::Sandbox,
            10 => Self::Died,
            _ => return Err(BadRecord),
        })
    }
}

impl End {
    fn parts(self) -> (u8, i32) {
        match self {
            Self::Exited(status) => (1, status),
            Self::Signalled(signal) => (2, signal),
            Self::OutOfMemory => (3, 0),
            Self::Deadline => (4, 0),
            Self::Stopped => (5, 0),
            Self::Vacated => (6, 0),
        }
    }

    fn from_parts(kind: u8, value: i32) -> Result<Self, BadRecord> {
        Ok(match kind {
            1 => Self::Exited(value),
            2 => Self::Signalled(value),
            3 => Self::OutOfMemory,
            4 => Self::Deadline,
            5 => Self::Stopped,
            6 => Self::Vacated,
            _ => return Err(BadRecord),
        })
    }
}

/// What the agent inherits from the keeper: argument of [`crate::agent::run`].
#[derive(Debug)]
pub struct Inherited {
    /// To the keeper.
    pub keeper: Socket,
    /// Listens on `agent.sock` in the node's runtime directory, for clients on this node: the agent may not make it there.
    pub local_listener: OwnedFd,
    /// What this node cannot do, for people and for `Register`.
    pub limitations: Vec<String>,
    /// The node's runtime directory: for [`super::journal::Reader`].
    pub run_dir: std::path::PathBuf,
    /// The node's name.
    pub node: gleaner_proto::ids::NodeName,
    /// Runs without root: workers are of this process's own uid alone.
    pub single_user: bool,
    /// Cores that leases may use here.
    pub cores: u32,
    /// Memory that leases may use here.
    pub memory_bytes: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(kind in 0u8..9, small: [u8; 20], whole in prop::collection::vec(any::<u8>(), IPC_LEN)) {
            let mut bytes: [u8; IPC_LEN] = whole.try_into().unwrap();
            bytes[..2].copy_from_slice(&[IPC_VERSION, kind]);
            for (word, value) in bytes[8..168].chunks_exact_mut(8).zip(small) {
                word.fill(0);
                word[0] = value;
            }
            if let Ok(order) = Order::decode(&bytes) {
                prop_assert_eq!(Order::decode(&order.encode()), Ok(order));
            }
            if let Ok(notice) = Notice::decode(&bytes) {
                prop_assert_eq!(Notice::decode(&notice.encode()), Ok(notice));
            }
        }
    }

    #[test]
    fn a_notice_brings_its_descriptor() {
        let (keeper, agent) = Socket::pair().unwrap();
        let notice = Notice::Started { lease_id: 7, pid: 8 };
        keeper.notify(&notice, Some(keeper.as_fd())).unwrap();
        let (got, fd) = agent.notice().unwrap();
        assert_eq!(got, notice);
        assert!(fd.is_some());
        let empty = agent.notice().unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        // The descriptor that came is the keeper's own end.
        drop((fd, keeper));
        assert_eq!(agent.notice().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn negative_numbers_travel() {
        let notice =
            Notice::Gone { lease_id: 1, end: End::Exited(-1), cpu_ns: 2, memory_peak_bytes: 3 };
        assert_eq!(Notice::decode(&notice.encode()), Ok(notice));
    }
}
