//! How often the questions on RDMA make a round trip: small payloads thousands of times, large ones as often as time allows.

use crate::{arguments::Arguments, stage::Trips};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Rounds of each side.
pub const ROUNDS: usize = 21;
const TRIPS: u64 = 500;
const TRIPS_MIN: u64 = 8;
/// Bytes that one round moves at most.
const ROUND_BYTES: usize = 16 * MIB;

/// Rounds and their trips.
pub fn of(payload: usize, arguments: &Arguments) -> (usize, Trips) {
    let trips = ((ROUND_BYTES / payload) as u64).clamp(TRIPS_MIN, TRIPS);
    arguments.pick((ROUNDS, Trips::of(trips)), (2, Trips::of(10)))
}

/// A payload's size in words.
pub fn size(bytes: usize) -> String {
    match bytes {
        small if small < KIB => format!("{small} B"),
        middle if middle < MIB => format!("{} KiB", middle / KIB),
        large => format!("{} MiB", large / MIB),
    }
}
