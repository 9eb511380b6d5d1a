//! `sim`: runs the lease simulator by hand. `sim --seeds 100000 [--from N]`, or `sim --seed N [--trace] [--sabotage NAME]`.

#![forbid(unsafe_code)]

use std::{
    process::ExitCode,
    sync::Mutex,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use gleaner_lease_sim::{
    SABOTAGES, Sabotage, Stats, Violation, replay_command, run, run_sabotaged, run_traced,
};

const USAGE: &str =
    "usage: sim [--seeds COUNT] [--from SEED] | sim --seed SEED [--trace] [--sabotage NAME]";

/// What the command line asks for.
struct Args {
    from: u64,
    seeds: u64,
    seed: Option<u64>,
    trace: bool,
    sabotage: Option<Sabotage>,
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match args.seed {
        Some(seed) => one(seed, &args),
        None => many(args.from, args.seeds),
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut args = Args { from: 0, seeds: 1000, seed: None, trace: false, sabotage: None };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--seeds" => args.seeds = number(&value()?)?,
            "--from" => args.from = number(&value()?)?,
            "--seed" => args.seed = Some(number(&value()?)?),
            "--trace" => args.trace = true,
            "--sabotage" => args.sabotage = Some(sabotage(&value()?)?),
            other => return Err(format!("{other} is no option")),
        }
    }
    Ok(args)
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

fn sabotage(name: &str) -> Result<Sabotage, String> {
    let known = SABOTAGES.into_iter().find(|sabotage| format!("{sabotage:?}") == name);
    known.ok_or_else(|| format!("{name:?} is none of {SABOTAGES:?}"))
}

fn one(seed: u64, args: &Args) -> ExitCode {
    let result = match (args.trace, args.sabotage) {
        (true, sabotage) => run_traced(seed, sabotage),
        (false, Some(sabotage)) => run_sabotaged(seed, sabotage),
        (false, None) => run(seed),
    };
    match result {
        Ok(stats) => {
            println!("seed {seed}: {stats}");
            ExitCode::SUCCESS
        }
        Err(violation) => {
            println!("seed {seed}: {violation}");
            ExitCode::FAILURE
        }
    }
}

fn many(from: u64, seeds: u64) -> ExitCode {
    let next = AtomicU64::new(from);
    let results: Mutex<(Stats, Vec<(u64, Violation)>)> = Mutex::default();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work(&next, from.saturating_add(seeds), &results));
        }
    });
    let (total, mut failed) = results.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    failed.sort_by_key(|(seed, _)| *seed);
    for (seed, violation) in failed.iter().take(20) {
        println!("seed {seed}: {violation}\n  replay: {}", replay_command(*seed));
    }
    println!("{seeds} seeds from {from}, {} failed: {total}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Takes seeds until none is left.
fn work(next: &AtomicU64, end: u64, results: &Mutex<(Stats, Vec<(u64, Violation)>)>) {
    let mut total = Stats::default();
    let mut failed = Vec::new();
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            break;
        }
        match run(seed) {
            Ok(stats) => total.add(&stats),
            Err(violation) => failed.push((seed, violation)),
        }
    }
    let mut results = results.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    results.0.add(&total);
    results.1.append(&mut failed);
}
