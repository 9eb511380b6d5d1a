//! The question that hot and warm calls share: what does an echo cost over each transport, beside that transport alone?

use anyhow::Result;
use gleaner::Waiting;

use crate::{
    Arguments, Goal, Outcome, Stage, alternate,
    caller::echo_round,
    figure::Detailed,
    raw::{Load, Raw},
    reference,
    stage::Trips,
    transport::{TRANSPORTS, Transport},
};

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
            let load = Load::echo(payload, cpus.worker);
            let mut references = reference::of_echo(raw, payload, cpus, arguments.quick);
            let compared = alternate(
                rounds,
                |sample| echo_round(&echo, payload, trips, sample),
                |sample| {
                    raw.round(load, trips, sample)?;
                    references.measure(sample)
                },
            )?;
            let name = format!("{} {} call, {payload} B", self.word, transport.name);
            let figure = Detailed::beside(name, raw.name(), &compared);
            outcome.push(figure.checked(references.all()).goal(Some(goal)));
        }
        Ok(pool.release()?)
    }
}
