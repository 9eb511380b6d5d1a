//! The machine that figures come from, as the kernel describes it.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

/// A machine, and how busy it was before the run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's own name.
    pub cpu: String,
    /// Processors that are on line.
    pub cores: usize,
    /// The kernel.
    pub kernel: String,
    /// How the clock frequency is chosen; a virtual machine seldom knows.
    pub governor: Option<String>,
    /// The processor runs under a hypervisor, which may pause it.
    pub virtual_machine: bool,
    /// Whether transparent huge pages are given.
    pub huge_pages: String,
    /// Load averages before the run, over 1, 5 and 15 minutes.
    pub load: String,
    /// When the run began, UTC.
    pub date: String,
    /// The build that was measured.
    pub build: String,
}

impl Machine {
    /// This one, now.
    pub fn look() -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            line.split_once(':').map(|(_, value)| value.trim().to_owned())
        };
        let load = read("/proc/loadavg");
        let governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        Self {
            cpu: field("model name").unwrap_or_else(|| "unknown".into()),
            cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count().max(1),
            kernel: read("/proc/sys/kernel/osrelease"),
            governor: Some(governor).filter(|governor| !governor.is_empty()),
            virtual_machine: field("flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            huge_pages: read("/sys/kernel/mm/transparent_hugepage/enabled"),
            load: load.split(' ').take(3).collect::<Vec<_>>().join(" "),
            date: date(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" }.into(),
        }
    }
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The moment, in whole seconds.
fn date() -> String {
    humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string()
}
