//! What does a hot call cost beside the transport under it?
//!
//! Baseline: two threads, one CPU each, that pass the same payload to and fro over the transport alone, and never sleep.
//! Gleaner: a client on one CPU calls `echo` on a worker pinned to the other, through the whole service on a private Slurm.

use gleaner::Waiting;
use gleaner_benchmarks::{echo::Echo, stage::Trips};

fn main() -> anyhow::Result<()> {
    let question = Echo {
        question: "hot_call",
        asks: "What does a hot call cost beside the transport under it?",
        waiting: Waiting::Hot,
        word: "hot",
        // This thread and the worker's, or the peer's.
        spinning: 2,
        trips: Trips::of(2_500),
        beside: |transport| (transport.hot, transport.hot_goal),
    };
    question.ask()
}
