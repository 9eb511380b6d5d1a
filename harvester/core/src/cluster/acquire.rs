//! Clients ask for leases: check, choose, reserve, persist, reply.

use std::time::Duration;

use gleaner_lease::{
    issuer::{self, Draft, Lease, ReserveError},
    state::{EndReason, State},
    token::{Claims, NodeDigest},
};
use gleaner_proto::ids::{LeaseId, NodeName};

use super::{
    Core, Turn,
    book::{Holder, RequestKey},
    storing::Then,
};
use crate::{
    effect::{Leased, Need, Reply},
    event::{Acquire, Identity},
    moment::Span,
    policy::Mode,
    record::{LeaseRecord, Record},
    refusal::{NoRoom, Refusal},
};

/// The most nodes that one request may ask for.
pub(super) const NODES_MAX: u32 = 4096;

impl Core {
    pub(super) fn on_acquire(&mut self, turn: &mut Turn<'_>, acquire: Acquire) {
        let call = acquire.call;
        let key = (acquire.who.uid, acquire.request_id);
        if let Err(refusal) = check(&acquire) {
            return turn.reply(call, Err(refusal));
        }
        match self.book.request_mut(key) {
            Some(known) if known.client_key != acquire.client_key => {
                turn.reply(call, Err(Refusal::RequestReused));
            }
            Some(known) => match &mut known.waiting {
                Some(waiting) => waiting.push(call),
                None => {
                    let leases = known.leases.clone();
                    let result = self.repeat(turn, &leases);
                    turn.reply(call, result);
                }
            },
            None => {
                if let Err(refusal) = self.acquire(turn, &acquire, key) {
                    turn.reply(call, Err(refusal));
                }
            }
        }
    }

    fn acquire(
        &mut self,
        turn: &mut Turn<'_>,
        acquire: &Acquire,
        key: RequestKey,
    ) -> Result<(), Refusal> {
        self.allowed(turn, acquire)?;
        let at_most = self.within_quota(acquire)?;
        let survey = self.survey(turn, acquire);
        let drafts = self.reserve(turn, acquire, &survey.fitting, at_most)?;
        let wanted = acquire.nodes_min as usize;
        if drafts.len() < wanted {
            drafts.iter().for_each(|draft| self.issuer.abandon(draft.lease.id));
            let fitting = u32::try_from(drafts.len()).unwrap_or(u32::MAX);
            return Err(Refusal::NoRoom(Box::new(NoRoom { fitting, ..survey.no_room })));
        }
        let records =
            drafts.iter().map(|draft| Record::Lease(record(turn, acquire, &draft.lease))).collect();
        let leases: Vec<LeaseId> = drafts.iter().map(|draft| draft.lease.id).collect();
        for Draft { lease, .. } in drafts {
            let Identity { user, .. } = acquire.who.clone();
            let (account, client_key) = (acquire.account.clone(), acquire.client_key);
            self.book
                .add(lease.id, Holder::new(lease.node, user, account, client_key, turn.wall_ms));
        }
        self.book.requested(key, acquire.client_key, wanted, leases, acquire.call);
        self.persist(turn, records, Need::Store, Then::Leases(key));
        Ok(())
    }

    /// Whether anything may be leased to this caller now.
    fn allowed(&self, turn: &Turn<'_>, acquire: &Acquire) -> Result<(), Refusal> {
        let accounts = &self.policy.accounts;
        if !accounts.is_empty() && !accounts.contains(&acquire.account) {
            let allowed = accounts.iter().cloned().collect::<Vec<_>>().join(", ");
            return Err(Refusal::Account { account: acquire.account.clone(), allowed });
        }
        if let Some(off) = &self.switched_off {
            return Err(Refusal::SwitchedOff { reason: off.reason.clone() });
        }
        if !self.slurm.fresh(turn.now, &self.policy) {
            let age = self.slurm.asked.map(|asked| Span(turn.now.since(asked)).to_string());
            let error = self.slurm.error.clone().unwrap_or_else(|| "no answer yet".into());
            return Err(Refusal::Stale {
                age: age.unwrap_or_else(|| "as long as the harvester runs".into()),
                max: Span(self.policy.picture_max_age).to_string(),
                error,
            });
        }
        self.offered(&acquire.partition)?;
        if self.policy.mode == Mode::Observe {
            return Err(Refusal::Observing { would: self.would_grant(turn, &acquire.partition) });
        }
        Ok(())
    }

    /// How many nodes the caller's quota leaves for this request.
    fn within_quota(&self, acquire: &Acquire) -> Result<usize, Refusal> {
        let mine = |lease: &&Lease| lease.uid == acquire.who.uid && lease.state != State::Ending;
        let (mut cores, mut leases) = (0_u32, 0_u32);
        for lease in self.issuer.leases().filter(mine) {
            cores = cores.saturating_add(lease.cores);
            leases += 1;
        }
        let user = || acquire.who.user.clone();
        let mut at_most = acquire.nodes_max;
        if let Some(quota) = self.policy.leases_per_user {
            let wanted = acquire.nodes_min;
            at_most = at_most.min(quota.saturating_sub(leases));
            if at_most < wanted {
                return Err(Refusal::QuotaLeases { user: user(), held: leases, quota, wanted });
            }
        }
        if let Some(quota) = self.policy.cores_per_user {
            let left = quota.saturating_sub(cores);
            at_most = at_most.min(left / acquire.cores);
            if at_most < acquire.nodes_min {
                let wanted = acquire.nodes_min.saturating_mul(acquire.cores);
                return Err(Refusal::QuotaCores { user: user(), held: cores, quota, wanted, left });
            }
        }
        Ok(at_most as usize)
    }

    /// Sets slices aside on the first nodes that take them.
    fn reserve(
        &mut self,
        turn: &Turn<'_>,
        acquire: &Acquire,
        nodes: &[NodeName],
        at_most: usize,
    ) -> Result<Vec<Draft>, Refusal> {
        let request = issuer::Request {
            uid: acquire.who.uid,
            gid: acquire.who.gid,
            cores: acquire.cores,
            memory_bytes: acquire.memory_bytes,
            ttl: acquire.ttl.min(self.policy.lease_ttl_max),
            client_key: acquire.client_key,
        };
        let mut drafts = Vec::new();
        for name in nodes {
            if drafts.len() == at_most {
                break;
            }
            match self.issuer.reserve(turn.now, name, &request) {
                Ok(draft) => drafts.push(draft),
                Err(ReserveError::NoGrant(_) | ReserveError::Room { .. }) => {}
                Err(ReserveError::Numbers) => {
                    drafts.iter().for_each(|draft: &Draft| self.issuer.abandon(draft.lease.id));
                    let error = self.store.error.clone();
                    let error = error.unwrap_or_else(|| "it has not answered yet".into());
                    return Err(Refusal::Numbers { error });
                }
            }
        }
        Ok(drafts)
    }

    /// The store has answered: the leases go live and everybody who waits is told, or they never were.
    pub(super) fn leases_answered(
        &mut self,
        turn: &mut Turn<'_>,
        key: RequestKey,
        result: Result<(), String>,
    ) {
        let Some((waiting, nodes_min, leases)) = self.book.answered(turn.now, key) else { return };
        let answer = match result {
            Ok(()) => self.go_live(turn, &leases, nodes_min),
            Err(error) => {
                for lease in &leases {
                    self.issuer.abandon(*lease);
                    self.book.ended(*lease);
                }
                self.book.remove_request(key);
                Err(Refusal::Store { error })
            }
        };
        for call in waiting {
            turn.reply(call, answer.clone());
        }
    }

    /// All that were not overtaken by a vacate, if they are enough; else none.
    fn go_live(
        &mut self,
        turn: &mut Turn<'_>,
        leases: &[LeaseId],
        nodes_min: usize,
    ) -> Result<Reply, Refusal> {
        let reserved = |core: &Self, id: &LeaseId| {
            core.issuer.lease(*id).is_some_and(|lease| lease.state == State::Reserved)
        };
        let (kept, mut lost): (Vec<LeaseId>, Vec<LeaseId>) =
            leases.iter().copied().partition(|id| reserved(self, id));
        let first_lost =
            lost.first().and_then(|id| Some((*id, self.book.holder(*id)?.node.clone())));
        let enough = kept.len() >= nodes_min;
        if !enough {
            kept.iter().for_each(|id| self.issuer.abandon(*id));
            lost.extend(&kept);
        }
        for id in lost {
            self.overtaken(turn, id);
        }
        match first_lost {
            Some((lease, node)) if !enough => Err(Refusal::Overtaken { lease, node }),
            _ => Ok(Reply::Leases(kept.iter().filter_map(|id| self.confirm(turn, *id)).collect())),
        }
    }

    /// A stored lease that nobody is told of.
    fn overtaken(&mut self, turn: &mut Turn<'_>, lease: LeaseId) {
        self.book.ended(lease);
        let (reason, unix_ms) = (EndReason::BatchJob, turn.wall_ms);
        let detail = "ended before it was given".to_owned();
        turn.records.push(Record::LeaseEnded { lease, reason, detail, unix_ms });
    }

    fn confirm(&mut self, turn: &Turn<'_>, id: LeaseId) -> Option<Leased> {
        let safe_for = self.issuer.persisted(turn.now, id).ok()?;
        let lease = self.issuer.lease(id)?.clone();
        self.touched.insert(lease.node.clone());
        self.leased(&lease, safe_for)
    }

    /// The same request again: the leases of it that are not over.
    fn repeat(&self, turn: &Turn<'_>, leases: &[LeaseId]) -> Result<Reply, Refusal> {
        let live = |lease: &&Lease| lease.state == State::Live;
        let live: Vec<&Lease> =
            leases.iter().filter_map(|id| self.issuer.lease(*id)).filter(live).collect();
        if live.is_empty() {
            return Err(Refusal::RequestOver);
        }
        let again = |lease: &Lease| {
            let safe_for = self.issuer.safe_for(turn.now, lease);
            self.leased(lease, safe_for)
                .ok_or_else(|| Refusal::Rejoining { node: lease.node.clone() })
        };
        live.into_iter().map(again).collect::<Result<Vec<_>, _>>().map(Reply::Leases)
    }

    /// A lease as its client is told of it; `None` while its executor is not known.
    fn leased(&self, lease: &Lease, safe_for: Duration) -> Option<Leased> {
        let executor = &self.nodes.get(&lease.node)?.executor.as_ref()?.join;
        let claims = Claims {
            lease: lease.id,
            uid: lease.uid,
            gid: lease.gid,
            epoch: lease.epoch,
            expires: lease.expires,
            boot: lease.boot,
            memory_bytes: lease.memory_bytes,
            cores: lease.cores,
            term: self.term,
            client_key: self.book.holder(lease.id)?.client_key,
            node: NodeDigest::of(&lease.node),
        };
        Some(Leased {
            claims,
            node: lease.node.clone(),
            address: executor.address.clone(),
            local_socket: executor.local_socket.clone(),
            executor_key: executor.public_key,
            safe_for,
        })
    }
}

/// Whether the request's figures make sense.
fn check(acquire: &Acquire) -> Result<(), Refusal> {
    let bad = |field, value: String, remedy| Err(Refusal::Invalid { field, value, remedy });
    if acquire.nodes_min == 0 || acquire.nodes_min > NODES_MAX {
        return bad("nodes_min", acquire.nodes_min.to_string(), "ask for 1 to 4096 nodes");
    }
    if acquire.nodes_max < acquire.nodes_min {
        return bad("nodes_max", acquire.nodes_max.to_string(), "it must be at least nodes_min");
    }
    if acquire.cores == 0 {
        return bad("cores", "0".into(), "ask for at least 1 core on each node");
    }
    if acquire.ttl.is_zero() {
        return bad("ttl", "0".into(), "ask for at least 1 ms");
    }
    Ok(())
}

fn record(turn: &Turn<'_>, acquire: &Acquire, lease: &Lease) -> LeaseRecord {
    LeaseRecord {
        lease: lease.id,
        request_id: acquire.request_id,
        node: lease.node.clone(),
        epoch: lease.epoch,
        uid: lease.uid,
        gid: lease.gid,
        user: acquire.who.user.clone(),
        account: acquire.account.clone(),
        cores: lease.cores,
        memory_bytes: lease.memory_bytes,
        client_key: acquire.client_key,
        expires: lease.expires,
        boot: lease.boot,
        instance: lease.instance,
        ending: lease.ending,
        created_unix_ms: turn.wall_ms,
    }
}
