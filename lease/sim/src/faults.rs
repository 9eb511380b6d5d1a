//! What goes wrong: processes stopped, killed and started again, nodes cut off, a database that fails, clocks that change.

use crate::{
    message::Who,
    world::{Event, MS, NODES, World},
};

impl World {
    /// One fault, and when the next one comes. When faults are over, everything is put right again.
    pub(crate) fn fault(&mut self) {
        if self.calm() {
            return self.heal();
        }
        let next = self.rng.u64(100 * MS..1600 * MS);
        let next = (self.now + next).min(crate::world::CALM_AT);
        self.at(next, Event::Fault);
        self.stats.faults += 1;
        match self.rng.u32(0..100) {
            0..30 => self.stop_one(),
            30..62 => self.kill_one(),
            62..72 => self.hurt_a_worker(),
            72..84 => {
                let node = self.rng.usize(0..NODES);
                self.cut_off[node] = !self.cut_off[node];
            }
            84..91 => self.store.failing = !self.store.failing,
            _ => self.change_drift(),
        }
    }

    fn any_process(&mut self) -> Who {
        let which = self.rng.usize(0..Who::all().count());
        let mut all: Vec<Who> = Who::all().collect();
        all.swap_remove(which)
    }

    fn stop_one(&mut self) {
        let who = self.any_process();
        let for_ms = self.rng.u64(20..4000);
        self.stop(who, for_ms);
    }

    fn kill_one(&mut self) {
        let who = self.any_process();
        self.kill(who);
        // An agent is started by its keeper.
        if !matches!(who, Who::Agent(_)) {
            self.after(20, 2500, Event::Start(who));
        }
    }

    fn hurt_a_worker(&mut self) {
        let node = self.rng.usize(0..NODES);
        let Some(lease) = self.nodes[node].workers.keys().next().copied() else { return };
        if self.rng.bool() {
            self.kill_worker(node, lease);
        } else {
            let for_ms = self.rng.u64(20..4000);
            self.stop_worker(node, lease, for_ms);
        }
    }

    fn heal(&mut self) {
        self.cut_off = [false; NODES];
        self.store.failing = false;
    }
}
