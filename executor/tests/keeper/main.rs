//! The keeper, its workers' sandbox and every way in which they end: real processes, as root and as a plain user.
#![allow(clippy::unwrap_used)] // helpers of tests are tests too

mod beginning;
mod deadlines;
mod deaths;
mod guest;
mod hooks;
mod huge_pages;
mod idle;
mod leases;
mod sandbox;
#[path = "../support/mod.rs"]
mod support;

use std::{os::fd::AsFd, time::Duration};

use gleaner_executor::{
    keeper::ipc::{End, Notice, Order, StartRefusal},
    sys,
};
use gleaner_proto::hook::{HookAnswer, HookKind, HookMessage};
use gleaner_testkit::guest::Network;
use libtest_mimic::{Arguments, Failed, Trial};
use nix::unistd::geteuid;
use support::{Bench, until};

const LONG: Duration = Duration::from_secs(600);
/// Over soon, though not before a slow machine has started a worker: an emulated one may take more than 300 ms.
const SHORT: Duration = Duration::from_secs(2);
/// The bound that the hook's messages name.
const BOUND_MS: u32 = 1000;

fn main() {
    support::play_role();
    // As another user than root a part only can be tried: the list in CONTRIBUTING says where the rest runs.
    let root: &[(&str, fn())] = &[
        ("a_lease_starts_and_stops", leases::a_lease_starts_and_stops),
        ("the_sandbox_denies", sandbox::the_sandbox_denies),
        ("the_sandbox_allows", sandbox::the_sandbox_allows),
        (
            "a_forked_process_is_denied_on_every_kind_of_machine",
            sandbox::forks_are_denied_everywhere,
        ),
        ("memory_is_bounded", leases::memory_is_bounded),
        ("ends_are_told_apart", leases::ends_are_told_apart),
        ("starts_are_refused_for_their_reasons", leases::starts_are_refused),
        ("a_deadline_holds_while_the_agent_is_stopped", deadlines::deadline_with_a_stopped_agent),
        ("a_deadline_moves_only_forward_and_only_in_time", deadlines::extended_in_time),
        ("a_grants_end_clears_the_node", deadlines::grant_end),
        ("a_keeper_that_was_stopped_kills_before_it_starts", deadlines::stopped_keeper),
        ("a_stopped_worker_dies", deaths::stopped_worker),
        ("a_killed_keeper_takes_all_with_it", deaths::killed_keeper),
        ("a_killed_agent_ends_its_leases", deaths::killed_agent),
        ("an_agent_that_does_not_read_is_replaced", deaths::deaf_agent),
        ("a_prolog_clears_and_holds_until_the_epilog", hooks::prolog_and_epilog),
        ("a_busy_node_does_not_keep_the_dead_waiting", hooks::busy_node),
        ("a_dying_worker_that_is_interrupted_does_not_stop_the_keeper", hooks::interrupted_deaths),
        ("a_worker_gives_way_to_every_ordinary_process", idle::ordinary_processes_come_first),
        (
            "arenas_have_huge_pages_until_they_are_taken_back",
            huge_pages::arenas_have_them_until_they_are_taken_back,
        ),
        ("a_newer_grant_ends_a_hold", hooks::newer_grant),
        ("hostile_hook_peers_are_closed", hooks::hostile_peers),
        ("a_waiting_worker_that_dies_is_replaced", leases::dead_pool),
        ("a_burst_of_leases_is_served", leases::burst),
        ("the_end_leaves_nothing", deaths::orderly_end),
        ("one_keeper_a_node", beginning::second_keeper),
        ("leftovers_are_swept_and_recorded", deaths::leftovers),
        ("a_directory_that_others_may_write_is_refused", beginning::open_directory),
        ("without_root_it_serves_its_own_user", beginning::without_root),
    ];
    let place: &[(&str, fn())] = match Network::inside() {
        None => &[("a_guest_with_cgroup_v2_alone_passes_the_same", guest::passes_the_same)],
        Some(_) => &[("a_lease_has_its_group", guest::lease_has_its_group)],
    };
    let trials = root.iter().chain(place).map(|&(name, test)| {
        let trial = Trial::test(name, move || {
            test();
            Ok::<(), Failed>(())
        });
        trial.with_ignored_flag(!geteuid().is_root() || guest::skips(name))
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

fn gone(bench: &Bench, lease: u64) -> End {
    bench.find(|notice| match *notice {
        Notice::Gone { lease_id, end, .. } if lease_id == lease => Some(end),
        _ => None,
    })
}

fn vacated(bench: &Bench) -> gleaner_proto::vacates::VacateRecord {
    bench.find(|notice| match *notice {
        Notice::Vacated(record) => Some(record),
        _ => None,
    })
}

fn refused(bench: &Bench, order: Order) -> StartRefusal {
    bench.order(order);
    bench.find(|notice| match *notice {
        Notice::StartFailed { refusal, .. } => Some(refusal),
        Notice::Started { .. } => panic!("started"),
        _ => None,
    })
}

/// The hook's message, sent as the hook does.
fn hook(bench: &Bench, kind: HookKind, job_id: u32) -> HookAnswer {
    let peer = bench.dial_hook().unwrap();
    let message = HookMessage { kind, job_id, job_uid: 1000, bound_ms: BOUND_MS };
    sys::send_with_fd(peer.as_fd(), &message.encode(), None).unwrap();
    let mut bytes = [0; 64];
    let len = until("the keeper answers", || sys::recv_with_fd(peer.as_fd(), &mut bytes).ok());
    HookAnswer::decode(&bytes[..len.0]).unwrap()
}
