//! What goes out: each message by one call, the rest of it when the socket takes more.

use gleaner_proto::header::{HEADER_LEN, Words};

use super::{TcpLink, Unsent, socket::send_some};
use crate::link::{Block, LinkError, failed};

impl TcpLink {
    /// Sends what the socket takes of what it did not take before.
    #[cold]
    pub(super) fn flush(&mut self) -> Result<(), Box<LinkError>> {
        while let Some(message) = self.unsent.front_mut() {
            let bytes = &self.outgoing.bytes()[message.start..message.end];
            message.start += send_some(&self.socket, bytes)?;
            if message.start < message.end {
                return Ok(());
            }
            self.unsent.pop_front();
        }
        Ok(())
    }

    /// Sends a header's words with the payload that lies in its block.
    #[inline(always)]
    pub(super) fn send(
        &mut self,
        block: Block,
        len: u32,
        words: Words,
    ) -> Result<(), Box<LinkError>> {
        let start = block.offset as usize;
        let end = start + HEADER_LEN + len as usize;
        let bytes = &mut self.outgoing.bytes_mut()[start..end];
        let (header, _) = bytes.as_chunks_mut::<8>();
        for (part, word) in header.iter_mut().zip(words) {
            *part = word.to_le_bytes();
        }
        if !self.unsent.is_empty() {
            self.flush()?;
        }
        let sent = match self.unsent.is_empty() {
            true => send_some(&self.socket, &self.outgoing.bytes()[start..end])?,
            false => 0,
        };
        match start + sent == end {
            true => Ok(()),
            false => self.keep(Unsent { start: start + sent, end }),
        }
    }

    /// The socket has no room: the rest goes out later.
    #[cold]
    fn keep(&mut self, rest: Unsent) -> Result<(), Box<LinkError>> {
        if self.unsent.len() == usize::from(self.geometry.window) {
            return Err(failed(LinkError::Window { window: self.geometry.window }));
        }
        self.unsent.push_back(rest);
        Ok(())
    }
}
