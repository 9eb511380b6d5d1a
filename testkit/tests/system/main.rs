//! The whole service on a real private Slurm: real munged, slurmctld, slurmd, hooks, harvester, executors and clients.
//!
//! Needs the programs of the same build: `cargo build --workspace` first. What one crate can show alone is tested there;
//! here is what only all of them together can get wrong.

#![allow(clippy::unwrap_used)]

mod hooks;
mod killed;
mod main_job;
mod slurm_and_store;
mod stopped;
mod support;
mod users;
