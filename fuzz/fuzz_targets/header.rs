//! The invocation header and the immediate, which a hostile peer writes: what is read, is written back the same.

#![no_main]

use gleaner_proto::header::{HEADER_LEN, Header, Immediate};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: [u8; HEADER_LEN]| {
    if let Ok(header) = Header::decode(&bytes) {
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }
    if let Some(raw) = bytes.first_chunk().map(|first| u32::from_le_bytes(*first)) {
        assert_eq!(Immediate::decode(raw).encode(), raw);
    }
});
