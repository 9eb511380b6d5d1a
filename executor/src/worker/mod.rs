//! The worker: one process a lease, the only one that runs foreign code. The keeper starts it, its agent feeds it.

pub mod ipc;
