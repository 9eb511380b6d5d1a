//! The command line. Where Slurm has a flag for the same thing, it has Slurm's name.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use gleaner_config::{ByteSize, Transport};

use crate::{
    exit::CODES_HELP,
    time::{NodeCount, duration, moment, slurm_time},
};

/// Run short functions on the nodes that a Slurm cluster leaves idle.
#[derive(Debug, Parser)]
#[command(name = "gleaner", version, after_help = CODES_HELP, after_long_help = CODES_HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What every verb takes.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Configuration file [default: $GLEANER_CONFIG, else /etc/gleaner/gleaner.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Override one key of the configuration; may be repeated
    #[arg(long, global = true, value_name = "SECTION.KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Print one JSON object, with "version": 1
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// The cluster at a glance
    Status,
    /// Each node, what Gleaner does with it, and why
    Nodes(Nodes),
    /// Leases, live or ended
    Leases(Leases),
    /// Lease cores and call a function of a shared library on them
    Invoke(Box<Invoke>),
    /// Write a cargo workspace to begin with: a library of functions, and a program that calls them
    New(New),
    /// Leave nodes at once and keep off them (admins)
    Drain(Drain),
    /// Let drained nodes be harvested again (admins)
    Resume(Resume),
    /// The kill switch: leave every node at once (admins)
    Off(Off),
    /// End the kill switch (admins)
    On,
    /// What was idle, harvested, leased and executed, and every vacate
    Report(Report),
    /// Check or show the configuration
    Config(Configuration),
    /// Look at everything that must be in place, and say what to do about what is not
    Doctor,
    /// Print a shell's completion script
    Completions(Completions),
    /// Write the manual pages
    #[command(hide = true)]
    Manual(Manual),
}

#[derive(Debug, Args)]
pub(crate) struct Nodes {
    /// Only these, as "n[1-4],m1" [default: all]
    #[arg(short = 'w', long = "nodelist", value_name = "NODELIST")]
    pub(crate) nodelist: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Leases {
    /// Also those that have ended, newest first
    #[arg(long)]
    pub(crate) ended: bool,
    /// At most this many
    #[arg(long, default_value_t = 100, value_name = "COUNT")]
    pub(crate) limit: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Invoke {
    /// The shared library
    #[arg(value_name = "LIB")]
    pub(crate) library: PathBuf,
    /// The function's name in it
    pub(crate) function: String,
    /// The input: a file, or "-" for standard input
    #[arg(long, short = 'i', value_name = "FILE", conflicts_with = "data")]
    pub(crate) input: Option<PathBuf>,
    /// The input itself
    #[arg(long, short = 'd', value_name = "TEXT")]
    pub(crate) data: Option<String>,
    /// Write the result here and not to standard output
    #[arg(long, short = 'o', value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Call it so often and print latencies, not results
    #[arg(short = 'n', long = "count", default_value_t = 1, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: u64,
    /// Calls under way at a time
    #[arg(long, default_value_t = 1, value_name = "CALLS", value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub(crate) depth: u64,
    #[command(flatten)]
    pub(crate) request: RequestFlags,
    #[command(flatten)]
    pub(crate) call: CallFlags,
}

#[derive(Debug, Args)]
pub(crate) struct New {
    /// The workspace's name, and its directory below this one
    #[arg(value_parser = crate::new::name)]
    pub(crate) name: String,
    /// Depend on the checkout of Gleaner in this directory [default: on this release]
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) path: Option<PathBuf>,
}

/// What to lease.
#[derive(Debug, Args)]
#[command(next_help_heading = "Lease")]
pub(crate) struct RequestFlags {
    /// Nodes: a number, or the least and the most
    #[arg(short = 'N', long, default_value = "1", value_name = "MIN[-MAX]")]
    pub(crate) nodes: NodeCount,
    /// Cores on each node
    #[arg(short = 'c', long, default_value_t = 1, value_name = "CORES")]
    pub(crate) cpus_per_task: u32,
    /// Memory on each node, as "512M" or "4G" [default: client.memory]
    #[arg(long, value_name = "SIZE")]
    pub(crate) mem: Option<ByteSize>,
    /// How long the lease is asked for, in Slurm's form ("10", "1:30:00") or as "90s" [default: client.ttl]
    #[arg(short = 't', long, value_name = "TIME", value_parser = slurm_time)]
    pub(crate) time: Option<Duration>,
    /// Only nodes of this partition
    #[arg(short = 'p', long, value_name = "PARTITION")]
    pub(crate) partition: Option<String>,
    /// The account to charge [default: client.account]
    #[arg(short = 'A', long, value_name = "ACCOUNT")]
    pub(crate) account: Option<String>,
}

/// How to call.
#[derive(Debug, Args)]
#[command(next_help_heading = "Calls")]
pub(crate) struct CallFlags {
    /// Running it twice does no harm: calls that an eviction interrupts run again elsewhere
    #[arg(long)]
    pub(crate) idempotent: bool,
    /// The most time one call may take
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) deadline: Option<Duration>,
    /// Room for the reply [default: what fits a slot]
    #[arg(long, value_name = "SIZE")]
    pub(crate) reply_max: Option<ByteSize>,
    /// Workers sleep between calls and do not spin [default: client.waiting]
    #[arg(long)]
    pub(crate) warm: bool,
    /// How calls travel: auto, shm, rdma or tcp [default: client.transport]
    #[arg(long, value_name = "TRANSPORT")]
    pub(crate) transport: Option<Transport>,
    /// Run in this process when no node is to be had
    #[arg(long)]
    pub(crate) local_fallback: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Drain {
    /// As "n[1-4],m1"
    pub(crate) nodelist: String,
    /// Why, for the others
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct Resume {
    /// As "n[1-4],m1"
    pub(crate) nodelist: String,
}

#[derive(Debug, Args)]
pub(crate) struct Off {
    /// Why, for the others
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct Report {
    /// From when: a duration ago as "7d", or a date as "2026-01-31" or "2026-01-31 08:00:00" (UTC)
    #[arg(short = 'S', long, default_value = "1d", value_name = "WHEN", value_parser = moment)]
    pub(crate) since: std::time::SystemTime,
    /// Until when [default: now]
    #[arg(short = 'E', long, value_name = "WHEN", value_parser = moment)]
    pub(crate) until: Option<std::time::SystemTime>,
}

#[derive(Debug, Args)]
pub(crate) struct Configuration {
    #[command(subcommand)]
    pub(crate) verb: ConfigurationVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigurationVerb {
    /// Read it and report every problem
    Check,
    /// Print every key with its value
    Show {
        /// Also where each value comes from
        #[arg(long)]
        origin: bool,
        /// Only what differs from the defaults
        #[arg(long)]
        changed: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    pub(crate) shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct Manual {
    /// Where the man pages go
    pub(crate) directory: PathBuf,
    /// Where the book's reference pages go
    #[arg(long)]
    pub(crate) reference: Option<PathBuf>,
}
