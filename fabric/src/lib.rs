//! Moves bytes between a client and one worker thread, and knows nothing of leases.
//!
//! One trait, [`Link`], a backend a file or folder, one conformance suite for all ([`conformance`]). Both ends hold two
//! *mirrored regions*: what one end writes into its request region at some offset appears in the peer's at the same
//! offset. Shared memory makes that one mapping, TCP copies it through a socket, RDMA writes it remotely.
//!
//! ```text
//! region:  | slot 0 | slot 1 | ... | slot window-1 | arena ................ |
//! block:   | header 64 B | payload .................. | guard 64 B |        a slot is a block, the arena holds larger ones
//! ```
//!
//! The client decides where every block lies, the reply's too, so that a reply is one write as well.

pub mod any;
pub mod arena;
pub mod call;
pub mod check;
pub mod clock;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod futex;
pub mod link;
pub mod memory;
pub mod passing;
pub mod rdma;
pub mod region;
pub mod shm;
pub mod tcp;
pub mod tune;

pub use any::AnyLink;
pub use arena::Arena;
pub use call::{Asked, Done, Expected, Failure, Found, Runs};
pub use check::Side;
pub use link::{Arrival, Block, Geometry, Link, LinkError, Payload};
pub use shm::{Segment, SegmentError, ShmLink};
