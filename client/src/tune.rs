//! The client's constants, for engineers. What a caller sets is in [`crate::Request`] and the configuration.

use std::time::Duration;

/// A hot waiter looks at its control streams at least this often.
pub(crate) const SERVICE_PERIOD: Duration = Duration::from_millis(1);
/// Looks at a lane between two looks at the clock, while hot; and calls between two, when none of them has to wait.
pub(crate) const LOOKS_PER_CLOCK: u32 = 32;

/// Looks into shared memory for the answer of a call whose caller waits on the spot, before the call gets a record: what takes longer has
/// time for that, and a record that is begun just when the answer comes would delay it. Over other links, where a look may be a
/// system call, [`LOOKS_PER_CLOCK`] is enough.
pub(crate) const LOOKS_PER_TRIP: u32 = 256;
/// Longest sleep of a warm waiter: what no descriptor announces (deadlines aside) is noticed within it.
pub(crate) const SLEEP_MAX: Duration = Duration::from_millis(100);
/// Longest sleep on lanes' words, which tell of answers and of a lease's end; then the waiter sleeps in poll(2), since a call that takes
/// longer is not slowed down by the difference. Later than the kernel's next tick: a timer before that has to be set in the processor
/// for each sleep, and again when it is taken back, which costs microseconds a call on a virtual machine.
pub(crate) const DOZE: Duration = Duration::from_millis(8);
/// A completion queue with so many calls under way that finds no answer pauses so often before it looks again: some 0.2 us.
pub(crate) const GATHERED_FROM: usize = 4;
pub(crate) const GATHER_PAUSES: u32 = 4;
/// Looks at all lanes within one `Pool::process`; what then still comes is left to the next one, so that others run too.
pub(crate) const PROGRESS_ROUNDS: u32 = 16;
/// How long a session whose lane is closed waits for the executor's verdicts before its calls are UNKNOWN.
pub(crate) const VERDICT_BOUND: Duration = Duration::from_secs(2);
/// A call whose deadline is over may still end by itself within this time; then its worker is stopped.
pub(crate) const OVERRUN_GRACE: Duration = Duration::from_millis(20);
/// The grace of a call that was merely dropped: it is skipped if it has not started, and may run to its end.
pub(crate) const DROPPED_GRACE: Duration = Duration::from_secs(3600);
/// First and longest wait between two requests for a lease that replaces an evicted one.
pub(crate) const RELOCATE_BACKOFF: (Duration, Duration) =
    (Duration::from_millis(20), Duration::from_millis(500));
/// Leases of one place that have come and gone without this pool, and are asked after in one go.
pub(crate) const SUCCESSIONS_MAX: u32 = 64;
/// For how long a node that evicted this pool is not asked for again.
pub(crate) const AVOID_FOR: Duration = Duration::from_secs(2);
/// How long giving a lease back may take.
pub(crate) const DETACH_BOUND: Duration = Duration::from_secs(1);

const _: () = assert!(RELOCATE_BACKOFF.0.as_nanos() < RELOCATE_BACKOFF.1.as_nanos());
