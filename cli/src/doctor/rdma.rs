//! RDMA on this machine, and with it the way that calls take: device, port, address, packet size, pinned memory, cgroup.
//!
//! That there is no device is no fault, unless the configuration asks for one.

use std::{fs, path::Path};

use gleaner_config::{Config, Transport};
use gleaner_fabric::rdma::{Adapter, Device, OBJECTS_PER_LINK, Port, RdmaError, Settings, devices};
use nix::sys::resource::{Resource, getrlimit};

use super::Finding;

const DEVICE: &str = "rdma device";
const PINNED: &str = "rdma memory";
const GROUP: &str = "rdma cgroup";
const TRANSPORT: &str = "transport";

/// Below this, a large payload is cut into more packets than it need be.
const PACKET_GOOD: u32 = 4096;
/// The interface's MTU that has room for such packets and their headers.
const INTERFACE_MTU: u32 = 4200;
/// The right to pin memory without a limit.
const CAP_IPC_LOCK: u64 = 14;

/// Looks at it all; what a machine without a device need not have is left out.
pub(super) fn examine(config: &Config) -> Vec<Finding> {
    let asked = config.executor.rdma || config.client.transport == Transport::Rdma;
    let settings = Settings { device: config.rdma.device.clone(), ..Settings::default() };
    let adapter = Adapter::open(&settings);
    let mut findings = match devices() {
        Ok(names) if !names.is_empty() => names.iter().flat_map(|name| device(name)).collect(),
        Ok(_) => vec![none(&RdmaError::NoDevice, asked)],
        Err(error) => vec![none(&error, asked)],
    };
    if findings.iter().any(|finding| finding.health != super::Health::Absent) {
        findings.push(pinned(config));
        findings.push(group(config));
    }
    findings.push(transport(config, &adapter));
    findings
}

/// No device at all. The errors say what helps after a semicolon.
fn none(error: &RdmaError, asked: bool) -> Finding {
    let text = error.to_string();
    let (detail, remedy) = text.split_once("; ").unwrap_or((&text, "see `rdma link`"));
    match asked {
        true => Finding::bad(
            DEVICE,
            format!("{detail}, and the configuration asks for RDMA"),
            format!("{remedy}; or set executor.rdma = false and client.transport = \"auto\""),
        ),
        false => Finding::absent(DEVICE, format!("{detail}: calls from other nodes go by TCP")),
    }
}

fn device(name: &str) -> Vec<Finding> {
    let ports = Device::open(name).and_then(|device| device.ports());
    match ports {
        Ok(ports) => ports.iter().map(|found| port(name, found)).collect(),
        Err(error) => vec![Finding::bad(
            DEVICE,
            format!("{name}: {error}"),
            format!(
                "`ls -l /dev/infiniband`: {name}'s uverbs must be open to all (rdma-core's rules do that; `udevadm trigger`)"
            ),
        )],
    }
}

fn port(device: &str, port: &Port) -> Finding {
    let shown = format!("{device} port {}", port.number);
    let ethernet = link_layer(device, port.number) == "Ethernet";
    let interface = interface(device, port.number);
    let mtu = port.mtu.bytes();
    match (port.active, port.gids.first()) {
        (false, _) if ethernet => Finding::warning(
            DEVICE,
            format!("{shown}: down"),
            format!("`ip link set {interface} up`, or connect its cable"),
        ),
        (false, _) => Finding::warning(
            DEVICE,
            format!("{shown}: down"),
            "connect its cable, and see that a subnet manager runs (`systemctl start opensm` on one node)",
        ),
        (true, None) => Finding::warning(
            DEVICE,
            format!("{shown}: active, without an address (GID)"),
            give_address(&interface),
        ),
        (true, Some(gid)) if ethernet && gid.address.is_link_local() => Finding::warning(
            DEVICE,
            format!("{shown}: active, {} alone: it reaches its own link and no IPv4", gid.address),
            give_address(&interface),
        ),
        (true, Some(gid)) if ethernet && mtu < PACKET_GOOD => Finding::warning(
            DEVICE,
            format!("{shown}: active, {}, packets of {mtu} bytes", gid.address),
            format!(
                "`ip link set {interface} mtu {INTERFACE_MTU}` or more, on all nodes and switches, allows packets of {PACKET_GOOD}"
            ),
        ),
        (true, Some(gid)) => Finding::good(
            DEVICE,
            format!("{shown}: active, {} (GID {}), packets of {mtu} bytes", gid.address, gid.index),
        ),
    }
}

fn give_address(interface: &str) -> String {
    format!("give {interface} an address: `ip addr add ADDRESS/PREFIX dev {interface}`")
}

fn link_layer(device: &str, port: u8) -> String {
    read(format!("/sys/class/infiniband/{device}/ports/{port}/link_layer"))
}

/// The network interface under a port, as far as the kernel tells.
fn interface(device: &str, port: u8) -> String {
    let directory = format!("/sys/class/infiniband/{device}");
    let told = [
        read(format!("{directory}/ports/{port}/gid_attrs/ndevs/0")),
        read(format!("{directory}/parent")),
    ];
    told.into_iter().find(|name| !name.is_empty()).unwrap_or_else(|| "INTERFACE".into())
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// A link's regions are pinned, at both ends. Workers are given their lease's memory by a keeper that is root.
fn pinned(config: &Config) -> Finding {
    let wanted = pinned_bytes(config);
    let limit = match capable(&read("/proc/self/status")) {
        true => u64::MAX,
        false => getrlimit(Resource::RLIMIT_MEMLOCK).map_or(u64::MAX, |(soft, _)| soft),
    };
    if limit >= wanted {
        let limit = if limit == u64::MAX { "no limit".into() } else { format!("limit {limit}") };
        return Finding::good(PINNED, format!("a link pins {wanted} bytes here; {limit}"));
    }
    Finding::warning(
        PINNED,
        format!("a link pins {wanted} bytes, and this user may pin {limit}: calls go by TCP"),
        "`* - memlock unlimited` in /etc/security/limits.d/gleaner.conf and a new login; in Slurm `PropagateResourceLimitsExcept=MEMLOCK` and LimitMEMLOCK=infinity in slurmd.service",
    )
}

/// Both regions of one end: a window of slots, and the arena.
fn pinned_bytes(config: &Config) -> u64 {
    let client = &config.client;
    2 * (u64::from(client.window) * client.slot.0 + client.arena.0)
}

/// Whether `/proc/<pid>/status` shows the right to pin without a limit.
fn capable(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> CAP_IPC_LOCK & 1 == 1)
}

/// Whether this process's groups leave it enough of the device, and whether workers' groups can bound theirs.
fn group(config: &Config) -> Finding {
    let root = Path::new("/sys/fs/cgroup");
    let own = read("/proc/self/cgroup");
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let groups = root.join(own);
    let below = groups.ancestors().take_while(|group| group.starts_with(root));
    for group in below {
        let limits = read(group.join("rdma.max"));
        if let Some(limit) = limits.lines().find(|line| too_few(line)) {
            let name = limit.split(' ').next().unwrap_or_default();
            let file = group.join("rdma.max");
            return Finding::warning(
                GROUP,
                format!(
                    "{} has {limit}; a link needs a handle and {OBJECTS_PER_LINK} objects",
                    file.display()
                ),
                format!("`echo '{name} hca_handle=max hca_object=max' > {}`", file.display()),
            );
        }
    }
    let controllers = read(root.join("cgroup.controllers"));
    match controllers.split(' ').any(|found| found == "rdma") {
        true => Finding::good(GROUP, "enough of the device is left; workers' shares are bounded"),
        false if config.executor.rdma => Finding::warning(
            GROUP,
            "there is no rdma controller of version 2: what a worker takes of the device is not bounded",
            "boot with systemd.unified_cgroup_hierarchy=1, or set executor.rdma = false where functions are not trusted",
        ),
        false => Finding::absent(GROUP, "no rdma controller; it matters where executor.rdma is on"),
    }
}

/// Whether a line of `rdma.max` leaves no room for one link: `rxe0 hca_handle=1 hca_object=max`.
fn too_few(line: &str) -> bool {
    let least = |key: &str, least: u32| {
        let limit = line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        limit.and_then(|limit| limit.parse::<u32>().ok()).is_some_and(|limit| limit < least)
    };
    least("hca_handle", 1) || least("hca_object", OBJECTS_PER_LINK)
}

/// Which way calls from here would take, and why.
fn transport(config: &Config, adapter: &Result<Adapter, RdmaError>) -> Finding {
    const SAME: &str = "shared memory on the executor's own node";
    let served = match config.executor.rdma {
        true => "executors with this configuration serve it",
        false => "executors with this configuration do not (executor.rdma is off)",
    };
    match (config.client.transport, adapter) {
        (Transport::Shm, _) => {
            Finding::good(TRANSPORT, "shared memory alone, as client.transport says")
        }
        (Transport::Tcp, _) => Finding::good(TRANSPORT, "TCP alone, as client.transport says"),
        (Transport::Rdma, Err(error)) => Finding::bad(
            TRANSPORT,
            format!("RDMA alone, as client.transport says, and it cannot be used: {error}"),
            "see the findings on rdma above, or set client.transport = \"auto\"",
        ),
        (wanted, Ok(adapter)) => {
            let ours = adapter.addresses();
            let ours = ours.first().map_or("no address".into(), ToString::to_string);
            let way = format!(
                "RDMA from {} port {} ({ours}) to executors that have an address of that kind; {served}",
                adapter.device.name(),
                adapter.port.number
            );
            Finding::good(
                TRANSPORT,
                match wanted {
                    Transport::Rdma => format!("{way}; nothing else, as client.transport says"),
                    _ => format!("{SAME}; {way}; else TCP"),
                },
            )
        }
        (Transport::Auto, Err(error)) => {
            let why = error.to_string();
            let why = why.split("; ").next().unwrap_or_default();
            Finding::good(TRANSPORT, format!("{SAME}; else TCP ({why})"))
        }
    }
}

#[cfg(test)]
mod tests {
    use gleaner_proto::endpoint::Mtu;

    use super::*;
    use crate::doctor::Health;

    #[test]
    fn a_missing_device_is_a_fault_only_where_it_is_asked_for() {
        let error = RdmaError::NoDevice;
        assert_eq!(none(&error, false).health, Health::Absent);
        let bad = none(&error, true);
        assert_eq!(bad.health, Health::Bad);
        assert!(bad.remedy.expect("a remedy").contains("load its driver"));
        let mut config = Config::default();
        config.client.transport = Transport::Rdma;
        let refused = transport(&config, &Err(RdmaError::NoDevice));
        assert_eq!(refused.health, Health::Bad, "{refused:?}");
        let auto = transport(&Config::default(), &Err(RdmaError::NoDevice));
        assert_eq!(auto.health, Health::Good);
        assert!(
            auto.detail.ends_with(
                "else TCP (no RDMA device: the kernel shows none that speaks InfiniBand or RoCE)"
            ),
            "{}",
            auto.detail
        );
    }

    #[test]
    fn a_port_without_an_address_is_told_how_it_gets_one() {
        let bare = Port { number: 1, active: true, mtu: Mtu::B4096, gids: Vec::new() };
        let found = port("none0", &bare);
        assert_eq!(found.health, Health::Warning);
        assert!(found.detail.contains("without an address"), "{found:?}");
        assert!(found.remedy.expect("a remedy").contains("`ip addr add"));
        let down = port("none0", &Port { active: false, ..bare });
        assert!(down.remedy.expect("a remedy").contains("systemctl start opensm"));
    }

    #[test]
    fn limits_of_a_group_are_read() {
        assert!(too_few("mlx5_0 hca_handle=0 hca_object=max"));
        assert!(too_few("mlx5_0 hca_handle=2 hca_object=5"));
        assert!(!too_few("mlx5_0 hca_handle=1 hca_object=6"));
        assert!(!too_few("mlx5_0 hca_handle=max hca_object=max"));
        assert!(!too_few(""));
    }

    #[test]
    fn the_right_to_pin_is_read() {
        assert!(capable("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(capable("CapEff:\t0000000000004000\n"));
        assert!(!capable("CapEff:\t0000000000000000\n"));
        assert!(!capable(""));
    }
}
