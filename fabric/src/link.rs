//! The trait that every backend implements, and the shapes it speaks of.

use std::{os::fd::BorrowedFd, sync::atomic::AtomicU32, time::Duration};

use gleaner_proto::header::{
    BLOCK_ALIGN, BadHeader, GUARD_LEN, HEADER_LEN, Header, Immediate, KIND_SHIFT, Kind, Status,
    Words, halves, pair,
};

use crate::rdma::{DeviceFault, RdmaError, WorkStatus};

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

/// A call that has arrived at its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Its slot.
    pub slot: u16,
    /// The grant epoch that it carries.
    pub epoch: u64,
    /// Its number.
    pub invocation: u64,
    /// The function that it asks for.
    pub function: u32,
    /// The time that it is left; 0: no bound.
    pub time_ns: u64,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Bytes of reply; of message, if it failed.
    pub len: usize,
    /// Time inside the function.
    pub time_ns: u64,
    /// How it failed, if it did.
    pub failure: Option<Failure>,
}

/// How a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// How.
    pub status: Status,
    /// The function's own code.
    pub code: u32,
    /// The reply's length that the function wanted.
    pub wanted: u32,
}

impl Done {
    /// Ended well, with so many bytes of reply.
    #[inline(always)]
    pub fn well(len: usize, time_ns: u64) -> Self {
        Self { len, time_ns, failure: None }
    }

    /// Ended so, without a word.
    #[inline(always)]
    pub fn nothing(status: Status) -> Self {
        Self { len: 0, time_ns: 0, failure: Some(Failure { status, code: 0, wanted: 0 }) }
    }

    /// The reply's header.
    pub(crate) fn response(self, request: &Header) -> Header {
        let good = response(request, self.len as u32, self.time_ns);
        match self.failure {
            None => good,
            Some(Failure { status, code, wanted }) => {
                Header { status, code, reply_capacity: wanted, ..good }
            }
        }
    }
}

/// A good reply's header. Where the length that the function wanted is the reply's own, over RDMA nothing has to be said of it.
#[inline(always)]
pub(crate) fn response(request: &Header, len: u32, time_ns: u64) -> Header {
    Header {
        kind: Kind::Response,
        status: Status::Ok,
        code: 0,
        payload_len: len,
        block: request.reply_block,
        reply_block: 0,
        reply_capacity: len,
        time_ns,
        ..*request
    }
}

/// What a worker's end runs calls by.
pub trait Runs {
    /// Runs a call in place: its input, which is writable since functions in C may use it as room to work, and the room for its reply
    /// with the guard behind.
    fn run(&mut self, asked: Asked, input: &mut [u8], output: &mut [u8]) -> Done;
}

impl<F: FnMut(Asked, &mut [u8], &mut [u8]) -> Done> Runs for F {
    #[inline(always)]
    fn run(&mut self, asked: Asked, input: &mut [u8], output: &mut [u8]) -> Done {
        self(asked, input, output)
    }
}

/// A client's call in one slot: its request, and the good answer that it waits for. Kept in the words that travel: they are put together
/// once for many calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// The request's first word: generation, slot and kind.
    first: u64,
    epoch: u64,
    invocation: u64,
    function: u32,
    /// The input: its length and its block's index.
    input: u64,
    /// Where the reply goes: its block's index and capacity.
    reply: u64,
}

/// What a client finds that waits for one answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// Nothing yet.
    None,
    /// The reply. Memory that the worker may still write to: read each byte once.
    Reply(&'a [u8]),
    /// Something else.
    Other(Box<Arrival>),
}

impl Found<'_> {
    #[cold]
    #[inline(never)]
    pub(crate) fn other(arrival: Arrival) -> Self {
        Self::Other(Box::new(arrival))
    }
}

/// What tells a request's first word from its good answer's.
const ANSWERED: u64 = (Kind::Request as u64 ^ Kind::Response as u64) << KIND_SHIFT;

impl Expected {
    /// For a slot that was not used yet, whose input and reply have its own block. Its calls carry this grant epoch.
    pub fn new(slot: u16, epoch: u64, own: Block) -> Self {
        let kinds = u32::from(slot) | (Kind::Request as u32) << 16;
        let (input, reply) = (pair(0, own.index()), pair(own.index(), own.capacity));
        Self { first: pair(0, kinds), epoch, invocation: 0, function: 0, input, reply }
    }

    /// The good answer to this request.
    pub fn of(request: &Header) -> Self {
        let [first, epoch, invocation, function, input, reply, ..] = request.words();
        Self { first, epoch, invocation, function: halves(function).0, input, reply }
    }

    /// The slot.
    #[inline(always)]
    pub fn slot(&self) -> u16 {
        halves(self.first).1 as u16
    }

    /// The number of the call.
    #[inline(always)]
    pub fn invocation(&self) -> u64 {
        self.invocation
    }

    /// The input's block, as long as the input.
    #[inline(always)]
    pub fn input(&self) -> Block {
        let (capacity, index) = halves(self.input);
        Block { offset: u64::from(index) * BLOCK_ALIGN as u64, capacity }
    }

    /// Where the reply goes; it is no longer than that.
    #[inline(always)]
    pub fn block(&self) -> Block {
        let (index, capacity) = halves(self.reply);
        Block { offset: u64::from(index) * BLOCK_ALIGN as u64, capacity }
    }

    /// Inputs lie there from the next call on, and replies go there.
    #[inline(always)]
    pub fn set_blocks(&mut self, input: Block, reply: Block) {
        self.input = pair(input.capacity, input.index());
        self.reply = pair(reply.index(), reply.capacity);
    }

    /// The next input is so long, and its reply may be. Nothing is stored if that changes nothing: what was stored in part and is loaded
    /// whole has to wait.
    #[inline(always)]
    pub fn set_lengths(&mut self, input: u32, reply: u32) {
        if halves(self.input).0 != input {
            self.change_input(input);
        }
        if halves(self.reply).1 != reply {
            self.change_reply(reply);
        }
    }

    #[cold]
    #[inline(never)]
    fn change_input(&mut self, len: u32) {
        self.input = pair(len, halves(self.input).1);
    }

    #[cold]
    #[inline(never)]
    fn change_reply(&mut self, capacity: u32) {
        self.reply = pair(halves(self.reply).0, capacity);
    }

    /// A call of this number, to this function, is next in the slot.
    #[inline(always)]
    pub fn begin(&mut self, invocation: u64, function: u32) {
        let next = self.first.wrapping_add(1);
        self.first = match next as u32 {
            0 => after_the_last(self.first),
            _ => next,
        };
        (self.invocation, self.function) = (invocation, function);
    }

    /// The request's header.
    #[inline(always)]
    pub fn request(&self, time_ns: u64) -> Header {
        let (generation, _) = halves(self.first);
        let (payload_len, block) = halves(self.input);
        let (reply_block, reply_capacity) = halves(self.reply);
        Header {
            generation,
            slot: self.slot(),
            kind: Kind::Request,
            status: Status::Ok,
            epoch: self.epoch,
            invocation: self.invocation,
            function: self.function,
            code: 0,
            payload_len,
            block,
            reply_block,
            reply_capacity,
            time_ns,
        }
    }

    /// The same as the words that it travels in.
    #[inline(always)]
    pub(crate) fn request_words(&self, time_ns: u64) -> Words {
        let &Self { first, epoch, invocation, function, input, reply } = self;
        [first, epoch, invocation, function.into(), input, reply, time_ns, 0]
    }

    /// The first words of the good answer: generation, slot and kind; epoch; invocation.
    #[inline(always)]
    pub(crate) fn answer_words(&self) -> [u64; 3] {
        [self.first ^ ANSWERED, self.epoch, self.invocation]
    }

    /// Whether a message is an answer to the call, good or not.
    #[inline(always)]
    pub fn is_of(&self, arrival: &Arrival) -> bool {
        let Arrival { header, block, .. } = arrival;
        halves(self.first).0 == header.generation
            && self.invocation == header.invocation
            && self.slot() == header.slot
            && self.epoch == header.epoch
            && self.block().offset == block.offset
            && block.capacity <= self.block().capacity
    }
}

/// No generation is 0.
#[cold]
fn after_the_last(first: u64) -> u64 {
    pair(1, halves(first).1)
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
        let is_good = arrival.header.status == Status::Ok && expected.is_of(&arrival);
        Ok(match is_good {
            true => Found::Reply(self.incoming(arrival.payload())),
            false => Found::other(arrival),
        })
    }

    /// Worker: takes the next call, has it run in place, and posts its reply. False: there is none.
    #[inline(always)]
    fn serve(&mut self, runs: &mut dyn Runs) -> Result<bool, Box<LinkError>> {
        let Some(Arrival { header, block, reply }) = self.poll()? else { return Ok(false) };
        let Some(reply) = reply else { return Err(failed(LinkError::Kind(header.kind))) };
        let Header { slot, epoch, invocation, function, time_ns, .. } = header;
        let payload = Arrival { header, block, reply: None }.payload();
        let (input, output) = self.exchange(payload, reply);
        let asked = Asked { slot, epoch, invocation, function, time_ns };
        let done = runs.run(asked, input, output);
        self.post(reply, &done.response(&header))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: Block = Block { offset: 1 << 20, capacity: 4096 };

    #[test]
    fn a_call_says_the_same_in_a_header_and_in_words() {
        let mut call = Expected::new(7, 3, BLOCK);
        for (number, len) in [(1, 0), (2, 16), (3, 4096)] {
            call.set_lengths(len, 100);
            call.begin(number, 5);
            let header = call.request(99);
            assert_eq!(header.words(), call.request_words(99));
            assert_eq!((header.invocation, header.function, header.payload_len), (number, 5, len));
            assert_eq!((header.slot, header.epoch, header.reply_capacity), (7, 3, 100));
            assert_eq!(call, Expected::of(&header));
        }
    }

    #[test]
    fn the_last_generation_is_followed_by_the_first() {
        let last = Header { generation: u32::MAX, ..Expected::new(7, 3, BLOCK).request(0) };
        let mut call = Expected::of(&last);
        call.begin(1, 0);
        assert_eq!((call.request(0).generation, call.slot()), (1, 7));
    }
}
