//! Looking at Slurm: every period, and at once when the core or a hook says that something changes there.
//!
//! A task of its own, so that a slow Slurm delays nobody. It tells the driver what it saw, and decides nothing but when
//! to look again.

use std::{sync::Arc, time::Duration};

use gleaner_harvester_core::{
    Event,
    picture::{Flags, Picture},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, timeout_at},
};

use crate::{
    slurm::Slurm,
    tune::{FOLLOW_UPS, LOOK_GRACE, LOOK_PAUSE_MAX, LOOK_SHARE, LOOK_SHARE_FOLLOWING},
};

/// The operator's knobs, which may change while the daemon runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    /// Time between two looks.
    pub(crate) period: Duration,
    /// The most time of one look.
    pub(crate) bound: Duration,
}

/// The task's state.
pub(crate) struct Looker<S> {
    pub(crate) slurm: S,
    pub(crate) pace: watch::Receiver<Pace>,
    pub(crate) look_soon: Arc<Notify>,
    pub(crate) looks: mpsc::Sender<Event>,
}

/// What a look says about when to look again.
struct Seen {
    /// What the look cost. Nothing if it failed: waiting for a silent slurmctld is no work, for either side.
    took: Duration,
    /// Some node's state is one that passes by itself.
    changing: bool,
}

impl<S: Slurm> Looker<S> {
    /// Looks until the driver is gone.
    pub(crate) async fn run(self) {
        let mut follow_up = FOLLOW_UPS.len();
        while let Some(seen) = self.look().await {
            let settled = follow_up >= FOLLOW_UPS_MIN && !seen.changing;
            if settled {
                follow_up = FOLLOW_UPS.len();
            }
            let pause = match FOLLOW_UPS.get(follow_up) {
                Some(pause) => (*pause).max(seen.took * LOOK_SHARE_FOLLOWING),
                None => self.pace.borrow().period.max((seen.took * LOOK_SHARE).min(LOOK_PAUSE_MAX)),
            };
            follow_up = (follow_up + 1).min(FOLLOW_UPS.len());
            tokio::select! {
                () = self.look_soon.notified() => follow_up = 0,
                () = tokio::time::sleep(pause) => {}
                () = self.looks.closed() => return,
            }
        }
    }

    /// One look at nodes and jobs, side by side. `None`: the driver is gone.
    async fn look(&self) -> Option<Seen> {
        let began = Instant::now();
        let bound = self.pace.borrow().bound;
        // Slurm's readers keep the bound themselves; this one also holds for what is around them.
        let deadline = began + bound + LOOK_GRACE;
        let late = || format!("no answer within {} ms", bound.as_millis());
        let nodes = async {
            let mut seen = Seen { took: Duration::ZERO, changing: false };
            let event = match timeout_at(deadline, self.slurm.nodes()).await {
                Ok(Ok(picture)) => {
                    seen = Seen { took: began.elapsed(), changing: is_changing(&picture) };
                    Event::Picture(picture)
                }
                Ok(Err(error)) => Event::PictureFailed { error: error.to_string() },
                Err(_) => Event::PictureFailed { error: late() },
            };
            self.looks.send(event).await.ok()?;
            Some(seen)
        };
        let jobs = async {
            match timeout_at(deadline, self.slurm.jobs()).await {
                Ok(Ok(jobs)) => self.looks.send(Event::Jobs(jobs)).await.ok(),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "Slurm's jobs could not be read");
                    Some(())
                }
                Err(_) => Some(()),
            }
        };
        let (seen, jobs) = tokio::join!(nodes, jobs);
        jobs?;
        seen
    }
}

/// So many follow-ups are made whatever they show: a hint may come before Slurm shows its cause.
const FOLLOW_UPS_MIN: usize = 4;

fn is_changing(picture: &Picture) -> bool {
    picture.nodes.iter().any(|node| node.state.flags.contains(Flags::COMPLETING))
}
