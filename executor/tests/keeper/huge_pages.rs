//! Huge pages for what clients and workers share: the system is told to give them, and the arenas have them until the
//! lease's end.

use std::{fs, os::fd::AsFd};

use gleaner_fabric::{Geometry, Segment, shm::Direction};
use nix::sys::stat::fstat;

const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
const ARENA_BYTES: u64 = 16 << 20;
/// At either end of an arena a part of a page may lie outside it.
const HUGE_LEAST: u64 = ARENA_BYTES - (4 << 20);

/// The machine's setting, put back when this is dropped.
struct Setting(String);

impl Setting {
    fn advise() -> Self {
        let choices = fs::read_to_string(SETTING).unwrap();
        let chosen = choices.split(['[', ']']).nth(1).unwrap().to_owned();
        fs::write(SETTING, "advise").unwrap();
        Self(chosen)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        fs::write(SETTING, &self.0).unwrap();
    }
}

pub(crate) fn arenas_have_them_until_they_are_taken_back() {
    let _setting = Setting::advise();
    let geometry = Geometry { window: 4, slot_bytes: 4096, arena_bytes: ARENA_BYTES };
    let file = Segment::create(geometry).unwrap();
    let segment = Segment::open(file.as_fd(), geometry).unwrap();
    let before = mapped_huge();
    segment.prefault(Direction::Requests).unwrap();
    let requests = mapped_huge() - before;
    assert!(requests >= HUGE_LEAST, "{requests} bytes of the requests in huge pages");
    segment.prefault(Direction::Responses).unwrap();
    let both = mapped_huge() - before;
    assert!(both >= 2 * HUGE_LEAST, "{both} bytes of both in huge pages");
    Segment::take_back(&file, geometry).unwrap();
    assert_eq!(mapped_huge() - before, requests, "the responses' go, the requests' stay");
    let left = fstat(&file).unwrap().st_blocks as u64 * 512;
    assert!(left < ARENA_BYTES + (2 << 20), "{left} bytes are left");
}

/// What this process has mapped of shared memory in huge pages.
fn mapped_huge() -> u64 {
    let maps = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = maps.lines().find_map(|line| line.strip_prefix("ShmemPmdMapped:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}
