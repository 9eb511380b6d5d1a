//! A Slurm in memory, for unit tests of the driver: says what it is told to say, and can fail.
//!
//! Passes the same conformance suite as [`super::commands`] (`harvester/tests/slurm.rs`). No daemon uses it.

use std::sync::{Arc, Mutex, PoisonError};

use gleaner_harvester_core::picture::{JobView, NodeView, Picture};

use super::{Slurm, SlurmError};
use crate::clock;

#[derive(Debug, Default)]
struct World {
    nodes: Vec<NodeView>,
    jobs: Vec<JobView>,
    down: bool,
}

/// A handle; clones share one world.
#[derive(Debug, Clone, Default)]
pub struct Fake(Arc<Mutex<World>>);

impl Fake {
    /// Shows these nodes from now on.
    pub fn set_nodes(&self, nodes: Vec<NodeView>) {
        self.with(|world| world.nodes = nodes);
    }

    /// Shows these jobs from now on.
    pub fn set_jobs(&self, jobs: Vec<JobView>) {
        self.with(|world| world.jobs = jobs);
    }

    /// Answers no more (true), or again (false).
    pub fn set_down(&self, down: bool) {
        self.with(|world| world.down = down);
    }

    fn with<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn ask<T>(
        &self,
        command: &'static str,
        act: impl FnOnce(&World) -> T,
    ) -> Result<T, SlurmError> {
        self.with(|world| {
            let late = SlurmError::Late { command, bound_ms: 0 };
            if world.down { Err(late) } else { Ok(act(world)) }
        })
    }
}

impl Slurm for Fake {
    async fn nodes(&self) -> Result<Picture, SlurmError> {
        let asked_ns = clock::now().0;
        let nodes = self.ask("scontrol", |world| world.nodes.clone())?;
        Ok(Picture { nodes, asked_ns, took_us: 0 })
    }

    async fn jobs(&self) -> Result<Vec<JobView>, SlurmError> {
        self.ask("squeue", |world| world.jobs.clone())
    }
}
