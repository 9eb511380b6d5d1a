//! The questions, in the order in which they are asked and reported. Each is a program `bench-<name>`.

/// Their names; also those of their files.
pub(crate) const QUESTIONS: [&str; 9] = [
    "hot_call",
    "warm_call",
    "throughput",
    "bandwidth",
    "cold_start",
    "vacate",
    "hook_idle",
    "endurance",
    "instructions",
];
