//! What comes in: right into its block, if it is what is awaited; else by way of the staging buffer.

use gleaner_proto::header::{HEADER_LEN, halves};

use super::{Partial, TcpLink, socket::receive_some};
use crate::{
    call::Expected,
    check,
    link::{Arrival, LinkError, failed},
    region::Region,
    tune::{RECEIVE_ROUNDS, STAGING_BYTES},
};

/// Where a header has its payload's length and block, in words.
const PAYLOAD: usize = 4;
/// Where it has nothing.
const RESERVED: usize = 7;

impl TcpLink {
    /// The slot whose block the next message is received into: it probably belongs there, and nothing is left of another.
    #[inline(always)]
    pub(super) fn awaited(&self) -> Option<u16> {
        let nothing_is_left =
            self.partial.is_none() && self.staging.is_empty() && self.brought <= 1;
        self.expected.filter(|_| nothing_is_left)
    }

    /// Receives once into a slot's block; returns how many bytes.
    #[inline(always)]
    pub(super) fn receive_in_place(&mut self, slot: u16) -> Result<usize, Box<LinkError>> {
        let own = self.geometry.slot(slot);
        let room = STAGING_BYTES.min(HEADER_LEN + own.capacity as usize);
        let room = &mut self.incoming.bytes_mut()[own.offset as usize..][..room];
        let received = receive_some(&self.socket, room)?;
        self.emptied = received < room.len();
        Ok(received)
    }

    /// What was received into a slot's block: a whole message, or part of one. What turns out to belong elsewhere goes by way of the
    /// staging buffer.
    #[inline(always)]
    pub(super) fn sort(
        &mut self,
        slot: u16,
        received: usize,
    ) -> Result<Option<Arrival>, Box<LinkError>> {
        let start = self.geometry.slot(slot).offset as usize;
        let bytes = &self.incoming.bytes()[start..][..received];
        let Some((snapshot, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            self.staging.put(bytes);
            return Ok(None);
        };
        let arrival = check::arrival(self.geometry, self.side, snapshot).map_err(failed)?;
        let is_whole = arrival.header.payload_len as usize == rest.len();
        if is_whole && arrival.block.offset as usize == start {
            (self.brought, self.expected) = (1, None);
            return Ok(Some(arrival));
        }
        self.sort_parts(start, received, arrival);
        Ok(self.completed())
    }

    /// The same of a message that has not wholly come, or that others follow.
    #[cold]
    fn sort_parts(&mut self, start: usize, received: usize, arrival: Arrival) {
        let bytes = &self.incoming.bytes()[start..][..received];
        if arrival.block.offset as usize != start {
            self.brought = 0;
            self.staging.put(bytes);
            return;
        }
        let rest = &bytes[HEADER_LEN..];
        let filled = rest.len().min(arrival.header.payload_len as usize);
        self.staging.put(&rest[filled..]);
        self.brought = 1;
        self.partial = Some(Partial { arrival, filled });
    }

    /// The next message, from what has come and from what the socket has, if nothing is awaited in place.
    #[inline(never)]
    pub(super) fn next(&mut self) -> Result<Option<Arrival>, Box<LinkError>> {
        for _ in 0..RECEIVE_ROUNDS {
            if self.partial.is_none()
                && let Some(arrival) = self.next_staged().map_err(failed)?
            {
                self.expected = None;
                return Ok(Some(arrival));
            }
            if let Some(slot) = self.awaited() {
                match self.receive_in_place(slot)? {
                    0 => return Ok(None),
                    received => {
                        if let Some(arrival) = self.sort(slot, received)? {
                            return Ok(Some(arrival));
                        }
                        continue;
                    }
                }
            }
            if self.receive()? == 0 {
                return Ok(None);
            }
            if let Some(arrival) = self.completed() {
                return Ok(Some(arrival));
            }
        }
        Ok(None)
    }

    /// Takes one message off the staging buffer, as far as it is there. `None`: more bytes are needed.
    fn next_staged(&mut self) -> Result<Option<Arrival>, LinkError> {
        let Some(snapshot) = self.staging.filled().first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let arrival = check::arrival(self.geometry, self.side, snapshot)?;
        self.brought += 1;
        self.staging.skip(HEADER_LEN);
        let wanted = payload_mut(&mut self.incoming, &arrival);
        let filled = self.staging.take(wanted);
        if filled == wanted.len() {
            return Ok(Some(arrival));
        }
        self.partial = Some(Partial { arrival, filled });
        Ok(None)
    }

    /// Receives once: into the block of a payload that is arriving, else into the staging buffer. 0: nothing was there.
    fn receive(&mut self) -> Result<usize, Box<LinkError>> {
        if let Some(Partial { arrival, filled }) = &mut self.partial {
            let rest = &mut payload_mut(&mut self.incoming, arrival)[*filled..];
            let received = receive_some(&self.socket, rest)?;
            self.emptied = received < rest.len();
            *filled += received;
            return Ok(received);
        }
        self.brought = 0;
        let room = self.staging.room();
        let received = receive_some(&self.socket, room)?;
        self.emptied = received < room.len();
        self.staging.received(received);
        Ok(received)
    }

    /// The message whose payload is complete now, if it is.
    fn completed(&mut self) -> Option<Arrival> {
        let complete =
            |partial: &mut Partial| partial.filled == partial.arrival.header.payload_len as usize;
        let arrival = self.partial.take_if(complete)?.arrival;
        self.expected = None;
        Some(arrival)
    }

    /// The length of the payload that was received into a slot's block, if that is the whole good answer to a call, of which nothing else
    /// is believed.
    #[inline(always)]
    pub(super) fn good_answer(&self, call: &Expected, received: usize) -> Option<u32> {
        let own = self.geometry.slot(call.slot());
        let bytes = &self.incoming.bytes()[own.offset as usize..][..received];
        let (words, _) = bytes.first_chunk::<HEADER_LEN>()?.as_chunks::<8>();
        let word = |at: usize| u64::from_le_bytes(words[at]);
        let [first, epoch, invocation] = call.answer_words();
        let (len, block) = halves(word(PAYLOAD));
        let differs = (word(0) ^ first)
            | (word(1) ^ epoch)
            | (word(2) ^ invocation)
            | word(RESERVED)
            | u64::from(block ^ own.index())
            | u64::from(call.block().index() ^ own.index());
        let is_good =
            differs == 0 && len <= call.block().capacity && HEADER_LEN + len as usize == received;
        is_good.then_some(len)
    }
}

fn payload_mut<'a>(incoming: &'a mut Region, arrival: &Arrival) -> &'a mut [u8] {
    &mut incoming.bytes_mut()[arrival.payload().range()]
}
