//! The journal of vacates and the table of workers, as a killed keeper leaves them.

#![no_main]

use gleaner_proto::{vacates, workers};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Some((_, used)) = vacates::next_record(rest) {
        assert!(used > 0);
        rest = &rest[used..];
    }
    let _ = workers::Head::decode(bytes);
    let _ = workers::entries(bytes).count();
    let _ = workers::parse_stat(bytes);
});
