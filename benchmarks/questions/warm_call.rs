//! What does a call cost when the worker sleeps between calls, beside the same sleep over the transport alone?
//!
//! Both sides sleep in the kernel at either end, and are woken by every message.

use gleaner::Waiting;
use gleaner_benchmarks::{echo::Echo, stage::Trips, transport::WARM_GOAL};

fn main() -> anyhow::Result<()> {
    let question = Echo {
        question: "warm_call",
        asks: "What does a call cost when the worker sleeps between calls?",
        waiting: Waiting::Warm,
        word: "warm",
        spinning: 0,
        trips: Trips::of(500),
        beside: |transport| (transport.warm, WARM_GOAL),
    };
    question.ask()
}
