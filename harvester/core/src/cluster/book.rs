//! What the lease book of `gleaner-lease` does not hold: whose request a lease answers, for people and for repeats.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use gleaner_lease::{clock::Stamp, issuer::Lease, state::State};
use gleaner_proto::ids::{LeaseId, NodeName, Uid};

use crate::{
    event::{CallId, Usage},
    record::LeaseRecord,
};

/// How long a request whose leases are over is remembered, so that a late repeat leases nothing anew.
const REQUEST_KEPT: Duration = Duration::from_secs(600);
/// A lease's usage is stored at most this often; its last word always is.
const USAGE_EVERY: Duration = Duration::from_secs(5);

/// Who asked, and with which request id.
pub(super) type RequestKey = (Uid, [u8; 16]);

/// One lease, beside the issuer's entry.
#[derive(Debug, Clone)]
pub(super) struct Holder {
    pub(super) node: NodeName,
    pub(super) user: String,
    pub(super) account: String,
    pub(super) client_key: [u8; 32],
    pub(super) created_unix_ms: i64,
    pub(super) usage: Usage,
    usage_stored: Option<Stamp>,
}

/// A request that was not refused, so far.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) client_key: [u8; 32],
    pub(super) nodes_min: usize,
    pub(super) leases: Vec<LeaseId>,
    /// Calls that wait for the store; `None`: it was answered.
    pub(super) waiting: Option<Vec<CallId>>,
    answered: Stamp,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Book {
    holders: BTreeMap<LeaseId, Holder>,
    requests: BTreeMap<RequestKey, Request>,
    by_node: BTreeMap<NodeName, BTreeSet<LeaseId>>,
}

/// The stored leases, for the issuer and for this book.
pub(super) fn restore(records: Vec<LeaseRecord>) -> (Vec<Lease>, Book) {
    let mut book = Book::default();
    let mut leases = Vec::with_capacity(records.len());
    for record in records {
        let key = (record.uid, record.request_id);
        let request = book.requests.entry(key).or_insert_with(|| Request {
            client_key: record.client_key,
            nodes_min: 1,
            leases: Vec::new(),
            waiting: None,
            answered: Stamp(0),
        });
        request.leases.push(record.lease);
        let LeaseRecord { user, account, client_key, created_unix_ms, .. } = record.clone();
        let node = record.node.clone();
        book.add(record.lease, Holder::new(node, user, account, client_key, created_unix_ms));
        leases.push(Lease {
            id: record.lease,
            node: record.node,
            epoch: record.epoch,
            boot: record.boot,
            instance: record.instance,
            uid: record.uid,
            gid: record.gid,
            cores: record.cores,
            memory_bytes: record.memory_bytes,
            expires: record.expires,
            state: State::Live,
            ending: record.ending,
        });
    }
    (leases, book)
}

impl Holder {
    pub(super) fn new(
        node: NodeName,
        user: String,
        account: String,
        client_key: [u8; 32],
        created_unix_ms: i64,
    ) -> Self {
        let usage = Usage::default();
        Self { node, user, account, client_key, created_unix_ms, usage, usage_stored: None }
    }
}

impl Book {
    pub(super) fn add(&mut self, lease: LeaseId, holder: Holder) {
        self.by_node.entry(holder.node.clone()).or_default().insert(lease);
        self.holders.insert(lease, holder);
    }

    pub(super) fn holder(&self, lease: LeaseId) -> Option<&Holder> {
        self.holders.get(&lease)
    }

    /// The leases on a node that are not over.
    pub(super) fn on_node(&self, node: &NodeName) -> impl Iterator<Item = LeaseId> + '_ {
        self.by_node.get(node).into_iter().flatten().copied()
    }

    /// A lease is over.
    pub(super) fn ended(&mut self, lease: LeaseId) {
        let Some(holder) = self.holders.remove(&lease) else { return };
        if let Some(leases) = self.by_node.get_mut(&holder.node) {
            leases.remove(&lease);
            if leases.is_empty() {
                self.by_node.remove(&holder.node);
            }
        }
    }

    /// A lease has used this so far. True if it is to be stored now. Figures only grow.
    pub(super) fn used(&mut self, now: Stamp, lease: LeaseId, usage: Usage) -> bool {
        let Some(holder) = self.holders.get_mut(&lease) else { return false };
        let usage = holder.usage.max(usage);
        let due = holder.usage_stored.is_none_or(|stored| now.since(stored) >= USAGE_EVERY);
        let changed = usage != holder.usage;
        holder.usage = usage;
        if changed && due {
            holder.usage_stored = Some(now);
        }
        changed && due
    }

    pub(super) fn request_mut(&mut self, key: RequestKey) -> Option<&mut Request> {
        self.requests.get_mut(&key)
    }

    pub(super) fn remove_request(&mut self, key: RequestKey) -> Option<Request> {
        self.requests.remove(&key)
    }

    /// A request is being stored.
    pub(super) fn requested(
        &mut self,
        key: RequestKey,
        client_key: [u8; 32],
        nodes_min: usize,
        leases: Vec<LeaseId>,
        call: CallId,
    ) {
        let waiting = Some(vec![call]);
        let request = Request { client_key, nodes_min, leases, waiting, answered: Stamp(0) };
        self.requests.insert(key, request);
    }

    /// A request was stored: who waits, and its leases. From now on repeats are answered at once.
    pub(super) fn answered(
        &mut self,
        now: Stamp,
        key: RequestKey,
    ) -> Option<(Vec<CallId>, usize, Vec<LeaseId>)> {
        let request = self.requests.get_mut(&key)?;
        let waiting = request.waiting.take()?;
        request.answered = now;
        Some((waiting, request.nodes_min, request.leases.clone()))
    }

    /// Forgets requests that were answered long ago and whose leases are over.
    pub(super) fn forget(&mut self, now: Stamp) {
        let holders = &self.holders;
        self.requests.retain(|_, request| {
            request.waiting.is_some()
                || now.since(request.answered) < REQUEST_KEPT
                || request.leases.iter().any(|lease| holders.contains_key(lease))
        });
    }
}

impl Usage {
    /// The larger of each figure: reports may come late or twice.
    fn max(self, other: Self) -> Self {
        Self {
            allocated_core_ns: self.allocated_core_ns.max(other.allocated_core_ns),
            cpu_ns: self.cpu_ns.max(other.cpu_ns),
            executing_ns: self.executing_ns.max(other.executing_ns),
            polling_ns: self.polling_ns.max(other.polling_ns),
            calls: self.calls.max(other.calls),
            memory_peak_bytes: self.memory_peak_bytes.max(other.memory_peak_bytes),
        }
    }
}
