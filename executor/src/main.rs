//! `gleaner-executor`: the keeper of one node, which executes itself as `agent` and `worker`.

use std::{fs::canonicalize, path::PathBuf};

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use gleaner_config::{Loaded, Sources};
use gleaner_executor::{
    agent,
    keeper::{
        self,
        ipc::{Inherited, Socket},
    },
    sys, worker,
};
use gleaner_fabric::rdma::Settings;
use gleaner_proto::ids::NodeName;

/// Descriptors that the keeper leaves open for its children.
const FIRST_FD: i32 = 3;
const SECOND_FD: i32 = 4;

/// Runs functions on one node, under leases, and is gone before the batch scheduler notices.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// The configuration; unset: $GLEANER_CONFIG, else /etc/gleaner/gleaner.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one key for this run, as in executor.pool=8.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// The node's name in Slurm.
    #[arg(long)]
    node: Option<NodeName>,
    /// How workers are kept together, to try what a lesser machine would do.
    #[arg(long, hide = true, value_enum, default_value_t = Isolation::Auto)]
    isolation: Isolation,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Isolation {
    Auto,
    Namespace,
    Single,
}

/// What the keeper starts.
#[derive(Subcommand)]
enum Role {
    /// Started by the keeper.
    #[command(hide = true)]
    Agent(AgentArguments),
    /// Started by the keeper.
    #[command(hide = true)]
    Worker(WorkerArguments),
}

#[derive(clap::Args)]
struct AgentArguments {
    #[arg(long)]
    run_dir: PathBuf,
    #[arg(long)]
    cores: u32,
    #[arg(long)]
    memory: u64,
    #[arg(long)]
    single_user: bool,
    #[arg(long)]
    limitation: Vec<String>,
}

#[derive(clap::Args)]
struct WorkerArguments {
    /// Serve clients by RDMA as well, with these settings.
    #[arg(long)]
    rdma: Option<Settings>,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match &cli.role {
        // No configuration: nothing of the site's is read with a lease's rights.
        Some(Role::Worker(arguments)) => run_worker(arguments),
        Some(Role::Agent(arguments)) => run_agent(&cli, arguments),
        None => run_keeper(&cli),
    }
}

fn run_worker(arguments: &WorkerArguments) -> anyhow::Result<()> {
    let keeper = sys::inherited(FIRST_FD).context("a worker is started by its keeper")?;
    let agent = sys::inherited(SECOND_FD).context("a worker is started by its keeper")?;
    Ok(worker::run(keeper, agent, arguments.rdma.as_ref())?)
}

fn run_agent(cli: &Cli, arguments: &AgentArguments) -> anyhow::Result<()> {
    let keeper = sys::inherited(FIRST_FD).context("an agent is started by its keeper")?;
    let local_listener = sys::inherited(SECOND_FD).context("an agent is started by its keeper")?;
    let inherited = Inherited {
        keeper: Socket::new(keeper),
        local_listener,
        limitations: arguments.limitation.clone(),
        run_dir: arguments.run_dir.clone(),
        node: node(cli)?,
        single_user: arguments.single_user,
        cores: arguments.cores,
        memory_bytes: arguments.memory,
    };
    Ok(agent::run(inherited, &load(cli)?.config)?)
}

fn run_keeper(cli: &Cli) -> anyhow::Result<()> {
    let loaded = load(cli)?;
    let config_path = loaded.path.as_ref().map(canonicalize).transpose();
    let arguments = keeper::Arguments {
        config: loaded.config,
        config_path: config_path.context("finding the configuration")?,
        set: cli.set.clone(),
        node: node(cli)?,
        isolation: match cli.isolation {
            Isolation::Auto => keeper::Isolation::Auto,
            Isolation::Namespace => keeper::Isolation::Namespace,
            Isolation::Single => keeper::Isolation::Single,
        },
    };
    Ok(keeper::run(&arguments)?)
}

fn load(cli: &Cli) -> anyhow::Result<Loaded> {
    Ok(Sources::from_process(cli.config.clone(), cli.set.clone()).load()?)
}

fn node(cli: &Cli) -> anyhow::Result<NodeName> {
    cli.node
        .clone()
        .context("name the node with --node: its name in Slurm, which may not be its host name")
}
