//! Runs one call on one lane: is it still wanted, then the function, then what became of it. Silent, and without a lock or an
//! allocation of its own.
#![forbid(unsafe_code)]

use gleaner_fabric::{
    Asked, Done, Otherwise,
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

/// What a lane needs to run calls.
pub(super) struct Runner {
    shared: &'static Shared,
    gate: Gate<'static>,
    clock: Clock,
    /// The functions that were called here, by number.
    called: Box<[Option<Called>]>,
    /// What a function sees of its call. What is the same for all calls was filled in once.
    context: CallContext<'static>,
    /// Where functions write their messages.
    error: Box<[u8; ERROR_BYTES]>,
}

/// A function that was called on a lane.
#[derive(Debug, Clone, Copy)]
enum Called {
    /// Of rFaaS's ABI.
    Rfaas(abi::Rfaas),
    /// Of Gleaner's, with the state that its `init` made, if it has one.
    Ready { invoke: abi::Invoke, state: State, fini: Option<abi::Fini> },
    /// Its `init` is still to be called.
    Fresh { invoke: abi::Invoke, init: abi::Init, fini: Option<abi::Fini> },
}

/// A function's time, in ticks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ran {
    /// How long it ran.
    pub(super) ticks: u64,
    /// When it came back.
    pub(super) until: u64,
}

/// What is left to do once a call's reply is on its way.
pub(super) enum Ended {
    /// Nothing: it was not run.
    NotRun,
    Ran(Ran),
    Overflowed,
}

impl Ended {
    #[inline(always)]
    pub(super) fn note(self, meter: &mut Meter) {
        match self {
            Self::NotRun => {}
            Self::Ran(ran) => meter.call(ran),
            Self::Overflowed => fault::overflow(),
        }
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
            deadline: u64::MAX,
            cancel: None,
        };
        let called = vec![None; FUNCTIONS_MAX as usize].into();
        Self { shared, gate: shared.board.gate(), clock: shared.clock, called, context, error }
    }

    /// Runs a call in place, if it is still wanted.
    #[inline(always)]
    pub(super) fn serve(
        &mut self,
        slots: Slots<'static>,
        asked: Asked,
        input: &mut [u8],
        output: &mut [u8],
        ended: &mut Ended,
    ) -> Done {
        match self.wanted(&asked, slots) {
            Ok((called, slot)) => self.run(called, asked, slot, input, output, ended),
            Err(status) => Done::nothing(status),
        }
    }

    /// The function of a call that is still wanted, and the call's slot; or why it is not run.
    #[inline(always)]
    fn wanted(
        &mut self,
        asked: &Asked,
        slots: Slots<'static>,
    ) -> Result<(Called, Slot<'static>), Status> {
        // A link has no slot that its lane does not have on the board.
        let slot = slots.get(asked.slot).ok_or(Status::Stale)?;
        if !self.gate.admits(asked.epoch) {
            return Err(Status::Stale);
        }
        if slot.cancelled(asked.invocation) {
            return Err(Status::Cancelled);
        }
        let called = self.called(asked.function).ok_or(Status::UnknownFunction)?;
        Ok((called, slot))
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
        *ended = Ended::Overflowed;
        let Some(guard) = output.last_chunk_mut::<GUARD_LEN>() else {
            return Done::nothing(Status::Overflow);
        };
        *guard = GUARD;
        slot.set(asked.invocation, Phase::Started);
        fault::enter(asked.slot, asked.invocation);
        let begun = clock::ticks();
        let returned = self.enter(called, asked, slot, input, output);
        let until = clock::ticks();
        fault::leave();
        let Some((output, guard)) = output.split_last_chunk_mut::<GUARD_LEN>() else {
            return Done::nothing(Status::Overflow);
        };
        if *guard != GUARD {
            // Not finished: the lane answers, then ends this process.
            return Done::nothing(Status::Overflow);
        }
        slot.set(asked.invocation, Phase::Finished);
        let ticks = until.wrapping_sub(begun);
        *ended = Ended::Ran(Ran { ticks, until });
        let time_ns = self.clock.ns(ticks);
        match returned {
            Returned { code: 0, len } if len <= output.len() => Done::Well { len, time_ns },
            returned => self.otherwise(&returned, output, time_ns),
        }
    }

    /// Ends every function's state. The lease is over.
    pub(super) fn finish(&mut self) {
        for called in self.called.iter_mut().filter_map(Option::take) {
            if let Called::Ready { state, fini: Some(fini), .. } = called {
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
        let called = self.shared.functions.get(number).map(Called::new);
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
        asked: Asked,
        slot: Slot<'static>,
        input: &mut [u8],
        output: &mut [u8],
    ) -> Returned {
        let (invoke, state) = match called {
            Called::Rfaas(function) => {
                return Returned { code: 0, len: function::call_rfaas(function, input, output) };
            }
            Called::Ready { invoke, state, .. } => {
                self.begin(asked, slot);
                (invoke, state)
            }
            Called::Fresh { invoke, init, fini } => {
                self.begin(asked, slot);
                match self.init(init) {
                    Ok(state) => (invoke, self.keep(asked.function, invoke, state, fini)),
                    Err(code) => return Returned { code, len: 0 },
                }
            }
        };
        self.context.raw.state = state.pointer();
        let (code, len) = function::call_gleaner(invoke, &mut self.context, input, output);
        Returned { code, len }
    }

    /// The context is this call's from now on.
    #[inline(always)]
    fn begin(&mut self, asked: Asked, slot: Slot<'static>) {
        self.error[0] = 0;
        let clock = self.clock;
        self.context.deadline = match asked.time_ns {
            0 => u64::MAX,
            time => clock::ticks().saturating_add(clock.ticks(time)),
        };
        self.context.raw.invocation = asked.invocation;
        self.context.raw.error = self.error.as_mut_ptr().cast();
        self.context.cancel = Some(slot.cancel_flag(asked.invocation));
    }

    /// Makes a function's state on this lane.
    #[cold]
    fn init(&mut self, init: abi::Init) -> Result<State, i32> {
        self.context.raw.state = State::none().pointer();
        function::call_init(init, &mut self.context)
    }

    /// The state is the function's from now on.
    #[cold]
    fn keep(
        &mut self,
        number: u32,
        invoke: abi::Invoke,
        state: State,
        fini: Option<abi::Fini>,
    ) -> State {
        if let Some(place) = self.called.get_mut(number as usize) {
            *place = Some(Called::Ready { invoke, state, fini });
        }
        state
    }

    /// The function failed, or its reply does not fit.
    #[cold]
    #[inline(never)]
    fn otherwise(&self, returned: &Returned, output: &mut [u8], time_ns: u64) -> Done {
        Done::Otherwise(match *returned {
            Returned { code: 0, len } => Otherwise {
                status: Status::ReplyTooLarge,
                code: 0,
                len: 0,
                wanted: u32::try_from(len).unwrap_or(u32::MAX),
                time_ns,
            },
            Returned { code, .. } => Otherwise {
                status: Status::FunctionError,
                code: code as u32,
                len: self.copy_message(output) as u32,
                wanted: 0,
                time_ns,
            },
        })
    }

    /// The function's message becomes the reply, as much of it as fits.
    fn copy_message(&self, output: &mut [u8]) -> usize {
        let end = self.error.iter().position(|byte| *byte == 0).unwrap_or(ERROR_BYTES);
        let len = end.min(output.len());
        output[..len].copy_from_slice(&self.error[..len]);
        len
    }
}

impl Called {
    fn new(function: Function) -> Self {
        match function {
            Function::Rfaas(function) => Self::Rfaas(function),
            Function::Gleaner { invoke, init: Some(init), fini } => {
                Self::Fresh { invoke, init, fini }
            }
            // Without a state there is nothing to end.
            Function::Gleaner { invoke, init: None, .. } => {
                Self::Ready { invoke, state: State::none(), fini: None }
            }
        }
    }
}
