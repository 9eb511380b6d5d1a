//! The records from which a report is computed, and the computation itself as the record's text defines it.

use std::{collections::BTreeMap, time::Duration};

use gleaner_harvester_core::{
    Event,
    event::Trigger,
    record::{CoreCounts, Record, Transition},
};
use gleaner_proto::ids::{NodeName, Term};

use crate::world::{WALL_MS, World, name};

/// Core-milliseconds of each kind, and the watched milliseconds, by the definition in `record.rs`.
fn report(records: &[Record]) -> ([i64; 5], i64) {
    let mut ends = BTreeMap::<Term, i64>::new();
    let mut rows = BTreeMap::<(Option<NodeName>, Term), Vec<(i64, [i64; 5])>>::new();
    for record in records {
        match record {
            Record::Alive { term, unix_ms } => {
                let end = ends.entry(*term).or_insert(*unix_ms);
                *end = (*end).max(*unix_ms);
            }
            Record::Watch { term, unix_ms, gap } => {
                let end = ends.entry(*term).or_insert(*unix_ms);
                *end = (*end).max(*unix_ms);
                rows.entry((None, *term))
                    .or_default()
                    .push((*unix_ms, [i64::from(gap.is_none()), 0, 0, 0, 0]));
            }
            Record::Transition(Transition { node, term, unix_ms, cores }) => {
                let CoreCounts { total, idle, grantable, granted, leased } = *cores;
                let cores = [total, idle, grantable, granted, leased].map(i64::from);
                rows.entry((Some(node.clone()), *term)).or_default().push((*unix_ms, cores));
            }
            _ => {}
        }
    }
    let (mut sums, mut watched) = ([0; 5], 0);
    for ((node, term), rows) in rows {
        for (at, (from, cores)) in rows.iter().enumerate() {
            let until = rows.get(at + 1).map_or(ends[&term], |next| next.0);
            let length = (until - from).max(0);
            match node {
                Some(_) => {
                    sums.iter_mut().zip(cores).for_each(|(sum, cores)| *sum += cores * length)
                }
                None => watched += cores[0] * length,
            }
        }
    }
    (sums, watched)
}

/// Lets seconds pass as a driver does: a look, heartbeats, ticks.
fn live(world: &mut World, seconds: u64, seen: bool) {
    for _ in 0..seconds {
        world.pass(Duration::from_secs(1));
        if seen {
            world.look();
        }
        let nodes: Vec<String> = world.executors.keys().map(ToString::to_string).collect();
        nodes.iter().for_each(|node| drop(world.beat(node)));
        world.tick();
    }
}

#[test]
fn idle_grantable_harvested_and_leased_core_seconds() {
    let mut world = World::seen(crate::world::policy(), &["n1", "n2"]);
    live(&mut world, 10, true);
    world.join("n1");
    live(&mut world, 10, true);
    let lease = world.lease(1, 3).unwrap().remove(0);
    live(&mut world, 10, true);
    let epoch = world.executors[&name("n1")].epoch;
    assert_eq!(epoch, lease.claims.epoch);
    world.starting("n1", 7);
    world.vacated("n1", Trigger::Prolog, epoch, 7);
    world.set("n1", "ALLOCATED");
    live(&mut world, 10, true);
    let (sums, watched) = report(&world.stored);
    assert_eq!(world.wall_ms() - WALL_MS, 40_000);
    let near = |figure: i64, expected: i64| (figure - expected).abs() <= 4 * 1_000;
    assert!(near(sums[0], 2 * 4 * 40_000), "total {sums:?}");
    assert!(
        near(sums[1], 4 * 40_000 + 4 * 30_000 + 4_000),
        "idle: n1 shows allocated a second late {sums:?}"
    );
    assert!(near(sums[2], 4 * 40_000 + 4 * 30_000), "grantable {sums:?}");
    assert!(near(sums[3], 4 * 19_000), "harvested, from the first heartbeat on {sums:?}");
    assert_eq!(sums[4], 3 * 10_000, "leased {sums:?}");
    assert_eq!(watched, 40_000);
}

#[test]
fn what_slurm_did_not_show_is_a_gap_and_counts_as_nothing() {
    let mut world = World::granted(&["n1"]);
    live(&mut world, 10, true);
    world.tell(Event::PictureFailed { error: "slurmctld is down".into() });
    live(&mut world, 30, false);
    world.look();
    live(&mut world, 10, true);
    let (sums, watched) = report(&world.stored);
    assert!(
        (29_000..=31_500).contains(&watched),
        "10 s, 10 s on the last picture, 10 s: {watched}"
    );
    assert!((sums[1] - 4 * watched).abs() <= 4 * 500, "{sums:?}");
    let why = world.stored.iter().find_map(|record| match record {
        Record::Watch { gap: Some(why), .. } if why.contains("slurmctld") => Some(why.clone()),
        _ => None,
    });
    assert_eq!(why.as_deref(), Some("Slurm could not be read: slurmctld is down"));
}

#[test]
fn what_a_killed_harvester_did_not_see_is_not_counted() {
    let mut world = World::granted(&["n1"]);
    live(&mut world, 12, true);
    world.pass(Duration::from_secs(100));
    world.restart();
    world.look();
    live(&mut world, 12, true);
    let (sums, watched) = report(&world.stored);
    assert!((20_000..=24_100).contains(&watched), "{watched}");
    assert!(sums[1] <= 4 * 24_100, "{sums:?}");
}
