//! The `rdma` backend: InfiniBand verbs, on devices that are found when a program asks for them.
//!
//! ```text
//! library ── libibverbs, loaded at run time; ffi: its structures
//!    └── device ── completions, memory ── pair (states as types) ── setup ── link: a Link over both regions
//!          └── adapter: what a process opens once
//! ```
//!
//! Names of verbs stay in this folder. Set-up may allocate, log and wait; the link's own loop does none of it.

mod adapter;
mod brief;
mod completions;
mod device;
mod error;
mod ffi;
#[cfg(test)]
mod guest;
mod library;
mod link;
mod memory;
mod pair;
mod setup;
#[cfg(test)]
mod tests;

pub use adapter::{Adapter, Settings};
pub use completions::{Completion, CompletionQueue};
pub use device::{Device, DeviceFault, Gid, Limits, Port, devices};
pub use error::{RdmaError, Remedy, WorkStatus};
pub use link::RdmaLink;
pub use memory::{Access, ProtectionDomain, Registered};
pub use pair::{
    Depth, Init, QueuePair, ReadyToReceive, ReadyToSend, Receives, Reset, Target, Timers, Write,
};
pub use setup::{OBJECTS_PER_LINK, Unconnected};
