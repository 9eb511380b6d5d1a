//! The simulator in every test run: the kept seeds, a thousand more, and each sabotage, which must be found.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use gleaner_lease_sim::{SABOTAGES, Sabotage, replay_command, run, run_sabotaged};

/// Seeds of each test run beyond the kept ones.
const SEEDS: u64 = 1000;
/// Within so many seeds a sabotage must be found.
const SABOTAGED_SEEDS: u64 = 400;

fn kept() -> Vec<u64> {
    let number = |line: &str| line.split_whitespace().next()?.parse().ok();
    include_str!("../seeds.txt").lines().filter_map(number).collect()
}

/// Runs seeds on every core; the failing ones, each with the command that replays it.
fn failures(seeds: &[u64]) -> Vec<String> {
    let next = AtomicU64::new(0);
    let work = || {
        let take = || seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize).copied();
        std::iter::from_fn(take)
            .filter_map(|seed| {
                let violation = run(seed).err()?;
                Some(format!("seed {seed}: {violation}\n  replay: {}", replay_command(seed)))
            })
            .collect::<Vec<_>>()
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().expect("a run does not panic"))
            .collect()
    })
}

#[test]
fn no_seed_breaks_an_invariant() {
    let seeds: Vec<u64> = kept().into_iter().chain(0..SEEDS).collect();
    let failed = failures(&seeds);
    assert!(failed.is_empty(), "{} of {} seeds:\n{}", failed.len(), seeds.len(), failed.join("\n"));
}

#[test]
fn a_seed_is_a_whole_history() {
    let twice = [run(7), run(7)].map(|run| format!("{run:?}"));
    assert_eq!(twice[0], twice[1]);
}

/// The invariants that may show a broken rule: one that never shows proves nothing.
fn shows(sabotage: Sabotage) -> &'static [&'static str] {
    match sabotage {
        Sabotage::NoDriftWait | Sabotage::RestartForgets | Sabotage::ReplyBeforePersist => &["I1"],
        Sabotage::GrantFromArrival => &["I1", "I2"],
        Sabotage::SkipEpochCheck => &["I1", "I2", "I4"],
        Sabotage::KeeperIgnoresDeadlines => &["I1", "I2"],
        Sabotage::HookTrustsKeeper => &["I3"],
        Sabotage::KeeperAsksAgent => &["I4"],
        Sabotage::VerdictTooEarly | Sabotage::ClientRerunsStarted => &["I5"],
        Sabotage::MeterRunsOn => &["I6"],
        Sabotage::HookWaits => &["I7"],
    }
}

#[test]
fn every_sabotage_is_found() {
    for sabotage in SABOTAGES {
        let found = (0..SABOTAGED_SEEDS).find_map(|seed| run_sabotaged(seed, sabotage).err());
        let violation = found
            .unwrap_or_else(|| panic!("{sabotage:?} shows in none of {SABOTAGED_SEEDS} seeds"));
        assert!(
            shows(sabotage).contains(&violation.invariant),
            "{sabotage:?} shows as {violation}"
        );
    }
}
