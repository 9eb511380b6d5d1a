//! The harvester daemon: watches Slurm, leases, records. What decides is `gleaner-harvester-core`; this does.
//!
//! ```text
//!   slurm ─▶ driver (owns the core) ◀─▶ grpc ◀─▶ clients, executors, the command line
//!                  │
//!                  └─▶ store ─▶ SQLite, or the journal
//! ```
//!
//! * [`daemon`]: everything assembled; `main` adds arguments, signals and the log;
//! * `driver`: the one task that owns the core, and the looks at Slurm;
//! * `grpc`: the wire, identity, and the conversions between messages and the core's types;
//! * [`store`]: records and reports; [`state_dir`]: the lock and the signing key; [`slurm`]: reading Slurm.

#![forbid(unsafe_code)]

mod audit;
mod clock;
pub mod daemon;
mod driver;
mod grpc;
mod policy;
pub mod slurm;
pub mod state_dir;
pub mod store;
mod tune;

pub use grpc::ServeError;
pub use policy::PolicyError;
