//! The node's executor: keeper, agent and worker.
