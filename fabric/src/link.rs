//! The trait that every backend implements, and the shapes it speaks of.

use std::{os::fd::BorrowedFd, sync::atomic::AtomicU32, time::Duration};

use gleaner_proto::header::{
    BLOCK_ALIGN, BadHeader, GUARD_LEN, HEADER_LEN, Header, Immediate, Kind, Status,
};

use crate::{
    call::{Asked, Expected, Found, Runs},
    rdma::{DeviceFault, RdmaError, WorkStatus},
};

/// How a link's two regions are divided: the same for requests and responses, agreed on when a session attaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Slots: the most calls outstanding on this link.
    pub window: u16,
    /// Bytes of one slot's block: header, payload and guard; a multiple of [`BLOCK_ALIGN`].
    pub slot_bytes: u32,
    /// Bytes of the arena, for blocks that do not fit a slot; a multiple of [`BLOCK_ALIGN`].
    pub arena_bytes: u64,
}

/// One message's place in a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Bytes from the region's start; a multiple of [`BLOCK_ALIGN`].
    pub offset: u64,
    /// The most bytes of payload.
    pub capacity: u32,
}

impl Block {
    /// The block in the header's units.
    #[inline]
    pub fn index(self) -> u32 {
        (self.offset / BLOCK_ALIGN as u64) as u32
    }

    /// Where the payload starts, in bytes from the region's start.
    #[inline]
    pub fn payload_offset(self) -> u64 {
        self.offset + HEADER_LEN as u64
    }

    /// Its payload and guard in its region's bytes.
    #[inline]
    pub(crate) fn payload_and_guard(self, region: &mut [u8]) -> &mut [u8] {
        let start = self.payload_offset() as usize;
        &mut region[start..start + self.capacity as usize + GUARD_LEN]
    }
}

/// Why a geometry cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "link geometry of {window} slots of {slot_bytes} bytes and an arena of {arena_bytes} bytes: \
     window must be 1 to {WINDOW_MAX}, slot and arena multiples of {BLOCK_ALIGN}, a slot at least 192 bytes, \
     all together at most {max} bytes",
    max = Immediate::REGION_MAX
)]
pub struct BadGeometry {
    window: u16,
    slot_bytes: u32,
    arena_bytes: u64,
}

/// Most slots of one link.
pub const WINDOW_MAX: u16 = 256;

impl Geometry {
    /// Checks a geometry that a peer or a caller proposes.
    pub fn check(self) -> Result<Self, BadGeometry> {
        let Self { window, slot_bytes, arena_bytes } = self;
        let align = BLOCK_ALIGN as u64;
        let fits = (1..=WINDOW_MAX).contains(&window)
            && slot_bytes as usize >= HEADER_LEN + GUARD_LEN + BLOCK_ALIGN
            && u64::from(slot_bytes) % align == 0
            && arena_bytes % align == 0
            && arena_bytes <= Immediate::REGION_MAX
            && self.region_bytes() <= Immediate::REGION_MAX;
        if fits { Ok(self) } else { Err(BadGeometry { window, slot_bytes, arena_bytes }) }
    }

    /// Bytes of one region.
    #[inline]
    pub fn region_bytes(self) -> u64 {
        self.arena_offset() + self.arena_bytes
    }

    /// Where the arena starts.
    #[inline]
    pub fn arena_offset(self) -> u64 {
        u64::from(self.window) * u64::from(self.slot_bytes)
    }

    /// The most payload that fits a slot.
    #[inline]
    pub fn slot_capacity(self) -> u32 {
        self.slot_bytes - (HEADER_LEN + GUARD_LEN) as u32
    }

    /// A slot's own block.
    #[inline]
    pub fn slot(self, slot: u16) -> Block {
        debug_assert!(slot < self.window);
        let offset = u64::from(slot) * u64::from(self.slot_bytes);
        Block { offset, capacity: self.slot_capacity() }
    }

    /// The block that a peer names, if header, `capacity` and guard lie wholly inside one slot or the arena.
    pub fn block(self, index: u32, capacity: u32) -> Option<Block> {
        let offset = u64::from(index) * BLOCK_ALIGN as u64;
        let whole = (HEADER_LEN + GUARD_LEN) as u64 + u64::from(capacity);
        let end = offset.checked_add(whole)?;
        let arena = self.arena_offset();
        let inside = if offset < arena {
            offset.is_multiple_of(u64::from(self.slot_bytes)) && whole <= u64::from(self.slot_bytes)
        } else {
            end <= self.region_bytes()
        };
        inside.then_some(Block { offset, capacity })
    }
}

/// A message that has arrived: its header, read once and checked against the geometry, and its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// The header's snapshot.
    pub header: Header,
    /// Where the payload lies in the incoming region; `capacity` is the payload's length.
    pub block: Block,
    /// A request's reply block in the outgoing region, checked as well; `None` in a response.
    pub reply: Option<Block>,
}

/// Where an arrival's payload lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    /// The message's slot.
    pub slot: u16,
    /// Bytes.
    pub len: u32,
    /// Its first byte, from the start of the incoming region.
    pub offset: u64,
}

impl Arrival {
    /// Where its payload lies.
    #[inline]
    pub fn payload(&self) -> Payload {
        let Header { slot, payload_len: len, .. } = self.header;
        Payload { slot, len, offset: self.block.payload_offset() }
    }
}

impl Payload {
    /// Its place in its region's bytes.
    #[inline]
    pub(crate) fn range(self) -> std::ops::Range<usize> {
        self.offset as usize..self.offset as usize + self.len as usize
    }
}

/// Why a link is of no more use. One bad message closes the one link it came on.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The peer closed it, or its process is gone.
    #[error("the peer closed the link")]
    Closed,
    /// The peer sent what no header may be.
    #[error("the peer sent a bad header: {0}")]
    Header(#[from] BadHeader),
    /// The peer named a slot or a block that lies outside the link's geometry.
    #[error(
        "the peer named slot {slot}, block {block} of {len} bytes, which lies outside the link's regions"
    )]
    Range {
        /// The slot it named.
        slot: u16,
        /// The block it named.
        block: u32,
        /// The payload's length.
        len: u32,
    },
    /// A request where responses arrive, or the other way round.
    #[error("the peer sent a {0:?}, which only this end may send")]
    Kind(Kind),
    /// More messages wait to be sent than the link has slots: the peer does not read, or the caller keeps no window.
    #[error("the link's window of {window} messages is full: the peer does not read them")]
    Window {
        /// The geometry's window.
        window: u16,
    },
    /// A message that does not say where it lies.
    #[error("the peer sent a message without an immediate")]
    NoImmediate,
    /// A message that says it twice, and not the same.
    #[error("the peer's immediate is {immediate:#010x}, and the header there names block {block}")]
    Immediate {
        /// What came with the completion.
        immediate: u32,
        /// The header's block.
        block: u32,
    },
    /// The connection has failed: the peer's device does not answer, or one of the two refused what it was asked.
    #[error("the connection failed: {0}")]
    QueuePair(WorkStatus),
    /// Our own device or its port has failed.
    #[error(transparent)]
    Device(DeviceFault),
    /// A verb failed.
    #[error(transparent)]
    Rdma(#[from] Box<RdmaError>),
    /// The operating system refused.
    #[error("{step}: {source}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl From<Box<LinkError>> for LinkError {
    fn from(error: Box<LinkError>) -> Self {
        *error
    }
}

/// A poll's error. Apart, and seldom: a link that fails is of no more use.
#[cold]
#[inline(never)]
pub(crate) fn failed(error: impl Into<LinkError>) -> Box<LinkError> {
    Box::new(error.into())
}

impl From<RdmaError> for LinkError {
    fn from(error: RdmaError) -> Self {
        Self::Rdma(Box::new(error))
    }
}

/// One end of a link. Not shared between threads; after set-up nothing here allocates, locks or logs.
pub trait Link: Send {
    /// How the regions are divided.
    fn geometry(&self) -> Geometry;

    /// The outgoing block's payload and guard, for the caller to fill in place. The block must come from
    /// [`Geometry::slot`] or [`Geometry::block`]; the slice has `capacity + GUARD_LEN` bytes.
    fn outgoing(&mut self, block: Block) -> &mut [u8];

    /// Sends `header` and the first `header.payload_len` bytes of the block's payload. The block must stay
    /// untouched until the slot is used again. Does not block: what the transport did not take yet goes out in
    /// later calls of [`poll`](Self::poll) or [`wait`](Self::wait).
    fn post(&mut self, block: Block, header: &Header) -> Result<(), Box<LinkError>>;

    /// Client: sends the request of a call, as [`post`](Self::post).
    #[inline(always)]
    fn ask(&mut self, call: &Expected, time_ns: u64) -> Result<(), Box<LinkError>> {
        self.post(call.input(), &call.request(time_ns))
    }

    /// The same with this input, which is put where it belongs: into its block, unless the link [carries](Self::carries) it.
    #[inline(always)]
    fn ask_with(
        &mut self,
        call: &Expected,
        input: &[u8],
        time_ns: u64,
    ) -> Result<(), Box<LinkError>> {
        self.outgoing(call.input())[..input.len()].copy_from_slice(input);
        self.ask(call, time_ns)
    }

    /// The same, and the input lies in its block too: it may be wanted again.
    #[inline(always)]
    fn ask_keeping(
        &mut self,
        call: &Expected,
        input: &[u8],
        time_ns: u64,
    ) -> Result<(), Box<LinkError>> {
        self.ask_with(call, input, time_ns)
    }

    /// Client: whether this call's input travels beside its header, and need not lie in its block.
    fn carries(&self, call: &Expected) -> bool {
        let _ = call;
        false
    }

    /// Several posts follow: they may go out together. What is held goes out with [`release`](Self::release), and before this
    /// end polls, waits or arms.
    fn hold(&mut self) {}

    /// Sends what was held, and holds no more.
    fn release(&mut self) -> Result<(), LinkError> {
        Ok(())
    }

    /// The next message that has arrived, if there is one. Never blocks. The error lies elsewhere: where a link is polled without
    /// a call, an arrival then stays in registers.
    fn poll(&mut self) -> Result<Option<Arrival>, Box<LinkError>>;

    /// The payload of an arrival. Memory that the peer may still write to: read each byte once.
    fn incoming(&self, payload: Payload) -> &[u8];

    /// Client: whether the incoming region is still the link's. If not, what was read of an [`incoming`](Self::incoming)
    /// payload may be anything: ask after reading, before believing.
    fn intact(&self) -> bool {
        true
    }

    /// An arrival's payload and the block of its reply at once; the output has `capacity + GUARD_LEN` bytes.
    fn exchange(&mut self, payload: Payload, reply: Block) -> (&mut [u8], &mut [u8]);

    /// Client: looks for one answer, at most so many times and at least once, and takes whatever comes first. Ask whether the link is
    /// [`intact`](Self::intact) after reading.
    #[inline(always)]
    fn answer(&mut self, expected: &Expected, looks: u32) -> Result<Found<'_>, Box<LinkError>> {
        let mut looks = 1..looks.max(1);
        let arrival = loop {
            match self.poll()? {
                Some(arrival) => break arrival,
                None if looks.next().is_none() => return Ok(Found::None),
                None => {}
            }
        };
        Ok(found(self, expected, arrival))
    }

    /// Worker: takes the next call, has it run in place, and posts its reply. False: there is none.
    fn serve(&mut self, runs: &mut dyn Runs) -> Result<bool, Box<LinkError>>;

    /// The same, compiled into its caller together with what it runs.
    #[inline(always)]
    fn serve_with<R: Runs + ?Sized>(&mut self, runs: &mut R) -> Result<bool, Box<LinkError>>
    where
        Self: Sized,
    {
        let Some(arrival) = self.poll()? else { return Ok(false) };
        serve_arrival(self, arrival, runs)?;
        Ok(true)
    }

    /// True while posted bytes wait for the transport: then a sleep over several links must also ask when
    /// [`wait_fd`](Self::wait_fd) takes more, and call [`poll`](Self::poll) then.
    fn unsent(&self) -> bool;

    /// Sleeps until something may have arrived, the peer is gone, or `timeout` is over.
    fn wait(&mut self, timeout: Duration) -> Result<(), LinkError>;

    /// A descriptor that becomes readable when something may have arrived, for one sleep over several links; before
    /// it sleeps, the caller arms it and polls once more.
    fn wait_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Asks for a wake-up through [`wait_fd`](Self::wait_fd). Returns true if something may have arrived already.
    fn arm(&mut self) -> Result<bool, LinkError>;

    /// A word for one short sleep over several links ([`Words`](crate::futex::Words)), and what it holds while nothing arrives
    /// once it is armed. A peer that is killed wakes nobody through it: who has slept for long takes the descriptor instead.
    fn wait_word(&self) -> Option<(&AtomicU32, u32)> {
        None
    }

    /// Asks for a wake-up through [`wait_word`](Self::wait_word). Returns true if something may have arrived already.
    fn arm_word(&mut self) -> Result<bool, LinkError> {
        self.arm()
    }

    /// Whether it is known without a look that nothing was left to [`poll`](Self::poll) and nobody asked for a wake-up since: who
    /// does not spin may arm and sleep at once, and be woken by what came meanwhile.
    fn emptied(&self) -> bool {
        false
    }
}

/// Client: what a message is to who waits for this answer.
#[inline(always)]
pub(crate) fn found<'a, L: Link + ?Sized>(
    link: &'a L,
    expected: &Expected,
    arrival: Arrival,
) -> Found<'a> {
    let is_good = arrival.header.status == Status::Ok && expected.is_of(&arrival);
    match is_good {
        true => Found::Reply(link.incoming(arrival.payload())),
        false => Found::other(arrival),
    }
}

/// Worker: has a call that was taken run in place, and posts its reply.
#[inline(always)]
pub(crate) fn serve_arrival<L: Link + ?Sized, R: Runs + ?Sized>(
    link: &mut L,
    arrival: Arrival,
    runs: &mut R,
) -> Result<(), Box<LinkError>> {
    let Arrival { header, block, reply } = arrival;
    let Some(reply) = reply else { return Err(failed(LinkError::Kind(header.kind))) };
    let Header { slot, epoch, invocation, function, time_ns, .. } = header;
    let payload = Arrival { header, block, reply: None }.payload();
    let (input, output) = link.exchange(payload, reply);
    let asked = Asked { slot, epoch, invocation, function, time_ns };
    let done = runs.run(asked, input, output);
    link.post(reply, &done.response(&header))
}
