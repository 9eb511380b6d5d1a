//! A call that is sent and looked for in one go, in the slot that is next: nothing is noted of it unless its answer stays away.

use gleaner_fabric::{AnyLink, Arrival, Block, Link, LinkError};
use gleaner_proto::header::{Header, Kind, Status};

use super::{Answer, Lane, LaneError, Stage, broken, judge};
use crate::at_once::Exchange;

/// A call that fits the next free slot.
#[derive(Clone, Copy)]
pub(crate) struct Errand {
    pub(crate) slot: u16,
    own: Block,
    /// The input's bytes, and the most that the reply may have.
    len: u32,
    capacity: u32,
}

/// The same as it is sent.
struct Call {
    errand: Errand,
    generation: u32,
    epoch: u64,
    number: u64,
    function: u32,
}

/// What came of it. Unless the reply was read, the call waits in its slot for somebody to [adopt](Lane::adopt) it.
pub(crate) enum Trip {
    /// The reply was read, and the slot is free.
    Read,
    /// No answer yet, or one that was taken back with its memory.
    Waits,
    /// An answer that is not the call's reply.
    Other(Answer),
    /// The lane is of no more use.
    Broken(Box<LaneError>),
}

/// The same, as the link knows it.
enum Ended {
    Read,
    Waits,
    Other(Box<Arrival>),
    Broken(Box<LinkError>),
}

impl Lane {
    /// The call, if there is a slot for it, whose own blocks have room.
    #[inline(always)]
    pub(crate) fn errand(&self, len: usize, capacity: Option<u32>) -> Option<Errand> {
        let slot = *self.free.last()?;
        let own = self.geometry.slot(slot);
        let capacity = capacity.unwrap_or(own.capacity);
        let fits = len <= own.capacity as usize && capacity <= own.capacity;
        fits.then_some(Errand { slot, own, len: len as u32, capacity })
    }

    /// Sends it, and looks for its answer so many times.
    #[inline(always)]
    pub(crate) fn round_trip(
        &mut self,
        errand: Errand,
        (number, function): (u64, u32),
        looks: u32,
        exchange: &mut impl Exchange,
    ) -> Trip {
        let slot = &mut self.slots[usize::from(errand.slot)];
        slot.generation = slot.generation.checked_add(1).unwrap_or(1);
        let (generation, epoch) = (slot.generation, self.epoch);
        // Made anew for each kind of link: one for both would have to lie in memory.
        let call = || Call { errand, generation, epoch, number, function };
        let ended = match &mut self.link {
            AnyLink::Shm(link) => run(&mut **link, call(), looks, exchange),
            AnyLink::Other(link) => run_other(&mut **link, call(), looks, exchange),
        };
        let Errand { slot, len, capacity, .. } = errand;
        let found = match ended {
            Ended::Read => return Trip::Read,
            Ended::Waits => None,
            Ended::Other(arrival) => Some(Ok(arrival)),
            Ended::Broken(error) => Some(Err(error)),
        };
        self.remains(slot, len, capacity, number, found)
    }

    /// The call is under way: its slot is taken, and what was found is judged as any answer.
    #[cold]
    #[inline(never)]
    fn remains(
        &mut self,
        slot: u16,
        len: u32,
        capacity: u32,
        number: u64,
        found: Option<Result<Box<Arrival>, Box<LinkError>>>,
    ) -> Trip {
        self.free.pop();
        let own = self.geometry.slot(slot);
        let slot = &mut self.slots[usize::from(slot)];
        slot.stage = Stage::Asked;
        slot.call = None;
        slot.invocation = number;
        slot.len = len;
        slot.request = Block { capacity: len, ..own };
        slot.reply = Block { capacity, ..own };
        match found {
            None => Trip::Waits,
            Some(Err(error)) => Trip::Broken(broken(error)),
            Some(Ok(arrival)) => match judge(&arrival, &mut self.slots, self.epoch) {
                Ok(answer) => Trip::Other(answer),
                Err(error) => Trip::Broken(error),
            },
        }
    }

    /// Who waits for the call that remains in this slot.
    pub(crate) fn adopt(&mut self, slot: u16, call: u32) {
        self.slots[usize::from(slot)].call = Some(call);
    }
}

#[inline(always)]
fn run<L: Link + ?Sized>(
    link: &mut L,
    call: Call,
    looks: u32,
    exchange: &mut impl Exchange,
) -> Ended {
    let Errand { len, own, .. } = call.errand;
    let request = Block { capacity: len, ..own };
    exchange.fill(&mut link.outgoing(request)[..len as usize]);
    if let Err(error) = link.post(request, &call.header()) {
        return Ended::Broken(Box::new(error));
    }
    for _ in 0..looks {
        match link.poll() {
            Ok(None) => {}
            Ok(Some(arrival)) if call.is_answered_by(&arrival) => {
                exchange.read(link.incoming(arrival.payload()));
                return if link.intact() { Ended::Read } else { Ended::Waits };
            }
            Ok(Some(arrival)) => return other(arrival),
            Err(error) => return Ended::Broken(error),
        }
    }
    Ended::Waits
}

#[inline(never)]
fn run_other(link: &mut dyn Link, call: Call, looks: u32, exchange: &mut impl Exchange) -> Ended {
    run(link, call, looks, exchange)
}

#[cold]
#[inline(never)]
fn other(arrival: Arrival) -> Ended {
    Ended::Other(Box::new(arrival))
}

impl Call {
    #[inline(always)]
    fn header(&self) -> Header {
        let Errand { slot, own, len, capacity } = self.errand;
        Header {
            generation: self.generation,
            slot,
            kind: Kind::Request,
            status: Status::Ok,
            epoch: self.epoch,
            invocation: self.number,
            function: self.function,
            code: 0,
            payload_len: len,
            block: own.index(),
            reply_block: own.index(),
            reply_capacity: capacity,
            time_ns: 0,
        }
    }

    /// Whether a message is its good answer, where that may be. Compared as one: what else the message says is then not read.
    #[inline(always)]
    fn is_answered_by(&self, arrival: &Arrival) -> bool {
        let (Arrival { header, block, .. }, Errand { slot, own, capacity, .. }) =
            (arrival, self.errand);
        let differs = u64::from(header.slot ^ slot)
            | u64::from(header.generation ^ self.generation)
            | (header.invocation ^ self.number)
            | (header.epoch ^ self.epoch)
            | (header.status as u64 ^ Status::Ok as u64)
            | (block.offset ^ own.offset);
        (differs == 0) & (block.capacity <= capacity)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::{fd::AsFd, fd::OwnedFd, unix::net::UnixStream},
        thread,
    };

    use gleaner_fabric::{Geometry, Segment, ShmLink, Side};

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

    /// Calls with "input"; what came of it, and the reply.
    fn call(lane: &mut Lane, number: u64, looks: u32) -> (Trip, Vec<u8>) {
        let mut output = [0; 16];
        let errand = lane.errand(5, None).unwrap();
        let mut copying = Copying { input: b"input", output: &mut output, len: 0 };
        let trip = lane.round_trip(errand, (number, 0), looks, &mut copying);
        let len = copying.len;
        (trip, output[..len].to_vec())
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
        let slot = lane.errand(5, None).unwrap().slot;
        assert!(matches!(call(&mut lane, 7, 3).0, Trip::Waits));
        lane.adopt(slot, 9);
        assert_eq!(lane.outstanding().collect::<Vec<_>>(), [(slot, Some(9), 7)]);
        assert_eq!(lane.input(slot), b"input", "to be sent elsewhere");
        assert_ne!(lane.errand(5, None).unwrap().slot, slot);
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
        lane.send(other, &sent, &mut |buffer| buffer.copy_from_slice(b"other")).unwrap();
        answer(&mut worker, b"reply", |_| ());
        let (Trip::Other(found), _) = call(&mut lane, 2, PATIENT) else { panic!("not its reply") };
        assert_eq!((found.slot, found.call), (other, Some(4)));
        assert_eq!(lane.outstanding().map(|(_, _, number)| number).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn an_error_is_no_reply() {
        let (_file, mut lane, mut worker) = pair();
        thread::scope(|scope| {
            scope.spawn(|| answer(&mut worker, b"why", |h| h.status = Status::FunctionError));
            let (Trip::Other(found), read) = call(&mut lane, 1, PATIENT) else { panic!() };
            assert_eq!((found.status, &read[..]), (Status::FunctionError, &b""[..]));
        });
    }

    #[test]
    fn a_reply_whose_memory_is_taken_back_is_not_believed() {
        let (file, mut lane, mut worker) = pair();
        thread::scope(|scope| {
            scope.spawn(|| answer(&mut worker, b"reply", |_| ()));
            let errand = lane.errand(5, None).unwrap();
            let (fill, read) = (&mut |buffer: &mut [u8]| buffer.fill(1), &mut |_: &[u8]| {
                Segment::take_back(&file, GEOMETRY).unwrap();
            });
            let trip = lane.round_trip(errand, (1, 0), PATIENT, &mut Closures { fill, read });
            assert!(matches!(trip, Trip::Waits));
            assert_eq!(lane.outstanding().count(), 1, "it waits for its verdict");
        });
    }

    #[test]
    fn an_answer_to_nobody_closes_the_lane() {
        let (_file, mut lane, mut worker) = pair();
        thread::scope(|scope| {
            scope.spawn(|| answer(&mut worker, b"reply", |header| header.invocation += 1));
            assert!(matches!(call(&mut lane, 1, PATIENT).0, Trip::Broken(_)));
        });
    }

    #[test]
    fn an_input_that_panics_makes_no_call() {
        let (_file, mut lane, _worker) = pair();
        let errand = lane.errand(5, None).unwrap();
        let (fill, read) = (&mut |_: &mut [u8]| panic!("no input"), &mut |_: &[u8]| ());
        let trip = || lane.round_trip(errand, (1, 0), 1, &mut Closures { fill, read });
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(trip)).is_err());
        assert_eq!((lane.outstanding().count(), lane.free.len()), (0, 2));
    }
}
