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

/// Those on RDMA: asked where there is a device, on this machine or else in a guest.
pub(crate) const RDMA_QUESTIONS: [&str; 4] =
    ["rdma_call", "rdma_service", "rdma_throughput", "rdma_instructions"];
