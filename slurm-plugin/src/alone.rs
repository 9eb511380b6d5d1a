//! The hook without a keeper that answers: kills the node's Gleaner processes by itself, and records that it did.
//!
//! ```text
//!   cgroup.kill of the node's group → the table's workers → the keeper, whose children die with it → wait → journal
//! ```

use std::{
    ffi::OsStr,
    fmt,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

use gleaner_proto::{
    vacates::{Trigger, VACATES_FILE, VacateRecord},
    workers::{HEAD_LEN, Head, TABLE_LEN, WORKERS_FILE, entries},
};
use nix::time::{ClockId, clock_gettime};

use crate::{job::Job, processes::Held};

/// The directory of the jobs that hold the node, for the next keeper.
const HELD_DIR: &str = "held";
/// How long one look at a group that is not empty waits.
const LOOK: Duration = Duration::from_millis(1);

/// What the hook knows when it begins to act by itself.
pub(crate) struct Alone<'a> {
    pub(crate) run_dir: &'a Path,
    pub(crate) job: &'a Job,
    pub(crate) begun: Instant,
    pub(crate) until: Instant,
}

/// What it did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Done {
    killed: u32,
    remaining: u32,
    recorded: bool,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { killed, remaining, recorded } = self;
        write!(f, "killed {killed} processes without it, {remaining} were left at the bound")?;
        f.write_str(if *recorded { "" } else { "; this could not be recorded" })
    }
}

impl Alone<'_> {
    /// Clears the node; `None` if nothing of Gleaner was there.
    pub(crate) fn vacate(&self) -> Option<Done> {
        self.hold();
        let table = self.table()?;
        let head = Head::decode(&table)?;
        let asked_us = self.since();
        let leases = entries(&table).filter(|entry| entry.lease_id != 0).count() as u32;
        // Taken hold of first: the keeper's death kills them too, and then nobody counts them.
        let mut processes: Vec<Held> =
            entries(&table).filter_map(|entry| Held::take(entry.process)).collect();
        let group = group(&head);
        if let Some(group) = &group {
            // The dying need a turn to die; fails where the CPU controller does not reach the group.
            let _ = fs::write(group.join("cpu.idle"), "0");
            let _ = fs::write(group.join("cgroup.kill"), "1");
        }
        processes.iter().for_each(Held::kill);
        if let Some(keeper) = Held::take(head.keeper) {
            keeper.kill();
            processes.push(keeper);
        }
        processes.iter().for_each(Held::hurry);
        if processes.is_empty() && group.as_deref().is_none_or(is_empty) {
            return None;
        }
        let kill_us = self.since();
        let left = processes.iter().filter(|process| !process.gone_by(self.until)).count();
        let remaining = left as u32 + group.map_or(0, |group| self.wait_empty(&group));
        let gone_us = self.since();
        let killed = processes.len() as u32;
        let steps_us = [asked_us, kill_us, gone_us, gone_us, gone_us];
        let recorded = self.record(leases, killed, remaining, steps_us, head.boot_id);
        Some(Done { killed, remaining, recorded })
    }

    /// The next keeper must not start a lease beside the job.
    fn hold(&self) {
        let dir = self.run_dir.join(HELD_DIR);
        // No directory: no keeper was ever here.
        let _ = File::create(dir.join(self.job.id.to_string()));
    }

    /// The table, if it is of this boot.
    fn table(&self) -> Option<Vec<u8>> {
        let mut table = Vec::with_capacity(TABLE_LEN);
        let file = File::open(self.run_dir.join(WORKERS_FILE)).ok()?;
        file.take(TABLE_LEN as u64).read_to_end(&mut table).ok()?;
        let head = Head::decode(table.get(..HEAD_LEN)?)?;
        (head.boot_id == boot_id()?).then_some(table)
    }

    fn wait_empty(&self, group: &Path) -> u32 {
        while !is_empty(group) {
            if Instant::now() >= self.until {
                return 1;
            }
            thread::sleep(LOOK);
        }
        0
    }

    fn record(
        &self,
        leases: u32,
        processes: u32,
        remaining: u32,
        steps_us: [u32; 5],
        boot_id: [u8; 16],
    ) -> bool {
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
        let waited = self.begun.elapsed();
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let record = VacateRecord {
            id: random(),
            trigger: Trigger::HookAlone,
            epoch: 0,
            job_id: self.job.id,
            job_uid: self.job.uid,
            leases,
            processes,
            remaining,
            memory_bytes: 0,
            steps_us,
            stamp_ns: now.saturating_sub(waited).as_nanos() as u64,
            unix_ms: wall.saturating_sub(waited).as_millis() as i64,
            boot_id,
        };
        let path = self.run_dir.join(VACATES_FILE);
        let journal = OpenOptions::new().append(true).create(true).mode(0o644).open(path);
        journal.and_then(|mut journal| journal.write_all(&record.encode())).is_ok()
    }

    fn since(&self) -> u32 {
        u32::try_from(self.begun.elapsed().as_micros()).unwrap_or(u32::MAX)
    }
}

/// The job has ended: the next keeper need not wait for it.
pub(crate) fn forget_job(run_dir: &Path, job: &Job) {
    let _ = fs::remove_file(run_dir.join(HELD_DIR).join(job.id.to_string()));
}

fn group(head: &Head) -> Option<PathBuf> {
    let path = Path::new(OsStr::from_bytes(head.cgroup_path()));
    path.is_absolute().then(|| path.to_owned())
}

/// A group that is gone is empty.
fn is_empty(group: &Path) -> bool {
    let events = fs::read_to_string(group.join("cgroup.events")).unwrap_or_default();
    !events.lines().any(|line| line == "populated 1")
}

fn boot_id() -> Option<[u8; 16]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    Some(u128::from_str_radix(&digits, 16).ok()?.to_be_bytes())
}

fn random() -> [u8; 16] {
    let mut id = [0; 16];
    let _ = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut id));
    id
}
