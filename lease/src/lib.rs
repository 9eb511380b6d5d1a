//! Grants, leases, tokens, epochs and clocks: what harvester, executor and client must agree on, decided purely.
//!
//! Nothing here reads a clock, a socket or a file: `now` is an argument, and what must happen is returned.
//!
//! ```text
//!   harvester                                 executor                               client
//!   issuer::Issuer ── grant(epoch, ttl) ────▶ holder::Holder (agent)
//!        │                                    deadlines::Deadlines (keeper)
//!        └────────── token::Claims, signed ──────────▶ admit ◀──── token ─────────── call::Known::then
//! ```
//!
//! * [`clock`]: stamps of one machine's clock, and the only ways to carry a duration to another machine's;
//! * [`state`]: the one life cycle that grants and leases share, as a table;
//! * [`token`]: the signed claims that a client shows an executor;
//! * [`issuer`], [`holder`], [`deadlines`]: the books of harvester, agent and keeper;
//! * [`call`]: what becomes of a call whose session ended.

#![forbid(unsafe_code)]

pub mod call;
pub mod clock;
pub mod deadlines;
pub mod holder;
pub mod issuer;
pub mod state;
pub mod token;
