//! Gleaner's side of a round: calls that are checked, one at a time or several under way.

use std::collections::VecDeque;

use anyhow::{Result, ensure};
use gleaner::Function;

use crate::{moment::Moment, rounds::Sample, stage::Trips};

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
        let began = Moment::now();
        let len = echo.invoke_into(&input, &mut output)?;
        let took = began.elapsed();
        ensure!(len == payload && input == output, "the echo is not what was sent");
        if trip >= trips.warm_up {
            sample.record(took);
        }
    }
    Ok(())
}

/// Of the calls under way side by side, each of so many is timed and stands for the others: two looks at the clock for each
/// would be a large part of what is measured. On both sides.
const TIMED_EVERY: u64 = 8;
/// Of the calls under way, so large a part is taken before others are sent in their place.
const PART: usize = 4;

/// A call under way: its number, and when it was sent if it is timed.
type Sent = (u64, Option<Moment>);

/// One round of echoes with `depth` of them under way.
pub fn pipelined_round(
    echo: &Function<'_>,
    depth: usize,
    trips: Trips,
    sample: &mut Sample,
) -> Result<()> {
    let mut calls = echo.completions_of(depth);
    let mut numbers = (0..trips.all()).map(|number| (number.to_le_bytes(), sent(number)));
    let (mut round, mut taken) = (Round::new(trips), 0);
    loop {
        calls.fill(&mut numbers);
        let mut ended = calls.next_with(read_number);
        if ended.is_none() {
            break;
        }
        let until = taken + depth.div_ceil(PART) as u64;
        while let Some(((number, sent), reply)) = ended {
            ensure!(reply? == Some(number), "a reply is not the one that was asked for");
            round.ended(taken, sent, sample);
            taken += 1;
            ended = if taken < until { calls.try_next_with(read_number) } else { None };
        }
    }
    ensure!(taken == trips.all(), "{taken} replies to {} calls", trips.all());
    round.over(sample);
    Ok(())
}

fn read_number(reply: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(reply.try_into().ok()?))
}

fn sent(number: u64) -> Sent {
    (number, number.is_multiple_of(TIMED_EVERY).then(Moment::now))
}

/// When a round's counted part began.
struct Round {
    trips: Trips,
    began: Moment,
}

impl Round {
    fn new(trips: Trips) -> Self {
        Self { trips, began: Moment::now() }
    }

    /// So many calls had ended before this one.
    fn ended(&mut self, before: u64, sent: Option<Moment>, sample: &mut Sample) {
        if before + 1 == self.trips.warm_up {
            self.began = Moment::now();
        } else if before >= self.trips.warm_up
            && let Some(sent) = sent
        {
            sample.latencies.record_for(sent.elapsed(), TIMED_EVERY);
        }
    }

    fn over(self, sample: &mut Sample) {
        sample.spent += self.began.elapsed();
    }
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
pub(crate) fn pipeline<E>(
    depth: usize,
    trips: Trips,
    sample: &mut Sample,
    end: &mut E,
    mut send: impl FnMut(&mut E, u64) -> Result<()>,
    mut receive: impl FnMut(&mut E, u64) -> Result<()>,
) -> Result<()> {
    let mut under_way: VecDeque<Sent> = VecDeque::with_capacity(depth);
    let mut round = Round::new(trips);
    for number in 0..trips.all() + depth as u64 {
        if number >= depth as u64
            && let Some((number, sent)) = under_way.pop_front()
        {
            receive(end, number)?;
            round.ended(number, sent, sample);
        }
        if number < trips.all() {
            under_way.push_back(sent(number));
            send(end, number)?;
        }
    }
    round.over(sample);
    Ok(())
}
