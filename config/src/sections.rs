//! The sections and their keys: the one place where a knob for operators is declared, documented and given its default.
//!
//! Durations are written with their unit (`"500ms"`, `"10s"`), sizes as in Slurm (`"4G"`, powers of 1024). Engineers'
//! constants do not belong here but in the crates' `tune` modules.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::{
    schema::{Key, Section, section},
    value::{Auth, ByteSize, KeepAlive, LogFormat, Mode, Transport, Waiting},
};

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    /// Who belongs together, and how they prove it.
    pub cluster: Cluster,
    /// The harvester daemon, one a cluster.
    pub harvester: Harvester,
    /// How Slurm is read.
    pub slurm: Slurm,
    /// What may be taken, and by whom.
    pub policy: Policy,
    /// The executors, one a node.
    pub executor: Executor,
    /// Defaults of the client library and of `gleaner invoke`.
    pub client: Client,
    /// InfiniBand and RoCE, at both ends of a call.
    pub rdma: Rdma,
    /// The daemons' logs.
    pub log: Log,
}

section! {
    /// Who belongs together, and how they prove it.
    Cluster in "cluster" {
        /// The cluster's name, shown in status and reports.
        name: String = "cluster".into(),
        /// How callers and executors prove who they are: `munge`, or `single-user` on a laptop, which refuses to listen
        /// beyond loopback.
        auth: Auth = Auth::Munge,
        /// The munge daemon's socket; unset: libmunge's own default.
        munge_socket: Option<PathBuf> = None,
    }
}

section! {
    /// The harvester daemon, one a cluster.
    Harvester in "harvester" {
        /// Where it listens for executors, clients and the command line. Port 0 takes a free one, which is printed.
        listen: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 7817)),
        /// Where executors and clients reach it: `host:port`.
        address: String = "localhost:7817".into(),
        /// Its directory (0700): signing key, database, journal.
        state_dir: PathBuf = "/var/lib/gleaner".into(),
        /// The user it runs as. Clients accept this user's credentials, and root's, as the harvester's.
        user: String = "gleaner".into(),
        /// The SQLite file; unset: `gleaner.db` in `state_dir`.
        database: Option<PathBuf> = None,
        /// How often executors report. A lost report is noticed after the grant's end, not after one period.
        heartbeat: Duration = Duration::from_secs(1),
    }
}

section! {
    /// How Slurm is read.
    Slurm in "slurm" {
        /// The directory of `scontrol` and `squeue`; unset: found on PATH.
        commands: Option<PathBuf> = None,
        /// The slurm.conf to use; unset: Slurm's own default.
        slurm_conf: Option<PathBuf> = None,
        /// Time between two looks at the whole cluster.
        poll: Duration = Duration::from_secs(1),
        /// How long one look may take before it counts as failed.
        timeout: Duration = Duration::from_secs(10),
    }
}

section! {
    /// What may be taken, and by whom. Nothing is taken by default: first `observe`, then `enforce`.
    Policy in "policy" {
        /// `observe`: watch and record. `enforce`: take what is opted in below.
        mode: Mode = Mode::Observe,
        /// Partitions whose nodes are opted in.
        partitions: Vec<String> = Vec::new(),
        /// Nodes that are opted in, as hostlists: `["n[1-64]", "gpu3"]`.
        nodes: Vec<String> = Vec::new(),
        /// Node features that opt a node in.
        features: Vec<String> = Vec::new(),
        /// How long a node must have been idle in Slurm before it is taken.
        min_idle: Duration = Duration::ZERO,
        /// Idle nodes that are never taken, so that a small batch job finds one untouched.
        reserve_nodes: u32 = 0,
        /// For how long an executor may hold a node without hearing from the harvester.
        grant_ttl: Duration = Duration::from_secs(10),
        /// The longest time one lease may be asked for, and renewed by.
        lease_ttl_max: Duration = Duration::from_secs(3600),
        /// Most cores that one user may lease at a time; unset: no limit.
        cores_per_user: Option<u32> = None,
        /// Most leases that one user may hold at a time; unset: no limit.
        leases_per_user: Option<u32> = None,
        /// Accounts that may lease; empty: all.
        accounts: Vec<String> = Vec::new(),
        /// Users who may drain, resume and switch off; root and the harvester's own user always may.
        admins: Vec<String> = Vec::new(),
    }
}

section! {
    /// The executors, one a node.
    Executor in "executor" {
        /// Parent of each node's own directory (`<run_dir>/<node>/`): hook socket, journal, tables.
        run_dir: PathBuf = "/run/gleaner".into(),
        /// Where the agent listens for clients. Port 0 takes a free one.
        listen: SocketAddr = SocketAddr::from(([0, 0, 0, 0], 7818)),
        /// The `host:port` or `host` that clients dial; unset: the node's name and the port it listens on.
        advertise: Option<String> = None,
        /// The user that the agent runs as when the keeper is root.
        user: String = "gleaner".into(),
        /// The user that stands in for root: nothing of root's runs on a worker.
        worker_user: String = "nobody".into(),
        /// Leases of lower uids are refused (system users), root's apart, which run as `worker_user`.
        uid_min: u32 = 1000,
        /// Cores it may offer; unset: all that the node has.
        cores: Option<u32> = None,
        /// Memory it may offer; unset: what the node has, less a tenth.
        memory: Option<ByteSize> = None,
        /// Workers started in advance, so that a lease begins with a hand-over.
        pool: u32 = 4,
        /// Memory of all uploaded libraries together; the ones unused longest go first.
        libraries_max: ByteSize = ByteSize(1 << 30),
        /// Most client sessions of one lease at a time.
        sessions_per_lease: u32 = 64,
        /// How long a hot worker spins after its last call before it sleeps, if its client does not say.
        hot_timeout: Duration = Duration::from_millis(100),
        /// The longest that a client may ask for.
        hot_timeout_max: Duration = Duration::from_secs(3600),
        /// Let clients of other nodes call by RDMA. Workers then hold the device open beside the functions that they run, which
        /// can use it too: see the security page.
        rdma: bool = false,
    }
}

section! {
    /// Defaults of the client library and of `gleaner invoke`.
    Client in "client" {
        /// The account to lease under; unset: none is named.
        account: Option<String> = None,
        /// How long connecting may take.
        connect_timeout: Duration = Duration::from_secs(3),
        /// How long one request to the harvester may take.
        timeout: Duration = Duration::from_secs(10),
        /// How long a lease is asked for.
        ttl: Duration = Duration::from_secs(60),
        /// Who renews leases: `on-call`, `background` or `manual`.
        keep_alive: KeepAlive = KeepAlive::OnCall,
        /// How workers and callers wait: `hot` (they spin), `warm` (they sleep) or `adaptive` (they spin for `hot_timeout`
        /// after the last call, then sleep).
        waiting: Waiting = Waiting::Adaptive,
        /// How long `adaptive` spins.
        hot_timeout: Duration = Duration::from_millis(100),
        /// How calls travel: `auto` (shared memory on the executor's own node; else RDMA where both ends have it; else TCP),
        /// `shm`, `rdma` or `tcp`.
        transport: Transport = Transport::Auto,
        /// Calls outstanding on one core at a time.
        window: u32 = 16,
        /// Memory of a lease on each node.
        memory: ByteSize = ByteSize(256 << 20),
        /// Room of one slot: payloads that fit travel without the arena.
        slot: ByteSize = ByteSize(8 << 10),
        /// Room for larger payloads, for each core and direction; `0`: none.
        arena: ByteSize = ByteSize(0),
        /// After an eviction, how long a call waits for another lease.
        patience: Duration = Duration::from_secs(30),
        /// Run functions in the calling process when no lease is to be had.
        local_fallback: bool = false,
    }
}

section! {
    /// InfiniBand and RoCE, at both ends of a call: clients', and executors' where `executor.rdma` is on.
    Rdma in "rdma" {
        /// The device, as `rdma link` names it; unset: the first that has an active port.
        device: Option<String> = None,
        /// The largest packet in bytes: 256, 512, 1024, 2048 or 4096. The path's is the least of this and both ports' own.
        mtu: u32 = 4096,
        /// How long a device waits for an answer before it sends again; rounded up to a power of two.
        answer_timeout: Duration = Duration::from_millis(67),
        /// How often it sends again before the connection has failed. Soft-RoCE takes 7 as for ever.
        retries: u32 = 6,
        /// How long a sender pauses whose peer has no room; it tries for as long as the peer lives.
        no_room_pause: Duration = Duration::from_micros(10),
    }
}

section! {
    /// The daemons' logs, on standard error.
    Log in "log" {
        /// What is logged: a level, or `tracing` directives as `info,gleaner_harvester=debug`.
        filter: String = "info".into(),
        /// `text` or `json`.
        format: LogFormat = LogFormat::Text,
    }
}

impl Config {
    /// Every section by name, in the file's order.
    pub(crate) fn sections(&self) -> [(&'static str, &dyn Section); 8] {
        [
            ("cluster", &self.cluster),
            ("harvester", &self.harvester),
            ("slurm", &self.slurm),
            ("policy", &self.policy),
            ("executor", &self.executor),
            ("client", &self.client),
            ("rdma", &self.rdma),
            ("log", &self.log),
        ]
    }

    pub(crate) fn section_mut(&mut self, name: &str) -> Option<&mut dyn Section> {
        Some(match name {
            "cluster" => &mut self.cluster,
            "harvester" => &mut self.harvester,
            "slurm" => &mut self.slurm,
            "policy" => &mut self.policy,
            "executor" => &mut self.executor,
            "client" => &mut self.client,
            "rdma" => &mut self.rdma,
            "log" => &mut self.log,
            _ => return None,
        })
    }

    /// Every key there is, in the file's order.
    pub fn keys() -> Vec<Key> {
        Self::default().sections().iter().flat_map(|(_, section)| section.keys()).collect()
    }

    /// The file of the database.
    pub fn database(&self) -> PathBuf {
        let set = self.harvester.database.clone();
        set.unwrap_or_else(|| self.harvester.state_dir.join("gleaner.db"))
    }

    /// One key's value as TOML would write it; `None` if it is not set or not known.
    pub fn get(&self, key: &Key) -> Option<toml::Value> {
        let sections = self.sections();
        let (_, section) = sections.iter().find(|(name, _)| *name == key.section)?;
        section.get(key.name)
    }

    /// The whole configuration as a file that reads back equal; keys that are not set are commented out.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for (name, section) in self.sections() {
            text += &format!("[{name}]\n");
            for key in section.keys() {
                match section.get(key.name) {
                    Some(value) => text += &format!("{} = {value}\n", key.name),
                    None => text += &format!("# {} =\n", key.name),
                }
            }
            text.push('\n');
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    }
}
