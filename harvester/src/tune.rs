//! Engineers' constants: every queue, wait and size of the daemon has its bound here. Operators' knobs are in the
//! configuration instead.

use std::time::Duration;

/// Commands from gRPC that wait for the driver.
pub(crate) const COMMANDS_MAX: usize = 1024;
/// Batches of records that wait for the store. When it is full the store counts as failing.
pub(crate) const STORE_QUEUE_MAX: usize = 1024;
/// Batches that one transaction takes together.
pub(crate) const STORE_GROUP_MAX: usize = 256;
/// Messages to one executor that wait for its stream; a slower executor loses the stream and dials again.
pub(crate) const OUTBOX_MAX: usize = 256;
/// Bytes of the journal of records that the database did not take.
pub(crate) const JOURNAL_BYTES_MAX: u64 = 16 << 20;
/// How long the database is left alone after it failed.
pub(crate) const STORE_RETRY: Duration = Duration::from_secs(1);
/// How long a statement waits for another process's lock on the database (a backup, an admin's shell).
pub(crate) const DATABASE_BUSY: Duration = Duration::from_secs(2);
/// How long a report or a list may wait for a connection to read by.
pub(crate) const READ_BOUND: Duration = Duration::from_secs(3);
/// Reports and lists that are read at a time.
pub(crate) const READERS_MAX: u32 = 2;
/// Records older than this are deleted, drains, epochs and live leases apart.
pub(crate) const RETENTION: Duration = Duration::from_secs(400 * 24 * 3600);
/// Usage samples older than this are thinned to the last of each hour...
pub(crate) const USAGE_FINE: Duration = Duration::from_secs(24 * 3600);
/// ...looking back this far; what a longer stop leaves out goes with the retention.
pub(crate) const USAGE_THINNED: Duration = Duration::from_secs(8 * 24 * 3600);
/// Rows of each table that one step of this deletes, so that records do not wait for it.
pub(crate) const PRUNE_ROWS_MAX: u32 = 1000;
/// How often it is seen whether there is something to delete.
pub(crate) const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);
/// The pause between two steps while there is.
pub(crate) const PRUNE_STEP: Duration = Duration::from_secs(1);
/// Vacates that one report lists, the newest.
pub(crate) const REPORT_VACATES_MAX: u32 = 5000;
/// Ended leases that one list has, the newest.
pub(crate) const ENDED_LEASES_MAX: u32 = 5000;

/// Lets munge's calls wait for munged, then refuses.
pub(crate) const IDENTITY_BOUND: Duration = Duration::from_secs(3);
/// Threads that may wait for munged at a time.
pub(crate) const IDENTITY_THREADS: usize = 16;
/// Refused identities that are recorded in the audit trail, each minute; the rest are counted.
pub(crate) const REFUSALS_A_MINUTE: u32 = 60;

/// Connections of all peers together: one an executor, and the clients'.
pub(crate) const CONNECTIONS_MAX: usize = 16 << 10;
/// The pause after a connection that could not be accepted.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Calls that one connection may have open.
pub(crate) const STREAMS_A_CONNECTION: u32 = 64;
/// Bytes of one unary request.
pub(crate) const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Bytes of one message of an executor's stream: a heartbeat names each lease.
pub(crate) const EXECUTOR_MESSAGE_BYTES_MAX: usize = 256 << 10;
/// Bytes of a call's metadata.
pub(crate) const METADATA_BYTES_MAX: u32 = 16 << 10;
/// How long a unary call may take in all.
pub(crate) const CALL_BOUND: Duration = Duration::from_secs(10);
/// How long a new executor stream may stay silent before its `Register`.
pub(crate) const REGISTER_BOUND: Duration = Duration::from_secs(5);
/// An idle connection is asked for a sign of life this often, and closed without one.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// How long it has for that sign.
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Looks at Slurm that follow a hint that something changed, while it still changes.
pub(crate) const FOLLOW_UPS: [Duration; 6] = [
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(500),
];
/// Looks that wait for the driver.
pub(crate) const LOOKS_MAX: usize = 4;
/// A look's pause is at least this many times what the look took: 5 % of one core at most.
pub(crate) const LOOK_SHARE: u32 = 19;
/// And at most this long, however slow Slurm answered: a cluster that is not looked at is not harvested.
pub(crate) const LOOK_PAUSE_MAX: Duration = Duration::from_secs(5);
/// The same while following a change, for a short time: a fifth of one core.
pub(crate) const LOOK_SHARE_FOLLOWING: u32 = 4;
/// What a look may take beyond the bound that Slurm's readers keep.
pub(crate) const LOOK_GRACE: Duration = Duration::from_secs(1);
/// How often the core's timers are looked at.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// A picture is too old to act upon after this, or after three periods and one look's bound if that is longer.
pub(crate) const PICTURE_AGE_MIN: Duration = Duration::from_secs(10);
/// How long open calls may take to end when the daemon stops.
pub(crate) const STOP_BOUND: Duration = Duration::from_secs(3);
