//! A call that is sent and looked for in one go, in the slot that is next: nothing is noted of it unless its answer stays away.

use gleaner_fabric::{AnyLink, Arrival, Found, Link, LinkError};

use super::{Answer, Lane, LaneError, Slot, Stage, broken, input, judge};
use crate::{at_once::Exchange, calls::Fill, tune::LOOKS_PER_CLOCK};

/// A call to be made in the slot that is next.
#[derive(Clone, Copy)]
pub(crate) struct Errand {
    pub(crate) number: u64,
    pub(crate) function: u32,
    /// How often to look for the answer in shared memory; over other links at most.
    pub(crate) looks: u32,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trip {
    /// The reply was read, and the slot is free.
    Read,
    /// The call is under way, and waits for somebody to [adopt](Lane::adopt) it.
    Remains,
}

/// What was found instead of a reply.
pub(super) type Odd = Result<Box<Arrival>, Box<LinkError>>;

impl Lane {
    /// Sends a call in the slot that is next, and looks for its answer. `None`, and not even begun: there is no slot, or too little room in it
    /// for the input or the reply, which may be what fits by default.
    #[inline(always)]
    pub(crate) fn round_trip(
        &mut self,
        len: usize,
        capacity: Option<u32>,
        Errand { number, function, looks }: Errand,
        exchange: &mut impl Exchange,
    ) -> Option<Trip> {
        let most = self.geometry.slot_capacity();
        let capacity = match capacity {
            None => most,
            Some(capacity) if capacity <= most => capacity,
            Some(_) => return None,
        };
        if len > most as usize {
            return None;
        }
        let slot = self.slots.get_mut(usize::from(*self.free.last()?))?;
        slot.expected.set_lengths(len as u32, capacity);
        slot.expected.begin(number, function);
        Some(match &mut self.link {
            AnyLink::Shm(link) => run(&mut **link, slot, &mut self.odd, looks, exchange),
            AnyLink::Rdma(link) => run_apart(&mut **link, slot, &mut self.odd, looks, exchange),
            AnyLink::Tcp(link) => run_apart(&mut **link, slot, &mut self.odd, looks, exchange),
        })
    }

    /// The call that remains of a trip has this record from now on: its slot is taken, its input is in its block, if need be by `keep`, and
    /// what was found is judged as any answer.
    pub(crate) fn adopt(
        &mut self,
        call: u32,
        keep: Fill<'_>,
    ) -> (u16, Result<Option<Answer>, Box<LaneError>>) {
        let Some(number) = self.free.pop() else { return (0, Ok(None)) };
        let slot = &mut self.slots[usize::from(number)];
        slot.stage = Stage::Asked;
        slot.call = Some(call);
        if self.link.carries(&slot.expected) {
            keep(input(&mut self.link, &slot.expected));
        }
        let found = match self.odd.take() {
            None => Ok(None),
            Some(Ok(arrival)) => judge(&arrival, &mut self.slots).map(Some),
            Some(Err(error)) => Err(broken(error)),
        };
        (number, found)
    }
}

#[inline(always)]
fn run<L: Link + ?Sized>(
    link: &mut L,
    slot: &mut Slot,
    odd: &mut Option<Odd>,
    looks: u32,
    exchange: &mut impl Exchange,
) -> Trip {
    if let Err(error) = exchange.send(link, &slot.expected) {
        return remains(odd, Err(error));
    }
    match link.answer(&slot.expected, looks) {
        Ok(Found::Reply(reply)) => exchange.read(reply),
        Ok(Found::None) => return Trip::Remains,
        Ok(Found::Other(arrival)) => return remains(odd, Ok(arrival)),
        Err(error) => return remains(odd, Err(error)),
    }
    match link.intact() {
        true => Trip::Read,
        // What was read may have been anything.
        false => Trip::Remains,
    }
}

#[cold]
#[inline(never)]
fn remains(odd: &mut Option<Odd>, found: Odd) -> Trip {
    *odd = Some(found);
    Trip::Remains
}

/// The same, compiled apart.
#[inline(never)]
fn run_apart<L: Link + ?Sized>(
    link: &mut L,
    slot: &mut Slot,
    odd: &mut Option<Odd>,
    looks: u32,
    exchange: &mut impl Exchange,
) -> Trip {
    run(link, slot, odd, looks.min(LOOKS_PER_CLOCK), exchange)
}

#[cfg(test)]
mod tests {
    use std::{
        os::{fd::AsFd, fd::OwnedFd, unix::net::UnixStream},
        thread,
    };

    use gleaner_fabric::{Geometry, Segment, ShmLink, Side};
    use gleaner_proto::header::{Header, Kind, Status};

    use super::*;
    use crate::{
        at_once::{Closures, Copying},
        lane::Invocation,
    };

    const GEOMETRY: Geometry = Geometry { window: 2, slot_bytes: 4096, arena_bytes: 0 };
    /// Enough for any answer that comes at all.
    const PATIENT: u32 = u32::MAX;

    /// A lane over shared memory, and its worker's end; the file is the executor's.
    fn pair() -> (OwnedFd, Lane, ShmLink) {
        let file = Segment::create(GEOMETRY).unwrap();
        let open = || Segment::open(file.as_fd(), GEOMETRY).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let worker = ShmLink::new(open(), theirs.into(), Side::Worker);
        let lane = Lane::new(ShmLink::new(open(), ours.into(), Side::Client).into(), 1);
        (file, lane, worker)
    }

    /// Answers the next call, with a header that `change` has changed.
    fn answer(worker: &mut ShmLink, reply: &[u8], change: impl FnOnce(&mut Header)) {
        let request = loop {
            if let Some(request) = worker.poll().unwrap() {
                break request;
            }
            thread::yield_now();
        };
        let block = request.reply.unwrap();
        worker.outgoing(block)[..reply.len()].copy_from_slice(reply);
        let mut header = Header {
            kind: Kind::Response,
            block: block.index(),
            reply_block: 0,
            payload_len: reply.len() as u32,
            ..request.header
        };
        change(&mut header);
        worker.post(block, &header).unwrap();
    }

    fn errand(number: u64, looks: u32) -> Errand {
        Errand { number, function: 0, looks }
    }

    /// The slot that is next.
    fn next(lane: &Lane) -> u16 {
        *lane.free.last().unwrap()
    }

    /// Calls with "input"; what came of it, and the reply.
    fn call(lane: &mut Lane, number: u64, looks: u32) -> (Trip, Vec<u8>) {
        let mut output = [0; 16];
        let mut copying = Copying { input: b"input", output: &mut output, len: 0 };
        let trip = lane.round_trip(5, None, errand(number, looks), &mut copying).unwrap();
        let len = copying.len;
        (trip, output[..len].to_vec())
    }

    /// The input of [`call`] again.
    fn keep(input: &mut [u8]) {
        input.copy_from_slice(b"input");
    }

    #[test]
    fn a_reply_is_read_and_nothing_remains() {
        let (_file, mut lane, mut worker) = pair();
        thread::scope(|scope| {
            scope.spawn(|| (0..100).for_each(|_| answer(&mut worker, b"reply", |_| ())));
            for number in 1..=100 {
                let (trip, reply) = call(&mut lane, number, PATIENT);
                assert!(matches!(trip, Trip::Read) && reply == b"reply");
                assert_eq!((lane.outstanding().count(), lane.free.len()), (0, 2));
            }
        });
    }

    #[test]
    fn a_call_whose_answer_stays_away_waits_in_its_slot_for_who_adopts_it() {
        let (_file, mut lane, mut worker) = pair();
        let slot = next(&lane);
        assert!(matches!(call(&mut lane, 7, 3).0, Trip::Remains));
        assert!(matches!(lane.adopt(9, &mut keep), (at, Ok(None)) if at == slot));
        assert_eq!(lane.outstanding().collect::<Vec<_>>(), [(slot, Some(9), 7)]);
        assert_eq!(lane.input(slot), b"input", "to be sent elsewhere");
        assert_ne!(next(&lane), slot);
        answer(&mut worker, b"reply", |_| ());
        let found = lane.poll().unwrap().unwrap();
        assert_eq!((found.slot, found.call), (slot, Some(9)));
        assert!(lane.read(slot, &mut |reply| assert_eq!(reply, b"reply")));
    }

    #[test]
    fn another_call_s_answer_is_that_call_s() {
        let (_file, mut lane, mut worker) = pair();
        let other = lane.prepare(5, 64).unwrap();
        let sent = Invocation { call: 4, number: 1, function: 0, time_ns: 0 };
        lane.send(other, &sent, &mut &b"other"[..]).unwrap();
        answer(&mut worker, b"reply", |_| ());
        let (Trip::Remains, _) = call(&mut lane, 2, PATIENT) else { panic!("its reply") };
        let found = lane.adopt(5, &mut keep).1.unwrap().unwrap();
        assert_eq!((found.slot, found.call), (other, Some(4)));
        assert_eq!(lane.outstanding().map(|(_, _, number)| number).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn an_error_is_no_reply() {
        let (_file, mut lane, mut worker) = pair();
        thread::scope(|scope| {
            scope.spawn(|| answer(&mut worker, b"why", |h| h.status = Status::FunctionError));
            let (Trip::Remains, read) = call(&mut lane, 1, PATIENT) else { panic!("a reply") };
            let found = lane.adopt(1, &mut keep).1.unwrap().unwrap();
            assert_eq!((found.status, &read[..]), (Status::FunctionError, &b""[..]));
        });
    }

    #[test]
    fn a_reply_whose_memory_is_taken_back_is_not_believed() {
        let (file, mut lane, mut worker) = pair();
        thread::scope(|scope| {
            scope.spawn(|| answer(&mut worker, b"reply", |_| ()));
            let (fill, read) = (&mut |buffer: &mut [u8]| buffer.fill(1), &mut |_: &[u8]| {
                Segment::take_back(&file, GEOMETRY).unwrap();
            });
            let closures = &mut Closures { fill, read };
            let trip = lane.round_trip(5, None, errand(1, PATIENT), closures);
            assert_eq!(trip, Some(Trip::Remains));
            lane.adopt(1, &mut |_| ()).1.unwrap();
            assert_eq!(lane.outstanding().count(), 1, "it waits for its verdict");
        });
    }

    #[test]
    fn an_answer_to_nobody_closes_the_lane() {
        let (_file, mut lane, mut worker) = pair();
        thread::scope(|scope| {
            scope.spawn(|| answer(&mut worker, b"reply", |header| header.invocation += 1));
            assert!(matches!(call(&mut lane, 1, PATIENT).0, Trip::Remains));
            assert!(lane.adopt(1, &mut keep).1.is_err());
        });
    }

    #[test]
    fn an_input_that_panics_makes_no_call() {
        let (_file, mut lane, _worker) = pair();
        let (fill, read) = (&mut |_: &mut [u8]| panic!("no input"), &mut |_: &[u8]| ());
        let trip = || lane.round_trip(5, None, errand(1, 1), &mut Closures { fill, read });
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(trip)).is_err());
        assert_eq!((lane.outstanding().count(), lane.free.len()), (0, 2));
    }
}
