//! A harvester as small as one can be: the real gRPC services over the real book, and a policy of "everything".
//!
//! It grants every executor that joins all that it has, leases to whoever asks, stores nothing, and lets a test take nodes
//! back or fall silent.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, mpsc as std_mpsc},
    thread::JoinHandle,
    time::Duration,
};

use ed25519_dalek::{SigningKey, VerifyingKey};
use gleaner_executor::sys;
use gleaner_identity::{Auth, Authority};
use gleaner_lease::{
    clock::{BootId, Instance, Stamp},
    issuer::{Beat, Issuer, Join, Limits, Numbers, Request},
    state::{EndReason, State},
};
use gleaner_proto::{
    PROTOCOL,
    credential::{CREDENTIAL_KEY, registered_digest, reply_digest, request_digest},
    ids::{Epoch, LeaseId, NodeName, Term, Uid},
    v1::{
        self, AcquireReply, AcquireRequest, FromExecutor, ReleaseReply, ReleaseRequest, ToExecutor,
        executors_server::{Executors, ExecutorsServer},
        from_executor,
        leases_server::{Leases, LeasesServer},
        to_executor,
    },
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request as Call, Response, Status, Streaming};

/// How often executors send heartbeats, and how long their grants last without.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(50);
pub(crate) const GRANT_TTL: Duration = Duration::from_secs(5);

type Reply = Result<ToExecutor, Status>;

struct Executor {
    stream: mpsc::Sender<Reply>,
    register: v1::Register,
}

pub(crate) struct Book {
    pub(crate) issuer: Issuer,
    executors: BTreeMap<NodeName, Executor>,
    /// Every event that an executor reported, in order.
    pub(crate) events: Vec<(NodeName, from_executor::Message)>,
    /// The usage of each lease in the last heartbeat that named it.
    pub(crate) usage: BTreeMap<u64, v1::Usage>,
    /// What each request was given.
    requests: BTreeMap<Vec<u8>, Vec<v1::Lease>>,
    /// Nodes that get no leases.
    pub(crate) held: Vec<NodeName>,
    /// Grants nothing and acknowledges nothing while this is set.
    pub(crate) silent: bool,
    /// What came meanwhile.
    unread: Vec<(NodeName, FromExecutor)>,
    key: SigningKey,
    authority: Authority,
    uid: (u32, u32),
}

#[derive(Clone)]
struct Services(Arc<Mutex<Book>>);

/// The harvester, in a thread of its own.
pub(crate) struct Harvester {
    book: Arc<Mutex<Book>>,
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

pub(crate) fn now() -> Stamp {
    Stamp(sys::boottime_ns())
}

impl Harvester {
    /// Starts it at an address of this machine's; leases run as `uid` and `gid`.
    pub(crate) fn start(auth: &Auth, uid: (u32, u32), host: Ipv4Addr) -> Self {
        let limits = Limits { grant_ttl_max: GRANT_TTL };
        let mut issuer = Issuer::new(now(), Term(1), limits, Numbers::default(), []);
        issuer.numbers_reserved(Numbers { lease: 1_000_000, epoch: 1_000_000 });
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).unwrap();
        let book = Arc::new(Mutex::new(Book {
            issuer,
            executors: BTreeMap::new(),
            events: Vec::new(),
            usage: BTreeMap::new(),
            requests: BTreeMap::new(),
            held: Vec::new(),
            silent: false,
            unread: Vec::new(),
            key: SigningKey::from_bytes(&secret),
            authority: Authority::load(auth).unwrap(),
            uid,
        }));
        let (stop, stopped) = oneshot::channel();
        let (bound, address) = std_mpsc::channel();
        let services = Services(book.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(serve(services, host, bound, stopped));
        });
        let address = address.recv().unwrap();
        Self { book, address, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    /// What its tokens are verified with.
    pub(crate) fn public_key(&self) -> VerifyingKey {
        self.book().key.verifying_key()
    }

    /// Takes a node back, as for a batch job, and holds it.
    pub(crate) fn vacate(&self, node: &str, reason: EndReason) {
        let node = NodeName::new(node).unwrap();
        let mut book = self.book();
        let vacating = book.issuer.vacate(&node, reason).expect("something is granted");
        book.held.push(node.clone());
        let vacate = v1::Vacate { grant_epoch: vacating.epoch.0, reason: reason as i32 };
        book.send(&node, to_executor::Message::Vacate(vacate));
    }

    /// Everything that was reported of this lease's end.
    pub(crate) fn ended(&self, lease: u64) -> Option<v1::LeaseEnded> {
        let book = self.book();
        book.events.iter().find_map(|(_, event)| match event {
            from_executor::Message::LeaseEnded(ended) if ended.lease_id == lease => {
                Some(ended.clone())
            }
            _ => None,
        })
    }

    /// Nodes that have a live grant.
    pub(crate) fn granted(&self) -> usize {
        let book = self.book();
        book.executors.keys().filter(|node| book.issuer.free(node).is_some()).count()
    }
}

impl Drop for Harvester {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(
    services: Services,
    host: Ipv4Addr,
    bound: std_mpsc::Sender<SocketAddr>,
    stopped: oneshot::Receiver<()>,
) {
    let listener = tokio::net::TcpListener::bind((host, 0)).await.unwrap();
    bound.send(listener.local_addr().unwrap()).unwrap();
    let server = tonic::transport::Server::builder()
        .add_service(ExecutorsServer::new(services.clone()))
        .add_service(LeasesServer::new(services))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::select! {
        served = server => served.unwrap(),
        _ = stopped => {}
    }
}

impl Book {
    fn send(&self, node: &NodeName, message: to_executor::Message) {
        if let Some(executor) = self.executors.get(node) {
            let _ = executor.stream.try_send(Ok(ToExecutor { message: Some(message) }));
        }
    }

    fn join(&mut self, register: v1::Register, stream: mpsc::Sender<Reply>) -> NodeName {
        let node = NodeName::new(&register.node).unwrap();
        let join = Join {
            boot: BootId(register.boot_id[..].try_into().unwrap()),
            instance: Instance(register.instance[..].try_into().unwrap()),
            stamp: Stamp(register.stamp_ns),
            resume_epoch: Epoch(register.resume_epoch),
            cores: register.cores,
            memory_bytes: register.memory_bytes,
        };
        let joined = self.issuer.executor_joined(now(), &node, &join).unwrap();
        let public = self.key.verifying_key().to_bytes();
        let digest = registered_digest(&register.nonce, &public);
        self.executors.insert(node.clone(), Executor { stream, register });
        let registered = v1::Registered {
            protocol: PROTOCOL,
            harvester_public_key: public.to_vec().into(),
            term: 1,
            credential: self.authority.sign(&digest, None).unwrap(),
            heartbeat_ms: HEARTBEAT.as_millis() as u64,
            cluster: "test".into(),
            grant_epoch: joined.epoch.0,
        };
        self.send(&node, to_executor::Message::Registered(registered));
        node
    }

    /// Reads what it has left unread, and goes on.
    pub(crate) fn speak_again(&mut self) {
        self.silent = false;
        for (node, message) in std::mem::take(&mut self.unread) {
            self.take(&node, message);
        }
    }

    fn take(&mut self, node: &NodeName, message: FromExecutor) {
        if self.silent {
            self.unread.push((node.clone(), message));
            return;
        }
        let seq = message.event_seq;
        match message.message.unwrap() {
            from_executor::Message::Heartbeat(beat) => return self.heartbeat(node, &beat),
            from_executor::Message::Register(_) => return,
            from_executor::Message::LeaseEnded(ended) => {
                let reason = EndReason::from_number(ended.reason).unwrap();
                self.issuer.lease_ended(node, LeaseId(ended.lease_id), reason);
                self.events.push((node.clone(), from_executor::Message::LeaseEnded(ended)));
            }
            from_executor::Message::Vacated(vacated) => {
                let epoch = Epoch(vacated.grant_epoch);
                self.issuer.vacated(node, epoch, EndReason::BatchJob);
                self.events.push((node.clone(), from_executor::Message::Vacated(vacated)));
            }
            from_executor::Message::LeaseRenewed(renewed) => {
                let expires = Stamp(renewed.expires_stamp_ns);
                self.issuer.renewed(node, LeaseId(renewed.lease_id), expires);
                self.events.push((node.clone(), from_executor::Message::LeaseRenewed(renewed)));
            }
            other => self.events.push((node.clone(), other)),
        }
        self.send(node, to_executor::Message::Ack(v1::Ack { event_seq: seq }));
    }

    fn heartbeat(&mut self, node: &NodeName, beat: &v1::Heartbeat) {
        let Some(register) = self.executors.get(node).map(|executor| executor.register.clone())
        else {
            return;
        };
        for lease in &beat.leases {
            if let Some(usage) = lease.usage {
                self.usage.insert(lease.lease_id, usage);
            }
        }
        let held: Vec<_> = beat
            .leases
            .iter()
            .map(|lease| (LeaseId(lease.lease_id), Stamp(lease.expires_stamp_ns)))
            .collect();
        let known = Beat {
            instance: Instance(register.instance[..].try_into().unwrap()),
            seq: beat.seq,
            stamp: Stamp(beat.stamp_ns),
        };
        self.issuer.heartbeat(now(), node, &known, &held);
        if self.held.contains(node) {
            return;
        }
        let granted =
            self.issuer.grant(now(), node, register.cores, register.memory_bytes, GRANT_TTL);
        if let Ok(granted) = granted {
            let grant = v1::Grant {
                grant_epoch: granted.epoch.0,
                answers_seq: granted.answers_seq,
                ttl_ms: granted.ttl.as_millis() as u64,
                cores: granted.cores,
                memory_bytes: granted.memory_bytes,
            };
            self.send(node, to_executor::Message::Grant(grant));
        }
    }

    pub(crate) fn acquire(&mut self, request: &AcquireRequest) -> Result<AcquireReply, Status> {
        let slice = Request {
            uid: Uid(self.uid.0),
            gid: self.uid.1,
            cores: request.cores,
            memory_bytes: request.memory_bytes,
            ttl: Duration::from_millis(request.ttl_ms),
            client_key: request.client_public_key[..].try_into().unwrap(),
        };
        let wanted = |node: &&NodeName| {
            !self.held.contains(node)
                && !request.avoid_nodes.iter().any(|avoid| avoid == node.as_str())
        };
        let nodes: Vec<_> = self.executors.keys().filter(wanted).cloned().collect();
        let mut leases = Vec::new();
        let mut why = String::from("no node is left");
        for node in nodes {
            if leases.len() as u32 == request.nodes_max {
                break;
            }
            match self.issuer.reserve(now(), &node, &slice) {
                Ok(draft) => {
                    let safe_for = self.issuer.persisted(now(), draft.lease.id).unwrap();
                    let register = &self.executors[&node].register;
                    leases.push(v1::Lease {
                        lease_id: draft.lease.id.0,
                        node: node.to_string(),
                        cores: request.cores,
                        memory_bytes: request.memory_bytes,
                        grant_epoch: draft.lease.epoch.0,
                        token: draft.claims.sign(&self.key).to_vec().into(),
                        address: register.address.clone(),
                        executor_public_key: register.executor_public_key.clone(),
                        local_socket: register.local_socket.clone(),
                        safe_for_ms: safe_for.as_millis() as u64,
                    });
                }
                Err(error) => why = error.to_string(),
            }
        }
        if (leases.len() as u32) < request.nodes_min {
            for lease in leases {
                self.end(lease.lease_id, EndReason::Released);
            }
            return Err(Status::resource_exhausted(why));
        }
        Ok(AcquireReply { leases })
    }

    /// The same for a request's id: asked again, it leases nothing twice.
    fn acquire_once(&mut self, request: &AcquireRequest) -> Result<AcquireReply, Status> {
        if let Some(leases) = self.requests.get(&request.request_id[..]) {
            let live = |lease: &&v1::Lease| {
                let known = self.issuer.lease(LeaseId(lease.lease_id));
                known.is_some_and(|lease| lease.state == State::Live)
            };
            let leases: Vec<_> = leases.iter().filter(live).cloned().collect();
            let over = || Status::not_found("the leases of this request have ended");
            return if leases.is_empty() { Err(over()) } else { Ok(AcquireReply { leases }) };
        }
        let reply = self.acquire(request)?;
        self.requests.insert(request.request_id.to_vec(), reply.leases.clone());
        Ok(reply)
    }

    /// How many leases were given so far.
    pub(crate) fn leases_given(&self) -> usize {
        self.requests.values().map(Vec::len).sum()
    }

    /// Ends a lease and tells its executor.
    pub(crate) fn end(&mut self, lease: u64, reason: EndReason) {
        if let Some(ending) = self.issuer.end(LeaseId(lease), reason) {
            let revoke = v1::Revoke { lease_id: lease, reason: ending.reason as i32 };
            self.send(&ending.node, to_executor::Message::Revoke(revoke));
        }
    }

    /// A token of this harvester's for claims of a test's own.
    pub(crate) fn sign(&self, claims: &gleaner_lease::token::Claims) -> Vec<u8> {
        claims.sign(&self.key).to_vec()
    }

    fn answer<Q: prost::Message, R: prost::Message>(
        &self,
        method: &str,
        request: &Q,
        reply: R,
    ) -> Response<R> {
        let digest = reply_digest(&request_digest(method, request), &reply);
        let credential = self.authority.sign(&digest, Some(self.uid.0)).unwrap();
        let mut response = Response::new(reply);
        response.metadata_mut().insert(CREDENTIAL_KEY, credential.parse().unwrap());
        response
    }
}

#[tonic::async_trait]
impl Executors for Services {
    type JoinStream = ReceiverStream<Reply>;

    async fn join(
        &self,
        request: Call<Streaming<FromExecutor>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let mut incoming = request.into_inner();
        let (stream, outgoing) = mpsc::channel(1024);
        let book = self.0.clone();
        tokio::spawn(async move {
            let Ok(Some(FromExecutor {
                message: Some(from_executor::Message::Register(register)),
                ..
            })) = incoming.message().await
            else {
                return;
            };
            let node = book.lock().unwrap().join(register, stream);
            while let Ok(Some(message)) = incoming.message().await {
                book.lock().unwrap().take(&node, message);
            }
            book.lock().unwrap().issuer.executor_lost(&node);
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

#[tonic::async_trait]
impl Leases for Services {
    async fn acquire(
        &self,
        request: Call<AcquireRequest>,
    ) -> Result<Response<AcquireReply>, Status> {
        let request = request.into_inner();
        let mut book = self.0.lock().unwrap();
        let reply = book.acquire_once(&request)?;
        Ok(book.answer("Leases/Acquire", &request, reply))
    }

    async fn release(
        &self,
        request: Call<ReleaseRequest>,
    ) -> Result<Response<ReleaseReply>, Status> {
        let request = request.into_inner();
        let mut book = self.0.lock().unwrap();
        for lease in &request.lease_ids {
            book.end(*lease, EndReason::Released);
        }
        let reply = ReleaseReply { released: request.lease_ids.clone() };
        Ok(book.answer("Leases/Release", &request, reply))
    }
}
