//! Which CPUs a lease's threads are pinned to: always the ones with the fewest threads of other leases. Fixed tables.

use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::Pid,
};

use super::handover::Become;

const CPUS_MAX: usize = 1024;

/// The CPUs that this process may use, and how many of our threads each has.
#[derive(Debug)]
pub(super) struct Cores {
    cpus: [u16; CPUS_MAX],
    threads: [u32; CPUS_MAX],
    len: usize,
}

impl Cores {
    /// The CPUs that the keeper was started on.
    pub(super) fn own() -> nix::Result<Self> {
        let set = sched_getaffinity(Pid::from_raw(0))?;
        let mut cores = Self { cpus: [0; CPUS_MAX], threads: [0; CPUS_MAX], len: 0 };
        for cpu in 0..CpuSet::count().min(CPUS_MAX) {
            if set.is_set(cpu)? {
                cores.cpus[cores.len] = cpu as u16;
                cores.len += 1;
            }
        }
        Ok(cores)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds `count` CPUs to a hand-over, the least used ones first; false if it has no room for them.
    pub(super) fn take(&mut self, count: u32, lease: &mut Become) -> bool {
        (0..count).all(|_| {
            let least = (0..self.len).min_by_key(|&index| self.threads[index]);
            let Some(index) = least else { return false };
            let pushed = lease.push_core(self.cpus[index]);
            self.threads[index] += u32::from(pushed);
            pushed
        })
    }

    /// Gives a lease's CPUs back.
    pub(super) fn give_back(&mut self, lease: &Become) {
        for cpu in lease.cores() {
            if let Some(index) = self.cpus[..self.len].iter().position(|own| own == cpu) {
                self.threads[index] = self.threads[index].saturating_sub(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use gleaner_proto::ids::LeaseId;

    use super::*;

    #[test]
    fn leases_get_their_own_cpus_while_there_are_some() {
        let mut cores = Cores { cpus: [0; CPUS_MAX], threads: [0; CPUS_MAX], len: 3 };
        cores.cpus[..3].copy_from_slice(&[4, 6, 9]);
        let lease = |id| Become::new(LeaseId(id), 1, 1, 0, false);
        let (mut one, mut two, mut three) = (lease(1), lease(2), lease(3));
        assert!(cores.take(2, &mut one) && cores.take(2, &mut two));
        assert_eq!(one.cores(), [4, 6]);
        assert_eq!(two.cores(), [9, 4]);
        cores.give_back(&one);
        assert!(cores.take(1, &mut three));
        assert_eq!(three.cores(), [6]);
        assert!(!cores.take(1000, &mut lease(4)));
    }
}
