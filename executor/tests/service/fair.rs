//! Whose call is served when: by the functions' own count, never by a clock.

use std::time::Duration;

use gleaner::{Function, Pool, Request};

use super::{PATIENCE, Service, functions, request};

/// How many turns of calls the quiet sessions send ahead.
const TURNS: usize = 8;

/// One session keeps a window of 32 full, `quiet` others send a few calls each, all to one lane that is busy until the last call
/// is there. Returns for each quiet session when its calls were served, counting from 1 over all sessions.
pub(crate) fn served_beside_a_flood(
    service: &Service,
    over: impl Fn(Request) -> Request,
    quiet: usize,
) -> Vec<Vec<u64>> {
    let client = service.client();
    let flood = client.acquire(over(request()).window(32)).unwrap();
    let node = flood.leases()[0].node.clone();
    let share = flood.share();
    let join = |_| client.join(&share, over(request()).window(TURNS as u16)).unwrap();
    let others: Vec<Pool> = (0..quiet).map(join).collect();
    let counter = |pool| Pool::function(pool, &functions(), "counter").unwrap();
    let counters: Vec<Function<'_>> = others.iter().map(counter).collect();
    let flooding = counter(&flood);
    let spin = flood.function(&functions(), "spin").unwrap();
    let busy = spin.submit(&nanos(PATIENCE)).unwrap();
    service.wait_started(&node);
    let under_way: Vec<_> = (1..32).map(|_| flooding.submit(b"").unwrap()).collect();
    let waiting: Vec<Vec<_>> = counters
        .iter()
        .map(|counter| (0..TURNS).map(|_| counter.submit(b"").unwrap()).collect())
        .collect();
    assert!(!busy.is_done(), "every call waits behind it");
    busy.cancel(PATIENCE);
    let number = |reply: Vec<u8>| u64::from_le_bytes(reply.try_into().unwrap());
    let served = waiting.into_iter().map(|calls| {
        calls.into_iter().map(|ticket| number(ticket.wait().unwrap())).collect::<Vec<u64>>()
    });
    let served = served.collect();
    under_way.into_iter().for_each(|ticket| drop(ticket.wait().unwrap()));
    served
}

/// Between two calls of a quiet session lies at most one of each other session.
pub(crate) fn assert_turns(served: &[Vec<u64>]) {
    let sessions = served.len() as u64 + 1;
    for one in served {
        assert_eq!(one.len(), TURNS);
        let mut before = 0;
        for at in one {
            assert!(at - before <= sessions, "more than one call each of others: {served:?}");
            before = *at;
        }
    }
}

fn nanos(time: Duration) -> [u8; 8] {
    (time.as_nanos() as u64).to_le_bytes()
}
