//! Drives a real, confined worker process: what it runs, what it refuses, and what it leaves behind when a function kills it.

mod calls;
mod faults;
mod libraries;
mod rig;
