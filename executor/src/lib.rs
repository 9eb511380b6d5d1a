//! The node's executor: keeper, agent and worker.

pub mod board;
pub mod worker;
