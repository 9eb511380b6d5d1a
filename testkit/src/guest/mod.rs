//! Virtual machines with RDMA verbs: a program that was built here runs in one, and its output and status come back.
//!
//! ```text
//! Guest::run(command) ──▶ qemu (emulated CPU), Debian's kernel ──▶ initramfs.sh ──▶ boot.sh ──▶ command ──▶ Ended
//!                            host's / read-only, writes forgotten      network, Soft-RoCE, cgroup v2
//! ```
//!
//! For tests that need a verbs device or a machine of their own (pure cgroup v2), on hosts that have neither. User code runs
//! many times slower than on the host: nothing here measures time. Benchmarks run in User-Mode Linux ([`Guest::user_mode`]). What is written outside [`SHARED`] is lost; that
//! directory is the host's [`Guest::share`].

mod kernel;
mod machine;
mod packages;

use std::{io, path::PathBuf, process::Command, time::Duration};

pub use kernel::{prepare, prepare_user_mode};
pub use machine::Running;

/// Where the guest has the directory that it shares with the host.
pub const SHARED: &str = "/run/guest/share";
/// Names the network, in the environment of what runs in a guest.
const INSIDE: &str = "GLEANER_GUEST";

/// Where no guest runs, and why. There tests that need one are skipped; everywhere else its lack fails them.
pub const PLATFORMS_WITHOUT: [(Platform, &str); 2] = [
    (Platform::OtherThan("x86_64"), "the guest's machine and kernel are those of x86_64"),
    (Platform::Without("apt-get"), "the guest's kernel is Debian's, fetched by apt-get"),
];

/// What a platform is told by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// Another architecture than this one.
    OtherThan(&'static str),
    /// A system that lacks this program.
    Without(&'static str),
}

impl Platform {
    fn is_this(self) -> bool {
        match self {
            Self::OtherThan(architecture) => std::env::consts::ARCH != architecture,
            Self::Without(program) => crate::process::find(program).is_none(),
        }
    }
}

/// Why no guest runs on this platform, if it is on the list.
pub fn unsupported() -> Option<&'static str> {
    PLATFORMS_WITHOUT.iter().find(|(platform, _)| platform.is_this()).map(|(_, why)| *why)
}

/// Why a guest did not run to its command's end.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// A program is not installed.
    #[error("{program} is not installed, and the guest needs it: `make setup` installs it")]
    Missing {
        /// The program.
        program: &'static str,
    },
    /// The operating system refused.
    #[error("guest: {step}: {source}")]
    Io {
        /// What was tried.
        step: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A command that makes the guest's kernel or initramfs failed.
    #[error("guest: {command} failed ({status}): {complaint}")]
    Command {
        /// The command with its arguments.
        command: String,
        /// How it ended.
        status: String,
        /// What it wrote to standard error.
        complaint: String,
    },
    /// It ended or was ended without the command's status.
    #[error("guest: {what}; its output, console and boot log end with:\n{log}")]
    Died {
        /// How.
        what: String,
        /// What it wrote last.
        log: String,
    },
}

fn io_error(step: impl Into<String>) -> impl FnOnce(io::Error) -> GuestError {
    let step = step.into();
    move |source| GuestError::Io { step, source }
}

/// The guest's network, and the verbs devices on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Loopback alone, and no device.
    None,
    /// One device: `rxe0` at 10.99.0.1.
    Loopback,
    /// Two devices joined by a cable: `rxe0` at 10.98.0.1 on interface `left`, `rxe1` at 10.98.0.2 on `right`.
    Pair,
    /// The same with each end in a network namespace of its own, `left` and `right`, as two hosts have it.
    Namespaces,
    /// One device, `rxe0`, on a wire to another guest: 10.97.0.1 and 10.97.0.2.
    Wire,
}

impl Network {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::None, Self::Loopback, Self::Pair, Self::Namespaces, Self::Wire];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Loopback => "loopback",
            Self::Pair => "pair",
            Self::Namespaces => "namespaces",
            Self::Wire => "wire",
        }
    }

    /// The network of the guest in which this program runs; `None` on the host.
    pub fn inside() -> Option<Self> {
        let name = std::env::var(INSIDE).ok()?;
        Self::ALL.into_iter().find(|network| network.name() == name)
    }
}

/// How a guest is to be.
#[derive(Debug, Clone)]
pub struct Guest {
    network: Network,
    cpus: u32,
    memory_mib: u32,
    bound: Duration,
    share: Option<PathBuf>,
    user_mode: bool,
}

impl Guest {
    /// Two CPUs and 2 GiB, for two minutes at most.
    pub fn new(network: Network) -> Self {
        let bound = Duration::from_secs(120);
        Self { network, cpus: 2, memory_mib: 2048, bound, share: None, user_mode: false }
    }

    /// Runs in User-Mode Linux: user code as fast as on the host, and a kernel that has to be built once. It knows no wire.
    pub fn user_mode(mut self) -> Self {
        self.user_mode = true;
        self
    }

    /// Ends it after its command has run this long.
    pub fn bound(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self
    }

    /// Shows this directory of the host in the guest, writable, at [`SHARED`].
    pub fn share(mut self, directory: impl Into<PathBuf>) -> Self {
        self.share = Some(directory.into());
        self
    }

    /// Runs a command, with its arguments, directory and variables, as root in a new guest.
    pub fn run(&self, command: &Command) -> Result<Ended, GuestError> {
        Running::start(self, command, None)?.wait()
    }

    /// The same with its output on this process's standard output, as it comes.
    pub fn run_aloud(&self, command: &Command) -> Result<i32, GuestError> {
        Running::start_aloud(self, command)?.wait().map(|ended| ended.status)
    }

    /// Runs two commands in two guests that a [`Network::Wire`] joins.
    pub fn run_joined(&self, commands: [&Command; 2]) -> Result<[Ended; 2], GuestError> {
        let guest = Self { network: Network::Wire, ..self.clone() };
        let wire = machine::Wire::lay()?;
        let [first, second] = commands;
        let first = Running::start(&guest, first, Some(wire.end(1)))?;
        let second = Running::start(&guest, second, Some(wire.end(2)))?;
        Ok([first.wait()?, second.wait()?])
    }

    /// The same where the first serves the second and is ended with it: how the second ended, and what both wrote.
    pub fn run_served(&self, commands: [&Command; 2]) -> Result<Ended, GuestError> {
        let guest = Self { network: Network::Wire, ..self.clone() };
        let wire = machine::Wire::lay()?;
        let [server, client] = commands;
        let server = Running::start(&guest, server, Some(wire.end(1)))?;
        let mut ended = Running::start(&guest, client, Some(wire.end(2)))?.wait()?;
        ended.output += &format!("-- the other guest:\n{}", server.output());
        Ok(ended)
    }
}

/// A command that ran in a guest.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status; 128 and the signal if it was killed.
    pub status: i32,
    /// What it wrote to standard output and standard error, in order.
    pub output: String,
}

impl Ended {
    /// Its output; panics with it unless the command succeeded.
    #[track_caller]
    pub fn expect_success(self) -> String {
        assert_eq!(self.status, 0, "the command failed in its guest:\n{}", self.output);
        self.output
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_names_of_their_own() {
        let names: std::collections::BTreeSet<_> =
            Network::ALL.iter().map(|network| network.name()).collect();
        assert_eq!(names.len(), Network::ALL.len());
    }

    #[test]
    fn who_reads_what_contributors_are_told_finds_each_platform_without() {
        let told = include_str!("../../../CONTRIBUTING.md");
        let (_, list) = told.split_once("## Where tests are skipped").unwrap();
        let row = list.lines().find(|line| line.contains("`guest`")).unwrap();
        for (platform, _) in PLATFORMS_WITHOUT {
            let (Platform::OtherThan(word) | Platform::Without(word)) = platform;
            assert!(row.contains(word), "{platform:?} is not in CONTRIBUTING.md's list");
        }
    }

    #[test]
    fn this_platform_is_judged_by_what_it_is() {
        assert!(!Platform::OtherThan(std::env::consts::ARCH).is_this());
        assert!(Platform::OtherThan("pdp11").is_this());
        assert!(!Platform::Without("sh").is_this());
        assert!(Platform::Without("no-such-program").is_this());
    }
}
