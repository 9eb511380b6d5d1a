//! A peer that is no link: a queue pair of its own, connected as a client's would be, which asks for what a link never asks for.
//! Each is refused, and ends that session alone.
// UNSAFETY: a queue pair made by the raw verbs, to do what the safe types cannot express; used by one test and destroyed with it.
#![allow(unsafe_code)]

use std::{mem::MaybeUninit, os::unix::net::UnixStream, ptr, ptr::NonNull};

use gleaner_proto::header::{HEADER_LEN, Header, Immediate};

use super::{
    super::ffi,
    link::{SMALL, ends, request, until_error},
    *,
};
use crate::{Link, LinkError, Side, tune::RECEIVES_BATCH};

const SEND: u32 = 2;
const SEND_WITH_IMM: u32 = 3;
const READ: u32 = 4;
const COMPARE_SWAP: u32 = 5;
const FETCH_ADD: u32 = 6;
/// What it sends first, and how much it may have under way.
const FIRST_PACKET: u32 = 1;
const DEPTH: u32 = 128;
/// What its own memory is full of: a read would change it.
const FILL: u8 = 0xaa;

struct Rogue {
    pair: NonNull<ffi::QueuePair>,
    device: Device,
    memory: Registered,
    queue: CompletionQueue,
    /// The client's end of the lane, as long as it lives.
    _socket: UnixStream,
}

/// What it asks of the worker's memory.
struct Ask {
    opcode: u32,
    length: u32,
    address: u64,
    key: u32,
    immediate: u32,
}

impl Rogue {
    /// One, and the worker's end that it is connected to.
    fn against() -> (Self, RdmaLink) {
        let adapter = Adapter::open(&Settings::default()).unwrap();
        let (device, port, gid) = (&adapter.device, &adapter.port, adapter.port.gids[0]);
        let domain = ProtectionDomain::new(device).unwrap();
        let queue = CompletionQueue::new(device, DEPTH, false).unwrap();
        let mut region = Region::anonymous(SMALL.region_bytes() as usize).unwrap();
        region.bytes_mut().fill(FILL);
        let memory = Registered::new(&domain, region, Access::PeerWrites).unwrap();
        let pair = make(&domain, &queue);
        // SAFETY: just made, and live.
        let number = unsafe { pair.as_ref() }.qp_num;
        let ours = Endpoint {
            address: gid.address,
            mtu: port.mtu,
            queue_pair: number,
            first_packet: FIRST_PACKET,
            region: memory.address(),
            region_bytes: memory.len() as u64,
            key: memory.remote_key(),
        };
        let worker = adapter.prepare(gid, SMALL).unwrap();
        connect(&adapter, pair, gid, &worker.endpoint());
        let (socket, theirs) = UnixStream::pair().unwrap();
        let worker = worker.connect(&ours, Side::Worker, theirs.into()).unwrap();
        let device = device.clone();
        (Self { pair, device, memory, queue, _socket: socket }, worker)
    }

    /// Posts it, and says whether there was room.
    fn post(&mut self, ask: &Ask) -> bool {
        let mut part = ffi::ScatterGather {
            addr: self.memory.address(),
            length: ask.length,
            lkey: self.memory.local_key(),
        };
        // Atomics have two operands where others have the key, and theirs behind.
        let (mut key, mut rest) = (ask.key, [0; 9]);
        if ask.opcode >= COMPARE_SWAP {
            (key, rest[0], rest[1]) = (0, 1, ask.key.into());
        }
        let mut request = ffi::SendRequest {
            wr_id: 0,
            next: ptr::null_mut(),
            sg_list: &mut part,
            num_sge: i32::from(ask.length > 0),
            opcode: ask.opcode,
            send_flags: ffi::SEND_SIGNALED,
            imm_data: ask.immediate.to_be(),
            remote_addr: ask.address,
            rkey: key,
            unused: MaybeUninit::new(rest),
        };
        let mut refused = ptr::null_mut();
        let ops = self.device.0.ops();
        // SAFETY: the pair is live; the request is copied by the call, and its bytes outlive the pair.
        unsafe { (ops.post_send)(self.pair.as_ptr(), &mut request, &mut refused) == 0 }
    }

    /// What came of it.
    fn ask(&mut self, ask: &Ask) -> Result<(), WorkStatus> {
        assert!(self.post(ask), "there is room");
        next(&mut self.queue).result()
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once, before its queue and memory.
        unsafe { (self.device.0.verbs.destroy_qp)(self.pair.as_ptr()) };
    }
}

fn make(domain: &ProtectionDomain, queue: &CompletionQueue) -> NonNull<ffi::QueuePair> {
    let mut wanted = ffi::QueuePairInit {
        qp_context: ptr::null_mut(),
        send_cq: queue.queue.raw.as_ptr(),
        recv_cq: queue.queue.raw.as_ptr(),
        srq: ptr::null_mut(),
        cap: ffi::Capacity {
            max_send_wr: DEPTH,
            max_recv_wr: 1,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_data: 0,
        },
        qp_type: ffi::QPT_RC,
        sq_sig_all: 0,
    };
    let domain = &domain.0;
    // SAFETY: domain and queue are live, and `wanted` outlives the call.
    let pair = unsafe { (domain.device.verbs.create_qp)(domain.raw.as_ptr(), &mut wanted) };
    NonNull::new(pair).unwrap()
}

/// Brings it up, with all that an initiator may have: what is refused, the worker's end refuses.
fn connect(adapter: &Adapter, pair: NonNull<ffi::QueuePair>, gid: Gid, worker: &Endpoint) {
    let port = &adapter.port;
    let mut route =
        ffi::AddressHandle { port_num: port.number, is_global: 1, ..Default::default() };
    route.grh.dgid = ffi::Gid(worker.address.gid);
    (route.grh.sgid_index, route.grh.hop_limit) = (gid.index, 64);
    let init = ffi::QueuePairAttributes {
        qp_state: ffi::QPS_INIT,
        port_num: port.number,
        ..Default::default()
    };
    let receive = ffi::QueuePairAttributes {
        qp_state: ffi::QPS_RTR,
        path_mtu: port.mtu as u32,
        dest_qp_num: worker.queue_pair,
        rq_psn: worker.first_packet,
        min_rnr_timer: 1,
        ah_attr: route,
        ..Default::default()
    };
    let send = ffi::QueuePairAttributes {
        qp_state: ffi::QPS_RTS,
        sq_psn: FIRST_PACKET,
        timeout: 14,
        retry_cnt: 6,
        rnr_retry: 7,
        max_rd_atomic: 1,
        ..Default::default()
    };
    let of_init = ffi::ATTR_PKEY_INDEX | ffi::ATTR_PORT | ffi::ATTR_ACCESS_FLAGS;
    let of_receive = ffi::ATTR_AV
        | ffi::ATTR_PATH_MTU
        | ffi::ATTR_DEST_QPN
        | ffi::ATTR_RQ_PSN
        | ffi::ATTR_MAX_DEST_RD_ATOMIC
        | ffi::ATTR_MIN_RNR_TIMER;
    let of_send = ffi::ATTR_SQ_PSN
        | ffi::ATTR_TIMEOUT
        | ffi::ATTR_RETRY_CNT
        | ffi::ATTR_RNR_RETRY
        | ffi::ATTR_MAX_QP_RD_ATOMIC;
    for (mut attributes, mask) in [(init, of_init), (receive, of_receive), (send, of_send)] {
        let modify = adapter.device.0.verbs.modify_qp;
        // SAFETY: the pair is live, and the attributes outlive the call.
        let code = unsafe { modify(pair.as_ptr(), &mut attributes, mask | ffi::ATTR_STATE) };
        assert_eq!(code, 0, "state {}", attributes.qp_state);
    }
}

fn of_incoming(worker: &RdmaLink, opcode: u32, length: u32) -> Ask {
    let incoming = &worker.parts.incoming;
    let (address, key) = (incoming.address(), incoming.remote_key());
    Ask { opcode, length, address, key, immediate: 0 }
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_peer_reads_nothing_and_counts_nothing() {
    for opcode in [READ, COMPARE_SWAP, FETCH_ADD] {
        let (mut rogue, mut worker) = Rogue::against();
        let ask = of_incoming(&worker, opcode, 8);
        assert!(rogue.ask(&ask).is_err(), "operation {opcode} was carried out");
        assert!(rogue.memory.bytes().iter().all(|byte| *byte == FILL), "{opcode}");
        assert!(worker.parts.incoming.bytes().iter().all(|byte| *byte == 0), "{opcode}");
        assert!(matches!(until_error(&mut worker), LinkError::QueuePair(_)), "{opcode}");
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn what_an_end_sends_from_is_nobody_s_to_write() {
    let (mut rogue, mut worker) = Rogue::against();
    let outgoing = &worker.parts.outgoing;
    let (address, key) = (outgoing.address(), outgoing.remote_key());
    let ask = Ask { opcode: ffi::WR_RDMA_WRITE, length: 64, address, key, immediate: 0 };
    assert_eq!(rogue.ask(&ask), Err(WorkStatus::REMOTE_ACCESS));
    assert!(worker.parts.outgoing.bytes().iter().all(|byte| *byte == 0));
    assert!(matches!(until_error(&mut worker), LinkError::QueuePair(_)));
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_send_is_no_message() {
    for opcode in [SEND, SEND_WITH_IMM] {
        let (mut rogue, mut worker) = Rogue::against();
        // A whole header lies where the immediate says, written as a message's would be, but it is not one.
        rogue.memory.bytes_mut()[..HEADER_LEN].copy_from_slice(&request().encode());
        rogue.ask(&of_incoming(&worker, ffi::WR_RDMA_WRITE, HEADER_LEN as u32)).unwrap();
        let immediate = Immediate::Headed { block: 0, generation: 1 }.encode();
        rogue.ask(&Ask { immediate, ..of_incoming(&worker, opcode, 0) }).unwrap();
        let error = until_error(&mut worker);
        assert!(matches!(error, LinkError::NoImmediate), "{opcode}: {error}");
    }
}

/// It keeps no window. What the worker has no receive for waits at the rogue's own device.
#[test]
#[ignore = "needs an RDMA device"]
fn a_flood_waits_where_it_comes_from() {
    let (mut rogue, mut worker) = Rogue::against();
    let (mut other, mut served) = ends(SMALL);
    rogue.memory.bytes_mut()[..HEADER_LEN].copy_from_slice(&request().encode());
    let immediate = Immediate::Headed { block: 0, generation: 1 }.encode();
    let opcode = ffi::WR_RDMA_WRITE_WITH_IMM;
    let message = Ask { immediate, ..of_incoming(&worker, opcode, HEADER_LEN as u32) };
    let mut posted = 0;
    while posted < DEPTH && rogue.post(&message) {
        posted += 1;
    }
    for call in 1..=100 {
        let header = Header { invocation: call, ..request() };
        other.post(SMALL.slot(0), &header).unwrap();
        served.wait(PATIENCE).unwrap();
        assert_eq!(served.poll().unwrap().unwrap().header.invocation, call);
    }
    // A window in whole batches of receives, and the batch that is being used up.
    let batch = RECEIVES_BATCH as usize;
    let room = usize::from(SMALL.window).next_multiple_of(batch) + batch;
    let mut taken = [Completion::default(); DEPTH as usize];
    let count = rogue.queue.poll(&mut taken).unwrap();
    assert!(count <= room, "{count} of {posted} were taken by an end that has not looked");
    let until = Instant::now() + PATIENCE;
    for arrived in 0..posted {
        while worker.poll().unwrap().is_none() {
            assert!(Instant::now() < until, "{arrived} of {posted} arrived");
        }
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_peer_with_another_region_is_refused() {
    let adapter = Adapter::open(&Settings::default()).unwrap();
    let end = || adapter.prepare(adapter.port.gids[0], SMALL).unwrap();
    let (ours, theirs) = (end(), end().endpoint());
    let larger = Endpoint { region_bytes: theirs.region_bytes + 64, ..theirs };
    let (socket, _other) = UnixStream::pair().unwrap();
    let refused = ours.connect(&larger, Side::Worker, socket.into()).unwrap_err();
    assert!(refused.to_string().contains("a region of another size"), "{refused}");
}
