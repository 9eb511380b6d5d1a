//! Which transport a session takes by itself, and what is said where the one that was asked for cannot be had.

use std::{fs, os::unix::net::UnixListener, path::PathBuf};

use gleaner::{Options, Transport, Transports};

use crate::{
    host::{Host, by, run},
    service::{functions, verbs::all_held},
};

const FORCED: Transports = Transports::Only(Transport::Rdma);

/// Which transport is chosen under these options; a call must come back by it.
fn chosen(options: Options) -> Transport {
    let client = gleaner::Client::connect(options).unwrap();
    let pool = client.acquire(by(Transports::Auto)).unwrap();
    let echo = pool.function(&functions(), "echo").unwrap();
    assert_eq!(echo.invoke(b"there and back").unwrap(), b"there and back");
    pool.leases()[0].transport
}

/// What is said where RDMA is asked for and cannot be had.
fn refusal(options: Options) -> String {
    let client = gleaner::Client::connect(options).unwrap();
    client.acquire(by(FORCED)).err().unwrap().to_string()
}

/// TCP is taken, and who insists is told this.
fn falls_back(options: &Options, why: &str) {
    assert_eq!(chosen(options.clone()), Transport::Tcp, "{why}");
    let refused = refusal(options.clone());
    assert!(refused.contains(why), "{refused}");
}

fn with_device(host: &Host, device: &str) -> Options {
    let mut options = host.options();
    options.rdma.device = Some(device.to_owned());
    options
}

#[test]
#[ignore = "needs another machine"]
fn rdma_where_both_ends_have_a_device() {
    let mut host = Host::start("rxe0", "n1");
    let (here, there) = (all_held(), host.ask("held"));
    let wanted = by(Transports::Auto).payload_max(100_000);
    let pool = host.client().acquire(wanted).unwrap();
    assert_eq!(pool.leases()[0].transport, Transport::Rdma);
    assert_eq!(all_held()[0], here[0] + 1, "a queue pair of ours");
    let echo = pool.function(&functions(), "echo").unwrap();
    for len in [0usize, 1, 4000, 100_000] {
        let input = vec![len as u8 ^ 0x5a; len];
        let reply = echo.clone().reply_capacity(len as u32).invoke(&input).unwrap();
        assert!(reply == input, "{len} bytes come back as they went");
    }
    pool.release().unwrap();
    assert_eq!(all_held(), here);
    host.wait_until_held(&there);
}

#[test]
#[ignore = "needs another machine"]
fn shared_memory_on_the_executor_s_own_node() {
    let mut host = Host::start("rxe0", "n1");
    assert_eq!(host.ask("call"), "Shm");
    let elsewhere = host.client().acquire(by(Transports::Only(Transport::Shm))).err().unwrap();
    assert!(elsewhere.to_string().contains("is not on this node"), "{elsewhere}");
}

#[test]
#[ignore = "needs another machine"]
fn rdma_where_the_executor_s_socket_is_here_by_name_alone() {
    let mut host = Host::start("rxe0", "n1");
    let socket = PathBuf::from(host.ask("socket n1"));
    fs::create_dir_all(socket.parent().unwrap()).unwrap();
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists(), "left behind: nobody listens");
    assert_eq!(chosen(host.options()), Transport::Rdma);
}

#[test]
#[ignore = "needs another machine"]
fn tcp_where_the_executor_does_not_serve_it() {
    let host = Host::start("off", "n1");
    falls_back(&host.options(), "executor.rdma is off there");
}

#[test]
#[ignore = "needs another machine"]
fn tcp_where_no_port_is_up_there() {
    let mut host = Host::start("rxe0", "n1");
    host.ask(&format!("shell {FAR_AWAY}"));
    drop(host);
    let host = Host::start("rxe1", "n1");
    falls_back(&host.options(), "no port of its device is active");
}

#[test]
#[ignore = "needs another machine"]
fn tcp_where_no_packet_finds_its_way() {
    let host = Host::start("rxe0", "n1");
    run(&format!("{FAR_AWAY}; ip link set far up"));
    falls_back(&with_device(&host, "rxe1"), "node n1");
    run("ip link set far down");
}

#[test]
#[ignore = "needs another machine"]
fn tcp_where_no_port_is_up_here() {
    let host = Host::start("rxe0", "n1");
    run(FAR_AWAY);
    falls_back(&with_device(&host, "rxe1"), "rxe1 has no active port");
}

/// A device whose address the other machine has no route to. It stays, down: an interface is not gone before each process
/// that has opened its device has let go.
const FAR_AWAY: &str = "ip link show far >/dev/null 2>&1 || { ip link add far type dummy; \
     ip addr add 10.55.0.1/24 dev far; ip link set far mtu 4200; }; \
     rdma link show rxe1/1 >/dev/null 2>&1 || rdma link add rxe1 type rxe netdev far";
