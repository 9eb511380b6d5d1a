//! The cluster's pure core: what to harvest, when to give it back, who leases what.
//!
//! One task of the daemon owns a [`Core`] and feeds it [`Event`]s with the time; what must happen comes out as
//! [`Effect`]s, to be carried out in order. No clock, socket, file or thread in here, so that production, the tests
//! and a replay of a site's own history run the same decisions.
//!
//! ```text
//!   Slurm ───── Picture, Jobs ─────▶ ┌──────┐ ── LookSoon ──────────────▶ Slurm
//!   executors ─ Joined, Heartbeat ─▶ │ Core │ ── Send(grant, vacate…) ──▶ executors
//!   clients ─── Acquire, Release ──▶ │      │ ── Reply ─────────────────▶ clients
//!   store ───── Persisted ─────────▶ └──────┘ ── Persist(records) ──────▶ store
//! ```
//!
//! * [`picture`]: Slurm's view as plain types, and the states never touched; [`policy`]: what the site allows;
//! * [`event`] and [`effect`]: everything that goes in and comes out; [`refusal`]: the sentences;
//! * [`record`]: what is stored, how a report is computed from it, and what a restart needs; [`view`]: what is shown.
//!
//! Three orders hold always: a lease is reserved, then persisted, then replied; an executor's event is
//! applied, then persisted, then acknowledged; a vacate is sent first and recorded after, store or no store.

#![forbid(unsafe_code)]

mod cluster;
pub mod effect;
pub mod event;
mod moment;
pub mod picture;
pub mod policy;
pub mod record;
pub mod refusal;
pub mod view;

pub use cluster::{Core, TICK};
pub use effect::Effect;
pub use event::Event;
pub use policy::Policy;
