//! What two Gleaner processes agree on: services, lease and node types, the invocation header, the hook's message.
//!
//! Everything that more than one process reads or writes is here, and no I/O is. The plain formats
//! ([`header`], [`hook`], [`hostlist`], [`ids`], [`vacates`], [`workers`]) build without the `grpc` feature, for the
//! hook and the hot path;
//! the generated services are in [`v1`].

#![forbid(unsafe_code)]

pub mod control;
pub mod endpoint;
pub mod header;
pub mod hook;
pub mod hostlist;
pub mod ids;
pub mod vacates;
pub mod workers;

/// The protocol version that every handshake carries; peers with another one are refused by name.
pub const PROTOCOL: u32 = 1;

/// The generated messages and services. They stay behind conversions: only `grpc/` folders and `proto` name them.
#[cfg(feature = "grpc")]
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("gleaner.v1");

    /// The encoded descriptors, for gRPC reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/gleaner.bin"));
}

#[cfg(feature = "grpc")]
pub mod credential;

#[cfg(feature = "grpc")]
pub mod framing;
