//! The agent's constants, for engineers. What a site sets is in the configuration.

use std::time::Duration;

/// A connection must have said who it is and what it wants by then.
pub(super) const GREETING_TIMEOUT: Duration = Duration::from_secs(2);
/// The node must have answered by then: the first client of a lease waits for its worker. Shorter than a client's default patience, so that
/// it is told.
pub(super) const ADMISSION_TIMEOUT: Duration = Duration::from_secs(8);
/// Most connections that are greeting at a time; further ones wait in the listen queue.
pub(super) const GREETINGS_MAX: usize = 256;
/// Longest frame of a greeting: a hello with a token is far shorter.
pub(super) const GREETING_FRAME_MAX: usize = 4 << 10;
/// Messages that wait for one session's client. One that lets this many pile up loses its session.
pub(super) const SESSION_QUEUE_MAX: usize = 32;
/// How long a client may let one message lie unread.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Messages from all tasks that wait for the node's one owner; a sender waits when it is full.
pub(super) const INPUTS_MAX: usize = 1024;
/// Orders that wait for a keeper that does not read.
pub(super) const ORDERS_MAX: usize = 4096;
/// Messages on their way to the harvester; what does not fit is sent again from the outbox.
pub(super) const UPLINK_QUEUE_MAX: usize = 256;
/// Events kept until the harvester acknowledges them. Vacates beyond it stay in the node's journal.
pub(super) const OUTBOX_MAX: usize = 8192;
/// A worker that has not answered `OpenFunction` by then is running somebody's constructor for too long.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a lease stays whose last client went away without a word.
pub(super) const ORPHAN_GRACE: Duration = Duration::from_secs(2);
/// How long a worker may take to end its functions' state when its lease is given back.
pub(super) const FINISH_GRACE: Duration = Duration::from_millis(100);
/// Longest grace that a cancelled call is left.
pub(super) const CANCEL_GRACE_MAX: Duration = Duration::from_secs(3600);
/// First pause between two looks at a cancelled call that was not running at the end of its grace.
pub(super) const CANCEL_LOOK: Duration = Duration::from_millis(10);
/// How long the keeper's word is awaited on a worker that closed its socket.
pub(super) const LOST_GRACE: Duration = Duration::from_millis(200);
/// Calls of one lease that wait for the end of their grace.
pub(super) const CANCELS_MAX: usize = 4096;
/// First and longest wait before the harvester is dialled again.
pub(super) const BACKOFF: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(5));
/// Wait after the harvester refused this executor: a person has to act.
pub(super) const REFUSED_WAIT: Duration = Duration::from_secs(5);
/// Bound of dialling the harvester and of its answer to a registration.
pub(super) const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);
/// Heartbeats are not sent more or less often than this, whatever the harvester says.
pub(super) const HEARTBEAT: (Duration, Duration) =
    (Duration::from_millis(20), Duration::from_secs(60));
/// How long the keeper's record of a vacate is awaited before its epoch's end is reported without one.
pub(super) const RECORD_WAIT: Duration = Duration::from_millis(500);
/// Slots of one lane of one session that the board has room for; larger windows are lowered.
pub(super) const WINDOW_MAX: u16 = 128;
/// Slots of all lanes of one session: bounds the verdicts of one `Evicted`, hence its frame.
pub(super) const SESSION_SLOTS_MAX: u32 = 32 << 10;

const _: () = assert!(BACKOFF.0.as_millis() < BACKOFF.1.as_millis());
// A verdict takes at most 24 bytes as protobuf; all of them fit one frame.
const _: () = assert!(SESSION_SLOTS_MAX as usize * 24 < gleaner_proto::control::CONTROL_FRAME_MAX);
