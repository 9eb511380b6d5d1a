//! What the questions share: a stage to ask them on, raw baselines, figures, and the report over all of them.
//!
//! Each benchmark is one question in `questions/`, with its raw baseline in the same program: same CPUs, same payload, every
//! byte touched on both sides, rounds that alternate. A baseline is itself held against an independent reference, and where
//! the two disagree the ratio is void. Figures are written, never asserted: a slow machine fails nothing.
//!
//! ```text
//! questions/<name>.rs ──▶ stage (private Slurm, Gleaner, a client) ┐
//!                     ──▶ raw (the transport alone)                ├─▶ rounds ─▶ figure ─▶ target/bench/<name>.json
//!                     ──▶ reference (is the baseline any good?)    ┘
//! bench-report ──▶ summary.json, index.html, the table in the book
//! ```

pub mod arguments;
pub mod blocks;
pub mod caller;
pub mod callgrind;
pub mod counted;
pub mod echo;
pub mod effort;
pub mod figure;
pub mod goal;
pub mod hook;
pub mod latencies;
pub mod link;
pub mod machine;
pub mod moment;
pub mod outcome;
pub mod packets;
pub mod peer;
pub mod pidfd;
pub mod raw;
pub mod reference;
pub mod report;
pub mod rounds;
pub mod several;
pub mod shares;
pub mod stage;
pub mod stepped;
pub mod steps;
pub mod transport;

pub use arguments::Arguments;
pub use figure::Figure;
pub use goal::Goal;
pub use latencies::Latencies;
pub use moment::Moment;
pub use outcome::Outcome;
pub use rounds::{Compared, Sample, alternate};
pub use stage::Stage;
