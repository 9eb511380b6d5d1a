//! A call as the two ends of a link speak of it: what a client asks and which answer it waits for, what a worker runs and how that ended.
#![forbid(unsafe_code)]

use gleaner_proto::header::{BLOCK_ALIGN, Header, KIND_SHIFT, Kind, Status, Words, halves, pair};

use crate::link::{Arrival, Block};

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
        let first = pair(0, slot.into()) | (Kind::Request as u64) << KIND_SHIFT;
        let (input, reply) = (pair(0, own.index()), pair(own.index(), own.capacity));
        Self { first, epoch, invocation: 0, function: 0, input, reply }
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

    #[inline(always)]
    pub(crate) fn generation(&self) -> u32 {
        halves(self.first).0
    }

    #[inline(always)]
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    #[inline(always)]
    pub(crate) fn function(&self) -> u32 {
        self.function
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
        let (payload_len, block) = halves(self.input);
        let (reply_block, reply_capacity) = halves(self.reply);
        Header {
            generation: self.generation(),
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
        self.generation() == header.generation
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
