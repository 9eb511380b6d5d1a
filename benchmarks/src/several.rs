//! Rounds with several requests under way: large ones to one worker, or one to each of several. Over verbs alone and over the
//! link on them, by the same code.

use std::collections::VecDeque;

use anyhow::{Result, ensure};

use crate::{
    link::{self, Waiting},
    moment::Moment,
    raw::{Load, Transport, verbs},
    rounds::Sample,
    stage::Trips,
};

/// What carries the requests, and how its ends wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Gleaner's link.
    Link(Waits),
    /// Verbs alone.
    Verbs(Waits),
}

/// How the ends wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// Both sleep.
    Sleeping,
    /// The caller polls and the worker sleeps: as with ib_write_bw, whose far end does nothing. An emulated device needs that
    /// CPU.
    CallerPolls,
}

impl Over {
    fn start(self, load: Load) -> Result<Box<dyn Transport>> {
        Ok(match self {
            Self::Link(Waits::Sleeping) => {
                Box::new(link::start(Waiting::Warm, Waiting::Warm, load)?)
            }
            Self::Link(Waits::CallerPolls) => {
                Box::new(link::start(Waiting::Hot, Waiting::Warm, load)?)
            }
            Self::Verbs(Waits::Sleeping) => Box::new(verbs::start::<verbs::Slept>(load)?),
            Self::Verbs(Waits::CallerPolls) => Box::new(verbs::start::<verbs::PolledHere>(load)?),
        })
    }
}

/// Keeps `load.depth` requests of full size under way, whose replies are sums. A latency is from sending to reply; the time
/// spent is the round's.
pub fn streamed(over: Over, load: Load, trips: Trips, sample: &mut Sample) -> Result<()> {
    let mut end = over.start(load)?;
    let (mut request, mut reply) = (vec![7; load.request], vec![0; load.reply()]);
    // Both ends of the request are numbered, so that one that has not wholly come is not taken for another.
    stamp(&mut request, 0);
    load.work.run(&request, &mut reply);
    let unnumbered = total(&reply);
    let (mut under_way, mut began) = (VecDeque::with_capacity(load.depth), Moment::now());
    for trip in 0..trips.all() + load.depth as u64 {
        if under_way.len() == load.depth || trip >= trips.all() {
            let Some((number, sent)) = under_way.pop_front() else { break };
            end.receive(&mut reply)?;
            let asked = unnumbered.wrapping_add(2 * number);
            ensure!(total(&reply) == asked, "the reply is not what was asked for");
            let now = Moment::now();
            if number >= trips.warm_up {
                sample.latencies.record(now.since(sent));
            } else {
                began = now;
            }
        }
        if trip < trips.all() {
            under_way.push_back((trip, Moment::now()));
            stamp(&mut request, trip);
            end.send(&request)?;
        }
    }
    sample.spent += began.elapsed();
    Ok(())
}

/// Writes a number into the first word and the last.
fn stamp(request: &mut [u8], number: u64) {
    let bytes = number.to_le_bytes();
    let last = request.len() - bytes.len();
    request[..bytes.len()].copy_from_slice(&bytes);
    request[last..].copy_from_slice(&bytes);
}

fn total(reply: &[u8]) -> u64 {
    reply.try_into().map_or(0, u64::from_le_bytes)
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
        let began = Moment::now();
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
