//! What goes out: room in the queue pair, writes that are known to have ended, and the one write that a message is.

use std::time::{Duration, Instant};

use gleaner_proto::header::{HEADER_LEN, Header, Immediate, Kind};

use super::RdmaLink;
use crate::{
    link::{Block, LinkError, failed},
    rdma::{
        completions::Completion,
        error::{RdmaError, WorkStatus},
        pair::Write,
    },
    tune::{COMPLETIONS_BATCH, POSTS_BATCH, SIGNALS_PER_ROUND},
};

impl RdmaLink {
    /// Waits until the peer's device has everything that was posted; false if that takes too long.
    pub(super) fn flush(&mut self, patience: Duration) -> Result<bool, RdmaError> {
        let until = Instant::now() + patience;
        self.posted += 1;
        let write = Write { bytes: 0..0, offset: 0, immediate: None, signal: Some(self.posted) };
        self.pair.write(&self.parts.outgoing, self.target, &write)?;
        while self.confirmed < self.posted {
            self.confirm()?.map_err(|status| self.unreachable(status))?;
            if Instant::now() >= until {
                return Ok(false);
            }
            std::thread::yield_now();
        }
        Ok(true)
    }

    pub(super) fn unreachable(&self, status: WorkStatus) -> RdmaError {
        RdmaError::Unreachable { device: self.parts.device.name().to_owned(), status }
    }

    /// Takes note of writes that have ended.
    pub(super) fn confirm(&mut self) -> Result<Result<(), WorkStatus>, RdmaError> {
        let mut ended = [Completion::default(); COMPLETIONS_BATCH];
        loop {
            let count = self.parts.sends.poll(&mut ended)?;
            for completion in &ended[..count] {
                if let Err(status) = completion.result() {
                    return Ok(Err(status));
                }
                self.confirmed = completion.id();
            }
            if count < ended.len() {
                return Ok(Ok(()));
            }
        }
    }

    /// Makes sure of room for the next write; true if it is to be signalled. The queue of those that have ended is looked at
    /// here, and seldom anywhere else.
    #[cold]
    fn make_room(&mut self) -> Result<bool, LinkError> {
        if self.closed {
            return Err(LinkError::Closed);
        }
        let sends = u64::from(self.parts.depth.sends);
        if self.posted - self.confirmed + 1 >= sends {
            self.send_held()?;
        }
        self.ended()?;
        let room = (self.confirmed + sends).saturating_sub(self.posted + 1);
        if room == 0 {
            self.look()?;
            return Err(LinkError::Window { window: self.parts.geometry.window });
        }
        let signals = self.posted + 1 >= self.signalled;
        if signals {
            self.signalled += (sends / u64::from(SIGNALS_PER_ROUND)).max(1);
        }
        self.silent = (self.posted + room).min(self.signalled - 1);
        Ok(signals)
    }

    /// There is room for the next write; true if it is to be signalled.
    #[inline(always)]
    pub(super) fn room(&mut self) -> Result<bool, Box<LinkError>> {
        match self.posted < self.silent {
            true => Ok(false),
            false => self.make_room().map_err(failed),
        }
    }

    /// Writes a message for which there is room.
    #[inline(always)]
    pub(super) fn write(
        &mut self,
        offset: u64,
        len: usize,
        message: Immediate,
        signals: bool,
    ) -> Result<(), Box<LinkError>> {
        self.posted += 1;
        let write = Write {
            bytes: offset as usize..offset as usize + len,
            offset,
            immediate: Some(message.encode()),
            signal: signals.then_some(self.posted),
        };
        if self.holds {
            return self.hold_back(write);
        }
        self.pair.write(&self.parts.outgoing, self.target, &write).map_err(failed)
    }

    #[inline(never)]
    fn hold_back(&mut self, write: Write) -> Result<(), Box<LinkError>> {
        self.held.push(write);
        match self.held.len() < POSTS_BATCH {
            true => Ok(()),
            false => self.send_held().map_err(failed),
        }
    }

    /// Writes a message with its header before it, unless an immediate says the same.
    pub(super) fn post_header(
        &mut self,
        block: Block,
        header: &Header,
        signals: bool,
    ) -> Result<(), Box<LinkError>> {
        debug_assert_eq!(header.block, block.index(), "the header names another block");
        debug_assert!(header.payload_len <= block.capacity, "the payload exceeds its block");
        let brief = self.record.immediate(header);
        if header.kind == Kind::Request {
            self.record.note(header);
        }
        let len = header.payload_len as usize;
        if let Some(brief) = brief {
            return self.write(block.payload_offset(), len, brief, signals);
        }
        let start = block.offset as usize;
        self.parts.outgoing.bytes_mut()[start..start + HEADER_LEN]
            .copy_from_slice(&header.encode());
        let (block, generation) = (header.block, header.generation as u8);
        let headed = Immediate::Headed { block, generation };
        self.write(start as u64, HEADER_LEN + len, headed, signals)
    }

    /// Hands held writes over to the device, by one post.
    pub(super) fn send_held(&mut self) -> Result<(), LinkError> {
        if !self.held.is_empty() {
            let sent = self.pair.write_all(&self.parts.outgoing, self.target, &self.held);
            self.held.clear();
            sent?;
        }
        Ok(())
    }

    pub(super) fn ended(&mut self) -> Result<(), LinkError> {
        match self.confirm()? {
            Ok(()) => Ok(()),
            Err(status) => Err(self.broken(status)),
        }
    }
}
