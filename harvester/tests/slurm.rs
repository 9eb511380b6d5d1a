//! One conformance suite for everything that reads Slurm, run on the commands against a real private Slurm and on the
//! fake; and what only real commands can do wrong.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use gleaner_harvester::slurm::{Commands, Slurm, SlurmError, fake::Fake};
use gleaner_harvester_core::picture::{Base, Flags, JobView, NodeState, NodeView, Picture};
use gleaner_proto::ids::{JobId, NodeName};
use gleaner_testkit::{poll_until, process, slurm::Cluster};

const BOUND: Duration = Duration::from_secs(10);

/// A cluster of two nodes that the suite changes and reads back.
trait World {
    type Reader: Slurm;
    fn reader(&self) -> &Self::Reader;
    /// One CPU and 100 MiB of n1 go to a job without an end, all of n2 to one that ends in 10 minutes.
    fn start_jobs(&mut self) -> [JobId; 2];
    fn drain_n1(&mut self);
    fn go_down(&mut self);
}

async fn conformance(mut world: impl World) {
    let first = nodes(&world).await;
    let names: Vec<_> = first.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["n1", "n2"]);
    for node in &first.nodes {
        assert_eq!(node.state, NodeState::IDLE);
        assert_eq!((node.cpus, node.alloc_cpus), (2, 0));
        assert_eq!((node.real_memory_mb, node.alloc_memory_mb), (4000, 0));
        assert_eq!(node.partitions, ["batch"]);
        assert_eq!(node.features, ["harvest", "ib"]);
        assert!(!node.occupied());
    }
    assert!(world.reader().jobs().await.unwrap().is_empty());

    let [open_ended, bounded] = world.start_jobs();
    let second = nodes(&world).await;
    assert!(second.asked_ns > first.asked_ns);
    let (n1, n2) = (&second.nodes[0], &second.nodes[1]);
    assert_eq!((n1.state.base, n1.alloc_cpus, n1.alloc_memory_mb), (Base::Mixed, 1, 100));
    assert_eq!((n2.state.base, n2.alloc_cpus), (Base::Allocated, 2));
    let jobs = world.reader().jobs().await.unwrap();
    let job = |id| jobs.iter().find(|job| job.id == id).unwrap();
    assert_eq!((job(open_ended).nodes[0].as_str(), job(open_ended).end_unix_s), ("n1", None));
    assert_eq!(job(bounded).nodes[0].as_str(), "n2");
    assert_eq!(job(bounded).start_unix_s, None);
    let left_s = job(bounded).end_unix_s.unwrap() - unix_s();
    assert!((500..=600).contains(&left_s), "{left_s} s");

    world.drain_n1();
    assert!(nodes(&world).await.nodes[0].state.flags.contains(Flags::DRAIN));

    world.go_down();
    let started = Instant::now();
    assert!(world.reader().nodes().await.is_err());
    assert!(world.reader().jobs().await.is_err());
    assert!(started.elapsed() < BOUND, "a query outlived its bound");
}

async fn nodes(world: &impl World) -> Picture {
    let mut picture = world.reader().nodes().await.unwrap();
    picture.nodes.sort_by(|a, b| a.name.cmp(&b.name));
    picture
}

struct Real {
    cluster: Cluster,
    commands: Commands,
}

impl Real {
    fn start() -> Self {
        let builder = Cluster::builder().nodes(2).feature("harvest").feature("ib");
        let cluster = builder.start().unwrap();
        let bound = Duration::from_secs(1);
        let commands = Commands::new(None, Some(cluster.slurm_conf()), bound);
        Self { cluster, commands }
    }
}

impl World for Real {
    type Reader = Commands;

    fn reader(&self) -> &Commands {
        &self.commands
    }

    fn start_jobs(&mut self) -> [JobId; 2] {
        [["-wn1", "-n1", "--mem=100"], ["-wn2", "--exclusive", "-t10"]]
            .map(|arguments| JobId(self.cluster.allocate(&arguments).unwrap()))
    }

    fn drain_n1(&mut self) {
        self.cluster
            .scontrol(&["update", "nodename=n1", "state=drain", "reason=a test State=IDLE"])
            .unwrap();
    }

    fn go_down(&mut self) {
        self.cluster.kill_slurmctld();
    }
}

struct InMemory {
    fake: Fake,
    nodes: Vec<NodeView>,
}

impl InMemory {
    fn start() -> Self {
        let node = |name| NodeView {
            name: NodeName::new(name).unwrap(),
            state: NodeState::IDLE,
            partitions: vec!["batch".into()],
            features: vec!["harvest".into(), "ib".into()],
            cpus: 2,
            alloc_cpus: 0,
            real_memory_mb: 4000,
            alloc_memory_mb: 0,
            planned_start_unix_s: None,
        };
        let world = Self { fake: Fake::default(), nodes: vec![node("n1"), node("n2")] };
        world.fake.set_nodes(world.nodes.clone());
        world
    }
}

impl World for InMemory {
    type Reader = Fake;

    fn reader(&self) -> &Fake {
        &self.fake
    }

    fn start_jobs(&mut self) -> [JobId; 2] {
        for (node, base, cpus, memory_mb) in
            [(0, Base::Mixed, 1, 100), (1, Base::Allocated, 2, 4000)]
        {
            let node = &mut self.nodes[node];
            node.state.base = base;
            (node.alloc_cpus, node.alloc_memory_mb) = (cpus, memory_mb);
        }
        self.fake.set_nodes(self.nodes.clone());
        let job = |id, node: &str, end_unix_s| JobView {
            id: JobId(id),
            nodes: vec![NodeName::new(node).unwrap()],
            end_unix_s,
            start_unix_s: None,
        };
        self.fake.set_jobs(vec![job(1, "n1", None), job(2, "n2", Some(unix_s() + 600))]);
        [JobId(1), JobId(2)]
    }

    fn drain_n1(&mut self) {
        self.nodes[0].state.flags = Flags::DRAIN;
        self.fake.set_nodes(self.nodes.clone());
    }

    fn go_down(&mut self) {
        self.fake.set_down(true);
    }
}

#[tokio::test]
async fn the_commands_conform() {
    conformance(Real::start()).await;
}

#[tokio::test]
async fn the_fake_conforms() {
    conformance(InMemory::start()).await;
}

#[tokio::test]
async fn a_planned_job_is_seen_with_its_start_and_nodes() {
    let builder = Cluster::builder().nodes(2).extra_conf("SchedulerParameters=bf_interval=1");
    let cluster = builder.start().unwrap();
    let commands = Commands::new(None, Some(cluster.slurm_conf()), BOUND);
    let running = cluster.sbatch(&["-wn1", "--exclusive", "-t10"], "sleep 1000").unwrap();
    cluster.wait_job(running, "RUNNING", BOUND);
    let planned = cluster.sbatch(&["-N2", "--exclusive", "-t5"], "sleep 1000").unwrap();
    let started = Instant::now();
    let job = loop {
        let jobs = commands.jobs().await.unwrap();
        if let Some(job) = jobs.into_iter().find(|job| job.id == JobId(planned)) {
            break job;
        }
        assert!(started.elapsed() < BOUND, "the backfill scheduler planned nothing");
    };
    assert_eq!(job.nodes.len(), 2);
    assert!(job.start_unix_s.unwrap() > unix_s());
    let picture = commands.nodes().await.unwrap();
    assert!(picture.nodes.iter().any(|node| node.state.flags.contains(Flags::PLANNED)));
}

#[tokio::test]
async fn a_stopped_slurmctld_costs_the_bound_and_leaves_no_process() {
    let mut world = Real::start();
    world.commands =
        Commands::new(None, Some(world.cluster.slurm_conf()), Duration::from_millis(300));
    let before = process::mentioning(world.cluster.dir()).len();
    world.cluster.slurmctld().stop();
    let error = world.commands.nodes().await.unwrap_err();
    assert!(matches!(error, SlurmError::Late { bound_ms: 300, .. }), "{error}");
    assert!(poll_until(BOUND, || process::mentioning(world.cluster.dir()).len() <= before));
    world.cluster.slurmctld().cont();
    assert_eq!(nodes(&world).await.nodes.len(), 2);
}

#[tokio::test]
async fn a_query_that_nobody_waits_for_any_more_takes_its_whole_group_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let commands = with_command(directory.path(), "sleep 1000 & sleep 1000");
    let query = tokio::spawn(async move { commands.nodes().await.map(|_| ()) });
    let path = directory.path().to_owned();
    let sleepers = move || process::mentioning(&path).len();
    wait(|| sleepers() == 3).await;
    query.abort();
    wait(|| sleepers() == 0).await;
}

#[tokio::test]
async fn clear_words_for_a_missing_command_a_failing_one_and_nonsense() {
    let missing = Commands::new(Some("/nonexistent".into()), None, BOUND);
    let error = missing.nodes().await.unwrap_err().to_string();
    assert!(error.contains("/nonexistent/scontrol") && error.contains("[slurm]"), "{error}");

    let directory = tempfile::tempdir().unwrap();
    let failing = with_command(directory.path(), "echo 'no such luck' >&2; exit 3");
    let error = failing.nodes().await.unwrap_err().to_string();
    assert!(error.contains("no such luck") && error.contains('3'), "{error}");

    let nonsense = with_command(directory.path(), "echo NodeName=n1 Weather=fine");
    let error = nonsense.nodes().await.unwrap_err().to_string();
    assert!(error.contains("line 1") && error.contains("State="), "{error}");
}

#[tokio::test]
async fn a_site_s_own_environment_does_not_change_the_format() {
    let directory = tempfile::tempdir().unwrap();
    let commands = with_command(directory.path(), "env > \"$SLURM_CONF\"; echo none");
    commands.nodes().await.unwrap();
    let environment = fs::read_to_string(directory.path().join("environment")).unwrap();
    assert!(environment.contains("SLURM_TIME_FORMAT=%s\n"));
    assert!(environment.contains("LC_ALL=C\n"));
    assert!(!environment.contains("CARGO"), "inherited: {environment}");
}

/// A reader whose `scontrol` is this script.
fn with_command(directory: &Path, script: &str) -> Commands {
    let program: PathBuf = directory.join("scontrol");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    Commands::new(Some(directory.to_owned()), Some(directory.join("environment")), BOUND)
}

async fn wait(mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < BOUND);
        tokio::task::yield_now().await;
    }
}

fn unix_s() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap()
}
