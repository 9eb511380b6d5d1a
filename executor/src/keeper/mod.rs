//! The keeper: parents the agent and every worker, owns their cgroups and deadlines, and clears the node when asked.
//!
//! Single-threaded, with fixed tables; it reads no network and decides nothing that the agent or the hook can.

pub mod handover;
pub mod ipc;
pub mod journal;
