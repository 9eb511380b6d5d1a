//! The private Slurm itself: up quickly, really Slurm, several side by side, and gone without a trace.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use gleaner_testkit::{poll_until, process, slurm::Cluster, wait_until};

const BOUND: Duration = Duration::from_secs(10);
/// Set in the process that a test starts to kill it; its value is ignored.
const VICTIM: &str = "GLEANER_TESTKIT_VICTIM";

#[test]
fn jobs_run_on_every_node_and_each_node_has_its_own_host_name() {
    let cluster = Cluster::builder().nodes(3).start().unwrap();
    let mut hosts: Vec<_> =
        cluster.srun(&["-N3", "hostname"]).unwrap().lines().map(str::to_owned).collect();
    hosts.sort();
    if nix::unistd::geteuid().is_root() {
        assert_eq!(hosts, ["n1", "n2", "n3"]);
    }
    let job = cluster.sbatch(&["-N1", "-wn2", "--exclusive"], "sleep 1000").unwrap();
    cluster.wait_job(job, "RUNNING", BOUND);
    assert_eq!(cluster.node_state("n2").unwrap(), "ALLOCATED");
    cluster.scancel(job).unwrap();
    cluster.wait_idle("n2", BOUND);
    assert_eq!(cluster.job_state(job).as_deref(), Some("CANCELLED"));
}

#[test]
fn several_run_side_by_side_and_leave_nothing() {
    let run = || {
        let cluster = Cluster::builder().nodes(2).start().unwrap();
        let dir = cluster.dir().to_owned();
        assert_eq!(cluster.srun(&["-N2", "echo", "here"]).unwrap(), "here\nhere\n");
        let _job = cluster.spawn_srun(&["-N1", "-wn1", "sleep", "1000"]).unwrap();
        cluster.wait_state("n1", "MIXED", BOUND);
        assert!(!process::mentioning(&dir).is_empty());
        dir
    };
    let clusters: Vec<_> = (0..3).map(|_| thread::spawn(run)).collect();
    for dir in clusters.into_iter().map(|thread| thread.join().unwrap()) {
        assert_gone(&dir);
    }
}

#[test]
fn slurmctld_comes_back_with_its_jobs() {
    let mut cluster = Cluster::builder().nodes(1).start().unwrap();
    let job = cluster.allocate(&["-N1"]).unwrap();
    cluster.kill_slurmctld();
    cluster.restart_slurmctld().unwrap();
    cluster.wait_job(job, "RUNNING", BOUND);
    cluster.slurmctld().stop();
    cluster.slurmctld().cont();
    cluster.wait_state("n1", "MIXED", BOUND);
}

#[test]
fn prolog_and_epilog_run_on_every_node_of_a_job() {
    let directory = tempfile::tempdir().unwrap();
    let script = |name: &str| {
        let path = directory.path().join(name);
        let text = format!("#!/bin/sh\necho $SLURMD_NODENAME >> {}.ran\n", path.display());
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        path
    };
    let (prolog, epilog) = (script("prolog"), script("epilog"));
    let cluster = Cluster::builder().nodes(2).prolog(&prolog).epilog(&epilog).start().unwrap();
    cluster.srun(&["-N2", "true"]).unwrap();
    for script in [prolog, epilog] {
        let ran = script.with_extension("ran");
        wait_until(format_args!("{} has two lines", ran.display()), BOUND, || {
            fs::read_to_string(&ran).is_ok_and(|text| text.lines().count() == 2)
        });
    }
}

#[test]
fn a_killed_owner_leaves_nothing() {
    if std::env::var_os(VICTIM).is_some() {
        be_the_victim();
    }
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_owner_leaves_nothing", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let dir = lines.map_while(Result::ok).find_map(|line| {
        line.rsplit_once("victim in ").map(|(_, directory)| PathBuf::from(directory))
    });
    let dir = dir.expect("the victim says where it lives");
    assert!(!process::mentioning(&dir).is_empty());
    victim.kill().unwrap();
    victim.wait().unwrap();
    assert!(poll_until(BOUND, || !dir.exists()), "{} is still there", dir.display());
    assert_gone(&dir);
}

/// A cluster with a running job, for the test to kill.
fn be_the_victim() -> ! {
    let cluster = Cluster::builder().nodes(1).start().unwrap();
    let _job = cluster.spawn_srun(&["-N1", "sleep", "1000"]).unwrap();
    cluster.wait_state("n1", "MIXED", BOUND);
    println!("victim in {}", cluster.dir().display());
    loop {
        thread::park();
    }
}

fn assert_gone(dir: &Path) {
    assert!(!dir.exists(), "{} is still there", dir.display());
    let left = process::mentioning(dir);
    let names: Vec<_> = left.iter().map(|&pid| process::command_line(pid)).collect();
    assert!(left.is_empty(), "left behind: {names:?}");
}
