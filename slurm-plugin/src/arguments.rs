//! The command line: `gleaner-hook [--run-dir DIR] [--bound-ms N] [prolog|epilog]`. What is not understood is complained
//! about and passed over: a typing error must not keep batch jobs from starting.

use std::{path::PathBuf, time::Duration};

use gleaner_proto::hook::HookKind;

use crate::complain;

const RUN_DIR: &str = "/run/gleaner";
const BOUND_MS: u64 = 200;
const BOUND_MS_MIN: u64 = 10;
const BOUND_MS_MAX: u64 = 1000;

/// What the site asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// Parent of the nodes' runtime directories.
    pub(crate) run_dir: PathBuf,
    /// How long the hook may take in all.
    pub(crate) bound: Duration,
    /// Which hook this is, for a Slurm that does not say.
    pub(crate) kind: Option<HookKind>,
}

impl Arguments {
    /// Reads this process's arguments.
    pub(crate) fn from_process() -> Self {
        let words = std::env::args_os().skip(1);
        Self::read(words.map(|word| word.to_string_lossy().into_owned()))
    }

    fn read(mut words: impl Iterator<Item = String>) -> Self {
        let bound = Duration::from_millis(BOUND_MS);
        let mut read = Self { run_dir: RUN_DIR.into(), bound, kind: None };
        while let Some(word) = words.next() {
            match word.as_str() {
                "prolog" => read.kind = Some(HookKind::Prolog),
                "epilog" => read.kind = Some(HookKind::Epilog),
                "--run-dir" => match words.next() {
                    Some(dir) => read.run_dir = dir.into(),
                    None => complain("--run-dir needs a directory; using the default"),
                },
                "--bound-ms" => match words.next().and_then(|text| text.parse::<u64>().ok()) {
                    Some(ms) => {
                        read.bound = Duration::from_millis(ms.clamp(BOUND_MS_MIN, BOUND_MS_MAX))
                    }
                    None => {
                        complain("--bound-ms needs a number of milliseconds; using the default")
                    }
                },
                other => complain(&format!(
                    "{other:?} is not understood; use gleaner-hook [--run-dir DIR] [--bound-ms N] [prolog|epilog]"
                )),
            }
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Arguments {
        Arguments::read(words.iter().map(|&word| word.to_owned()))
    }

    #[test]
    fn whatever_is_written_there_the_hook_runs() {
        let plain = read(&[]);
        assert_eq!(plain.bound, Duration::from_millis(200));
        assert_eq!(read(&["--bound-ms"]), plain);
        assert_eq!(read(&["--bound-ms", "soon", "-x", "\u{fffd}"]), plain);
        let set = read(&["--bound-ms", "9999", "--run-dir", "/x", "epilog"]);
        let bound = Duration::from_secs(1);
        assert_eq!(set, Arguments { run_dir: "/x".into(), bound, kind: Some(HookKind::Epilog) });
    }
}
