//! Round trips for callgrind: both ends in one thread, by turns, so that the count is that of client and worker together. An end
//! looks for a message when it is there, as far as a pause can tell: a spinner's instructions would count time.

use std::{thread, time::Duration};

use anyhow::Result;
use gleaner_fabric::Link;

use crate::{
    link,
    peer::Role,
    raw::{Load, verbs},
};

/// Longer than a write takes, there and through the kernel's software.
const PAUSE: Duration = Duration::from_millis(1);

/// Over verbs alone, as the baseline does it.
pub fn over_verbs(load: Load, trips: u64) -> Result<()> {
    let (mut client, mut worker) = verbs::pair::<Settled>(load)?;
    let (request, mut reply) = (vec![7; load.request], vec![0; load.reply()]);
    for number in 0..trips {
        client.request(load.work, &request, number as u32)?;
        pause();
        worker.serve_one(load)?;
        pause();
        client.reply(&mut reply, number as u32)?;
    }
    Ok(())
}

/// Over Gleaner's link.
pub fn over_link(load: Load, trips: u64) -> Result<()> {
    let (mut client, mut worker) = link::pair(load)?;
    // One at a time: always the same slot, as it is with a lane.
    let mut expected = link::expected(client.geometry(), 0);
    let (request, mut reply) = (vec![7; load.request], vec![0; load.reply()]);
    for _ in 0..trips {
        expected.begin(expected.invocation() + 1, 0);
        link::request(&mut client, load.work, &mut expected, &request)?;
        pause();
        while !link::serve(&mut worker, load)? {
            pause();
        }
        pause();
        while !link::reply(&mut client, &expected, &mut reply)? {
            pause();
        }
    }
    // Dropped, they would poll until all is confirmed: for longer on one day than on another.
    std::mem::forget((client, worker));
    Ok(())
}

fn pause() {
    thread::sleep(PAUSE);
}

/// Waits by pausing.
struct Settled;

impl verbs::Wait for Settled {
    const ROLE: Role = Role::Polled;

    fn wait(_: &mut gleaner_fabric::rdma::CompletionQueue) -> Result<()> {
        pause();
        Ok(())
    }
}
