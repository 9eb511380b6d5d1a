//! The node's executor: keeper, agent and worker.

fn main() {}
