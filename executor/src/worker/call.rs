//! Runs one call on one lane: is it still wanted, then the function, then what became of it. Silent, and without a lock or an
//! allocation of its own.
#![forbid(unsafe_code)]

use gleaner_fabric::{
    Asked, Done, Failure, Runs,
    clock::{self, Clock},
};
use gleaner_function::abi::{self, RawContext};
use gleaner_proto::header::{GUARD_LEN, Status};

use super::{
    Shared, fault,
    function::{self, CallContext, Function, State},
    ipc::FUNCTIONS_MAX,
    meter::Meter,
    tune::{ERROR_BYTES, GUARD_BYTE},
};
use crate::board::{Gate, Phase, Slot, Slots};

const GUARD: [u8; GUARD_LEN] = [GUARD_BYTE; GUARD_LEN];
const GUARD_WORD: u64 = u64::from_ne_bytes([GUARD_BYTE; 8]);

/// What a lane needs to run calls.
pub(super) struct Runner {
    shared: &'static Shared,
    gate: Gate<'static>,
    clock: Clock,
    /// The functions that were called here, by number.
    called: Box<[Option<Called>]>,
    /// The states to end when the lease does. As many as there may be functions: it never grows.
    ends: Vec<(abi::Fini, State)>,
    /// What a function sees of its call. What is the same for all calls was filled in once.
    context: CallContext<'static>,
    /// Where functions write their messages.
    error: Box<[u8; ERROR_BYTES]>,
}

/// A function as it is called on a lane.
#[derive(Debug, Clone, Copy)]
enum Called {
    /// Of Gleaner's ABI, with the state that its `init` made, if it has one.
    Ready(abi::Invoke, State),
    /// Of rFaaS's.
    Rfaas(abi::Rfaas),
    /// Its `init` is still to be called, or has failed.
    Fresh,
}

/// A function's time: when it was entered, and when it came back, in ticks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ran {
    pub(super) begun: u64,
    pub(super) until: u64,
}

/// What is left to do once a call's reply is on its way.
enum Ended {
    /// Nothing: it was not run.
    NotRun,
    Ran(Ran),
    Overflowed,
}

/// Runs the calls of one link, and holds what is left to do after one.
pub(super) struct Serving<'a> {
    runner: &'a mut Runner,
    slots: Slots<'static>,
    ended: Ended,
}

impl<'a> Serving<'a> {
    pub(super) fn new(runner: &'a mut Runner, slots: Slots<'static>) -> Self {
        Self { runner, slots, ended: Ended::NotRun }
    }

    /// Does what is left to do.
    #[inline(always)]
    pub(super) fn note(&mut self, meter: &mut Meter) {
        match std::mem::replace(&mut self.ended, Ended::NotRun) {
            Ended::NotRun => {}
            Ended::Ran(ran) => meter.call(ran),
            Ended::Overflowed => std::process::abort(),
        }
    }
}

impl Runs for Serving<'_> {
    #[inline(always)]
    fn run(&mut self, asked: Asked, input: &mut [u8], output: &mut [u8]) -> Done {
        self.runner.serve(self.slots, asked, input, output, &mut self.ended)
    }
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
            begun: 0,
            time_ns: 0,
            slot: None,
        };
        let called = vec![None; FUNCTIONS_MAX as usize].into();
        let ends = Vec::with_capacity(FUNCTIONS_MAX as usize);
        let (gate, clock) = (shared.board.gate(), shared.clock);
        Self { shared, gate, clock, called, ends, context, error }
    }

    /// Runs a call in place, if it is still wanted.
    #[inline(always)]
    fn serve(
        &mut self,
        slots: Slots<'static>,
        asked: Asked,
        input: &mut [u8],
        output: &mut [u8],
        ended: &mut Ended,
    ) -> Done {
        loop {
            if let Some((called, slot)) = self.wanted(&asked, slots) {
                return self.run(called, asked, slot, input, output, ended);
            }
            let Asked { slot, epoch, invocation, function, .. } = asked;
            if let Some(status) = self.why_not(slots, slot, epoch, invocation, function) {
                return Done::nothing(status);
            }
        }
    }

    /// The function of a call that is still wanted, as far as it is known here, and the call's slot.
    #[inline(always)]
    fn wanted(&self, asked: &Asked, slots: Slots<'static>) -> Option<(Called, Slot<'static>)> {
        // A link has no slot that its lane does not have on the board.
        let slot = slots.get(asked.slot)?;
        let is_wanted = self.gate.admits(asked.epoch) && !slot.cancelled(asked.invocation);
        let called = *self.called.get(asked.function as usize).filter(|_| is_wanted)?;
        Some((called?, slot))
    }

    /// Why a call is not run; `None` if its function was only not known here, and is now.
    #[cold]
    #[inline(never)]
    fn why_not(
        &mut self,
        slots: Slots<'static>,
        slot: u16,
        epoch: u64,
        invocation: u64,
        function: u32,
    ) -> Option<Status> {
        let slot = slots.get(slot).filter(|_| self.gate.admits(epoch));
        let Some(slot) = slot else { return Some(Status::Stale) };
        if slot.cancelled(invocation) {
            return Some(Status::Cancelled);
        }
        let place = self.called.get_mut(function as usize);
        let function = self.shared.functions.get(function);
        let (Some(function), Some(place)) = (function, place) else {
            return Some(Status::UnknownFunction);
        };
        *place = Some(Called::new(function));
        None
    }

    #[inline(always)]
    fn run(
        &mut self,
        called: Called,
        asked: Asked,
        slot: Slot<'static>,
        input: &mut [u8],
        output: &mut [u8],
        ended: &mut Ended,
    ) -> Done {
        *guard_of(output).1 = GUARD;
        self.begin(&asked, slot);
        slot.set(asked.invocation, Phase::Started);
        fault::enter(asked.slot, asked.invocation);
        let begun = clock::ticks();
        self.context.begun = begun;
        let returned = self.enter(called, asked.function, input, output);
        let until = clock::ticks();
        fault::leave();
        let (room, guard) = guard_of(output);
        if !is_whole(guard) {
            // Not finished: the lane answers, then ends this process.
            fault::overflowed();
            *ended = Ended::Overflowed;
            return Done::nothing(Status::Overflow);
        }
        slot.set(asked.invocation, Phase::Finished);
        *ended = Ended::Ran(Ran { begun, until });
        let time_ns = self.clock.ns(until.wrapping_sub(begun));
        match returned {
            Returned { code: 0, len } if len <= room.len() => Done::well(len, time_ns),
            returned => {
                let len = self.message(&returned, room);
                Done { len, time_ns, failure: Some(returned.failure()) }
            }
        }
    }

    /// Ends every function's state. The lease is over.
    pub(super) fn finish(&mut self) {
        for (fini, state) in self.ends.drain(..) {
            function::call_fini(fini, state);
        }
    }

    #[inline(always)]
    fn enter(
        &mut self,
        called: Called,
        number: u32,
        input: &mut [u8],
        output: &mut [u8],
    ) -> Returned {
        let (invoke, state) = match called {
            Called::Ready(invoke, state) => (invoke, state),
            Called::Rfaas(function) => {
                return Returned { code: 0, len: function::call_rfaas(function, input, output) };
            }
            Called::Fresh => match self.init(number) {
                Ok(ready) => ready,
                Err(code) => return Returned { code, len: 0 },
            },
        };
        self.context.raw.state = state.pointer();
        let (code, len) = function::call_gleaner(invoke, &mut self.context, input, output);
        Returned { code, len }
    }

    /// The context is this call's from now on.
    #[inline(always)]
    fn begin(&mut self, asked: &Asked, slot: Slot<'static>) {
        self.error[0] = 0;
        self.context.raw.error = self.error.as_mut_ptr().cast();
        self.context.raw.invocation = asked.invocation;
        self.context.time_ns = asked.time_ns;
        self.context.slot = Some(slot);
    }

    /// Makes a function's state on this lane.
    #[cold]
    #[inline(never)]
    fn init(&mut self, number: u32) -> Result<(abi::Invoke, State), i32> {
        let Some(Function::Gleaner { invoke, init: Some(init), fini }) =
            self.shared.functions.get(number)
        else {
            unreachable!("only a function with an init is fresh");
        };
        self.context.raw.state = State::none().pointer();
        let state = function::call_init(init, &mut self.context)?;
        self.called[number as usize] = Some(Called::Ready(invoke, state));
        self.ends.extend(fini.map(|fini| (fini, state)));
        Ok((invoke, state))
    }

    /// A failed function's message becomes the reply, as much of it as fits.
    #[cold]
    #[inline(never)]
    fn message(&self, returned: &Returned, room: &mut [u8]) -> usize {
        if returned.code == 0 {
            return 0;
        }
        let end = self.error.iter().position(|byte| *byte == 0).unwrap_or(ERROR_BYTES);
        let len = end.min(room.len());
        room[..len].copy_from_slice(&self.error[..len]);
        len
    }
}

impl Returned {
    /// The function failed, or its reply does not fit.
    #[cold]
    #[inline(never)]
    fn failure(&self) -> Failure {
        match *self {
            Self { code: 0, len } => {
                let wanted = u32::try_from(len).unwrap_or(u32::MAX);
                Failure { status: Status::ReplyTooLarge, code: 0, wanted }
            }
            Self { code, .. } => {
                Failure { status: Status::FunctionError, code: code as u32, wanted: 0 }
            }
        }
    }
}

/// The room for a reply, and the guard behind: no link's block is without.
#[inline(always)]
fn guard_of(output: &mut [u8]) -> (&mut [u8], &mut [u8; GUARD_LEN]) {
    output.split_last_chunk_mut().expect("a block ends with its guard")
}

/// Whether nothing was written there. By words: arrays would be compared by a call into the C library.
#[inline(always)]
fn is_whole(guard: &[u8; GUARD_LEN]) -> bool {
    let (words, _) = guard.as_chunks();
    let odd = words.iter().map(|word| u64::from_ne_bytes(*word) ^ GUARD_WORD);
    odd.fold(0, std::ops::BitOr::bitor) == 0
}

impl Called {
    fn new(function: Function) -> Self {
        match function {
            Function::Rfaas(function) => Self::Rfaas(function),
            Function::Gleaner { init: Some(_), .. } => Self::Fresh,
            // Without a state there is nothing to end.
            Function::Gleaner { invoke, init: None, .. } => Self::Ready(invoke, State::none()),
        }
    }
}
