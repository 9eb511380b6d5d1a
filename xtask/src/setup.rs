//! What the tests and the demo need beyond Rust: a real Slurm and munge, a C compiler, virtual machines, cargo-deny.
//!
//! Installs what is missing on Debian, as root or by sudo without a password; elsewhere one line says what to install.

use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::run::{cargo, find, run};

/// A Debian package, and the file by which a system without dpkg shows that it has the same.
struct Package {
    name: &'static str,
    program: Option<&'static str>,
}

const PACKAGES: [Package; 16] = [
    Package { name: "slurmctld", program: Some("slurmctld") },
    Package { name: "slurmd", program: Some("slurmd") },
    Package { name: "slurm-client", program: Some("scontrol") },
    Package { name: "slurm-wlm-basic-plugins", program: None },
    Package { name: "munge", program: Some("munged") },
    Package { name: "libmunge2", program: None },
    Package { name: "gcc", program: Some("cc") },
    // For the tests' virtual machines with RDMA verbs.
    Package { name: "qemu-system-x86", program: Some("qemu-system-x86_64") },
    Package { name: "busybox-static", program: Some("busybox") },
    Package { name: "kmod", program: Some("modprobe") },
    Package { name: "xz-utils", program: Some("xz") },
    Package { name: "iproute2", program: Some("rdma") },
    Package { name: "procps", program: Some("sysctl") },
    Package { name: "ibverbs-providers", program: None },
    Package { name: "libibverbs-dev", program: None },
    Package { name: "ibverbs-utils", program: Some("ibv_devinfo") },
];

/// Independent tools that the benchmarks' baselines are held against, and the counter of instructions.
const TOOLS: [&str; 3] = ["sockperf", "mbw", "valgrind"];

/// The verbs' own benchmarks, and what a kernel that runs at full speed is built with.
const RDMA_TOOLS: [&str; 6] = ["perftest", "valgrind", "flex", "bison", "bc", "make"];

const INSTALL: &str = include_str!("install.sh");

/// Installs what the programs need to run here, or says in one line what is missing.
pub(crate) fn packages() -> anyhow::Result<()> {
    match missing_packages() {
        missing if missing.is_empty() => Ok(()),
        missing => install(&missing),
    }
}

/// Installs the tools that make the benchmarks' ratios count. Without them they are void, and said to be.
pub(crate) fn tools() {
    let missing: Vec<_> = TOOLS.into_iter().filter(|tool| find(tool).is_none()).collect();
    install_if_possible(&missing, "some ratios are void");
}

/// Installs the verbs' own benchmarks, and what a kernel that runs at full speed is built with.
pub(crate) fn rdma_tools() {
    let missing: Vec<_> = RDMA_TOOLS.into_iter().filter(|package| !is_installed(package)).collect();
    install_if_possible(&missing, "there is less to measure by");
}

fn install_if_possible(missing: &[&str], without: &str) {
    if !missing.is_empty()
        && let Err(error) = install(missing)
    {
        eprintln!("without {}, {without}: {error}", missing.join(" "));
    }
}

/// Installs all that is missing, the linter of dependencies too.
pub(crate) fn setup() -> anyhow::Result<()> {
    packages()?;
    if find("cargo-deny").is_none() {
        run(cargo(&["install", "cargo-deny", "--locked", "--quiet"]))
            .context("cargo-deny is missing (lint needs it); install it by `cargo install cargo-deny --locked`")?;
    }
    Ok(())
}

fn missing_packages() -> Vec<&'static str> {
    let dpkg = find("dpkg-query").is_some();
    let is_missing = |package: &&Package| match package.program {
        _ if dpkg => !is_installed(package.name),
        Some(program) => find(program).is_none(),
        None => false,
    };
    PACKAGES.iter().filter(is_missing).map(|package| package.name).collect()
}

fn is_installed(package: &str) -> bool {
    let query = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output();
    query.is_ok_and(|output| output.stdout == b"installed")
}

fn install(missing: &[&str]) -> anyhow::Result<()> {
    let names = missing.join(" ");
    if find("apt-get").is_none() {
        bail!("missing: {names} (Debian's names); install them by your system's package manager");
    }
    let mut command = if nix::unistd::geteuid().is_root() {
        Command::new("sh")
    } else if can_sudo() {
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", "sh"]);
        sudo
    } else {
        bail!("missing: {names}; install them by `sudo apt-get install {names}`");
    };
    command.args(["-c", INSTALL, "install"]).args(missing);
    eprintln!("── installing {names}");
    let status = command.status().context("cannot start sh")?;
    if !status.success() {
        bail!("installing {names} failed: {status}; see apt-get's messages above");
    }
    Ok(())
}

fn can_sudo() -> bool {
    let quiet = Command::new("sudo")
        .args(["-n", "true"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    quiet.is_ok_and(|status| status.success())
}
