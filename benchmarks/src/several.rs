//! Rounds with several requests under way: large ones to one worker, or one to each of several. Over verbs alone and over the
//! link on them, by the same code.

use std::{collections::VecDeque, time::Instant};

use anyhow::{Result, ensure};

use crate::{
    link::{self, Waiting},
    raw::{Load, Raw, Transport, verbs},
    rounds::Sample,
    stage::Trips,
};

/// What carries the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Gleaner's link.
    Link(Waiting),
    /// Verbs alone, waited for in the same way.
    Verbs(Waiting),
}

impl Over {
    fn start(self, load: Load) -> Result<Box<dyn Transport>> {
        Ok(match self {
            Self::Link(waiting) => Box::new(link::start(waiting, load)?),
            Self::Verbs(Waiting::Hot) => Box::new(verbs::start::<verbs::Polled>(load)?),
            Self::Verbs(Waiting::Warm) => Box::new(verbs::start::<verbs::Slept>(load)?),
        })
    }

    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Link(_) => "rdma link",
            Self::Verbs(Waiting::Hot) => Raw::Verbs.name(),
            Self::Verbs(Waiting::Warm) => Raw::VerbsEvents.name(),
        }
    }
}

/// Keeps `load.depth` requests of full size under way. A latency is from sending to reply; the time spent is the round's.
pub fn streamed(over: Over, load: Load, trips: Trips, sample: &mut Sample) -> Result<()> {
    let mut end = over.start(load)?;
    let request = vec![7; load.request];
    let (mut reply, mut expected) = (vec![0; load.reply()], vec![0; load.reply()]);
    load.work.run(&request, &mut expected);
    let (mut under_way, mut began) = (VecDeque::with_capacity(load.depth), Instant::now());
    for trip in 0..trips.all() + load.depth as u64 {
        if under_way.len() == load.depth || trip >= trips.all() {
            let Some((number, sent)) = under_way.pop_front() else { break };
            end.receive(&mut reply)?;
            ensure!(reply == expected, "the reply is not what was asked for");
            let now = Instant::now();
            if number >= trips.warm_up {
                sample.latencies.record(now - sent);
            } else {
                began = now;
            }
        }
        if trip < trips.all() {
            under_way.push_back((trip, Instant::now()));
            end.send(&request)?;
        }
    }
    sample.spent += began.elapsed();
    Ok(())
}

/// One request to each of `workers` at a time. A latency is a call's share of such a turn.
pub fn spread(
    over: Over,
    workers: usize,
    load: Load,
    trips: Trips,
    sample: &mut Sample,
) -> Result<()> {
    let ends: Result<Vec<_>> = (0..workers).map(|_| over.start(load)).collect();
    let mut ends = ends?;
    let mut request = vec![7; load.request];
    let (mut reply, mut expected) = (vec![0; load.reply()], vec![0; load.reply()]);
    for trip in 0..trips.all() {
        request[0] = trip as u8;
        load.work.run(&request, &mut expected);
        let began = Instant::now();
        for end in &mut ends {
            end.send(&request)?;
        }
        for end in &mut ends {
            end.receive(&mut reply)?;
            ensure!(reply == expected, "the reply is not what was asked for");
        }
        if trip >= trips.warm_up {
            sample.record(began.elapsed() / workers as u32);
        }
    }
    Ok(())
}
