//! Developer commands, one verb a job: the Makefile and CI call these and nothing else.
//!
//! Light on purpose: it depends on no other crate of the workspace, so that `make setup` builds in seconds. What needs the
//! workspace's code (the demo, the man pages) is a program that is run from here.

#![forbid(unsafe_code)]

mod bench;
mod book;
mod guest;
mod run;
mod setup;
mod verbs;

use clap::{Parser, Subcommand};

/// Developer commands of Gleaner.
#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what is missing: Debian packages, cargo-deny
    Setup,
    /// Set up, build, lint and run every test: what CI runs
    Test,
    /// Run the tests that need a virtual machine: RDMA verbs (Soft-RoCE), cgroup v2 alone
    TestRdma,
    /// Run a command in such a machine, which sees the host's files: `cargo xtask rdma --network pair -- ibv_devinfo`
    Rdma {
        /// Arguments of gleaner-guest; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Check formatting, clippy with warnings denied, cargo-deny
    Lint,
    /// Format all code
    Fmt,
    /// Run the lease simulator in release
    Sim {
        /// How many seeds, from 0
        #[arg(long, conflicts_with = "seed")]
        seeds: Option<u64>,
        /// Replay this seed alone
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Run the benchmarks; their figures go to target/bench/ and into the book
    Bench {
        /// Which questions, such as hot_call; none: all of them
        questions: Vec<String>,
        /// A few calls each, to see that they work: the figures go to target/bench/quick/ and mean nothing
        #[arg(long)]
        quick: bool,
        /// How many calls endurance makes
        #[arg(long)]
        calls: Option<u64>,
    },
    /// Run the benchmark of RDMA: on this machine's device, or else in a virtual machine with Soft-RoCE
    BenchRdma {
        /// A few calls each: see bench
        #[arg(long)]
        quick: bool,
    },
    /// The main job on a private Slurm; its figures go to target/demo/summary.json
    Demo {
        /// Arguments of the demo
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Write man pages, completions and the configuration's reference page
    Man,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().verb {
        Verb::Setup => setup::setup(),
        Verb::Test => verbs::test(),
        Verb::TestRdma => guest::test(),
        Verb::Rdma { arguments } => guest::rdma(&arguments),
        Verb::Lint => verbs::lint(),
        Verb::Fmt => verbs::fmt(),
        Verb::Sim { seeds, seed } => verbs::sim(seeds, seed),
        Verb::Bench { questions, quick, calls } => bench::bench(&questions, quick, calls),
        Verb::BenchRdma { quick } => bench::bench_rdma(quick),
        Verb::Demo { arguments } => verbs::demo(&arguments),
        Verb::Man => verbs::man(),
    }
}
