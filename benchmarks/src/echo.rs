//! The question that hot and warm calls share: what does an echo cost over each transport, beside that transport alone? And how one echo
//! of any question is measured beside it.

use anyhow::Result;
use gleaner::Waiting;

use crate::{
    Arguments, Goal, Outcome, Sample, Stage, alternate,
    caller::echo_round,
    figure::Detailed,
    raw::{Load, Raw},
    reference,
    stage::{Cpus, Trips},
    transport::{TRANSPORTS, Transport},
};

/// An echo over the transport alone, beside which one of ours is measured.
#[derive(Debug, Clone, Copy)]
pub struct Beside {
    /// The transport.
    pub raw: Raw,
    /// Bytes each way.
    pub payload: usize,
    /// Where both ends are.
    pub cpus: Cpus,
    /// Rounds of each side.
    pub rounds: usize,
    /// Round trips of one round.
    pub trips: Trips,
    /// A smoke test: the baseline itself is held against nothing that takes time.
    pub quick: bool,
}

impl Beside {
    /// Our rounds and the baseline's by turns, and what that is held against in turn with it.
    pub fn measure(
        self,
        name: String,
        ours: impl FnMut(&mut Sample) -> Result<()>,
    ) -> Result<Detailed> {
        let Self { raw, payload, cpus, rounds, trips, quick } = self;
        let load = Load::echo(payload, cpus.worker);
        let mut references = reference::of_echo(raw, payload, cpus, quick);
        let compared = alternate(rounds, ours, |sample| {
            raw.round(load, trips, sample)?;
            references.measure(sample)
        })?;
        Ok(Detailed::beside(name, raw.name(), &compared).checked(references.all()))
    }
}

/// Bytes each way.
const PAYLOADS: [usize; 4] = [1, 64, 1024, 4096];
const ROUNDS: usize = 31;

/// What differs from one question to the other.
#[derive(Debug, Clone, Copy)]
pub struct Echo {
    /// The question's name.
    pub question: &'static str,
    /// The question, in words.
    pub asks: &'static str,
    /// How both sides wait.
    pub waiting: Waiting,
    /// The word for it in the figures' names.
    pub word: &'static str,
    /// Threads that spin meanwhile.
    pub spinning: usize,
    /// Round trips of one round.
    pub trips: Trips,
    /// Beside what a call stands, and what is asked of it.
    pub beside: fn(&Transport) -> (Raw, Goal),
}

impl Echo {
    /// Asks it of every transport.
    pub fn ask(self) -> Result<()> {
        let arguments = Arguments::read();
        let mut outcome = Outcome::begin(self.question, self.asks, self.spinning, &arguments);
        let stage = Stage::simple()?;
        for transport in TRANSPORTS {
            self.ask_one(&stage, transport, &arguments, &mut outcome)?;
        }
        outcome.publish(&arguments)
    }

    fn ask_one(
        self,
        stage: &Stage,
        transport: &Transport,
        arguments: &Arguments,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let (raw, goal) = (self.beside)(transport);
        let pool = stage.client()?.acquire(transport.request(self.waiting))?;
        let echo = pool.function(&stage.library, "echo")?;
        let cpus = stage.pin_beside_worker()?;
        let (rounds, trips) = arguments.pick((ROUNDS, self.trips), (2, Trips::of(50)));
        for payload in PAYLOADS {
            let beside = Beside { raw, payload, cpus, rounds, trips, quick: arguments.quick };
            let name = format!("{} {} call, {payload} B", self.word, transport.name);
            let ours = |sample: &mut Sample| echo_round(&echo, payload, trips, sample);
            outcome.push(beside.measure(name, ours)?.goal(Some(goal)));
        }
        Ok(pool.release()?)
    }
}
