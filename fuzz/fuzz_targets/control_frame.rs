//! The control stream in both directions, cut anywhere.

#![no_main]

use gleaner_proto::{framing::Incoming, v1};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|chunks: Vec<Vec<u8>>| {
    let (mut to, mut from) = (Incoming::<v1::ToAgent>::new(), Incoming::<v1::FromAgent>::new());
    for chunk in &chunks {
        to.push(chunk);
        while let Ok(Some(_)) = to.take() {}
        from.push(chunk);
        while let Ok(Some(_)) = from.take() {}
    }
});
