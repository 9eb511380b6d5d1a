//! Runs one call on one lane: is it still wanted, then the function, then what became of it. Silent, and without a lock or an
//! allocation of its own.
#![forbid(unsafe_code)]

use gleaner_fabric::{Arrival, Block, Link, LinkError, clock};
use gleaner_function::abi::{self, RawContext};
use gleaner_proto::header::{GUARD_LEN, Header, Kind, Status};

use super::{
    Shared, fault,
    function::{self, CallContext, Function, State},
    ipc::FUNCTIONS_MAX,
    meter::Meter,
    tune::{ERROR_BYTES, GUARD_BYTE},
};
use crate::board::{Phase, Place, Slot, Slots};

/// What a lane needs to run calls.
pub(super) struct Runner {
    shared: &'static Shared,
    lane: u16,
    /// The functions that were called here, by number.
    called: Box<[Option<Called>]>,
    /// What a function sees of its call. What is the same for all calls was filled in once.
    context: CallContext<'static>,
    /// Where functions write their messages.
    error: Box<[u8; ERROR_BYTES]>,
}

/// A function that was called on a lane.
#[derive(Debug, Clone, Copy)]
struct Called {
    function: Function,
    /// What its `init` made, at its first call here.
    state: Option<State>,
}

/// How a call ended, for its reply. The lengths are not of the header's width, so that no two fields are copied at once that
/// were stored apart: the processor would first wait for every store before, the reply's among them.
#[derive(Debug, Clone, Copy)]
struct Done {
    status: Status,
    code: u32,
    len: usize,
    /// The reply's length that the function wanted. Where it is the reply's own, over RDMA nothing has to be said of it.
    wanted: usize,
}

/// A function's time, in ticks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ran {
    /// How long it ran.
    pub(super) ticks: u64,
    /// When it came back.
    pub(super) until: u64,
}

/// What a function returned.
struct Returned {
    code: i32,
    len: usize,
}

impl Runner {
    pub(super) fn new(shared: &'static Shared, lane: u16) -> Self {
        let error = Box::new([0; ERROR_BYTES]);
        let context = CallContext {
            raw: RawContext {
                abi_version: abi::VERSION,
                lane: u32::from(lane),
                lanes: u32::from(shared.board.shape().lanes),
                reserved: 0,
                invocation: 0,
                state: State::none().pointer(),
                error: std::ptr::null_mut(),
                error_capacity: ERROR_BYTES,
                remaining_ns: function::remaining_ns,
                cancelled: function::cancelled,
            },
            clock: shared.clock,
            deadline: u64::MAX,
            cancel: None,
        };
        let called = vec![None; FUNCTIONS_MAX as usize].into();
        Self { shared, lane, called, context, error }
    }

    /// Serves one call of a session's link, if there is one.
    #[inline(always)]
    pub(super) fn serve<L: Link + ?Sized>(
        &mut self,
        link: &mut L,
        (session, slots): (u16, Slots<'static>),
        meter: &mut Meter,
    ) -> Result<bool, LinkError> {
        let Some(arrival) = link.poll()? else { return Ok(false) };
        let header = &arrival.header;
        let place = Place { session, lane: self.lane, slot: header.slot };
        let (Some(slot), Some(reply)) = (slots.get(header.slot), arrival.reply) else {
            let (slot, block, len) = (header.slot, header.block, header.payload_len);
            return Err(LinkError::Range { slot, block, len });
        };
        let called = match self.wanted(header, slot) {
            Ok(called) => called,
            Err(status) => return refuse(link, reply, *header, status),
        };
        let (done, ran) = self.run(link, &arrival, called, reply, place, slot);
        let posted = link.post(reply, &done.response(header, self.shared.clock.ns(ran.ticks)));
        // While the reply is on its way.
        meter.call(ran);
        if done.status == Status::Overflow {
            fault::overflow(place, header.invocation);
        }
        posted.map(|()| true)
    }

    /// The function of a call that is still wanted; or why it is not run.
    #[inline(always)]
    fn wanted(&mut self, header: &Header, slot: Slot<'static>) -> Result<Called, Status> {
        if !self.shared.board.admits(header.epoch) {
            return Err(Status::Stale);
        }
        if slot.cancelled(header.invocation) {
            return Err(Status::Cancelled);
        }
        self.called(header.function).ok_or(Status::UnknownFunction)
    }

    /// Runs the call that has arrived, and leaves its reply in `reply`.
    #[inline(always)]
    fn run<L: Link + ?Sized>(
        &mut self,
        link: &mut L,
        arrival: &Arrival,
        called: Called,
        reply: Block,
        place: Place,
        slot: Slot<'static>,
    ) -> (Done, Ran) {
        let header = &arrival.header;
        let (input, output) = link.exchange(arrival.payload(), reply);
        let capacity = reply.capacity as usize;
        if let Some(guard) = output.last_chunk_mut::<GUARD_LEN>() {
            *guard = [GUARD_BYTE; GUARD_LEN];
        }
        slot.set(header.invocation, Phase::Started);
        fault::enter(place, header.invocation);
        let begun = clock::ticks();
        let returned = self.enter(called, header, slot, input, output, capacity);
        let until = clock::ticks();
        let ran = Ran { ticks: until.wrapping_sub(begun), until };
        fault::leave();
        let Some((output, guard)) = output.split_last_chunk_mut::<GUARD_LEN>() else {
            return (Done::nothing(Status::Overflow), ran);
        };
        if !is_untouched(guard) {
            // Not finished: the lane answers, then ends this process.
            return (Done::nothing(Status::Overflow), ran);
        }
        slot.set(header.invocation, Phase::Finished);
        (self.done(&returned, output), ran)
    }

    /// Ends every function's state. The lease is over.
    pub(super) fn finish(&mut self) {
        for called in self.called.iter_mut().filter_map(Option::take) {
            if let Called {
                function: Function::Gleaner { fini: Some(fini), .. },
                state: Some(state),
            } = called
            {
                function::call_fini(fini, state);
            }
        }
    }

    /// A function, as it was called here before.
    #[inline(always)]
    fn called(&mut self, number: u32) -> Option<Called> {
        // One way out, so that nothing goes through memory.
        loop {
            if let Some(Some(called)) = self.called.get(number as usize) {
                return Some(*called);
            }
            if !self.look_up(number) {
                return None;
            }
        }
    }

    /// Takes a function from the lease's table; false if there is none.
    #[cold]
    #[inline(never)]
    fn look_up(&mut self, number: u32) -> bool {
        let function = self.shared.functions.get(number);
        let called = function.map(|function| Called { function, state: None });
        match self.called.get_mut(number as usize) {
            Some(place) => *place = called,
            None => return false,
        }
        called.is_some()
    }

    #[inline(always)]
    fn enter(
        &mut self,
        called: Called,
        header: &Header,
        slot: Slot<'static>,
        input: &mut [u8],
        output: &mut [u8],
        capacity: usize,
    ) -> Returned {
        let (invoke, init) = match called.function {
            Function::Rfaas(function) => {
                let len = function::call_rfaas(function, input, output);
                return Returned { code: 0, len };
            }
            Function::Gleaner { invoke, init, .. } => (invoke, init),
        };
        self.error[0] = 0;
        self.begin(header, slot);
        let state = match (called.state, init) {
            (Some(state), _) => state,
            (None, None) => State::none(),
            (None, Some(init)) => match self.init(init, header.function) {
                Ok(state) => state,
                Err(code) => return Returned { code, len: 0 },
            },
        };
        self.context.raw.state = state.pointer();
        let context = &mut self.context;
        let (code, len) = function::call_gleaner(invoke, context, input, output, capacity);
        Returned { code, len }
    }

    /// The context is this call's from now on.
    #[inline(always)]
    fn begin(&mut self, header: &Header, slot: Slot<'static>) {
        let clock = self.shared.clock;
        self.context.deadline = match header.time_ns {
            0 => u64::MAX,
            time => clock::ticks().saturating_add(clock.ticks(time)),
        };
        self.context.raw.invocation = header.invocation;
        self.context.raw.error = self.error.as_mut_ptr().cast();
        self.context.cancel = Some(slot.cancel_flag(header.invocation));
    }

    /// Makes a function's state on this lane.
    #[cold]
    fn init(&mut self, init: abi::Init, number: u32) -> Result<State, i32> {
        self.context.raw.state = State::none().pointer();
        let state = function::call_init(init, &mut self.context)?;
        if let Some(Some(called)) = self.called.get_mut(number as usize) {
            called.state = Some(state);
        }
        Ok(state)
    }

    #[inline(always)]
    fn done(&self, returned: &Returned, output: &mut [u8]) -> Done {
        match *returned {
            Returned { code: 0, len } if len <= output.len() => {
                Done { len, wanted: len, ..Done::nothing(Status::Ok) }
            }
            Returned { code: 0, len: wanted } => {
                Done { wanted, ..Done::nothing(Status::ReplyTooLarge) }
            }
            Returned { code, .. } => {
                let len = self.copy_message(output);
                Done { code: code as u32, len, ..Done::nothing(Status::FunctionError) }
            }
        }
    }

    /// The function's message becomes the reply, as much of it as fits.
    #[cold]
    fn copy_message(&self, output: &mut [u8]) -> usize {
        let end = self.error.iter().position(|byte| *byte == 0).unwrap_or(ERROR_BYTES);
        let len = end.min(output.len());
        output[..len].copy_from_slice(&self.error[..len]);
        len
    }
}

/// Answers a call that is not run.
#[cold]
#[inline(never)]
fn refuse<L: Link + ?Sized>(
    link: &mut L,
    reply: Block,
    request: Header,
    status: Status,
) -> Result<bool, LinkError> {
    link.post(reply, &Done::nothing(status).response(&request, 0))?;
    Ok(true)
}

/// A word at a time, and all of them: that is shorter than a call which compares bytes.
#[inline(always)]
fn is_untouched(guard: &[u8; GUARD_LEN]) -> bool {
    const WORD: u64 = u64::from_ne_bytes([GUARD_BYTE; 8]);
    let (words, _) = guard.as_chunks::<8>();
    words.iter().fold(0, |differs, word| differs | u64::from_ne_bytes(*word) ^ WORD) == 0
}

impl Done {
    /// Ended so, without a reply.
    #[inline(always)]
    fn nothing(status: Status) -> Self {
        Self { status, code: 0, len: 0, wanted: 0 }
    }

    /// The reply's header.
    #[inline(always)]
    fn response(&self, request: &Header, time_ns: u64) -> Header {
        Header {
            kind: Kind::Response,
            status: self.status,
            code: self.code,
            payload_len: self.len as u32,
            block: request.reply_block,
            reply_block: 0,
            reply_capacity: u32::try_from(self.wanted).unwrap_or(u32::MAX),
            time_ns,
            ..*request
        }
    }
}
