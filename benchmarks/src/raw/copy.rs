//! The memory alone: one copy of the bytes, by the system's own `memcpy`.

use std::hint::black_box;

use anyhow::{Result, ensure};

use crate::{moment::Moment, rounds::Sample, stage::Trips};

/// Its name in results.
pub const NAME: &str = "memcpy";

/// One round: as many copies of so many bytes.
pub fn round(bytes: usize, trips: Trips, sample: &mut Sample) -> Result<()> {
    let (mut from, mut to) = (vec![7u8; bytes], vec![0u8; bytes]);
    for trip in 0..trips.all() {
        from[0] = trip as u8;
        from[bytes - 1] = trip as u8;
        let began = Moment::now();
        black_box(&mut to[..]).copy_from_slice(black_box(&from));
        let took = began.elapsed();
        ensure!(from == to, "the copy is not what was copied");
        if trip >= trips.warm_up {
            sample.record(took);
        }
    }
    Ok(())
}
