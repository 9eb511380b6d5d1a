//! What the kernel holds for RDMA, by its own word.

use std::{fs, process::Command};

use gleaner_config::Config;

pub(crate) fn rdma_on(config: &mut Config) {
    config.executor.rdma = true;
}

/// What the kernel holds of a kind: `qp`, `mr`, `pd`, `cq`.
pub(crate) fn held(kind: &str) -> u64 {
    word_after(["res", "show"], kind).parse().unwrap()
}

pub(crate) fn all_held() -> [u64; 4] {
    ["qp", "mr", "pd", "cq"].map(held)
}

/// A word on the device's link, such as its `netdev`.
pub(crate) fn link_word(key: &str) -> String {
    word_after(["link", "show"], key)
}

/// Bytes that a process has pinned.
pub(crate) fn pinned(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPin:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// The word after another one in what `rdma` shows.
fn word_after(arguments: [&str; 2], key: &str) -> String {
    let output = Command::new("rdma").args(arguments).output().unwrap().stdout;
    let text = String::from_utf8(output).unwrap();
    let mut words = text.split_whitespace().skip_while(|word| *word != key);
    words.nth(1).unwrap_or_else(|| panic!("no {key}: {text}")).to_owned()
}
