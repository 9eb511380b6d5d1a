//! What the core shows of itself.

use std::time::Duration;

use gleaner_lease::{clock::Stamp, state::State};
use gleaner_proto::ids::{Epoch, JobId, NodeName};

use super::{Core, judge, node::Node};
use crate::{
    record::CoreCounts,
    view::{LeaseInfo, NodeInfo, Status},
};

impl Core {
    /// The cluster in figures.
    pub fn status(&self, now_ns: u64) -> Status {
        let now = Stamp(now_ns);
        let mut status = Status {
            mode: self.policy.mode.as_str(),
            switched_off: self.switched_off.is_some(),
            term: self.term,
            nodes_total: 0,
            leases_live: count(
                self.issuer.leases().filter(|lease| lease.state == State::Live).count(),
            ),
            executors: count(self.conns.len()),
            picture_age_ms: self.slurm.asked.map(|asked| millis(now.since(asked))),
            picture_took_us: self.slurm.took_us,
            slurm_error: self.slurm.error.clone(),
            vacates: self.vacates,
            warnings: self.warnings.clone(),
            ..Status::default()
        };
        for node in self.nodes.values() {
            let cores = node.recorded.unwrap_or_default();
            status.nodes_total += u32::from(node.view.is_some());
            status.nodes_idle += u32::from(judge::slurm_idle(node).is_ok());
            status.nodes_opted_in += u32::from(node.opted_in);
            status.nodes_granted += u32::from(cores.granted > 0);
            status.nodes_leased += u32::from(cores.leased > 0);
            status.cores_granted += cores.granted;
            status.cores_leased += cores.leased;
        }
        status
    }

    /// Every node that Slurm or an executor names, or those listed.
    pub fn nodes(&self, now_ns: u64, wall_ms: i64, only: Option<&[NodeName]>) -> Vec<NodeInfo> {
        let now = Stamp(now_ns);
        match only {
            None => {
                self.nodes.iter().map(|(name, node)| self.show(now, wall_ms, name, node)).collect()
            }
            Some(names) => {
                let known = names.iter().filter_map(|name| self.nodes.get_key_value(name));
                known.map(|(name, node)| self.show(now, wall_ms, name, node)).collect()
            }
        }
    }

    /// The leases that are not over.
    pub fn leases(&self, now_ns: u64) -> Vec<LeaseInfo> {
        let now = Stamp(now_ns);
        let shown = self.issuer.leases().filter(|lease| lease.state != State::Reserved);
        shown
            .filter_map(|lease| {
                let holder = self.book.holder(lease.id)?;
                Some(LeaseInfo {
                    lease: lease.id,
                    node: lease.node.clone(),
                    uid: lease.uid,
                    user: holder.user.clone(),
                    account: holder.account.clone(),
                    cores: lease.cores,
                    memory_bytes: lease.memory_bytes,
                    state: lease.state.as_str(),
                    created_unix_ms: holder.created_unix_ms,
                    expires_in_ms: millis(self.issuer.safe_for(now, lease)),
                    end_reason: lease.ending,
                    usage: holder.usage,
                })
            })
            .collect()
    }

    fn show(&self, now: Stamp, wall_ms: i64, name: &NodeName, node: &Node) -> NodeInfo {
        let view = node.view.as_ref();
        let join = node.executor.as_ref().map(|executor| &executor.join);
        let CoreCounts { granted, leased, .. } = node.recorded.unwrap_or_default();
        let (state, reason) = self.state(now, wall_ms, name, node);
        let idle_at = node.plan.idle_at.filter(|_| !node.plan.unlimited);
        let idle_in_ms =
            idle_at.map(|at| at.unix_s.saturating_mul(1000).saturating_sub(wall_ms).max(0));
        NodeInfo {
            name: name.clone(),
            slurm_state: view.map_or_else(String::new, |view| view.state.to_string()),
            partitions: view.map_or_else(Vec::new, |view| view.partitions.clone()),
            opted_in: node.opted_in,
            state,
            reason,
            cores: view.map_or(0, |view| view.cpus),
            memory_bytes: view.map_or(0, |view| view.real_memory_mb << 20),
            cores_granted: granted,
            cores_leased: leased,
            epoch: self.issuer.node(name).map_or(Epoch(0), |book| book.epoch),
            idle_ms: node.idle_since.map(|since| millis(now.since(since))),
            executor: node.conn().is_some(),
            executor_version: join.map_or_else(String::new, |join| join.version.clone()),
            limitations: join.map_or_else(Vec::new, |join| join.limitations.clone()),
            expected_idle_in_ms: idle_in_ms.map(i64::unsigned_abs),
            hold_job: node.holds.job().unwrap_or(JobId(0)),
        }
    }

    /// What Gleaner does with a node, and why not more.
    fn state(
        &self,
        now: Stamp,
        wall_ms: i64,
        name: &NodeName,
        node: &Node,
    ) -> (&'static str, String) {
        let book = self.issuer.node(name);
        let held = book.filter(|book| book.held_until.is_some_and(|until| until > now));
        let verdict = self.judge(now, wall_ms, name, node);
        let reason =
            verdict.err().map_or_else(String::new, |why| self.explain(why, now, name, node));
        match (held.map(|book| book.state), verdict) {
            (Some(State::Live), Ok(())) if held.is_some_and(|book| book.leases > 0) => {
                ("leased", reason)
            }
            (Some(State::Live), Ok(())) => ("granted", reason),
            (Some(State::Live | State::Ending), Err(_)) => ("vacating", reason),
            (_, Err(why)) => (why.word(), reason),
            (_, Ok(())) if node.conn().is_none() => {
                ("no-executor", "no executor has joined for it".into())
            }
            (_, Ok(())) => ("grantable", "its grant is being made".into()),
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
