//! The worker: one process a lease, the only one that runs foreign code. The keeper starts it, its agent feeds it.

mod filter;
pub mod ipc;
pub mod sandbox;
