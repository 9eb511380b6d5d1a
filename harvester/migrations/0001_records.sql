-- What must survive a restart, and what reports are made of. Times are Unix milliseconds on the harvester's wall clock;
-- core counts, byte counts and nanoseconds are integers. harvester/core/src/record.rs says what each record means.

-- One row for each start of a harvester. alive_unix_ms: the last moment that it is known to have seen.
CREATE TABLE terms (
    term          INTEGER PRIMARY KEY,
    grant_ttl_ns  INTEGER NOT NULL,
    began_unix_ms INTEGER NOT NULL,
    alive_unix_ms INTEGER NOT NULL
) STRICT;

-- Counters and the kill switch, each under its name.
CREATE TABLE settings (
    name    TEXT PRIMARY KEY,
    number  INTEGER NOT NULL,
    text    TEXT NOT NULL,
    unix_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE drains (
    node    TEXT PRIMARY KEY,
    reason  TEXT NOT NULL,
    unix_ms INTEGER NOT NULL
) STRICT;

-- ending: why it shall end, once that is decided. The last three stay NULL until it surely has.
CREATE TABLE leases (
    lease           INTEGER PRIMARY KEY,
    request_id      BLOB NOT NULL,
    node            TEXT NOT NULL,
    epoch           INTEGER NOT NULL,
    uid             INTEGER NOT NULL,
    gid             INTEGER NOT NULL,
    user_name       TEXT NOT NULL,
    account         TEXT NOT NULL,
    cores           INTEGER NOT NULL,
    memory_bytes    INTEGER NOT NULL,
    client_key      BLOB NOT NULL,
    expires_ns      INTEGER NOT NULL,
    boot            BLOB NOT NULL,
    instance        BLOB NOT NULL,
    created_unix_ms INTEGER NOT NULL,
    ending          INTEGER,
    end_reason      INTEGER,
    end_detail      TEXT,
    ended_unix_ms   INTEGER
) STRICT;
CREATE INDEX leases_live ON leases (lease) WHERE end_reason IS NULL;
CREATE INDEX leases_ended ON leases (ended_unix_ms) WHERE end_reason IS NOT NULL;
CREATE INDEX leases_created ON leases (created_unix_ms);

-- Figures of one lease so far; they only grow.
CREATE TABLE usages (
    lease             INTEGER NOT NULL,
    unix_ms           INTEGER NOT NULL,
    allocated_core_ns INTEGER NOT NULL,
    cpu_ns            INTEGER NOT NULL,
    executing_ns      INTEGER NOT NULL,
    polling_ns        INTEGER NOT NULL,
    calls             INTEGER NOT NULL,
    memory_peak_bytes INTEGER NOT NULL,
    PRIMARY KEY (lease, unix_ms)
) STRICT, WITHOUT ROWID;
CREATE INDEX usages_by_time ON usages (unix_ms);

CREATE TABLE vacates (
    record_id    BLOB PRIMARY KEY,
    node         TEXT NOT NULL,
    trigger_kind INTEGER NOT NULL,
    epoch        INTEGER NOT NULL,
    job          INTEGER NOT NULL,
    job_uid      INTEGER NOT NULL,
    leases       INTEGER NOT NULL,
    processes    INTEGER NOT NULL,
    memory_bytes INTEGER NOT NULL,
    fence_us     INTEGER NOT NULL,
    kill_us      INTEGER NOT NULL,
    gone_us      INTEGER NOT NULL,
    release_us   INTEGER NOT NULL,
    answer_us    INTEGER NOT NULL,
    stamp_ns     INTEGER NOT NULL,
    unix_ms      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX vacates_by_time ON vacates (unix_ms);

-- What hooks said; ended: 0 prolog, 1 epilog.
CREATE TABLE jobs (
    instance BLOB NOT NULL,
    seq      INTEGER NOT NULL,
    node     TEXT NOT NULL,
    job      INTEGER NOT NULL,
    job_uid  INTEGER NOT NULL,
    ended    INTEGER NOT NULL,
    hook_us  INTEGER NOT NULL,
    unix_ms  INTEGER NOT NULL,
    PRIMARY KEY (instance, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX jobs_by_job ON jobs (job, node);
CREATE INDEX jobs_by_time ON jobs (unix_ms);

-- How many cores of a node are what from begins_unix_ms on; ends_unix_ms is the next transition of the same term, or NULL.
CREATE TABLE transitions (
    node            TEXT NOT NULL,
    term            INTEGER NOT NULL,
    begins_unix_ms  INTEGER NOT NULL,
    ends_unix_ms    INTEGER,
    total_cores     INTEGER NOT NULL,
    idle_cores      INTEGER NOT NULL,
    grantable_cores INTEGER NOT NULL,
    granted_cores   INTEGER NOT NULL,
    leased_cores    INTEGER NOT NULL,
    PRIMARY KEY (node, term, begins_unix_ms)
) STRICT, WITHOUT ROWID;
CREATE INDEX transitions_by_end ON transitions (ends_unix_ms);

-- Slurm is watched from then on (gap NULL), or is not, and why.
CREATE TABLE watches (
    term    INTEGER NOT NULL,
    unix_ms INTEGER NOT NULL,
    gap     TEXT,
    PRIMARY KEY (term, unix_ms)
) STRICT, WITHOUT ROWID;

CREATE TABLE audits (
    id      INTEGER PRIMARY KEY,
    unix_ms INTEGER NOT NULL,
    uid     INTEGER,
    user_name TEXT NOT NULL,
    action  TEXT NOT NULL,
    outcome TEXT NOT NULL
) STRICT;
-- The same line twice is one: a journal may be taken in twice.
CREATE UNIQUE INDEX audits_by_time ON audits (unix_ms, COALESCE(uid, -1), action, outcome);
