//! The whole core from outside, event by event: what a driver sees of it, with a store that may fail.

#![allow(
    clippy::unwrap_used,
    reason = "a test's panic is its report; the lint spares `#[test]` functions only"
)]

mod accounting;
mod admins;
mod executors;
mod leases;
mod random;
mod refusals;
mod restarts;
mod vacates;
mod world;
