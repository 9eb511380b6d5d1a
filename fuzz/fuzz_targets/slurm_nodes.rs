//! Nodes as `scontrol` prints them: admins write into the text.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = gleaner_harvester::slurm::parse::nodes(text);
});
