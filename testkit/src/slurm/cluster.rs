//! Bringing a private Slurm up and down, and its daemons' lives in between.

use std::{
    fs, io,
    io::Read,
    net::TcpStream,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::unistd::{User, geteuid, gethostname};
use tempfile::TempDir;

use super::{
    Builder, ClusterError,
    conf::{Layout, hook_script, node_name},
};
use crate::{
    poll_until,
    ports::ReservedPort,
    process::{self, Daemon},
    warden::Warden,
};

/// How long each step of the start may take.
const START_BOUND: Duration = Duration::from_secs(20);
/// Longest path of the directory: sockets below it must fit 108 bytes.
const DIRECTORY_MAX: usize = 60;
/// Bytes of a log's end that an error shows.
const LOG_TAIL_BYTES: usize = 2_000;

/// A running private Slurm. Dropped: its processes are killed, its directory is removed.
#[derive(Debug)]
pub struct Cluster {
    // Fields drop in this order, after `Drop` below has ended what is not our child.
    pub(super) slurmd: Vec<Daemon>,
    slurmctld: Option<Daemon>,
    munged: Option<Daemon>,
    nodes: Vec<String>,
    ports: Vec<ReservedPort>,
    directory: TempDir,
    _warden: Warden,
}

impl Cluster {
    /// Begins to describe one.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(super) fn start(builder: &Builder) -> Result<Self, ClusterError> {
        for program in ["munged", "slurmctld", "slurmd"] {
            find(program)?;
        }
        let nodes: Vec<_> = (1..=usize::from(builder.nodes)).map(node_name).collect();
        let directory = make_directory(&nodes)?;
        let warden = Warden::over(directory.path())
            .map_err(ClusterError::io("start the shell that cleans up after a killed test"))?;
        let ports = (0..=nodes.len())
            .map(|_| ReservedPort::reserve())
            .collect::<io::Result<Vec<_>>>()
            .map_err(ClusterError::io("find free TCP ports"))?;
        let mut cluster = Self {
            slurmd: Vec::new(),
            slurmctld: None,
            munged: None,
            nodes,
            ports,
            directory,
            _warden: warden,
        };
        cluster.write_files(builder)?;
        cluster.start_munged()?;
        cluster.start_slurmctld()?;
        for node in cluster.nodes.clone() {
            let slurmd = cluster.spawn_slurmd(&node)?;
            cluster.slurmd.push(slurmd);
        }
        cluster.wait_all_idle()?;
        Ok(cluster)
    }

    /// The directory that holds everything.
    pub fn dir(&self) -> &Path {
        self.directory.path()
    }

    /// The `slurm.conf`.
    pub fn slurm_conf(&self) -> PathBuf {
        self.dir().join("slurm.conf")
    }

    /// munged's socket.
    pub fn munge_socket(&self) -> PathBuf {
        self.dir().join("munge/sock")
    }

    /// The runtime directory that the hook is told; executors on this cluster use it too.
    pub fn run_dir(&self) -> PathBuf {
        self.dir().join("run")
    }

    /// The nodes' names.
    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    /// A daemon's log so far: `slurmctld`, `munged`, or `slurmd-n1` and so on.
    pub fn log(&self, daemon: &str) -> String {
        fs::read_to_string(self.dir().join(format!("log/{daemon}.log"))).unwrap_or_default()
    }

    /// A node's slurmd.
    #[track_caller]
    pub fn slurmd(&mut self, node: &str) -> &mut Daemon {
        let index = self.nodes.iter().position(|name| name == node);
        let index = index.unwrap_or_else(|| panic!("{node} is no node of this cluster"));
        &mut self.slurmd[index]
    }

    /// slurmctld, to stop it and let it go on.
    #[track_caller]
    pub fn slurmctld(&mut self) -> &mut Daemon {
        self.slurmctld.as_mut().expect("slurmctld was killed and not started again")
    }

    /// Kills slurmctld, as a crash would.
    pub fn kill_slurmctld(&mut self) {
        self.slurmctld = None;
    }

    /// Starts slurmctld with the state that it left, after ending the one that may run.
    pub fn restart_slurmctld(&mut self) -> Result<(), ClusterError> {
        self.slurmctld = None;
        self.start_slurmctld()
    }

    /// Kills and restarts a node's slurmd.
    pub fn restart_slurmd(&mut self, node: &str) -> Result<(), ClusterError> {
        self.slurmd(node).kill();
        let slurmd = self.spawn_slurmd(node)?;
        *self.slurmd(node) = slurmd;
        Ok(())
    }

    fn write_files(&self, builder: &Builder) -> Result<(), ClusterError> {
        let user = User::from_uid(geteuid())
            .map_err(|errno| ClusterError::io("look up our own user")(errno.into()))?;
        let host = gethostname().map_err(|errno| ClusterError::io("gethostname")(errno.into()))?;
        let host = host.to_string_lossy();
        let ports: Vec<_> = self.ports.iter().map(ReservedPort::port).collect();
        let layout = Layout {
            dir: self.dir(),
            host: host.split('.').next().unwrap_or("localhost"),
            user: user.as_ref().map_or("root", |user| &user.name),
            controller_port: ports[0],
            node_ports: &ports[1..],
            own_host_names: own_host_names(),
        };
        let mut key = vec![0; 1024];
        fs::File::open("/dev/urandom")
            .and_then(|mut random| random.read_exact(&mut key))
            .map_err(ClusterError::io("read /dev/urandom"))?;
        self.write("slurm.conf", builder.text(&layout).as_bytes(), 0o644)?;
        self.write("plugstack.conf", b"", 0o644)?;
        self.write("cgroup.conf", b"CgroupPlugin=cgroup/v1\n", 0o644)?;
        self.write("munge/key", &key, 0o600)?;
        if let Some(program) = &builder.hook {
            let (program, run_dir) = (program.display(), self.run_dir());
            let bound = builder.hook_bound_ms.map(|ms| format!(" --bound-ms {ms}"));
            let (run_dir, bound) = (run_dir.display(), bound.unwrap_or_default());
            let script = format!("#!/bin/sh\nexec '{program}' --run-dir '{run_dir}'{bound}\n");
            let path = hook_script(Path::new(""));
            self.write(&path.to_string_lossy(), script.as_bytes(), 0o755)?;
        }
        Ok(())
    }

    fn write(&self, name: &str, content: &[u8], mode: u32) -> Result<(), ClusterError> {
        let path = self.dir().join(name);
        fs::write(&path, content)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
            .map_err(ClusterError::io(format!("write {}", path.display())))
    }

    fn start_munged(&mut self) -> Result<(), ClusterError> {
        let dir = self.dir();
        let mut command = Command::new(find("munged")?);
        command.args(["--foreground", "--force", "--num-threads=2"]);
        for (option, file) in [
            ("key-file", "munge/key"),
            ("socket", "munge/sock"),
            ("pid-file", "pids/munged.pid"),
            ("log-file", "log/munged.log"),
            ("seed-file", "munge/seed"),
        ] {
            command.arg(format!("--{option}={}", dir.join(file).display()));
        }
        self.munged = Some(self.spawn("munged", command, None)?);
        let socket = self.munge_socket();
        self.wait_up("munged", || UnixStream::connect(&socket).is_ok())
    }

    fn start_slurmctld(&mut self) -> Result<(), ClusterError> {
        let mut command = Command::new(find("slurmctld")?);
        command.arg("-D").arg("-f").arg(self.slurm_conf());
        self.slurmctld = Some(self.spawn("slurmctld", command, None)?);
        let port = self.ports[0].port();
        self.wait_up("slurmctld", || TcpStream::connect(("127.0.0.1", port)).is_ok())
    }

    fn spawn_slurmd(&self, node: &str) -> Result<Daemon, ClusterError> {
        let mut command = Command::new(find("slurmd")?);
        command.args(["-D", "-N", node, "-f"]).arg(self.slurm_conf());
        self.spawn(&format!("slurmd-{node}"), command, own_host_names().then_some(node))
    }

    fn spawn(
        &self,
        name: &str,
        mut command: Command,
        host: Option<&str>,
    ) -> Result<Daemon, ClusterError> {
        let output = self.dir().join(format!("log/{name}.out"));
        let output = fs::File::create(output).map_err(ClusterError::io("create a log file"))?;
        let errors = output.try_clone().map_err(ClusterError::io("share a log file"))?;
        self.set_environment(&mut command);
        command.stdout(output).stderr(errors).current_dir(self.dir());
        Daemon::start(name, command, host).map_err(ClusterError::io(format!("start {name}")))
    }

    /// The cluster's own `SLURM_CONF`, and none of Slurm's other variables that the caller may run under.
    pub(super) fn set_environment(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let foreign = ["SLURM", "SBATCH", "SALLOC", "SQUEUE", "SINFO"];
            if foreign.iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        command.env("SLURM_CONF", self.slurm_conf()).env("LC_ALL", "C");
    }

    fn wait_up(&self, daemon: &str, up: impl FnMut() -> bool) -> Result<(), ClusterError> {
        if poll_until(START_BOUND, up) { Ok(()) } else { Err(self.not_up(daemon, daemon)) }
    }

    fn wait_all_idle(&self) -> Result<(), ClusterError> {
        let all = self.nodes.len();
        let idle = || {
            self.states()
                .is_ok_and(|states| states.iter().filter(|(_, s)| s == "IDLE").count() == all)
        };
        if poll_until(START_BOUND, idle) {
            return Ok(());
        }
        Err(self.not_up(&format!("{all} idle nodes"), "slurmctld"))
    }

    fn not_up(&self, what: &str, daemon: &str) -> ClusterError {
        let mut log = self.log(daemon);
        let output = self.dir().join(format!("log/{daemon}.out"));
        log.push_str(&fs::read_to_string(output).unwrap_or_default());
        let tail = log.len().saturating_sub(LOG_TAIL_BYTES);
        let tail = (tail..log.len()).find(|&at| log.is_char_boundary(at)).unwrap_or(0);
        ClusterError::NotUp { what: what.to_owned(), log: log.split_off(tail) }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // slurmctld first, so that it starts nothing more; then jobs' and commands' processes with the daemons.
        self.slurmctld = None;
        self.slurmd.clear();
        let path = self.dir().to_owned();
        let munged = self.munged.as_ref().map(Daemon::pid);
        poll_until(START_BOUND, || {
            let rest: Vec<_> =
                process::mentioning(&path).into_iter().filter(|pid| Some(*pid) != munged).collect();
            process::kill_all(&rest);
            rest.is_empty()
        });
        self.munged = None;
    }
}

/// Whether each node gets its own host name: a UTS namespace needs root.
fn own_host_names() -> bool {
    geteuid().is_root()
}

fn make_directory(nodes: &[String]) -> Result<TempDir, ClusterError> {
    let directory = tempfile::Builder::new()
        .prefix("gleaner-")
        .tempdir()
        .map_err(ClusterError::io("make a temporary directory"))?;
    let path = directory.path();
    if path.as_os_str().len() > DIRECTORY_MAX {
        return Err(ClusterError::LongPath(path.to_owned()));
    }
    let make = |name: &str, mode| {
        let path = path.join(name);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
    };
    let make_all = || {
        for name in ["", "state", "spool", "log", "pids", "tmp", "run"] {
            make(name, 0o755)?;
        }
        make("munge", 0o711)?;
        nodes.iter().try_for_each(|node| {
            make(&format!("spool/{node}"), 0o755)?;
            make(&format!("tmp/{node}"), 0o1777)
        })
    };
    make_all().map_err(ClusterError::io("make the cluster's directories"))?;
    Ok(directory)
}

fn find(program: &'static str) -> Result<PathBuf, ClusterError> {
    process::find(program).ok_or(ClusterError::Missing { program })
}
