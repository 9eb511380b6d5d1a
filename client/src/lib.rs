//! Gleaner's client library: leases on harvested nodes, and function calls on them, microseconds each.
//!
//! ```no_run
//! use gleaner::{Client, Library, Options, Request};
//!
//! let client = Client::connect(Options::default())?;
//! let pool = client.acquire(Request::new().nodes(1..=4).cores(2))?;
//! let library = Library::from_file("libwork.so")?;
//! let square = pool.function(&library, "square")?.idempotent(true);
//! let nine = square.invoke(&3u64.to_le_bytes())?;
//! let many = square.map((0..100u64).map(u64::to_le_bytes));
//! let mut next = square.completions(); // whichever call ends next; `call` makes futures
//! next.push(&4u64.to_le_bytes(), "four")?;
//! assert!(next.next().is_some());
//! drop(next);
//! pool.release()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Client`] speaks to the harvester and makes [`Pool`]s; a pool holds sessions with executors and moves calls when one
//! is evicted; a [`Function`] is called through it. Everything happens inside the caller's own calls: no thread is
//! started unasked, no signal is touched, nothing forks. [`harvester`] is the cluster's view, which the CLI uses too.
//!
//! ```text
//! client ── harvester            once a lease (gRPC)
//! pool ── session ── control     once a millisecond at most while waiting (framed protobuf)
//!                └── lane        each call (gleaner-fabric's Link)
//! ```

#![deny(unsafe_code)] // but in `local`, which calls what the caller loads

mod at_once;
mod awaiting;
mod calls;
mod client;
mod completions;
mod control;
mod dial;
mod ended;
mod error;
mod event;
mod eviction;
mod function;
pub mod harvester;
mod keepalive;
mod lane;
mod library;
mod local;
mod options;
mod pool;
mod progress;
mod reactor;
mod relocate;
mod replies;
mod request;
mod seat;
mod session;
mod share;
mod slots;
mod spin;
mod submit;
mod tune;
mod verbs;
mod waiting;

pub use awaiting::CallFuture;
pub use client::Client;
pub use completions::{Completions, Full};
pub use dial::Transport;
pub use error::{
    AcquireError, AttachError, CallError, ConnectError, Failure, FunctionError, HarvesterError,
    JoinError, ShareError,
};
pub use event::{CallStats, EVENTS_MAX, PoolEvent, PoolEventKind, PoolStats};
pub use function::{Function, Reply, Ticket};
pub use library::Library;
pub use options::Options;
pub use pool::{LeaseView, Pool};
pub use request::{KeepAlive, Request, Transports, Waiting};
pub use share::Share;
