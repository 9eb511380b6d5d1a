//! `status`, `nodes`, `leases`: looking.

use gleaner::harvester::types;
use gleaner_proto::hostlist;

use crate::{
    arguments::{Common, Leases, Nodes},
    connect::client,
    exit::{Code, Failure},
    figures::{bytes, moment, nanoseconds, or_dash, span_ms},
    output, view,
};

/// The cluster at a glance.
pub(crate) fn status(common: &Common) -> Result<(), Failure> {
    let (client, _) = client(common)?;
    let status = client.harvester().status(types::GetStatusRequest {})?;
    output::print(common.json, "status", &view::Status::from(status), status_text);
    Ok(())
}

fn status_text(status: &view::Status) -> String {
    let mode = match (status.switched_off, status.mode.as_str()) {
        (true, _) => "switched off (`gleaner on` ends it)".to_owned(),
        (false, "observe") => {
            "observe (nothing is taken; policy.mode = \"enforce\" changes that)".to_owned()
        }
        (false, mode) => mode.to_owned(),
    };
    let seen = status.picture_age_ms.and_then(|age| i64::try_from(age).ok());
    let slurm = match (&status.slurm_error, seen) {
        (Some(error), _) => format!("not readable: {error}"),
        (None, Some(age)) => {
            let took = nanoseconds(status.picture_took_us * 1000);
            format!("seen {} ago, read in {took}", span_ms(age))
        }
        (None, None) => "not seen yet".into(),
    };
    let uptime = i64::try_from(status.uptime_ms).unwrap_or(i64::MAX);
    let mut pairs = vec![
        ("cluster", status.cluster.clone()),
        ("harvester", format!("{} up {}, term {}", status.version, span_ms(uptime), status.term)),
        ("mode", mode),
        ("slurm", slurm),
        (
            "records",
            status
                .store_error
                .clone()
                .map_or_else(|| "being stored".into(), |e| format!("NOT stored: {e}")),
        ),
        (
            "nodes",
            format!(
                "{} in Slurm, {} idle, {} opted in, {} executors",
                status.nodes_total, status.nodes_idle, status.nodes_opted_in, status.executors
            ),
        ),
        ("harvested", format!("{} nodes, {} cores", status.nodes_granted, status.cores_granted)),
        (
            "leased",
            format!(
                "{} nodes, {} cores, {} leases",
                status.nodes_leased, status.cores_leased, status.leases_live
            ),
        ),
        ("vacates", status.vacates.to_string()),
    ];
    pairs.extend(status.warnings.iter().map(|warning| ("policy", format!("WARNING: {warning}"))));
    output::pairs(&pairs)
}

/// Each node, what Gleaner does with it, and why.
pub(crate) fn nodes(common: &Common, nodes: &Nodes) -> Result<(), Failure> {
    let nodelist = nodes.nodelist.clone().unwrap_or_default();
    hostlist::expand(&nodelist).map_err(|error| Failure::new(Code::Local, error.to_string()))?;
    let (client, _) = client(common)?;
    let reply = client.harvester().nodes(types::ListNodesRequest { nodelist })?;
    let nodes: Vec<_> = reply.nodes.into_iter().map(view::Node::from).collect();
    output::print(common.json, "nodes", &nodes, |nodes| {
        let header = [
            "NODE", "SLURM", "GLEANER", ">CORES", ">GRANTED", ">LEASED", ">MEMORY", ">IDLE", "WHY",
        ];
        output::table(&header, nodes.iter().map(node_row))
    });
    Ok(())
}

fn node_row(node: &view::Node) -> Vec<String> {
    let mut why: Vec<String> = node.reason.iter().cloned().collect();
    if let Some(job) = node.hold_job_id {
        why.push(format!("held for job {job}"));
    }
    if let Some(ms) = node.expected_idle_in_ms.and_then(|ms| i64::try_from(ms).ok()) {
        why.push(format!("expected idle in {}", span_ms(ms)));
    }
    why.extend(node.limitations.iter().cloned());
    let idle = node.idle_ms.and_then(|ms| i64::try_from(ms).ok()).unwrap_or(-1);
    vec![
        node.name.clone(),
        node.slurm_state.clone(),
        node.state.clone(),
        node.cores.to_string(),
        node.cores_granted.to_string(),
        node.cores_leased.to_string(),
        bytes(node.memory_bytes),
        span_ms(idle),
        or_dash(&why.join("; ")),
    ]
}

/// Leases, live or ended.
pub(crate) fn leases(common: &Common, leases: &Leases) -> Result<(), Failure> {
    let (client, _) = client(common)?;
    let request = types::ListLeasesRequest { ended: leases.ended, limit: leases.limit };
    let reply = client.harvester().leases(request)?;
    let leases: Vec<_> = reply.leases.into_iter().map(view::Lease::from).collect();
    output::print(common.json, "leases", &leases, |leases| match leases.as_slice() {
        [] => "no leases".into(),
        leases => {
            let header = [
                ">LEASE", "NODE", "USER", "ACCOUNT", ">CORES", ">MEMORY", "STATE", "SINCE",
                ">LEFT", ">CALLS", ">CPU", "END",
            ];
            output::table(&header, leases.iter().map(lease_row))
        }
    });
    Ok(())
}

fn lease_row(lease: &view::Lease) -> Vec<String> {
    let left = lease.expires_in_ms.and_then(|ms| i64::try_from(ms).ok()).unwrap_or(-1);
    let usage = lease.usage.as_ref();
    let end: Vec<&str> =
        [&lease.end_reason, &lease.end_detail].into_iter().flatten().map(String::as_str).collect();
    vec![
        lease.lease_id.to_string(),
        lease.node.clone(),
        if lease.user.is_empty() { lease.uid.to_string() } else { lease.user.clone() },
        or_dash(lease.account.as_deref().unwrap_or_default()),
        lease.cores.to_string(),
        bytes(lease.memory_bytes),
        lease.state.clone(),
        moment(lease.created_unix_ms),
        span_ms(left),
        usage.map_or_else(|| "-".into(), |usage| usage.calls.to_string()),
        usage.map_or_else(|| "-".into(), |usage| nanoseconds(usage.cpu_ns)),
        or_dash(&end.join(": ")),
    ]
}
