//! Gleaner's side of a round: calls that are checked, one at a time or several under way.

use std::{collections::VecDeque, time::Instant};

use anyhow::{Result, ensure};
use gleaner::Function;

use crate::{rounds::Sample, stage::Trips};

/// One round of echoes, one at a time.
pub fn echo_round(
    echo: &Function<'_>,
    payload: usize,
    trips: Trips,
    sample: &mut Sample,
) -> Result<()> {
    let (mut input, mut output) = (vec![7; payload], vec![0; payload]);
    for trip in 0..trips.all() {
        input[0] = trip as u8;
        let began = Instant::now();
        let len = echo.invoke_into(&input, &mut output)?;
        let took = began.elapsed();
        ensure!(len == payload && input == output, "the echo is not what was sent");
        if trip >= trips.warm_up {
            sample.record(took);
        }
    }
    Ok(())
}

/// One round of echoes with `depth` of them under way.
pub fn pipelined_round(
    echo: &Function<'_>,
    depth: usize,
    trips: Trips,
    sample: &mut Sample,
) -> Result<()> {
    pipeline(
        depth,
        trips,
        sample,
        &mut (),
        |(), number| Ok(echo.submit(&number.to_le_bytes())?),
        |(), ticket, number| ticket.wait_with(|reply| check(reply, number))?,
    )
}

/// Bytes of each pipelined call: its number.
pub const PIPELINED_BYTES: usize = size_of::<u64>();

/// Whether a reply is that of the call with this number.
pub(crate) fn check(reply: &[u8], number: u64) -> Result<()> {
    ensure!(reply == number.to_le_bytes(), "a reply is not the one that was asked for");
    Ok(())
}

/// Keeps `depth` calls under way on `end`. A latency is from a call's sending to its reply; the time that is spent is the
/// round's.
pub(crate) fn pipeline<E, T>(
    depth: usize,
    trips: Trips,
    sample: &mut Sample,
    end: &mut E,
    mut send: impl FnMut(&mut E, u64) -> Result<T>,
    mut receive: impl FnMut(&mut E, T, u64) -> Result<()>,
) -> Result<()> {
    let mut under_way = VecDeque::with_capacity(depth);
    let mut began = Instant::now();
    for number in 0..trips.all() + depth as u64 {
        if number >= depth as u64
            && let Some((number, sent, ticket)) = under_way.pop_front()
        {
            receive(end, ticket, number)?;
            let now = Instant::now();
            if number >= trips.warm_up {
                sample.latencies.record(now - sent);
            } else {
                began = now;
            }
        }
        if number < trips.all() {
            let sent = Instant::now();
            let ticket = send(end, number)?;
            under_way.push_back((number, sent, ticket));
        }
    }
    sample.spent += began.elapsed();
    Ok(())
}
