//! Drives a real, confined worker process: what it runs, what it refuses, and what it leaves behind when a function kills it.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

mod calls;
mod faults;
mod libraries;
mod rig;
mod sleeps;
mod turns;
