//! The service `Cluster`: what anybody who is known may look at.

use gleaner_harvester_core::view::{LeaseInfo, NodeInfo};
use gleaner_proto::{
    hostlist,
    v1::{self, cluster_server::Cluster},
};
use tonic::{Request, Response, Status};

use super::{Service, convert};
use crate::{
    clock,
    store::{EndedLease, Gap, Report, StoreError, StoredVacate},
    tune::CALL_BOUND,
};

#[tonic::async_trait]
impl Cluster for Service {
    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::Status>, Status> {
        let known = self.auth.check("Cluster/GetStatus", &request).await?;
        let status = self.driver.status().await?;
        let age = status.picture_age_ms.map(|age| i64::try_from(age).unwrap_or(i64::MAX));
        let reply = v1::Status {
            cluster: self.cluster.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            mode: status.mode.into(),
            switched_off: status.switched_off,
            term: status.term.0,
            uptime_ms: convert::milliseconds(self.began.elapsed()),
            nodes_total: status.nodes_total,
            nodes_idle: status.nodes_idle,
            nodes_opted_in: status.nodes_opted_in,
            nodes_granted: status.nodes_granted,
            nodes_leased: status.nodes_leased,
            cores_granted: status.cores_granted,
            cores_leased: status.cores_leased,
            leases_live: status.leases_live,
            executors: status.executors,
            picture_age_ms: age.unwrap_or(-1),
            picture_took_us: status.picture_took_us,
            slurm_error: status.slurm_error.unwrap_or_default(),
            store_error: self.store.error().unwrap_or_default(),
            vacates: status.vacates,
            warnings: status.warnings,
        };
        self.auth.answer(&known, reply).await
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesReply>, Status> {
        let known = self.auth.check("Cluster/ListNodes", &request).await?;
        let nodelist = request.into_inner().nodelist;
        let only = if nodelist.is_empty() {
            None
        } else {
            let names = hostlist::expand(&nodelist);
            Some(names.map_err(|bad| Status::invalid_argument(bad.to_string()))?)
        };
        let nodes = self.driver.nodes(only).await?;
        let nodes = nodes.into_iter().map(node).collect();
        self.auth.answer(&known, v1::ListNodesReply { nodes }).await
    }

    async fn list_leases(
        &self,
        request: Request<v1::ListLeasesRequest>,
    ) -> Result<Response<v1::ListLeasesReply>, Status> {
        let known = self.auth.check("Cluster/ListLeases", &request).await?;
        let v1::ListLeasesRequest { ended, limit } = request.into_inner();
        let limit = if limit == 0 { u32::MAX } else { limit };
        let mut leases: Vec<_> = self.driver.leases().await?.into_iter().map(lease).collect();
        if ended {
            let read = bounded(self.store.ended_leases(limit)).await?;
            leases.extend(read.into_iter().map(ended_lease));
        }
        leases.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        self.auth.answer(&known, v1::ListLeasesReply { leases }).await
    }

    async fn get_report(
        &self,
        request: Request<v1::GetReportRequest>,
    ) -> Result<Response<v1::Report>, Status> {
        let known = self.auth.check("Cluster/GetReport", &request).await?;
        let v1::GetReportRequest { since_unix_ms, until_unix_ms } = request.into_inner();
        let now = clock::unix_ms();
        let until = if until_unix_ms == 0 { now } else { until_unix_ms.min(now) };
        if since_unix_ms > until {
            return Err(Status::invalid_argument(format!(
                "the period begins at {since_unix_ms} and ends at {until} (Unix milliseconds): it must begin before it ends"
            )));
        }
        let term = self.driver.term().await?;
        let made = bounded(self.store.report(since_unix_ms, until, term)).await?;
        self.auth.answer(&known, report(made)).await
    }
}

/// A read of the store, which may take no longer than any call.
async fn bounded<T>(read: impl Future<Output = Result<T, StoreError>>) -> Result<T, Status> {
    match tokio::time::timeout(CALL_BOUND, read).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Status::unavailable(error.to_string())),
        Err(_) => Err(Status::deadline_exceeded(format!(
            "the records could not be read within {} s: ask for a shorter period",
            CALL_BOUND.as_secs()
        ))),
    }
}

fn node(node: NodeInfo) -> v1::Node {
    let signed =
        |value: Option<u64>| value.map_or(-1, |value| i64::try_from(value).unwrap_or(i64::MAX));
    v1::Node {
        name: node.name.to_string(),
        slurm_state: node.slurm_state,
        partitions: node.partitions,
        opted_in: node.opted_in,
        state: node.state.into(),
        reason: node.reason,
        cores: node.cores,
        memory_bytes: node.memory_bytes,
        cores_granted: node.cores_granted,
        cores_leased: node.cores_leased,
        grant_epoch: node.epoch.0,
        idle_ms: signed(node.idle_ms),
        executor: node.executor,
        executor_version: node.executor_version,
        limitations: node.limitations,
        expected_idle_in_ms: signed(node.expected_idle_in_ms),
        hold_job_id: node.hold_job.0,
    }
}

fn lease(lease: LeaseInfo) -> v1::LeaseInfo {
    v1::LeaseInfo {
        lease_id: lease.lease.0,
        node: lease.node.to_string(),
        uid: lease.uid.0,
        user: lease.user,
        account: lease.account,
        cores: lease.cores,
        memory_bytes: lease.memory_bytes,
        state: lease.state.into(),
        created_unix_ms: lease.created_unix_ms,
        ended_unix_ms: 0,
        expires_in_ms: i64::try_from(lease.expires_in_ms).unwrap_or(i64::MAX),
        end_reason: lease.end_reason.map_or(0, |reason| reason as i32),
        end_detail: String::new(),
        usage: Some(convert::usage_out(lease.usage)),
    }
}

fn ended_lease(lease: EndedLease) -> v1::LeaseInfo {
    v1::LeaseInfo {
        lease_id: lease.lease.0,
        node: lease.node.to_string(),
        uid: lease.uid.0,
        user: lease.user,
        account: lease.account,
        cores: lease.cores,
        memory_bytes: lease.memory_bytes,
        state: gleaner_lease::state::State::Ended.as_str().into(),
        created_unix_ms: lease.created_unix_ms,
        ended_unix_ms: lease.ended_unix_ms,
        expires_in_ms: 0,
        end_reason: lease.end_reason.map_or(0, |reason| reason as i32),
        end_detail: lease.end_detail,
        usage: Some(convert::usage_out(lease.usage)),
    }
}

fn report(report: Report) -> v1::Report {
    v1::Report {
        since_unix_ms: report.since_unix_ms,
        until_unix_ms: report.until_unix_ms,
        coverage: report.coverage,
        total_core_seconds: report.total_s,
        idle_core_seconds: report.idle_s,
        grantable_core_seconds: report.grantable_s,
        harvested_core_seconds: report.harvested_s,
        leased_core_seconds: report.leased_s,
        executed_core_seconds: report.executed_s,
        executing_core_seconds: report.executing_s,
        polling_core_seconds: report.polling_s,
        calls: report.calls,
        leases: report.leases,
        vacates: report.vacates.into_iter().map(vacate).collect(),
        gaps: report.gaps.into_iter().map(gap).collect(),
    }
}

fn gap(gap: Gap) -> v1::Gap {
    let Gap { from_unix_ms, until_unix_ms, why } = gap;
    v1::Gap { from_unix_ms, until_unix_ms, why }
}

fn vacate(vacate: StoredVacate) -> v1::VacateInfo {
    v1::VacateInfo {
        unix_ms: vacate.unix_ms,
        node: vacate.node.to_string(),
        trigger: vacate.trigger.map_or(0, |trigger| trigger as i32),
        job_id: vacate.job.0,
        leases: vacate.leases,
        processes: vacate.processes,
        steps: Some(convert::steps_out(vacate.steps)),
        grant_epoch: vacate.epoch.0,
        hook_us: vacate.hook_us,
    }
}
