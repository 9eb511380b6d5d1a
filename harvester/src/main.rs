//! `gleaner-harvester`: reads the configuration, starts the daemon, and obeys signals. Decides nothing else.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use gleaner_config::{Config, LogFormat, Sources};
use gleaner_harvester::{daemon::Daemon, slurm::Commands};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Watches Slurm, leases what lies idle, and gives it back.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file [default: $GLEANER_CONFIG, or /etc/gleaner/gleaner.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one key over the file's value
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(Sources::from_process(arguments.config, arguments.set)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gleaner-harvester: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(sources: Sources) -> anyhow::Result<()> {
    let config = sources.load()?.config;
    start_log(&config)?;
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(&sources, config))
}

async fn serve(sources: &Sources, config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let mut reload = signal(SignalKind::hangup()).context("SIGHUP")?;
    let mut daemon = Daemon::start(&config, commands(&config)).await?;
    tracing::info!(address = %daemon.address(), cluster = config.cluster.name, "listening");
    println!("listening on {}", daemon.address());
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = reload.recv() => take_again(&daemon, sources, &config).await,
            what = daemon.failed() => anyhow::bail!("{what}: see the log; leases and grants end by themselves"),
        }
    }
    tracing::info!("stopping; executors keep their grants until they end");
    daemon.stop().await;
    Ok(())
}

fn commands(config: &Config) -> Commands {
    let slurm = &config.slurm;
    Commands::new(slurm.commands.clone(), slurm.slurm_conf.clone(), slurm.timeout)
}

/// A file that is wrong changes nothing.
async fn take_again(daemon: &Daemon, sources: &Sources, started_with: &Config) {
    let config = match sources.load() {
        Ok(loaded) => loaded.config,
        Err(error) => {
            tracing::error!(%error, "the configuration is wrong: the old one stays");
            return;
        }
    };
    if let Err(error) = daemon.reload(&config).await {
        tracing::error!(%error, "the configuration is wrong: the old one stays");
        return;
    }
    let fixed = (&config.cluster, &config.harvester, &config.log, &config.executor.user);
    let was = (
        &started_with.cluster,
        &started_with.harvester,
        &started_with.log,
        &started_with.executor.user,
    );
    if fixed != was {
        tracing::warn!("changes of [cluster], [harvester], [log] and executor.user need a restart");
    }
    tracing::info!("the configuration was read again: policy and slurm.poll are taken");
}

fn start_log(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log.filter).context("log.filter")?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// One descriptor a connection: as many as the system allows.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        eprintln!("gleaner-harvester: the limit of open files stays: {errno}");
    }
}
