//! What the harvester depends on fails: slurmctld is down, slow or restarted; the database cannot be written.

use std::{fs, time::Duration};

use gleaner_testkit::wait_until;

use crate::support::{
    BOUND, acquire, assert_call_works, assert_slurm_is_well, client, function, harvested, node_of,
    request, vacates,
};

#[test]
fn while_slurmctld_is_down_leases_go_on_and_it_is_said() {
    let mut service = harvested(2);
    let pool = acquire(&service, 1);
    let sum = function(&pool, "sum").idempotent(true);
    service.cluster.kill_slurmctld();
    wait_until("the status names the error", BOUND, || {
        service.status().is_ok_and(|status| status["slurm_error"].is_string())
    });
    let grant_ttl = service.config().policy.grant_ttl.as_millis() as u64;
    wait_until("no grant of before is left", BOUND, || {
        let status = service.status().unwrap();
        status["picture_age_ms"].as_u64() > Some(2 * grant_ttl)
    });
    assert_call_works(&sum);
    assert!(pool.events().iter().all(|event| !format!("{:?}", event.kind).contains("Evicted")));

    service.cluster.restart_slurmctld().unwrap();
    wait_until("the status is well again", BOUND, || {
        service.status().is_ok_and(|status| status["slurm_error"].is_null())
    });
    service.wait_harvested(2, BOUND);
    let node = node_of(&pool);
    service.cluster.srun(&["--exclusive", "-w", &node, "true"]).unwrap();
    assert_call_works(&sum);
    assert_slurm_is_well(&service);
}

#[test]
fn a_stopped_slurmctld_delays_looks_and_nothing_else() {
    let mut service = harvested(1);
    let pool = acquire(&service, 1);
    let sum = function(&pool, "sum").idempotent(true);
    service.cluster.slurmctld().stop();
    wait_until("the status names the error", BOUND, || {
        service.status().is_ok_and(|status| status["slurm_error"].is_string())
    });
    assert_call_works(&sum);
    service.cluster.slurmctld().cont();
    wait_until("the status is well again", BOUND, || {
        service.status().is_ok_and(|status| status["slurm_error"].is_null())
    });
    assert_call_works(&sum);
}

#[test]
fn a_database_that_cannot_be_written_stops_new_leases_and_no_vacate() {
    let service = harvested(2);
    let pool = acquire(&service, 1);
    let sum = function(&pool, "sum").idempotent(true);
    let node = node_of(&pool);
    let broken = BrokenDatabase::new(&service.config().database());
    let patience = request(1).patience(Duration::ZERO);
    wait_until("a new lease is refused for it", BOUND, || {
        let refused = client(&service).acquire(patience.clone()).err();
        refused.is_some_and(|error| error.to_string().contains("could not be stored"))
    });
    assert_call_works(&sum);
    service.cluster.srun(&["--exclusive", "-w", &node, "true"]).unwrap();
    drop(broken);
    wait_until("leases are to be had again", BOUND, || {
        client(&service).acquire(patience.clone()).is_ok()
    });
    wait_until("the vacate is in the report", BOUND, || !vacates(&service, "prolog").is_empty());
    assert_call_works(&sum);
}

/// Holds the database's write lock, as a stuck backup would: root is not stopped by a file's mode.
struct BrokenDatabase {
    holder: Option<gleaner_testkit::process::Daemon>,
}

impl BrokenDatabase {
    fn new(database: &std::path::Path) -> Self {
        let script = "import sqlite3, sys, time\n\
                      db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)\n\
                      db.execute('begin exclusive')\n\
                      open(sys.argv[1] + '.held', 'w').close()\n\
                      time.sleep(1000)\n";
        let mut command = std::process::Command::new("python3");
        command.args(["-c", script]).arg(database);
        let holder = gleaner_testkit::process::Daemon::start("holder", command, None).unwrap();
        let mut held = database.as_os_str().to_owned();
        held.push(".held");
        wait_until("the database is locked", BOUND, || fs::exists(&held).unwrap());
        Self { holder: Some(holder) }
    }
}

impl Drop for BrokenDatabase {
    fn drop(&mut self) {
        self.holder = None;
    }
}
