//! This machine: its executors, its cgroups, its clocks.

use std::{fs, io, os::unix::fs::FileTypeExt, path::Path, time::Duration};

use nix::time::{ClockId, clock_gettime};

use super::Finding;

const EXECUTORS: &str = "executors here";
const CGROUP: &str = "cgroups";
const CLOCK: &str = "clock source";
const RATE: &str = "clock rate";
const HUGE_PAGES: &str = "huge pages";

/// Where the kernel is told who gets them.
pub(super) const HUGE_PAGES_DIR: &str = "/sys/kernel/mm/transparent_hugepage";

/// Most that a clock may run off its oscillator, in millionths: what leases allow for (ADR 2).
const DRIFT_PPM_MAX: f64 = 500.0;

/// Each node's directory below `run_dir` has its sockets.
pub(super) fn executors(run_dir: &Path) -> Vec<Finding> {
    let nodes = match fs::read_dir(run_dir) {
        Ok(entries) => {
            entries.filter_map(Result::ok).filter(|entry| entry.path().is_dir()).collect::<Vec<_>>()
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            let remedy = "run doctor as root, or see executor.run_dir";
            return vec![Finding::warning(
                EXECUTORS,
                format!("{}: {error}", run_dir.display()),
                remedy,
            )];
        }
    };
    if nodes.is_empty() {
        return vec![Finding::absent(
            EXECUTORS,
            format!("none has a directory in {}", run_dir.display()),
        )];
    }
    nodes.iter().map(|node| executor(&node.path())).collect()
}

fn executor(directory: &Path) -> Finding {
    let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let missing: Vec<&str> = ["hook.sock", "agent.sock"]
        .into_iter()
        .filter(|socket| {
            !fs::metadata(directory.join(socket)).is_ok_and(|meta| meta.file_type().is_socket())
        })
        .collect();
    let pid = fs::read_to_string(directory.join("keeper.pid")).unwrap_or_default();
    let pid = pid.split_whitespace().next().unwrap_or_default();
    let alive = !pid.is_empty() && Path::new("/proc").join(pid).is_dir();
    let remedy = format!(
        "start it again (`systemctl restart gleaner-executor`), or remove {}",
        directory.display()
    );
    match (alive, missing.as_slice()) {
        (true, []) => Finding::good(EXECUTORS, format!("{name}: keeper {pid}, both sockets")),
        (true, missing) => Finding::bad(
            EXECUTORS,
            format!("{name}: keeper {pid} has no {}", missing.join(", ")),
            remedy,
        ),
        (false, _) => Finding::bad(EXECUTORS, format!("{name}: no keeper runs"), remedy),
    }
}

/// Which cgroups there are: how a lease's processes are killed, and whether memory is bounded by the kernel.
pub(super) fn cgroup() -> Finding {
    const ROOT: &str = "/sys/fs/cgroup";
    let unified = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers"));
    cgroup_with(unified.ok().as_deref(), Path::new(ROOT).join("memory").is_dir())
}

/// By the controllers of version 2, where it is mounted, and whether version 1 is.
fn cgroup_with(controllers: Option<&str>, version_1: bool) -> Finding {
    const LOSS: &str = "executors then kill by process, and bound memory less exactly";
    const UNIFY: &str = "boot with systemd.unified_cgroup_hierarchy=1";
    match controllers {
        Some(controllers) => {
            let found: Vec<&str> = controllers.split_whitespace().collect();
            let mut missing = vec!["cpuset", "cpu", "memory", "pids"];
            missing.retain(|wanted| !found.contains(wanted));
            if missing.is_empty() {
                return Finding::good(CGROUP, "version 2, with cpuset, cpu, memory and pids");
            }
            let missing = missing.join(", ");
            let remedy = format!(
                "{LOSS}; {UNIFY}, so that version 1 holds none of them, and without cgroup_disable={missing}"
            );
            Finding::warning(CGROUP, format!("version 2 without {missing}"), remedy)
        }
        None if version_1 => Finding::warning(CGROUP, "version 1", format!("{LOSS}; {UNIFY}")),
        None => {
            let remedy = format!("{LOSS}; `mount -t cgroup2 none /sys/fs/cgroup`, or {UNIFY}");
            Finding::warning(CGROUP, "none is mounted", remedy)
        }
    }
}

/// Huge pages for what functions allocate and for what is shared with their callers: a vacate waits until memory is free, and
/// small pages take some ten times as long.
pub(super) fn huge_pages(directory: &Path) -> Vec<Finding> {
    let kinds =
        [("enabled", "functions' memory", "madvise"), ("shmem_enabled", "arenas", "advise")];
    kinds.map(|(file, what, advised)| huge_pages_of(&directory.join(file), what, advised)).into()
}

fn huge_pages_of(setting: &Path, what: &str, advised: &str) -> Finding {
    let Ok(choices) = fs::read_to_string(setting) else {
        return Finding::absent(HUGE_PAGES, format!("{what}: this kernel has none"));
    };
    match choices.split(['[', ']']).nth(1).unwrap_or_default() {
        chosen @ ("never" | "deny" | "") => {
            let remedy = format!(
                "vacates take longer; `echo {advised} > {path}`, at each boot by a line `w {path} - - - - {advised}` in /etc/tmpfiles.d",
                path = setting.display()
            );
            Finding::warning(HUGE_PAGES, format!("{what}: {chosen}"), remedy)
        }
        chosen => Finding::good(HUGE_PAGES, format!("{what}: {chosen}")),
    }
}

/// A clock source that is read without a system call.
pub(super) fn clock_source() -> Finding {
    const CURRENT: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    match fs::read_to_string(CURRENT) {
        Ok(source) => clock_source_is(source.trim()),
        Err(error) => Finding::absent(CLOCK, format!("not told: {error}")),
    }
}

fn clock_source_is(source: &str) -> Finding {
    let remedy = "each look at the clock is then a system call, and hot calls are slower; boot with clocksource=tsc if the CPU's \
        is invariant (`grep -c nonstop_tsc /proc/cpuinfo` counts its CPUs)";
    match source {
        "tsc" | "kvm-clock" | "arch_sys_counter" => Finding::good(CLOCK, source),
        _ => Finding::warning(CLOCK, source, remedy),
    }
}

/// The clock that leases are counted on runs as fast as its oscillator, within what leases allow for.
pub(super) fn clock_rate() -> Finding {
    const WATCHED: Duration = Duration::from_millis(200);
    let both = || {
        Some((nanoseconds(ClockId::CLOCK_BOOTTIME)?, nanoseconds(ClockId::CLOCK_MONOTONIC_RAW)?))
    };
    let begun = both();
    std::thread::sleep(WATCHED);
    let (Some(begun), Some(ended)) = (begun, both()) else {
        return Finding::bad(
            RATE,
            "CLOCK_BOOTTIME cannot be read",
            "use a kernel of 2.6.39 or later",
        );
    };
    rate(ended.0 - begun.0, ended.1 - begun.1)
}

/// By what the clock counted while its oscillator counted `raw` nanoseconds.
fn rate(counted: i64, raw: i64) -> Finding {
    let ppm = (counted - raw) as f64 / raw as f64 * 1e6;
    let slewed = format!("CLOCK_BOOTTIME is slewed by {ppm:+.0} ppm");
    let allowed = format!("leases allow for ±{DRIFT_PPM_MAX:.0}");
    if ppm.abs() <= DRIFT_PPM_MAX {
        return Finding::good(RATE, format!("{slewed}; {allowed}"));
    }
    let remedy = format!("{allowed}; `chronyc makestep` ends a slew, `chronyc tracking` tells why");
    Finding::bad(RATE, slewed, remedy)
}

fn nanoseconds(clock: ClockId) -> Option<i64> {
    let now = clock_gettime(clock).ok()?;
    Some(now.tv_sec() * 1_000_000_000 + now.tv_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Health;

    #[test]
    fn a_directory_without_a_living_keeper_is_bad() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(executors(&directory.path().join("none"))[0].health, Health::Absent);
        fs::create_dir(directory.path().join("n1")).expect("made");
        assert_eq!(executors(directory.path())[0].health, Health::Bad);
        fs::write(directory.path().join("n1/keeper.pid"), std::process::id().to_string())
            .expect("written");
        let finding = &executors(directory.path())[0];
        assert!(finding.detail.contains("has no hook.sock, agent.sock"), "{finding:?}");
        for socket in ["hook.sock", "agent.sock"] {
            std::os::unix::net::UnixListener::bind(directory.path().join("n1").join(socket))
                .expect("bound");
        }
        assert_eq!(executors(directory.path())[0].health, Health::Good);
    }

    #[test]
    fn huge_pages_that_are_switched_off_are_told_with_the_remedy() {
        let directory = tempfile::tempdir().expect("a directory");
        let healths =
            || huge_pages(directory.path()).iter().map(|found| found.health).collect::<Vec<_>>();
        assert_eq!(healths(), [Health::Absent; 2]);
        fs::write(directory.path().join("enabled"), "always [madvise] never\n").expect("written");
        let shared = "always within_size advise [never] deny force\n";
        fs::write(directory.path().join("shmem_enabled"), shared).expect("written");
        assert_eq!(healths(), [Health::Good, Health::Warning]);
        let remedy = huge_pages(directory.path())[1].remedy.clone().expect("a remedy");
        assert!(remedy.contains("echo advise > "), "{remedy}");
    }

    fn says(finding: &Finding, health: Health, detail: &str, remedy: &str) {
        assert_eq!(finding.health, health, "{finding:?}");
        assert!(finding.detail.contains(detail), "{finding:?}");
        assert!(finding.remedy.as_deref().unwrap_or_default().contains(remedy), "{finding:?}");
    }

    #[test]
    fn what_cgroups_lack_is_named_with_what_brings_it_back() {
        let all = "cpuset cpu io memory hugetlb pids rdma\n";
        says(&cgroup_with(Some(all), false), Health::Good, "version 2, with", "");
        let some = cgroup_with(Some("cpuset cpu io pids"), true);
        says(&some, Health::Warning, "version 2 without memory", "cgroup_disable=memory");
        let first = cgroup_with(None, true);
        says(&first, Health::Warning, "version 1", "systemd.unified_cgroup_hierarchy=1");
        let none = cgroup_with(None, false);
        says(&none, Health::Warning, "none is mounted", "`mount -t cgroup2 none /sys/fs/cgroup`");
    }

    #[test]
    fn a_clock_that_is_slow_to_read_is_told_from_one_that_is_not() {
        says(&clock_source_is("tsc"), Health::Good, "tsc", "");
        says(&clock_source_is("hpet"), Health::Warning, "hpet", "boot with clocksource=tsc");
    }

    #[test]
    fn a_clock_that_runs_off_is_told() {
        const SECOND: i64 = 1_000_000_000;
        says(&rate(SECOND + 499_000, SECOND), Health::Good, "+499 ppm", "");
        says(&rate(SECOND - 501_000, SECOND), Health::Bad, "-501 ppm", "`chronyc makestep`");
    }
}
