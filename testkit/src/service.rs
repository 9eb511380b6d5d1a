//! The whole of Gleaner on a private Slurm: the real harvester and one real executor a node, as an admin would start them.
//!
//! ```text
//! Service::on(cluster) ──configure──▶ start() ──▶ Service ──drop──▶ all gone, and checked to be
//! ```
//!
//! Faults are calls: each process can be killed, stopped, continued and started again. What the service says of itself
//! is asked by its own command, `gleaner --json`.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use gleaner_config::{Config, Mode};
use gleaner_proto::workers::{self, WORKERS_FILE};
use nix::{
    sys::signal::Signal,
    unistd::{User, geteuid},
};
use serde_json::Value;

use crate::{
    leftovers::Witness,
    poll_until,
    ports::ReservedPort,
    process::{self, Daemon, run_bounded},
    slurm::Cluster,
    wait_until,
};

/// How long the harvester may take to answer after its start.
const START_BOUND: Duration = Duration::from_secs(20);
/// How long a daemon may take to end when asked to.
const STOP_BOUND: Duration = Duration::from_secs(10);
/// How long the command may take for one answer.
const COMMAND_BOUND: Duration = Duration::from_secs(15);

/// The hook's bound in tests: the longest that it takes.
const HOOK_BOUND_MS: u64 = 1_000;

/// Why the service did not come up, or could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A program is not built.
    #[error(
        "{program} is not in {directory:?}: run `cargo build --workspace` (with the same profile) first"
    )]
    NotBuilt {
        /// The program.
        program: &'static str,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// The operating system refused.
    #[error("Gleaner's service: {step}: {source}")]
    Io {
        /// What was tried.
        step: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A daemon did not come up.
    #[error("{what} was not reached in time; its log:\n{log}")]
    NotUp {
        /// What was waited for.
        what: String,
        /// The daemon's log.
        log: String,
    },
    /// The command failed.
    #[error("gleaner {arguments} failed ({status}): {complaint}")]
    Command {
        /// Its arguments.
        arguments: String,
        /// How it ended.
        status: String,
        /// What it wrote to standard error.
        complaint: String,
    },
}

fn io_error(step: impl Into<String>) -> impl FnOnce(io::Error) -> ServiceError {
    let step = step.into();
    move |source| ServiceError::Io { step, source }
}

/// The programs of one build, beside the running test or demo.
#[derive(Debug, Clone)]
pub struct Programs(PathBuf);

impl Programs {
    /// Finds them: in the directory of this executable, or above `deps/` where cargo puts tests.
    pub fn find() -> Result<Self, ServiceError> {
        let own = std::env::current_exe().map_err(io_error("find this executable"))?;
        let mut directory = own.parent().unwrap_or(Path::new("/")).to_owned();
        if directory.ends_with("deps") || directory.ends_with("examples") {
            directory.pop();
        }
        let programs = Self(directory);
        for program in ["gleaner-harvester", "gleaner-executor", "gleaner-hook", "gleaner"] {
            if !programs.path(program).is_file() {
                return Err(ServiceError::NotBuilt { program, directory: programs.0 });
            }
        }
        Ok(programs)
    }

    /// One program's path.
    pub fn path(&self, program: &str) -> PathBuf {
        self.0.join(program)
    }

    /// The library of test functions.
    pub fn test_functions(&self) -> PathBuf {
        let name = "libgleaner_test_functions.so";
        let built_for_a_test = self.0.join("deps").join(name);
        if built_for_a_test.is_file() { built_for_a_test } else { self.0.join(name) }
    }
}

/// Describes a service; [`start`](Self::start) brings it up.
#[derive(Debug)]
pub struct Builder {
    cluster: Cluster,
    config: Config,
}

impl Builder {
    /// Changes the configuration, which by default harvests every node of partition `batch`, quickly.
    pub fn configure(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// Starts the harvester and one executor for each node; returns when the harvester answers.
    pub fn start(self) -> Result<Service, ServiceError> {
        let Self { cluster, mut config } = self;
        let programs = Programs::find()?;
        let port = ReservedPort::reserve().map_err(io_error("find a free TCP port"))?;
        config.harvester.listen = SocketAddr::from(([127, 0, 0, 1], port.port()));
        config.harvester.address = config.harvester.listen.to_string();
        let config_path = cluster.dir().join("gleaner.toml");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&config.harvester.state_dir)
            .and_then(|()| fs::write(&config_path, config.to_toml()))
            .map_err(io_error("write gleaner.toml"))?;
        let witness = Witness::new(cluster.dir());
        let mut service = Service {
            harvester: None,
            executors: BTreeMap::new(),
            witness,
            config,
            config_path,
            programs,
            cluster,
            _port: port,
        };
        service.start_harvester()?;
        for node in service.cluster.nodes().to_vec() {
            service.start_executor(&node)?;
        }
        Ok(service)
    }
}

/// A running service. Dropped: everything is ended, and a process, cgroup or socket that stays is a panic.
#[derive(Debug)]
pub struct Service {
    harvester: Option<Daemon>,
    executors: BTreeMap<String, Daemon>,
    witness: Witness,
    config: Config,
    config_path: PathBuf,
    programs: Programs,
    /// The Slurm that it runs on.
    pub cluster: Cluster,
    _port: ReservedPort,
}

impl Service {
    /// Begins to describe a service on `cluster`. Its hook is the cluster's own matter: see
    /// [`hook`](crate::slurm::Builder::hook).
    pub fn on(cluster: Cluster) -> Builder {
        let config = default_config(&cluster);
        Builder { cluster, config }
    }

    /// A private Slurm with Gleaner's hook, and the service on it, all defaults.
    #[track_caller]
    pub fn with_nodes(nodes: u16) -> Builder {
        let hook = Programs::find().unwrap_or_else(|error| panic!("{error}")).path("gleaner-hook");
        let cluster =
            Cluster::builder().nodes(nodes).cpus(2).hook(hook).hook_bound_ms(HOOK_BOUND_MS).start();
        Self::on(cluster.unwrap_or_else(|error| panic!("{error}")))
    }

    /// The configuration that all run with, and a client should.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its file.
    pub fn config_path(&self) -> &Path {
        &self.config_path
    }

    /// The programs that it runs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// A node's runtime directory: hook socket, journal, table of workers.
    pub fn node_dir(&self, node: &str) -> PathBuf {
        self.config.executor.run_dir.join(node)
    }

    /// The harvester, to be stopped or signalled.
    #[track_caller]
    pub fn harvester(&mut self) -> &mut Daemon {
        self.harvester.as_mut().expect("the harvester was killed and not started again")
    }

    /// Kills the harvester.
    pub fn kill_harvester(&mut self) {
        self.harvester = None;
    }

    /// Starts the harvester, after ending the one that may run; returns when it answers.
    pub fn start_harvester(&mut self) -> Result<(), ServiceError> {
        self.harvester = None;
        let mut command = Command::new(self.programs.path("gleaner-harvester"));
        command.arg("--config").arg(&self.config_path);
        self.harvester = Some(self.spawn("gleaner-harvester", command, None)?);
        if poll_until(START_BOUND, || self.status().is_ok()) {
            return Ok(());
        }
        Err(self.not_up("gleaner-harvester"))
    }

    /// A node's keeper.
    #[track_caller]
    pub fn keeper(&mut self, node: &str) -> &mut Daemon {
        let keeper = self.executors.get_mut(node);
        keeper.unwrap_or_else(|| panic!("no executor runs on {node}"))
    }

    /// A node's agent, as the kernel shows it.
    pub fn agent_pid(&self, node: &str) -> Option<i32> {
        self.witness.observe(self.keepers());
        let keeper = self.executors.get(node)?.pid();
        let is_agent =
            |pid: &i32| process::command_line(*pid).split(' ').any(|word| word == "agent");
        process::children(keeper).into_iter().find(is_agent)
    }

    /// A node's workers and their leases, as its table names them; lease 0 is one that waits for a lease.
    pub fn workers(&self, node: &str) -> Vec<(i32, u64)> {
        let table = fs::read(self.node_dir(node).join(WORKERS_FILE)).unwrap_or_default();
        let alive = |&(pid, _): &(i32, u64)| process::is_alive(pid);
        let entries = workers::entries(&table);
        entries.map(|entry| (entry.process.pid as i32, entry.lease_id)).filter(alive).collect()
    }

    /// The workers that hold a lease.
    pub fn leased_workers(&self, node: &str) -> Vec<i32> {
        let workers = self.workers(node).into_iter();
        workers.filter(|(_, lease)| *lease != 0).map(|(pid, _)| pid).collect()
    }

    /// Kills a node's keeper.
    pub fn kill_keeper(&mut self, node: &str) {
        self.witness.observe(self.keepers());
        self.executors.remove(node);
    }

    /// Starts a node's executor, after ending the one that may run.
    pub fn start_executor(&mut self, node: &str) -> Result<(), ServiceError> {
        self.kill_keeper(node);
        let mut command = Command::new(self.programs.path("gleaner-executor"));
        command.arg("--config").arg(&self.config_path).args(["--node", node]);
        let host = geteuid().is_root().then_some(node);
        let keeper = self.spawn(&format!("gleaner-executor-{node}"), command, host)?;
        self.executors.insert(node.to_owned(), keeper);
        Ok(())
    }

    /// A daemon's log so far: `gleaner-harvester`, or `gleaner-executor-n1` and so on.
    pub fn log(&self, daemon: &str) -> String {
        fs::read_to_string(self.log_path(daemon)).unwrap_or_default()
    }

    /// The command `gleaner`, with this service's configuration.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.cluster.command(self.programs.path("gleaner"));
        command.arg("--config").arg(&self.config_path).args(arguments);
        command
    }

    /// Runs `gleaner --json` with these arguments; returns the object's field of the verb's name.
    pub fn ask(&self, arguments: &[&str]) -> Result<Value, ServiceError> {
        let mut command = self.command(arguments);
        command.arg("--json");
        let output = run_bounded(command, COMMAND_BOUND).map_err(io_error("run gleaner"))?;
        let failed = |complaint: String| ServiceError::Command {
            arguments: arguments.join(" "),
            status: output.status.to_string(),
            complaint,
        };
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        let answer: Value =
            serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))?;
        let verb = arguments.first().copied().unwrap_or_default();
        Ok(answer.get(verb).cloned().unwrap_or(answer))
    }

    /// The cluster at a glance.
    pub fn status(&self) -> Result<Value, ServiceError> {
        self.ask(&["status"])
    }

    /// What Gleaner says of one node.
    pub fn node(&self, node: &str) -> Result<Value, ServiceError> {
        let nodes = self.ask(&["nodes", "-w", node])?;
        Ok(nodes.get(0).cloned().unwrap_or_default())
    }

    /// Waits until this many nodes are under a grant.
    #[track_caller]
    pub fn wait_harvested(&self, nodes: u64, bound: Duration) -> Duration {
        self.wait_status("nodes_granted", nodes, bound)
    }

    /// Waits until a number of the status has this value.
    #[track_caller]
    pub fn wait_status(&self, field: &str, value: u64, bound: Duration) -> Duration {
        let mut last = Value::Null;
        let holds = poll_until(bound, || {
            self.witness.observe(self.keepers());
            last = self.status().unwrap_or_default();
            last[field] == value
        });
        assert!(holds, "{field} did not become {value} within {bound:?}: {last}\n{}", self.logs());
        bound
    }

    /// Waits until a node is under a grant (true) or under none (false).
    #[track_caller]
    pub fn wait_granted(&self, node: &str, granted: bool, bound: Duration) -> Duration {
        let what = if granted { "harvested" } else { "given back" };
        wait_until(format_args!("{node} is {what}"), bound, || {
            let cores = self.node(node).map(|node| node["cores_granted"].as_u64());
            cores.is_ok_and(|cores| (cores > Some(0)) == granted)
        })
    }

    /// All daemons' logs, for a failing test's message.
    pub fn logs(&self) -> String {
        let names = self.executors.keys().map(|node| format!("gleaner-executor-{node}"));
        let names = std::iter::once("gleaner-harvester".to_owned()).chain(names);
        names.map(|name| format!("== {name}\n{}", self.log(&name))).collect()
    }

    /// Asks every daemon to end and waits; what does not is killed.
    pub fn shut_down(&mut self) {
        self.witness.observe(self.keepers());
        let daemons = || self.executors.values().chain(&self.harvester);
        for daemon in daemons() {
            daemon.signal(Signal::SIGCONT);
            daemon.signal(Signal::SIGTERM);
        }
        for daemon in self.executors.values_mut().chain(&mut self.harvester) {
            daemon.wait(STOP_BOUND);
        }
        self.executors.clear();
        self.harvester = None;
    }

    /// What the operating system still shows of executors that have ended: processes, cgroups, sockets.
    pub fn leftovers(&self) -> Vec<String> {
        self.witness.leftovers(&self.config.executor.run_dir)
    }

    fn keepers(&self) -> impl Iterator<Item = i32> + '_ {
        self.executors.values().map(Daemon::pid)
    }

    fn log_path(&self, daemon: &str) -> PathBuf {
        self.cluster.dir().join(format!("log/{daemon}.log"))
    }

    fn spawn(
        &self,
        name: &str,
        mut command: Command,
        host: Option<&str>,
    ) -> Result<Daemon, ServiceError> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path(name))
            .map_err(io_error("open a log file"))?;
        let errors = log.try_clone().map_err(io_error("share a log file"))?;
        // The variable marks the processes as ours; it also keeps a site's own file out.
        command.env("GLEANER_CONFIG", &self.config_path).current_dir(self.cluster.dir());
        command.stdout(log).stderr(errors);
        Daemon::start(name, command, host).map_err(io_error(format!("start {name}")))
    }

    fn not_up(&self, daemon: &str) -> ServiceError {
        ServiceError::NotUp { what: daemon.to_owned(), log: self.log(daemon) }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shut_down();
        let left = self.leftovers();
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left behind: {left:#?}");
        }
    }
}

/// Everything opted in and quick, in the cluster's own directory, as whoever runs the test.
fn default_config(cluster: &Cluster) -> Config {
    let mut config = Config::default();
    let own = User::from_uid(geteuid()).ok().flatten().map_or("root".into(), |user| user.name);
    config.cluster.name = "private".into();
    config.cluster.munge_socket = Some(cluster.munge_socket());
    config.harvester.state_dir = cluster.dir().join("harvester");
    config.harvester.user = own.clone();
    config.harvester.heartbeat = Duration::from_millis(200);
    config.slurm.slurm_conf = Some(cluster.slurm_conf());
    config.slurm.poll = Duration::from_millis(100);
    config.slurm.timeout = Duration::from_secs(2);
    config.policy.mode = Mode::Enforce;
    config.policy.partitions = vec!["batch".into()];
    config.policy.grant_ttl = Duration::from_secs(3);
    config.executor.run_dir = cluster.run_dir();
    config.executor.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.executor.advertise = Some("127.0.0.1".into());
    config.executor.user = if geteuid().is_root() { "daemon".into() } else { own };
    config.executor.pool = 2;
    config
}
