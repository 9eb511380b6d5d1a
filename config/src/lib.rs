//! Gleaner's one configuration file: read once, validated, with the origin of every key.
//!
//! The daemons, the client library and the command line all start here. Nothing below reads the environment or a file
//! again: what a program needs is passed down as typed values.
//!
//! ```text
//! defaults → /etc/gleaner/gleaner.toml ($GLEANER_CONFIG, --config) → GLEANER_<SECTION>_<KEY> → --set section.key=value
//! ```
//!
//! Every section is one struct of [`sections`]; its macro also makes the list of keys, so that a key, its default and its
//! documentation cannot drift apart.

mod check;
mod error;
mod load;
mod schema;
mod sections;
mod value;

pub use error::{Cause, ConfigError, Problem};
pub use load::{DEFAULT_PATH, Loaded, Origin, PATH_VARIABLE, Setting, Sources};
pub use schema::Key;
pub use sections::{Client, Cluster, Config, Executor, Harvester, Log, Policy, Slurm};
pub use value::{Auth, ByteSize, KeepAlive, LogFormat, Mode, Transport, Waiting};
