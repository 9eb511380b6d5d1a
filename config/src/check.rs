//! What must hold between the values, once each of them is well-formed.
//!
//! Called by `load` after all sources are merged. Looks at nothing outside the configuration: whether a node or partition
//! exists is Slurm's to say, and the harvester's and `gleaner doctor`'s to report.

use std::{net::SocketAddr, time::Duration};

use gleaner_proto::hostlist;

use crate::{
    sections::Config,
    value::{Auth, Mode},
};

/// A broken rule: the key it is reported at, what is wrong, and the remedy.
pub(crate) struct Broken {
    pub(crate) key: &'static str,
    pub(crate) why: String,
    pub(crate) remedy: String,
}

/// Shortest time that a period or a deadline may be set to: below it a daemon would only be busy with itself.
const PERIOD_MIN: Duration = Duration::from_millis(10);

/// Heartbeats that must fit a grant: one lost message must not cost the node.
const HEARTBEATS_PER_GRANT: u32 = 3;

/// Every rule that the configuration breaks.
pub(crate) fn broken_rules(config: &Config) -> Vec<Broken> {
    let mut broken = Vec::new();
    single_user_stays_on_loopback(config, &mut broken);
    opt_ins(config, &mut broken);
    periods(config, &mut broken);
    addresses(config, &mut broken);
    sizes(config, &mut broken);
    rdma(config, &mut broken);
    broken
}

fn report(broken: &mut Vec<Broken>, key: &'static str, why: String, remedy: impl Into<String>) {
    broken.push(Broken { key, why, remedy: remedy.into() });
}

fn single_user_stays_on_loopback(config: &Config, broken: &mut Vec<Broken>) {
    if config.cluster.auth != Auth::SingleUser {
        return;
    }
    let mut check = |key, address: SocketAddr| {
        if !address.ip().is_loopback() {
            let why = format!(
                "{address} is reachable from other machines, and single-user mode asks nobody who they are"
            );
            let remedy = format!(
                "listen on \"127.0.0.1:{}\", or use cluster.auth = \"munge\"",
                address.port()
            );
            report(broken, key, why, remedy);
        }
    };
    check("harvester.listen", config.harvester.listen);
    check("executor.listen", config.executor.listen);
}

fn opt_ins(config: &Config, broken: &mut Vec<Broken>) {
    let policy = &config.policy;
    let none =
        policy.partitions.is_empty() && policy.nodes.is_empty() && policy.features.is_empty();
    if policy.mode == Mode::Enforce && none {
        report(
            broken,
            "policy.mode",
            "\"enforce\" with no node opted in takes nothing".into(),
            "name policy.partitions, policy.nodes or policy.features",
        );
    }
    for list in &policy.nodes {
        match hostlist::expand(list) {
            Err(error) => report(
                broken,
                "policy.nodes",
                error.to_string(),
                "write it as `scontrol show hostlist` does, as \"n[1-64]\"",
            ),
            Ok(names) if names.is_empty() => {
                report(broken, "policy.nodes", "an empty text names no node".into(), "remove it")
            }
            Ok(_) => {}
        }
    }
    let lists = [
        ("policy.partitions", &policy.partitions),
        ("policy.features", &policy.features),
        ("policy.accounts", &policy.accounts),
        ("policy.admins", &policy.admins),
    ];
    for (key, list) in lists {
        let blank = |name: &&String| name.is_empty() || name.contains(char::is_whitespace);
        if let Some(name) = list.iter().find(blank) {
            report(
                broken,
                key,
                format!("{name:?} is no name"),
                "names are not empty and have no spaces",
            );
        }
    }
}

fn periods(config: &Config, broken: &mut Vec<Broken>) {
    let periods = [
        ("harvester.heartbeat", config.harvester.heartbeat),
        ("slurm.poll", config.slurm.poll),
        ("slurm.timeout", config.slurm.timeout),
        ("policy.lease_ttl_max", config.policy.lease_ttl_max),
        ("client.connect_timeout", config.client.connect_timeout),
        ("client.timeout", config.client.timeout),
        ("client.ttl", config.client.ttl),
    ];
    for (key, period) in periods {
        if period < PERIOD_MIN {
            let why = format!("{} is too short", humantime::format_duration(period));
            report(broken, key, why, "give at least \"10ms\"");
        }
    }
    let least = config.harvester.heartbeat * HEARTBEATS_PER_GRANT;
    if config.policy.grant_ttl < least {
        let why = format!(
            "{} is less than {HEARTBEATS_PER_GRANT} heartbeats, so one lost message would cost the node",
            humantime::format_duration(config.policy.grant_ttl)
        );
        let remedy = format!(
            "give at least \"{}\", or a shorter harvester.heartbeat",
            humantime::format_duration(least)
        );
        report(broken, "policy.grant_ttl", why, remedy);
    }
}

fn addresses(config: &Config, broken: &mut Vec<Broken>) {
    if !is_host_port(&config.harvester.address) {
        let why = format!("{:?} is no host and port", config.harvester.address);
        report(broken, "harvester.address", why, "give HOST:PORT, as \"head:7817\"");
    }
    let names = [
        ("cluster.name", &config.cluster.name),
        ("harvester.user", &config.harvester.user),
        ("executor.user", &config.executor.user),
        ("executor.worker_user", &config.executor.worker_user),
    ];
    for (key, name) in names {
        if name.trim().is_empty() {
            report(broken, key, "it is empty".into(), "give a name");
        }
    }
    if config.executor.worker_user == "root" {
        report(
            broken,
            "executor.worker_user",
            "users' functions would run as root".into(),
            "name a user without rights, as \"nobody\"",
        );
    }
}

fn is_host_port(text: &str) -> bool {
    text.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

/// What InfiniBand can say.
fn rdma(config: &Config, broken: &mut Vec<Broken>) {
    let (mtu, retries) = (config.rdma.mtu, config.rdma.retries);
    if !(mtu.is_power_of_two() && (256..=4096).contains(&mtu)) {
        let why = format!("{mtu} is no packet size of InfiniBand");
        report(broken, "rdma.mtu", why, "give 256, 512, 1024, 2048 or 4096");
    }
    if retries > 7 {
        let why = format!("{retries} is more than a device counts");
        report(broken, "rdma.retries", why, "give 0 to 7");
    }
}

fn sizes(config: &Config, broken: &mut Vec<Broken>) {
    let positive = [
        ("executor.cores", config.executor.cores),
        ("policy.cores_per_user", config.policy.cores_per_user),
        ("policy.leases_per_user", config.policy.leases_per_user),
        ("client.window", Some(config.client.window)),
    ];
    for (key, number) in positive {
        if number == Some(0) {
            report(broken, key, "0 would allow nothing".into(), "give at least 1");
        }
    }
}
