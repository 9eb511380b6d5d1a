//! Reliable connected queue pairs, whose states are types: what a state cannot do does not compile.
//!
//! ```text
//! Reset ──init──▶ Init ──ready_to_receive──▶ ReadyToReceive ──ready_to_send──▶ ReadyToSend
//! (made)          may hold receives          hears the peer                    speaks to it
//! ```
//!
//! A step that fails takes the pair with it. The data path is [`QueuePair::write`] and [`Receives::post`]: one call of the
//! provider's own function each.
// UNSAFETY: calls of libibverbs with pointers that it gave, owned by one value each and given back once.
#![allow(unsafe_code)]

use std::{marker::PhantomData, mem::MaybeUninit, ops::Range, ptr, ptr::NonNull, sync::Arc};

use gleaner_proto::endpoint::{Endpoint, Mtu};
use libc::c_int;

use super::{
    completions::{CompletionQueue, Queue},
    device::{Gid, Port},
    error::RdmaError,
    ffi,
    memory::{Domain, ProtectionDomain, Registered},
};
use crate::tune::POSTS_BATCH;

/// Just made.
#[derive(Debug)]
pub enum Reset {}
/// Takes receives.
#[derive(Debug)]
pub enum Init {}
/// Hears its peer.
#[derive(Debug)]
pub enum ReadyToReceive {}
/// Speaks to its peer.
#[derive(Debug)]
pub enum ReadyToSend {}

/// A queue pair in one of these states.
#[derive(Debug)]
pub struct QueuePair<State> {
    raw: Raw,
    /// Payload of a write that travels in its work request.
    inline_max: u32,
    state: PhantomData<State>,
}

/// Destroyed with the value, whatever state it is in.
#[derive(Debug)]
struct Raw {
    pair: NonNull<ffi::QueuePair>,
    domain: Arc<Domain>,
    /// Kept for as long as the pair uses them.
    _queues: [Arc<Queue>; 2],
}

// SAFETY: the verbs may be called by any thread; this type is not shared, for it is not Sync.
unsafe impl Send for Raw {}

/// How many work requests a pair may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Writes that are not known to have ended.
    pub sends: u32,
    /// Receives that wait for a peer's write.
    pub receives: u32,
    /// Payload to be carried in the request, if the device can.
    pub inline: u32,
}

/// How long a pair tries, in the verbs' units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// Waits 4.096 µs × 2^n for an answer; 0: for ever.
    pub timeout: u8,
    /// Repeats after that, at most 7; Soft-RoCE takes 7 for ever.
    pub retries: u8,
    /// Code of the pause that a peer makes which found no receive here.
    pub no_receive_pause: u8,
    /// Repeats after such pauses; 7: for ever.
    pub no_receive_retries: u8,
}

impl Default for Timers {
    /// Some 67 ms seven times over; a pause of 10 µs, as often as it takes: a full window is no fault.
    fn default() -> Self {
        Self { timeout: 14, retries: 6, no_receive_pause: 1, no_receive_retries: 7 }
    }
}

/// One write into the peer's region.
#[derive(Debug, Clone)]
pub struct Write {
    /// The bytes of our region.
    pub bytes: Range<usize>,
    /// Where they go, from the start of the peer's region.
    pub offset: u64,
    /// What the peer's completion says; without one the peer does not notice.
    pub immediate: Option<u32>,
    /// Asks for a completion with this number.
    pub signal: Option<u64>,
}

/// What writes go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The peer's region.
    pub region: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Its key.
    pub key: u32,
}

impl From<&Endpoint> for Target {
    fn from(peer: &Endpoint) -> Self {
        Self { region: peer.region, bytes: peer.region_bytes, key: peer.key }
    }
}

/// Writes that one post hands over at most; more take several posts.
const CHAIN_MAX: usize = POSTS_BATCH;

impl QueuePair<Reset> {
    /// A new one, whose writes and receives end in these queues. Asks for less inline payload until the device agrees.
    pub fn new(
        domain: &ProtectionDomain,
        sends: &CompletionQueue,
        receives: &CompletionQueue,
        depth: Depth,
    ) -> Result<Self, RdmaError> {
        let domain = Arc::clone(&domain.0);
        let queues = [Arc::clone(&sends.queue), Arc::clone(&receives.queue)];
        let mut inline = depth.inline;
        loop {
            let mut wanted = ffi::QueuePairInit {
                qp_context: ptr::null_mut(),
                send_cq: queues[0].raw.as_ptr(),
                recv_cq: queues[1].raw.as_ptr(),
                srq: ptr::null_mut(),
                cap: ffi::Capacity {
                    max_send_wr: depth.sends,
                    max_recv_wr: depth.receives,
                    max_send_sge: 1,
                    max_recv_sge: 1,
                    max_inline_data: inline,
                },
                qp_type: ffi::QPT_RC,
                sq_sig_all: 0,
            };
            // SAFETY: domain and queues are live, and `wanted` outlives the call.
            let pair = unsafe { (domain.device.verbs.create_qp)(domain.raw.as_ptr(), &mut wanted) };
            if let Some(pair) = NonNull::new(pair) {
                let raw = Raw { pair, domain, _queues: queues };
                let inline_max = wanted.cap.max_inline_data;
                return Ok(Self { raw, inline_max, state: PhantomData });
            }
            if inline == 0 {
                return Err(domain.device.last_failed("make a queue pair"));
            }
            inline /= 2;
        }
    }

    /// Binds it to a port. The peer may write to what is registered for it, and nothing else.
    pub fn init(self, port: &Port) -> Result<QueuePair<Init>, RdmaError> {
        let attributes = ffi::QueuePairAttributes {
            qp_state: ffi::QPS_INIT,
            pkey_index: 0,
            port_num: port.number,
            qp_access_flags: ffi::ACCESS_REMOTE_WRITE,
            ..Default::default()
        };
        let mask = ffi::ATTR_STATE | ffi::ATTR_PKEY_INDEX | ffi::ATTR_PORT | ffi::ATTR_ACCESS_FLAGS;
        self.step("bind a queue pair to its port", attributes, mask)
    }
}

impl QueuePair<Init> {
    /// Connects it to the peer that an endpoint names, with the larger packet that both ports take.
    pub fn ready_to_receive(
        self,
        port: &Port,
        gid: Gid,
        peer: &Endpoint,
        timers: Timers,
    ) -> Result<QueuePair<ReadyToReceive>, RdmaError> {
        let attributes = ffi::QueuePairAttributes {
            qp_state: ffi::QPS_RTR,
            path_mtu: Mtu::min(port.mtu, peer.mtu) as u32,
            dest_qp_num: peer.queue_pair,
            rq_psn: peer.first_packet,
            min_rnr_timer: timers.no_receive_pause,
            ah_attr: route(port, gid, peer),
            ..Default::default()
        };
        let mask = ffi::ATTR_STATE
            | ffi::ATTR_AV
            | ffi::ATTR_PATH_MTU
            | ffi::ATTR_DEST_QPN
            | ffi::ATTR_RQ_PSN
            | ffi::ATTR_MAX_DEST_RD_ATOMIC
            | ffi::ATTR_MIN_RNR_TIMER;
        self.step("connect a queue pair to its peer", attributes, mask)
    }
}

/// How packets get to the peer.
fn route(port: &Port, gid: Gid, peer: &Endpoint) -> ffi::AddressHandle {
    let mut route =
        ffi::AddressHandle { dlid: peer.address.lid, port_num: port.number, ..Default::default() };
    if gid.address.needs_route(&peer.address) {
        route.is_global = 1;
        route.grh.dgid = ffi::Gid(peer.address.gid);
        route.grh.sgid_index = gid.index;
        route.grh.hop_limit = 64;
    }
    route
}

impl QueuePair<ReadyToReceive> {
    /// Lets it send. `first_packet` is what the peer was told.
    pub fn ready_to_send(
        self,
        first_packet: u32,
        timers: Timers,
    ) -> Result<QueuePair<ReadyToSend>, RdmaError> {
        let attributes = ffi::QueuePairAttributes {
            qp_state: ffi::QPS_RTS,
            sq_psn: first_packet,
            timeout: timers.timeout,
            retry_cnt: timers.retries,
            rnr_retry: timers.no_receive_retries,
            ..Default::default()
        };
        let mask = ffi::ATTR_STATE
            | ffi::ATTR_SQ_PSN
            | ffi::ATTR_TIMEOUT
            | ffi::ATTR_RETRY_CNT
            | ffi::ATTR_RNR_RETRY
            | ffi::ATTR_MAX_QP_RD_ATOMIC;
        self.step("let a queue pair send", attributes, mask)
    }
}

impl QueuePair<ReadyToSend> {
    /// Hands a write over to the device. Its bytes are `from`'s and must stay as they are until the peer has them, unless the write is
    /// inline. `Err` with EAGAIN or ENOMEM: the queue is full.
    #[inline(always)]
    pub fn write(&mut self, from: &Registered, to: Target, write: &Write) -> Result<(), RdmaError> {
        let mut part = MaybeUninit::uninit();
        let mut request = MaybeUninit::uninit();
        let request = self.describe(from, to, write, &mut part, &mut request, ptr::null_mut());
        // SAFETY: the one request and its part are here.
        unsafe { self.post(request) }
    }

    /// The same of several, in this order.
    pub fn write_all(
        &mut self,
        from: &Registered,
        to: Target,
        writes: &[Write],
    ) -> Result<(), RdmaError> {
        writes.chunks(CHAIN_MAX).try_for_each(|chunk| {
            let mut requests = [const { MaybeUninit::<ffi::SendRequest>::uninit() }; CHAIN_MAX];
            let mut parts = [const { MaybeUninit::<ffi::ScatterGather>::uninit() }; CHAIN_MAX];
            let mut next = ptr::null_mut();
            // From the last to the first, so that each knows its successor.
            for ((write, request), part) in chunk.iter().zip(&mut requests).zip(&mut parts).rev() {
                next = self.describe(from, to, write, part, request, next);
            }
            // SAFETY: all of the chain and its parts are here.
            unsafe { self.post(next) }
        })
    }

    /// Writes a work request for `write` into `request`, and what it names into `part`.
    #[inline(always)]
    fn describe(
        &self,
        from: &Registered,
        to: Target,
        write: &Write,
        part: &mut MaybeUninit<ffi::ScatterGather>,
        request: &mut MaybeUninit<ffi::SendRequest>,
        next: *mut ffi::SendRequest,
    ) -> *mut ffi::SendRequest {
        let Range { start, end } = write.bytes;
        assert!(start <= end && end <= from.len(), "bytes outside the region");
        let length = (end - start) as u32;
        let addr = from.address() + start as u64;
        let part = part.write(ffi::ScatterGather { addr, length, lkey: from.local_key() });
        let mut send_flags = 0;
        if write.signal.is_some() {
            send_flags |= ffi::SEND_SIGNALED;
        }
        if length <= self.inline_max {
            send_flags |= ffi::SEND_INLINE;
        }
        request.write(ffi::SendRequest {
            wr_id: write.signal.unwrap_or(0),
            next,
            sg_list: part,
            num_sge: c_int::from(length > 0),
            opcode: match write.immediate {
                Some(_) => ffi::WR_RDMA_WRITE_WITH_IMM,
                None => ffi::WR_RDMA_WRITE,
            },
            send_flags,
            imm_data: write.immediate.unwrap_or(0).to_be(),
            remote_addr: to.region.wrapping_add(write.offset),
            rkey: to.key,
            unused: MaybeUninit::uninit(),
        })
    }

    /// Hands over a chain of requests.
    ///
    /// # Safety
    /// [`Self::describe`] wrote them, and they and their parts are there until this returns.
    #[inline]
    unsafe fn post(&mut self, first: *mut ffi::SendRequest) -> Result<(), RdmaError> {
        let mut refused = ptr::null_mut();
        let device = &self.raw.domain.device;
        // SAFETY: the pair is live; requests and parts outlive the call by the caller's word, and it copies them; their bytes
        // lie inside the region that they were described from, and after it is gone its key is refused by the device.
        let code = unsafe { (device.ops().post_send)(self.raw.pair.as_ptr(), first, &mut refused) };
        device.check("post a write", code)
    }

    /// Payload that travels in the request itself.
    pub fn inline_max(&self) -> u32 {
        self.inline_max
    }
}

impl<State> QueuePair<State> {
    /// Its number, which the peer is told.
    pub fn number(&self) -> u32 {
        // SAFETY: the pair is live, and its number does not change.
        unsafe { self.raw.pair.as_ref() }.qp_num
    }

    /// Stops it for good: what it holds is flushed, and a write of its peer is refused.
    pub fn fail(&mut self) {
        let mut attributes =
            ffi::QueuePairAttributes { qp_state: ffi::QPS_ERR, ..Default::default() };
        // SAFETY: the pair is live, and the attributes outlive the call. A pair that cannot is destroyed soon.
        unsafe {
            (self.raw.domain.device.verbs.modify_qp)(
                self.raw.pair.as_ptr(),
                &mut attributes,
                ffi::ATTR_STATE,
            )
        };
    }

    fn step<Next>(
        self,
        step: &'static str,
        mut attributes: ffi::QueuePairAttributes,
        mask: c_int,
    ) -> Result<QueuePair<Next>, RdmaError> {
        let device = &self.raw.domain.device;
        // SAFETY: the pair is live, and the attributes outlive the call.
        let code =
            unsafe { (device.verbs.modify_qp)(self.raw.pair.as_ptr(), &mut attributes, mask) };
        device.check(step, code)?;
        let Self { raw, inline_max, .. } = self;
        Ok(QueuePair { raw, inline_max, state: PhantomData })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once; queues and domain outlive it.
        unsafe { (self.domain.device.verbs.destroy_qp)(self.pair.as_ptr()) };
    }
}

/// A chain of receives that is posted whole, again and again. They have no memory of their own: a write says where it goes.
#[derive(Debug)]
pub struct Receives(Box<[ffi::ReceiveRequest]>);

// SAFETY: the pointers are into the box itself, which moves as one.
unsafe impl Send for Receives {}

impl Receives {
    /// A chain of so many, at least one.
    pub fn new(count: u32) -> Self {
        let one = |_| ffi::ReceiveRequest {
            wr_id: 0,
            next: ptr::null_mut(),
            sg_list: ptr::null_mut(),
            num_sge: 0,
        };
        let mut chain: Box<[_]> = (0..count.max(1)).map(one).collect();
        for at in (1..chain.len()).rev() {
            chain[at - 1].next = &mut chain[at];
        }
        Self(chain)
    }

    /// How many it posts.
    pub fn count(&self) -> u32 {
        self.0.len() as u32
    }

    /// Posts them all.
    #[inline]
    pub fn post<State>(&mut self, pair: &mut QueuePair<State>) -> Result<(), RdmaError> {
        let device = &pair.raw.domain.device;
        let mut refused = ptr::null_mut();
        // SAFETY: the pair is live, and the chain outlives the call, which copies it.
        let code = unsafe {
            (device.ops().post_recv)(pair.raw.pair.as_ptr(), self.0.as_mut_ptr(), &mut refused)
        };
        device.check("post receives", code)
    }
}
