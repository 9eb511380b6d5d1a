//! Frames of the control stream: u32 little-endian length, then one protobuf message. Used by the client and the agent.
//!
//! Bytes in, messages out: who reads the socket, and whether that blocks, is the caller's.

use std::marker::PhantomData;

use prost::Message;

use crate::control::CONTROL_FRAME_MAX;

const LENGTH: usize = 4;

/// Why bytes are no frame. The stream is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum BadFrame {
    /// Longer than either side takes.
    #[error("a control frame of {0} bytes, more than {CONTROL_FRAME_MAX}")]
    TooLong(usize),
    /// Not the message that travels in this direction.
    #[error("a control frame that is no message: {0}")]
    Message(#[from] prost::DecodeError),
}

/// One message as a frame.
pub fn encode(message: &impl Message) -> Vec<u8> {
    let mut out = Vec::with_capacity(LENGTH + message.encoded_len());
    out.extend((message.encoded_len() as u32).to_le_bytes());
    out.extend(message.encode_to_vec());
    out
}

/// What has arrived and was not taken yet, of one direction. Holds at most one frame and what came with its end.
#[derive(Debug)]
pub struct Incoming<M> {
    bytes: Vec<u8>,
    taken: usize,
    message: PhantomData<fn() -> M>,
}

impl<M: Message + Default> Incoming<M> {
    /// Nothing has arrived.
    pub fn new() -> Self {
        Self { bytes: Vec::new(), taken: 0, message: PhantomData }
    }

    /// Appends what was read from the stream. Take every message before the next read, else this grows.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether no byte is left over.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == self.taken
    }

    /// The next message, if all of it is here.
    pub fn take(&mut self) -> Result<Option<M>, BadFrame> {
        let rest = &self.bytes[self.taken..];
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > CONTROL_FRAME_MAX {
            return Err(BadFrame::TooLong(length));
        }
        let Some(frame) = rest.get(..length) else {
            return Ok(None);
        };
        let message = M::decode(frame)?;
        self.taken += LENGTH + length;
        Ok(Some(message))
    }
}

impl<M: Message + Default> Default for Incoming<M> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::v1::{Renew, ToAgent, to_agent};

    fn renew(ttl_ms: u64) -> ToAgent {
        ToAgent { message: Some(to_agent::Message::Renew(Renew { ttl_ms })) }
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_it_is_waited_for() {
        let mut incoming = Incoming::<ToAgent>::new();
        incoming.push(&(CONTROL_FRAME_MAX as u32 + 1).to_le_bytes());
        assert!(matches!(incoming.take(), Err(BadFrame::TooLong(_))));
    }

    proptest! {
        #[test]
        fn messages_come_back_however_the_stream_is_cut(ttls in prop::collection::vec(any::<u64>(), 0..20), cut in 1usize..40) {
            let stream: Vec<u8> = ttls.iter().flat_map(|ttl| encode(&renew(*ttl))).collect();
            let mut incoming = Incoming::<ToAgent>::new();
            let mut seen = Vec::new();
            for piece in stream.chunks(cut) {
                incoming.push(piece);
                while let Some(message) = incoming.take().unwrap() {
                    seen.push(message);
                }
            }
            prop_assert_eq!(seen, ttls.into_iter().map(renew).collect::<Vec<_>>());
            prop_assert!(incoming.is_empty());
        }

        #[test]
        fn any_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut incoming = Incoming::<ToAgent>::new();
            incoming.push(&bytes);
            while let Ok(Some(_)) = incoming.take() {}
        }
    }
}
