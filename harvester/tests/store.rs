//! The store against real SQLite files: what is stored comes back, twice is once, and a failing disk loses nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod support;

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use gleaner_harvester::store::{Batch, Opened, Outcome, Store, StoreError};
use gleaner_harvester_core::{
    effect::Need,
    event::{Identity, StepTimes, Ticket, Trigger, Usage, Vacated},
    record::{CoreCounts, JobRecord, LeaseRecord, Record, Restored, Transition},
};
use gleaner_lease::{
    clock::{BootId, Instance, Stamp},
    issuer::Numbers,
    state::EndReason,
};
use gleaner_proto::ids::{Epoch, JobId, LeaseId, NodeName, Term, Uid};
use support::disk::Disk;

/// An open store whose outcomes are waited for.
struct World {
    opened: Opened,
    tickets: u64,
}

impl World {
    async fn open(database: &Path, journal: &Path) -> Self {
        Self { opened: Store::open(database, journal).await.unwrap(), tickets: 0 }
    }

    fn restored(&self) -> &Restored {
        &self.opened.restored
    }

    async fn store(&mut self, records: Vec<Record>, need: Need) -> Result<(), String> {
        self.tickets += 1;
        let ticket = Some(Ticket(self.tickets));
        self.opened.store.offer(Batch { ticket, records, need }).unwrap();
        let Outcome { ticket, result } = self.opened.outcomes.recv().await.unwrap();
        assert_eq!(ticket.0, self.tickets);
        result
    }

    /// Ends the writer as a kill would leave it to the next start: with the journal as it is.
    async fn close(self) {
        let Opened { store, writer, .. } = self.opened;
        drop(store);
        writer.await.unwrap();
    }

    async fn kill(self) {
        self.opened.writer.abort();
        let _ = self.opened.writer.await;
    }
}

fn files(directory: &Path) -> (PathBuf, PathBuf) {
    (directory.join("gleaner.db"), directory.join("journal"))
}

/// A moment of the history: a minute ago, so that it is not too old to be kept.
fn at(unix_ms: i64) -> i64 {
    static BEGAN: OnceLock<i64> = OnceLock::new();
    let began = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    BEGAN.get_or_init(began) - 60_000 + unix_ms
}

fn node() -> NodeName {
    NodeName::new("n1").unwrap()
}

fn lease(number: u64) -> LeaseRecord {
    LeaseRecord {
        lease: LeaseId(number),
        request_id: [3; 16],
        node: node(),
        epoch: Epoch(5),
        uid: Uid(1000),
        gid: 100,
        user: "ada".into(),
        account: "maths".into(),
        cores: 2,
        memory_bytes: 1 << 30,
        client_key: [4; 32],
        expires: Stamp(77),
        boot: BootId([5; 16]),
        instance: Instance([6; 16]),
        ending: None,
        created_unix_ms: at(1500),
    }
}

fn vacated() -> Record {
    let steps = StepTimes { fence_us: 1, kill_us: 2, gone_us: 3, release_us: 4, answer_us: 5 };
    let vacated = Vacated {
        record_id: [8; 16],
        trigger: Trigger::Prolog,
        epoch: Epoch(5),
        job: JobId(42),
        job_uid: Uid(1001),
        leases: 1,
        processes: 2,
        memory_bytes: u64::MAX,
        steps,
        stamp: Stamp(9),
        unix_ms: at(4000),
    };
    Record::Vacate { node: node(), vacated }
}

fn transition(unix_ms: i64, leased: u32) -> Record {
    let cores = CoreCounts { total: 4, idle: 4, grantable: 4, granted: 4, leased };
    Record::Transition(Transition { node: node(), term: Term(1), unix_ms, cores })
}

fn usage(unix_ms: i64, cpu_s: u64) -> Record {
    let usage = Usage {
        cpu_ns: cpu_s * 1_000_000_000,
        executing_ns: cpu_s * 500_000_000,
        calls: cpu_s * 10,
        ..Usage::default()
    };
    Record::Usage { lease: LeaseId(1), usage, unix_ms }
}

/// One harvester's life of nine seconds, from 1000 on.
fn history() -> Vec<Record> {
    let job = JobRecord {
        node: node(),
        instance: Instance([6; 16]),
        seq: 1,
        job: JobId(42),
        job_uid: Uid(1001),
        ended: false,
        hook_us: 700,
        unix_ms: at(4000),
    };
    let who = Identity { uid: Uid(0), gid: 0, user: "root".into() };
    vec![
        Record::Term { term: Term(1), grant_ttl: Duration::from_secs(10), unix_ms: at(1000) },
        Record::Numbers(Numbers { lease: 4096, epoch: 8192 }),
        Record::Watch { term: Term(1), unix_ms: at(1000), gap: None },
        transition(at(1000), 0),
        Record::Lease(lease(1)),
        Record::Lease(lease(2)),
        transition(at(2000), 2),
        usage(at(3000), 1),
        Record::LeaseRenewed { lease: LeaseId(2), expires: Stamp(99) },
        Record::LeaseEnding { lease: LeaseId(2), reason: EndReason::Drained },
        vacated(),
        Record::Job(job),
        usage(at(4000), 3),
        Record::LeaseEnded {
            lease: LeaseId(1),
            reason: EndReason::BatchJob,
            detail: "job 42".into(),
            unix_ms: at(4000),
        },
        transition(at(4000), 0),
        Record::Watch { term: Term(1), unix_ms: at(6000), gap: Some("slurmctld is down".into()) },
        Record::Drain { node: node(), reason: "disk".into(), unix_ms: at(6000) },
        Record::Drain { node: NodeName::new("n2").unwrap(), reason: String::new(), unix_ms: at(1) },
        Record::Resume { node: NodeName::new("n2").unwrap() },
        Record::Switch { off: Some("power".into()), unix_ms: at(6000) },
        Record::Audit { who, action: "drain".into(), outcome: "n1".into(), unix_ms: at(6000) },
        Record::Alive { term: Term(1), unix_ms: at(10_000) },
    ]
}

fn check_restored(restored: &Restored) {
    let left = LeaseRecord { expires: Stamp(99), ending: Some(EndReason::Drained), ..lease(2) };
    assert_eq!(
        *restored,
        Restored {
            last_term: Term(1),
            grant_ttl_max: Duration::from_secs(10),
            numbers: Numbers { lease: 4096, epoch: 8192 },
            leases: vec![left],
            drained: vec![(node(), "disk".into())],
            switched_off: Some("power".into()),
            vacates: 1,
        }
    );
}

async fn check_report(store: &Store) {
    let report = store.report(0, at(11_000), Term(2)).await.unwrap();
    assert_eq!((report.since_unix_ms, report.until_unix_ms), (at(1000), at(11_000)));
    assert_eq!((report.total_s, report.harvested_s, report.leased_s), (36.0, 36.0, 4.0));
    assert_eq!((report.idle_s, report.grantable_s), (20.0, 20.0));
    assert_eq!((report.executed_s, report.executing_s), (3.0, 1.5));
    assert_eq!((report.calls, report.leases), (30, 2));
    assert_eq!(report.coverage, 0.5);
    let gaps: Vec<_> = report.gaps.iter().map(|gap| (gap.from_unix_ms, gap.why.as_str())).collect();
    assert_eq!(gaps, [(at(6000), "slurmctld is down"), (at(10_000), "no harvester was running")]);
    let [vacate] = report.vacates.as_slice() else { panic!("{:?}", report.vacates) };
    assert_eq!((vacate.job, vacate.hook_us, vacate.steps.gone_us), (JobId(42), 700, 3));
    let part = store.report(at(3500), at(4500), Term(2)).await.unwrap();
    assert_eq!((part.executed_s, part.leased_s, part.calls), (2.0, 1.0, 20));
    let ended = store.ended_leases(10).await.unwrap();
    let [ended] = ended.as_slice() else { panic!("{ended:?}") };
    assert_eq!((ended.lease, ended.end_reason), (LeaseId(1), Some(EndReason::BatchJob)));
    assert_eq!((ended.end_detail.as_str(), ended.usage.calls), ("job 42", 30));
}

#[tokio::test]
async fn what_is_stored_comes_back_and_twice_is_once() {
    let directory = tempfile::tempdir().unwrap();
    let (database, journal) = files(directory.path());
    let mut world = World::open(&database, &journal).await;
    assert_eq!(*world.restored(), Restored::default());
    for _ in 0..2 {
        world.store(history(), Need::Store).await.unwrap();
        check_report(&world.opened.store).await;
    }
    world.close().await;
    let world = World::open(&database, &journal).await;
    check_restored(world.restored());
    check_report(&world.opened.store).await;
}

#[tokio::test]
async fn a_full_disk_refuses_leases_journals_the_rest_and_loses_nothing() {
    let Some(disk) = Disk::mount(32 << 20) else { return };
    // On the same disk: the journal's blocks are reserved at start.
    let (database, journal) = (disk.file("gleaner.db"), disk.file("journal"));
    let mut world = World::open(&database, &journal).await;
    disk.fill();
    let error = world.store(vec![Record::Lease(lease(1))], Need::Store).await.unwrap_err();
    assert!(error.contains("full"), "{error}");
    assert_eq!(world.opened.store.error(), Some(error));
    world.store(vec![vacated()], Need::Journal).await.unwrap();
    world.store(vec![transition(at(1), 1)], Need::Journal).await.unwrap();
    disk.empty();
    support::eventually("the database takes records", async || {
        world.opened.store.error().is_none().then_some(())
    })
    .await;
    world.store(vec![Record::Lease(lease(3))], Need::Store).await.unwrap();
    world.close().await;
    let restored = World::open(&database, &journal).await.opened.restored;
    assert_eq!(restored.vacates, 1);
    assert_eq!(restored.leases, [lease(3)]);
}

#[tokio::test]
async fn a_journal_outlives_a_kill() {
    let Some(disk) = Disk::mount(32 << 20) else { return };
    let (database, journal) = (disk.file("gleaner.db"), disk.file("journal"));
    let mut world = World::open(&database, &journal).await;
    disk.fill();
    world.store(vec![vacated()], Need::Journal).await.unwrap();
    world.kill().await;
    disk.empty();
    let again = World::open(&database, &journal).await;
    assert_eq!(again.restored().vacates, 1);
}

#[tokio::test]
async fn a_read_only_database_is_named_with_the_remedy() {
    let Some(disk) = Disk::mount(32 << 20) else { return };
    let elsewhere = tempfile::tempdir().unwrap();
    let (database, journal) = (disk.file("gleaner.db"), elsewhere.path().join("journal"));
    disk.set_read_only(true).unwrap();
    let error = Store::open(&database, &journal).await.unwrap_err();
    assert!(matches!(&error, StoreError::Open { path, .. } if *path == database), "{error:?}");
    assert!(error.to_string().contains("can be written"), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let (database, journal) = files(directory.path());
    std::fs::write(&database, vec![b'x'; 4096]).unwrap();
    let error = Store::open(&database, &journal).await.unwrap_err();
    assert!(error.to_string().contains("gleaner.db"), "{error}");
}

#[tokio::test]
async fn many_batches_are_stored_in_groups_and_each_is_answered() {
    let directory = tempfile::tempdir().unwrap();
    let (database, journal) = files(directory.path());
    let mut world = World::open(&database, &journal).await;
    for number in 1..=500 {
        let records = vec![Record::Lease(lease(number))];
        let batch = Batch { ticket: Some(Ticket(number)), records, need: Need::Store };
        world.opened.store.offer(batch).unwrap();
    }
    for number in 1..=500 {
        let outcome = world.opened.outcomes.recv().await.unwrap();
        assert_eq!(outcome, Outcome { ticket: Ticket(number), result: Ok(()) });
    }
    world.close().await;
    assert_eq!(World::open(&database, &journal).await.restored().leases.len(), 500);
}
