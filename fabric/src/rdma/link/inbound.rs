//! What comes in: completions, and the messages that they announce.

use gleaner_proto::header::{BLOCK_ALIGN, HEADER_LEN, Immediate, Kind};

use super::RdmaLink;
use crate::{
    check,
    link::{Arrival, LinkError, failed},
    rdma::error::RdmaError,
    tune::LIVENESS_POLLS,
};

impl RdmaLink {
    /// Looks for completions, if those that were polled are used up.
    #[inline(always)]
    pub(super) fn has_ready(&mut self) -> Result<bool, LinkError> {
        if self.next == self.count {
            self.next = 0;
            self.count = self.parts.receives.poll(&mut self.ready)?;
        }
        Ok(self.next < self.count)
    }

    /// Whether a message has come; now and then, whether the peer is still there.
    #[inline(always)]
    pub(super) fn has_come(&mut self) -> Result<bool, Box<LinkError>> {
        if self.holds {
            self.send_held().map_err(failed)?;
        }
        if self.has_ready().map_err(failed)? {
            return Ok(true);
        }
        self.idle_polls += 1;
        if self.idle_polls >= LIVENESS_POLLS || self.closed {
            self.look().map_err(failed)?;
        }
        Ok(false)
    }

    /// Takes the next message, which has come: its immediate and its length.
    #[inline(always)]
    pub(super) fn take(&mut self) -> Result<(u32, u32), Box<LinkError>> {
        let completion = &self.ready[self.next];
        let (result, immediate) = (completion.result(), completion.immediate());
        let written = completion.written();
        self.next += 1;
        self.slept = false;
        self.idle_polls = 0;
        if let Err(status) = result {
            return Err(failed(self.broken(status)));
        }
        self.used += 1;
        if self.used == self.parts.chain.count() {
            self.refill().map_err(failed)?;
        }
        match immediate {
            Some(immediate) => Ok((immediate, written)),
            None => Err(failed(LinkError::NoImmediate)),
        }
    }

    /// What a message says, checked.
    pub(super) fn arrival(&mut self, immediate: u32, len: u32) -> Result<Arrival, Box<LinkError>> {
        match Immediate::decode(immediate) {
            Immediate::Brief { slot, detail } => {
                let arrival = self.record.arrival(self.side.takes(), slot, detail, len);
                arrival.ok_or_else(|| elsewhere(slot, len))
            }
            Immediate::Headed { block, generation } => {
                let arrival = self.headed(block, generation).map_err(failed)?;
                if arrival.header.kind == Kind::Request {
                    self.record.note(&arrival.header);
                }
                Ok(arrival)
            }
        }
    }

    /// What has arrived with its header before it.
    #[inline]
    fn headed(&self, block: u32, generation: u8) -> Result<Arrival, LinkError> {
        // Where a header may lie at all; that this one lies in its slot or the arena, its check finds.
        let offset = block as usize * BLOCK_ALIGN;
        if offset + HEADER_LEN > self.parts.incoming.len() {
            return Err(LinkError::Range { slot: 0, block, len: 0 });
        }
        let snapshot = self.parts.incoming.snapshot(offset);
        let arrival = check::arrival(self.parts.geometry, self.side, &snapshot)?;
        let header = &arrival.header;
        if header.block != block || header.generation as u8 != generation {
            let immediate = Immediate::Headed { block, generation }.encode();
            return Err(LinkError::Immediate { immediate, block: header.block });
        }
        Ok(arrival)
    }

    /// Posts receives again, all that one batch has used up.
    #[cold]
    fn refill(&mut self) -> Result<(), RdmaError> {
        self.used = 0;
        self.parts.chain.post(&mut self.pair)
    }
}

/// A brief message that names no slot of ours, or more than fits there.
#[cold]
#[inline(never)]
pub(super) fn elsewhere(slot: u8, len: u32) -> Box<LinkError> {
    failed(LinkError::Range { slot: slot.into(), block: 0, len })
}
