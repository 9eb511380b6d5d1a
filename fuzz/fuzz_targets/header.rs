//! The invocation header, which a hostile peer writes: what is read, is written back the same.

#![no_main]

use gleaner_proto::header::{HEADER_LEN, Header, Immediate};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: [u8; HEADER_LEN]| {
    if let Ok(header) = Header::decode(&bytes) {
        assert_eq!(Header::decode(&header.encode()), Ok(header));
        let immediate = Immediate { block: header.block >> 8, generation: header.generation as u8 };
        assert_eq!(Immediate::decode(immediate.encode()), immediate);
    }
});
