//! A seeded simulator of everything that holds a lease: harvester, agents, keepers, workers, clients, hooks, Slurm.
//!
//! The books under test are the real ones of `gleaner_lease`; around them stand the smallest roles that use them as the
//! daemons do. The network loses, delays, doubles and reorders; every process is stopped, killed and started again; the
//! database fails; clocks differ and drift within their bound. After every event I1 to I7 are checked. Run by
//! `tests/seeds.rs` and by the program `sim`; nothing that is installed depends on it. Tokens travel as their claims:
//! signatures have tests of their own.

#![forbid(unsafe_code)]

mod agent;
mod check;
mod client;
mod faults;
mod harvester;
mod message;
mod node;
mod world;

use std::fmt;

/// A rule that a role of the simulator breaks on purpose, to see that the checks would find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// The harvester takes grants for ended before they surely are.
    NoDriftWait,
    /// A restarted harvester does not read what its predecessor had stored.
    RestartForgets,
    /// The harvester replies before the lease is on disk.
    ReplyBeforePersist,
    /// The agent counts a grant from its arrival, not from the heartbeat that it answers.
    GrantFromArrival,
    /// Agent and worker take any epoch for the present one.
    SkipEpochCheck,
    /// The agent tells the calls' states as they were before the worker was killed.
    VerdictTooEarly,
    /// The accounts go on after the worker's end.
    MeterRunsOn,
    /// The keeper leaves the killing for a prolog to the agent.
    KeeperAsksAgent,
    /// The keeper has no timers.
    KeeperIgnoresDeadlines,
    /// The hook goes on without an answer and without killing.
    HookTrustsKeeper,
    /// The hook waits for its answer as long as it takes.
    HookWaits,
    /// The client runs again what had started.
    ClientRerunsStarted,
}

/// Every sabotage.
pub const SABOTAGES: [Sabotage; 12] = {
    use Sabotage::*;
    [
        NoDriftWait,
        RestartForgets,
        ReplyBeforePersist,
        GrantFromArrival,
        SkipEpochCheck,
        VerdictTooEarly,
        MeterRunsOn,
        KeeperAsksAgent,
        KeeperIgnoresDeadlines,
        HookTrustsKeeper,
        HookWaits,
        ClientRerunsStarted,
    ]
};

/// An invariant that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which one: "I1" to "I7".
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
    /// When, in true milliseconds.
    pub at_ms: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} broken at {} ms: {}", self.invariant, self.at_ms, self.what)
    }
}

/// How much a run, or many, exercised.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stats {
    /// Events, each followed by all checks.
    pub steps: u64,
    /// Faults injected, beside the network's.
    pub faults: u64,
    /// Batch jobs.
    pub jobs: u64,
    /// Leases whose worker started.
    pub leases_started: u64,
    /// Leases that the harvester saw end.
    pub leases_ended: u64,
    /// Calls made.
    pub calls: u64,
    /// Times that a call was to run again.
    pub run_again: u64,
    /// Calls that ended OK, FAILED, EVICTED and UNKNOWN.
    pub ended: [u64; 4],
}

impl Stats {
    /// Adds another run.
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.faults += other.faults;
        self.jobs += other.jobs;
        self.leases_started += other.leases_started;
        self.leases_ended += other.leases_ended;
        self.calls += other.calls;
        self.run_again += other.run_again;
        self.ended.iter_mut().zip(other.ended).for_each(|(sum, more)| *sum += more);
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [ok, failed, evicted, unknown] = self.ended;
        write!(
            f,
            "{} steps, {} faults, {} batch jobs, {} leases started, {} ended; {} calls: {ok} OK, {failed} FAILED, \
             {evicted} EVICTED, {unknown} UNKNOWN, {} runs again",
            self.steps,
            self.faults,
            self.jobs,
            self.leases_started,
            self.leases_ended,
            self.calls,
            self.run_again
        )
    }
}

/// Runs one seed to its end.
pub fn run(seed: u64) -> Result<Stats, Violation> {
    world::World::new(seed, None, false).run()
}

/// Runs one seed and prints every event to standard error.
pub fn run_traced(seed: u64, sabotage: Option<Sabotage>) -> Result<Stats, Violation> {
    world::World::new(seed, sabotage, true).run()
}

/// Runs one seed with a rule broken.
pub fn run_sabotaged(seed: u64, sabotage: Sabotage) -> Result<Stats, Violation> {
    world::World::new(seed, Some(sabotage), false).run()
}

/// The command that replays a seed.
pub fn replay_command(seed: u64) -> String {
    format!("cargo run -p gleaner-lease-sim -- --seed {seed} --trace")
}
