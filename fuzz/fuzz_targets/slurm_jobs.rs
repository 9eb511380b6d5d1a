//! Jobs as `squeue` prints them.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = gleaner_harvester::slurm::parse::jobs(text);
});
