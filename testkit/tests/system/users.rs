//! Users other than root: one who calls on root's service, and one whose service it all is.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use gleaner_testkit::{
    process::{self, Daemon},
    service::Programs,
    wait_until,
};
use nix::unistd::geteuid;

use crate::support::{BOUND, harvested, library_path, wait_no_leased_worker};

/// Nobody.
const USER: u32 = 65534;
/// Far longer than these tests of the suite take.
const SUITE_BOUND: Duration = Duration::from_secs(120);

/// What a service without root must do as well.
const SUITE: [&str; 4] = [
    "main_job::an_idle_node_is_leased_called_taken_back_and_harvested_again",
    "main_job::drain_resume_off_and_on",
    "killed::a_keeper_takes_everything_with_it_and_the_next_one_starts_clean",
    "slurm_and_store::a_database_that_cannot_be_written_stops_new_leases_and_no_vacate",
];

#[test]
fn a_plain_user_s_function_runs_as_that_user() {
    let service = harvested(1);
    let node = service.cluster.nodes()[0].clone();
    let place = Place::with([service.programs().path("gleaner"), library_path()]);
    let ten_seconds = place.dir.path().join("ten-seconds");
    fs::write(&ten_seconds, 10_000_000_000u64.to_le_bytes()).unwrap();
    let mut command = service.cluster.command(place.copy("gleaner"));
    command.arg("--config").arg(service.config_path()).arg("invoke");
    command
        .arg(place.copy_of(&library_path()))
        .args(["spin", "--warm", "--input"])
        .arg(ten_seconds);
    as_user(&mut command);
    let caller = Daemon::start("caller", command, None).unwrap();
    let user = if geteuid().is_root() { USER } else { geteuid().as_raw() };
    let uids = format!("Uid:\t{user}\t{user}\t{user}\t{user}\n");
    wait_until("a worker runs as the caller", BOUND, || {
        let workers = service.leased_workers(&node);
        let status = |worker| fs::read_to_string(format!("/proc/{worker}/status"));
        workers.first().is_some_and(|worker| status(worker).is_ok_and(|text| text.contains(&uids)))
    });
    drop(caller);
    wait_no_leased_worker(&service, &node);
}

#[test]
fn a_service_without_root_does_the_same_for_its_one_user() {
    if !geteuid().is_root() {
        return; // then all of this suite runs without root
    }
    let programs = Programs::find().unwrap();
    let names = ["gleaner", "gleaner-harvester", "gleaner-executor", "gleaner-hook"];
    let own = std::env::current_exe().unwrap();
    let needed = names.iter().map(|name| programs.path(name)).chain([library_path(), own.clone()]);
    let place = Place::with(needed);
    let mut suite = Command::new(place.copy_of(&own));
    suite.args(["--test-threads=1", "--exact"]).args(SUITE);
    suite.env("TMPDIR", place.dir.path()).current_dir(place.dir.path());
    as_user(&mut suite);
    let output = process::run_bounded(suite, SUITE_BOUND).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains(&format!("{} passed; 0 failed", SUITE.len())), "{said}");
}

/// A directory of the user's own with copies of programs: where they were built it may not be able to read.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn with(files: impl IntoIterator<Item = PathBuf>) -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for file in files {
            fs::copy(&file, place.copy_of(&file)).unwrap();
        }
        if geteuid().is_root() {
            chown(place.dir.path(), Some(USER), Some(USER)).unwrap();
        }
        place
    }

    fn copy(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn copy_of(&self, file: &Path) -> PathBuf {
        self.copy(&file.file_name().unwrap().to_string_lossy())
    }
}

fn as_user(command: &mut Command) {
    if geteuid().is_root() {
        command.uid(USER).gid(USER);
    }
}
