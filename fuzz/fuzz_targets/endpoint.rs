//! The RDMA endpoint, which a hostile peer writes: what is read, is written back the same, and names no more than a region.

#![no_main]

use gleaner_proto::{
    endpoint::{ENDPOINT_LEN, Endpoint},
    header::Immediate,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: [u8; ENDPOINT_LEN]| {
    if let Ok(endpoint) = Endpoint::decode(&bytes) {
        assert_eq!(endpoint.encode(), bytes);
        assert!(endpoint.region_bytes <= Immediate::REGION_MAX);
        assert!(endpoint.region.checked_add(endpoint.region_bytes).is_some());
    }
});
