//! What each verb runs.

use std::process::Command;

use anyhow::{Context, bail};

use crate::{
    book, guest,
    run::{become_program, cargo, find, root, run, target_dir},
    setup::{packages, setup},
};

/// Everything that CI checks. The test runner comes last, so that the log ends with its summary.
pub(crate) fn test() -> anyhow::Result<()> {
    setup()?;
    lint()?;
    run(cargo(&["build", "--workspace", "--locked"]))?;
    guest::prepare()?;
    if find("cargo-nextest").is_some() {
        run(cargo(&["test", "--workspace", "--locked", "--doc", "--quiet"]))?;
        return run(cargo(&["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]));
    }
    run(cargo(&["test", "--workspace", "--locked", "--no-fail-fast"]))
}

/// Formatting, clippy, and the rules for dependencies.
pub(crate) fn lint() -> anyhow::Result<()> {
    run(cargo(&["fmt", "--all", "--check"]))?;
    run(cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))?;
    fuzz_targets_compile()?;
    pure_crates_stay_pure()?;
    book::links_lead_somewhere(&root().join("docs/src"))?;
    if find("cargo-deny").is_none() {
        bail!("cargo-deny is missing; `make setup` installs it");
    }
    run(cargo(&[
        "deny",
        "--log-level",
        "error",
        "--locked",
        "check",
        "bans",
        "licenses",
        "sources",
    ]))
}

/// They are a workspace of their own, which nothing else builds. With this one's versions; their C++ runtime, which takes a compiler of
/// its own, is only needed to run them.
fn fuzz_targets_compile() -> anyhow::Result<()> {
    let manifest = root().join("fuzz/Cargo.toml");
    let lock = manifest.with_extension("lock");
    if !lock.exists() {
        std::fs::copy(root().join("Cargo.lock"), &lock).context("copy Cargo.lock to fuzz/")?;
    }
    let mut check = cargo(&["check", "--quiet"]);
    check.arg("--manifest-path").arg(manifest);
    check.arg("--target-dir").arg(target_dir().join("fuzz"));
    check.env("CUSTOM_LIBFUZZER_PATH", "/dev/null");
    run(check)
}

/// Crates that decide, and what they must never link: they take the time and the world as arguments.
const PURE_CRATES: [&str; 2] = ["gleaner-lease", "gleaner-harvester-core"];
const IMPURE: [&str; 4] = ["tokio", "tonic", "sqlx", "hyper"];

fn pure_crates_stay_pure() -> anyhow::Result<()> {
    for package in PURE_CRATES {
        let arguments =
            ["tree", "--locked", "--edges", "normal", "--prefix", "none", "--package", package];
        let output = cargo(&arguments).output().context("cannot start cargo tree")?;
        let tree = String::from_utf8_lossy(&output.stdout);
        let mut names = tree.lines().filter_map(|line| line.split(' ').next());
        if !output.status.success() || tree.is_empty() {
            bail!(
                "cargo tree --package {package} failed: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        if let Some(name) = names.find(|name| IMPURE.contains(name)) {
            bail!(
                "{package} links {name}: it decides, and must not do; move that part to the daemon around it"
            );
        }
    }
    Ok(())
}

/// Formats all code.
pub(crate) fn fmt() -> anyhow::Result<()> {
    run(cargo(&["fmt", "--all"]))
}

/// The simulator of the lease protocol: many seeds, or one again.
pub(crate) fn sim(seeds: Option<u64>, seed: Option<u64>) -> anyhow::Result<()> {
    let mut command =
        cargo(&["run", "--release", "--locked", "--package", "gleaner-lease-sim", "--"]);
    if let Some(seeds) = seeds {
        command.args(["--seeds", &seeds.to_string()]);
    }
    if let Some(seed) = seed {
        command.args(["--seed", &seed.to_string()]);
    }
    run(command)
}

/// Builds everything in release, then becomes the demo: Ctrl-C reaches it alone.
pub(crate) fn demo(arguments: &[String]) -> anyhow::Result<()> {
    packages()?;
    run(cargo(&["build", "--release", "--workspace", "--locked"]))?;
    let mut command = Command::new(target_dir().join("release/gleaner-demo"));
    command.args(arguments).current_dir(root());
    become_program(command)
}

/// Man pages and completions into target/, the reference page into the book.
pub(crate) fn man() -> anyhow::Result<()> {
    run(cargo(&["build", "--locked", "--package", "gleaner-cli"]))?;
    let gleaner = target_dir().join("debug/gleaner");
    let target = root().join("target");
    let (man, completions) = (target.join("man"), target.join("completions"));
    std::fs::create_dir_all(&completions).context("cannot make target/completions")?;
    let mut manual = Command::new(&gleaner);
    manual.arg("manual").arg(&man).arg("--reference").arg(root().join("docs/src/reference"));
    run(manual)?;
    for (shell, file) in [("bash", "gleaner.bash"), ("zsh", "_gleaner"), ("fish", "gleaner.fish")] {
        let output = Command::new(&gleaner).args(["completions", shell]).output();
        let script = output.with_context(|| format!("cannot start {}", gleaner.display()))?.stdout;
        std::fs::write(completions.join(file), script)
            .with_context(|| format!("cannot write {file}"))?;
    }
    eprintln!("{} and {} written", man.display(), completions.display());
    Ok(())
}
