//! What executors leave behind, by the operating system's word: the leak check of the system tests.
//!
//! Workers shed their environment and their parents, so a name cannot find them afterwards. The [`Witness`] notes, while
//! the keepers live, which processes descend from them and which cgroups these are in; later it looks for the same ones.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use gleaner_proto::workers::parse_stat;

use crate::{poll_until, process};

/// How long the kernel may take to reap and remove what was killed.
const GONE_BOUND: Duration = Duration::from_secs(5);
/// Where cgroup hierarchies are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";
/// What the names of Gleaner's cgroups begin with.
const CGROUP_PREFIX: &str = "gleaner-";

#[derive(Debug, Default)]
struct Seen {
    /// Pid and start time.
    processes: BTreeSet<(i32, u64)>,
    cgroups: BTreeSet<String>,
}

/// Remembers everything that ever descended from a keeper.
#[derive(Debug)]
pub struct Witness {
    seen: Mutex<Seen>,
    /// Where the names of cgroups are noted for the warden, which removes them if we are killed.
    note: PathBuf,
}

impl Witness {
    /// Notes in `directory`.
    pub fn new(directory: &Path) -> Self {
        Self { seen: Mutex::default(), note: directory.join("cgroups") }
    }

    /// Looks at the keepers' descendants now.
    pub fn observe(&self, keepers: impl Iterator<Item = i32>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let groups_before = seen.cgroups.len();
        let mut next: Vec<i32> = keepers.collect();
        while let Some(pid) = next.pop() {
            next.extend(process::children(pid));
            if let Some(start) = start_time(pid) {
                seen.processes.insert((pid, start));
            }
            seen.cgroups.extend(cgroups_of(pid));
        }
        if seen.cgroups.len() > groups_before {
            let names: Vec<_> = seen.cgroups.iter().map(String::as_str).collect();
            let _ = fs::write(&self.note, names.join("\n") + "\n");
        }
    }

    /// What is still there of all that was seen, and of what listens below `run_dir`. Waits a moment for the kernel.
    pub fn leftovers(&self, run_dir: &Path) -> Vec<String> {
        let mut left = Vec::new();
        poll_until(GONE_BOUND, || {
            left = self.look(run_dir);
            left.is_empty()
        });
        left
    }

    fn look(&self, run_dir: &Path) -> Vec<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let processes = seen
            .processes
            .iter()
            .filter(|(pid, start)| process::is_alive(*pid) && start_time(*pid) == Some(*start))
            .map(|(pid, _)| format!("process {pid}: {}", process::command_line(*pid)));
        let cgroups = directories_named(Path::new(CGROUPS), &seen.cgroups, 6)
            .into_iter()
            .map(|path| format!("cgroup {}", path.display()));
        let run_dir = run_dir.to_string_lossy();
        let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
        let sockets = sockets.lines().filter(|line| line.contains(&*run_dir)).map(str::to_owned);
        processes.chain(cgroups).chain(sockets.map(|line| format!("socket {line}"))).collect()
    }
}

fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&stat).map(|(_, start)| start)
}

/// The names of Gleaner's cgroups that a process is in.
fn cgroups_of(pid: i32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let parts = text.lines().flat_map(|line| line.split('/'));
    parts.filter(|part| part.starts_with(CGROUP_PREFIX)).map(str::to_owned).collect()
}

fn directories_named(root: &Path, names: &BTreeSet<String>, depth: u32) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if names.is_empty() || depth == 0 {
        return found;
    }
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name().to_str().is_some_and(|name| names.contains(name)) {
            found.push(entry.path());
        } else {
            found.extend(directories_named(&entry.path(), names, depth - 1));
        }
    }
    found
}
