//! A call that is sent and looked for in one go, in the slot that is next: nothing is noted of it unless its answer stays away.

use gleaner_fabric::{AnyLink, Arrival, Block, Link, LinkError};
use gleaner_proto::header::{Header, Kind, Status};

use super::{Answer, Lane, LaneError, Stage, broken, judge};
use crate::calls::{Fill, Read};

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
        fill: Fill<'_>,
        read: Read<'_>,
    ) -> Trip {
        let slot = &mut self.slots[usize::from(errand.slot)];
        slot.generation = slot.generation.checked_add(1).unwrap_or(1);
        let (generation, epoch) = (slot.generation, self.epoch);
        // Made anew for each kind of link: one for both would have to lie in memory.
        let call = || Call { errand, generation, epoch, number, function };
        let ended = match &mut self.link {
            AnyLink::Shm(link) => run(&mut **link, call(), looks, fill, read),
            AnyLink::Other(link) => run_other(&mut **link, call(), looks, fill, read),
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
    fill: Fill<'_>,
    read: Read<'_>,
) -> Ended {
    let Errand { len, own, .. } = call.errand;
    let request = Block { capacity: len, ..own };
    fill(&mut link.outgoing(request)[..len as usize]);
    if let Err(error) = link.post(request, &call.header()) {
        return Ended::Broken(Box::new(error));
    }
    for _ in 0..looks {
        match link.poll() {
            Ok(None) => {}
            Ok(Some(arrival)) if call.is_answered_by(&arrival) => {
                read(link.incoming(arrival.payload()));
                return if link.intact() { Ended::Read } else { Ended::Waits };
            }
            Ok(Some(arrival)) => return other(arrival),
            Err(error) => return Ended::Broken(error),
        }
    }
    Ended::Waits
}

#[inline(never)]
fn run_other(link: &mut dyn Link, call: Call, looks: u32, fill: Fill<'_>, read: Read<'_>) -> Ended {
    run(link, call, looks, fill, read)
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

    /// Whether a message is its good answer, where that may be.
    #[inline(always)]
    fn is_answered_by(&self, arrival: &Arrival) -> bool {
        let (Header { slot, generation, .. }, block) = (arrival.header, arrival.block);
        let Header { invocation, epoch, status, .. } = arrival.header;
        (slot, generation) == (self.errand.slot, self.generation)
            && (invocation, epoch) == (self.number, self.epoch)
            && status == Status::Ok
            && block.offset == self.errand.own.offset
            && block.capacity <= self.errand.capacity
    }
}
