//! A private Slurm and a whole Gleaner beside it, for tests and the demo.
//!
//! [`slurm::Cluster`] is a real Slurm (munged, slurmctld, one slurmd a node) in a temporary directory; [`Service`] is the
//! real harvester and executors on it. [`guest::Guest`] is a virtual machine with RDMA verbs.
//! Everything that is started here ends with its owner, also when that is killed: see [`process`] and [`warden`].
//! No product code lives here, and nothing here fakes what the real program can do.

pub mod guest;
pub mod leftovers;
pub mod ports;
pub mod process;
pub mod service;
pub mod slurm;
pub mod wait;
pub mod warden;

pub use service::Service;
pub use wait::{poll_until, wait_until};
