//! Hostlists from Slurm, the configuration and the command line: what expands, folds back to the same names.

#![no_main]

use std::collections::BTreeSet;

use gleaner_proto::hostlist::{compress, expand};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(names) = expand(text) {
        let again = expand(&compress(&names)).expect("our own hostlists expand");
        assert_eq!(BTreeSet::from_iter(again), BTreeSet::from_iter(names));
    }
});
