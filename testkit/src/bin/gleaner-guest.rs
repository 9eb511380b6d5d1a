//! `gleaner-guest`: runs a command in a guest with RDMA verbs, from the developer's shell; `cargo xtask rdma` calls it.

#![forbid(unsafe_code)]

use std::{path::PathBuf, process::Command, time::Duration};

use clap::Parser;
use gleaner_testkit::guest::{self, Guest, Network};

/// Run a command in a virtual machine with Soft-RoCE; it sees the host's files, and what it writes is forgotten.
#[derive(Parser)]
struct Arguments {
    /// Verbs devices: none, one (loopback), two joined by a cable (pair), or the same in two namespaces
    #[arg(long, default_value = "loopback", value_parser = network)]
    network: Network,
    /// End it after this many seconds
    #[arg(long, default_value_t = 300)]
    bound: u64,
    /// A directory of the host to show, writable, at /run/guest/share
    #[arg(long)]
    share: Option<PathBuf>,
    /// Run in User-Mode Linux, at the host's speed; its kernel is built first if need be, which takes minutes
    #[arg(long)]
    user_mode: bool,
    /// The command; none: only fetch and make what guests need
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

fn network(name: &str) -> Result<Network, String> {
    let known = [Network::None, Network::Loopback, Network::Pair, Network::Namespaces];
    let found = known.into_iter().find(|network| network.name() == name);
    found.ok_or_else(|| "there are none, loopback, pair and namespaces".to_owned())
}

fn main() {
    let arguments = Arguments::parse();
    if let Some(why) = guest::unsupported() {
        eprintln!("no guest runs here: {why}");
        return;
    }
    match run(&arguments) {
        Ok(status) => std::process::exit(status),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(125)
        }
    }
}

fn run(arguments: &Arguments) -> Result<i32, guest::GuestError> {
    let Some((program, words)) = arguments.command.split_first() else {
        let prepare = if arguments.user_mode { guest::prepare_user_mode } else { guest::prepare };
        return prepare().map(|()| 0);
    };
    let mut guest = Guest::new(arguments.network).bound(Duration::from_secs(arguments.bound));
    if let Some(directory) = &arguments.share {
        guest = guest.share(directory);
    }
    if arguments.user_mode {
        guest = guest.user_mode();
    }
    guest.run_aloud(Command::new(program).args(words))
}
