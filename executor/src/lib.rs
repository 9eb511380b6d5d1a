//! The node's executor: one binary that is keeper, agent or worker.
//!
//! ```text
//!   hook ──64 bytes──▶ keeper ──orders, notices──▶ agent ◀── harvester, clients
//!                        │ parents, kills            │
//!                        └────────▶ worker ◀─────────┘ board, links, libraries
//! ```
//!
//! * [`keeper`]: parents every process, enforces deadlines, vacates; no network, no allocation after its start;
//! * [`worker`]: runs the functions of one lease, confined by [`worker::sandbox`];
//! * [`board`]: memory that agent and worker share: the slots' states, verdicts and usage;
//! * [`sys`]: the system calls that need unsafe code.

pub mod agent;
pub mod board;
pub mod keeper;
mod rdma;
pub mod sys;
pub mod worker;
