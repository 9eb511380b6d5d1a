//! The invocation header: 64 bytes that lie before every payload, one layout for shared memory, TCP and RDMA.
//!
//! ```text
//!  0 u32 generation   of the slot                                                 8 u64 epoch
//!  4 u16 slot                                                                    16 u64 invocation
//!  6 u8  kind         1 request, 2 response                                      24 u32 function
//!  7 u8  status       of a response                                              28 u32 code
//! 32 u32 payload_len  36 u32 block      40 u32 reply_block   44 u32 reply_capacity
//! 48 u64 time_ns      56 u64 reserved, 0; a ring in shared memory keeps a line's number in its first half
//! ```
//!
//! Little-endian. The header and its payload are one block, so that a call is one write; an RDMA immediate names the
//! block and the generation, or stands for the whole header ([`Immediate`]). Peers are hostile: a header is read once, into a [`Header`], and
//! checked by the link before anything uses it.

/// Bytes of the header: one cache line.
pub const HEADER_LEN: usize = 64;

/// Blocks start at multiples of this, in bytes.
pub const BLOCK_ALIGN: usize = 64;

/// Bytes after every block's payload that belong to the block and stay untouched: a function that writes past its
/// output hits them first, and is found out.
pub const GUARD_LEN: usize = 64;

/// Request or response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Client to worker.
    Request = 1,
    /// Worker to client.
    Response = 2,
}

/// How the worker ended a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// The function returned success.
    Ok = 0,
    /// The function returned an error: `code` is its own, the payload its message.
    FunctionError = 1,
    /// No function has that number in this lease.
    UnknownFunction = 2,
    /// The function returned more than the reply's capacity: `time_ns` aside, nothing else is valid.
    ReplyTooLarge = 3,
    /// The epoch or the lease had ended when the worker looked: not started.
    Stale = 4,
    /// The caller cancelled it before it started.
    Cancelled = 5,
    /// The function wrote past its output: its worker ends.
    Overflow = 6,
}

/// One header, read once from the wire or from memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The slot's use count, never 0.
    pub generation: u32,
    /// The slot, below the session's window.
    pub slot: u16,
    /// Request or response.
    pub kind: Kind,
    /// A response's status; [`Status::Ok`] in a request.
    pub status: Status,
    /// The grant epoch that the session was attached under.
    pub epoch: u64,
    /// The client's number of this call in its session.
    pub invocation: u64,
    /// The function's number in the lease.
    pub function: u32,
    /// A response's error code, the function's own.
    pub code: u32,
    /// Bytes of payload.
    pub payload_len: u32,
    /// This message's block in its region, in units of [`BLOCK_ALIGN`]: the payload starts [`HEADER_LEN`] after it.
    pub block: u32,
    /// Request: the response's block in the response region, in units of [`BLOCK_ALIGN`].
    pub reply_block: u32,
    /// Request: the most bytes of payload that the response may have.
    pub reply_capacity: u32,
    /// Request: the time the caller leaves the call, 0 for no bound. Response: the time inside the function.
    pub time_ns: u64,
}

/// Why 64 bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// A kind that this version does not know.
    #[error("header kind {0} is neither a request (1) nor a response (2)")]
    Kind(u8),
    /// A status that this version does not know.
    #[error("header status {0} is unknown")]
    Status(u8),
    /// Generation 0 marks a slot that was never used.
    #[error("header generation 0 was never sent")]
    Generation,
    /// The reserved bytes are in use: the peer speaks a later version.
    #[error("header's reserved bytes are not 0")]
    Reserved,
}

/// A header as the words that it travels in: little-endian numbers, in this machine's own order.
pub type Words = [u64; HEADER_LEN / 8];

/// The lowest bit of the kind in a header's first word.
pub const KIND_SHIFT: u32 = 48;

impl Header {
    /// The header as it travels.
    #[inline]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        let (parts, _) = out.as_chunks_mut::<8>();
        for (part, word) in parts.iter_mut().zip(self.words()) {
            *part = word.to_le_bytes();
        }
        out
    }

    /// Reads a snapshot of a header. Ranges are the link's to check, against its own geometry.
    #[inline]
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, BadHeader> {
        let (parts, _) = bytes.as_chunks::<8>();
        let mut words = Words::default();
        for (word, part) in words.iter_mut().zip(parts) {
            *word = u64::from_le_bytes(*part);
        }
        Self::from_words(&words)
    }

    /// The header as words: for memory that is written a word at a time.
    #[inline(always)]
    pub fn words(&self) -> Words {
        let kinds = u32::from(self.slot) | (self.kind as u32) << 16 | (self.status as u32) << 24;
        [
            pair(self.generation, kinds),
            self.epoch,
            self.invocation,
            pair(self.function, self.code),
            pair(self.payload_len, self.block),
            pair(self.reply_block, self.reply_capacity),
            self.time_ns,
            0,
        ]
    }

    /// Reads a snapshot of a header's words.
    #[inline(always)]
    pub fn from_words(words: &Words) -> Result<Self, BadHeader> {
        let [first, epoch, invocation, function, payload, reply, time_ns, reserved] = *words;
        let (generation, kinds) = halves(first);
        if generation == 0 {
            return Err(BadHeader::Generation);
        }
        if reserved != 0 {
            return Err(BadHeader::Reserved);
        }
        let (function, code) = halves(function);
        let (payload_len, block) = halves(payload);
        let (reply_block, reply_capacity) = halves(reply);
        Ok(Self {
            generation,
            slot: kinds as u16,
            kind: Kind::decode((kinds >> 16) as u8)?,
            status: Status::decode((kinds >> 24) as u8)?,
            epoch,
            invocation,
            function,
            code,
            payload_len,
            block,
            reply_block,
            reply_capacity,
            time_ns,
        })
    }
}

/// Two numbers as one word of a header.
#[inline]
pub fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// The reverse.
#[inline]
pub fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

impl Kind {
    #[inline]
    fn decode(byte: u8) -> Result<Self, BadHeader> {
        match byte {
            1 => Ok(Self::Request),
            2 => Ok(Self::Response),
            other => Err(BadHeader::Kind(other)),
        }
    }
}

impl Status {
    #[inline]
    fn decode(byte: u8) -> Result<Self, BadHeader> {
        Ok(match byte {
            0 => Self::Ok,
            1 => Self::FunctionError,
            2 => Self::UnknownFunction,
            3 => Self::ReplyTooLarge,
            4 => Self::Stale,
            5 => Self::Cancelled,
            6 => Self::Overflow,
            other => return Err(BadHeader::Status(other)),
        })
    }
}

/// The 32 bits that arrive with an RDMA write.
///
/// ```text
/// bits     31 ... 24          23 ... 16   15 ... 8   7 ... 0
/// headed   the block, below 0xff0000                 generation
/// brief    0xff               slot        detail
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Immediate {
    /// The message begins with its header.
    Headed {
        /// The block's offset in its region, in units of [`BLOCK_ALIGN`].
        block: u32,
        /// The low 8 bits of the slot's generation.
        generation: u8,
    },
    /// The message is its payload alone, in its slot's block: both ends know the rest of its header.
    Brief {
        /// The slot.
        slot: u8,
        /// A request's function; a response's time inside the function, in [`brief_time`]'s form.
        detail: u16,
    },
}

/// Blocks from here on are none: their immediates are brief messages'.
const BRIEF: u32 = 0xFF_0000;

impl Immediate {
    /// Largest region that an immediate can address, in bytes: 4 MiB less than 1 GiB.
    pub const REGION_MAX: u64 = BRIEF as u64 * BLOCK_ALIGN as u64;

    /// Packs it. The block lies in a region, which is no larger than [`Self::REGION_MAX`].
    #[inline]
    pub fn encode(self) -> u32 {
        match self {
            Self::Headed { block, generation } => {
                debug_assert!(block < BRIEF, "no region has block {block}");
                block << 8 | u32::from(generation)
            }
            Self::Brief { slot, detail } => BRIEF << 8 | u32::from(slot) << 16 | u32::from(detail),
        }
    }

    /// Unpacks it; every value is one.
    #[inline(always)]
    pub fn decode(raw: u32) -> Self {
        match raw >> 8 {
            block if block < BRIEF => Self::Headed { block, generation: raw as u8 },
            _ => Self::Brief { slot: (raw >> 16) as u8, detail: raw as u16 },
        }
    }
}

/// Bits of a brief time that hold its first digits, below those of its exponent.
const TIME_DIGITS: u32 = 11;

/// Nanoseconds in 16 bits: exact below 4.1 us, else rounded down to 12 binary digits, which takes off less than 0.05 %. `None` from
/// 73 minutes on.
#[inline]
pub fn brief_time(ns: u64) -> Option<u16> {
    let first = 1 << TIME_DIGITS;
    if ns < first {
        return Some(ns as u16);
    }
    let shift = ns.ilog2() - TIME_DIGITS;
    let digits = (ns >> shift) - first;
    let exponent = u64::from(shift + 1) << TIME_DIGITS;
    u16::try_from(exponent | digits).ok()
}

/// The nanoseconds of a [`brief_time`]. Every value is one.
#[inline]
pub fn from_brief_time(raw: u16) -> u64 {
    let first = 1u64 << TIME_DIGITS;
    let (exponent, digits) = (u32::from(raw) >> TIME_DIGITS, u64::from(raw) & (first - 1));
    match exponent.checked_sub(1) {
        None => digits,
        Some(shift) => (first | digits) << shift,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_64_bytes_decode_or_are_refused_and_what_decodes_encodes_back(bytes: [u8; 32], more: [u8; 32]) {
            let mut raw = [0; HEADER_LEN];
            raw[..32].copy_from_slice(&bytes);
            raw[32..].copy_from_slice(&more);
            raw[6] %= 4;
            raw[7] %= 8;
            raw[56..].fill(0);
            if let Ok(header) = Header::decode(&raw) {
                prop_assert_eq!(header.encode(), raw);
            }
        }

        #[test]
        fn an_immediate_round_trips(raw: u32) {
            prop_assert_eq!(Immediate::decode(raw).encode(), raw);
            let brief = raw | 0xFF << 24;
            let is_brief = matches!(Immediate::decode(brief), Immediate::Brief { .. });
            prop_assert!(is_brief);
            prop_assert_eq!(Immediate::decode(brief).encode(), brief);
        }

        #[test]
        fn a_brief_time_is_as_near_as_it_says(ns in prop_oneof![0u64..10_000, 0u64..10_000_000_000_000]) {
            let Some(raw) = brief_time(ns) else {
                prop_assert!(ns > 73 * 60 * 1_000_000_000);
                return Ok(());
            };
            let told = from_brief_time(raw);
            prop_assert!(told <= ns && ns - told <= ns / 2048, "{} for {}", told, ns);
            prop_assert!(ns >= 4096 || told == ns);
            prop_assert_eq!(brief_time(told), Some(raw));
        }
    }
}
