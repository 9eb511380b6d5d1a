//! Connections of clients: accepted, greeted within a bound, then a session's control stream or a lane for a worker.
//!
//! One task each, started by [`super::run`]'s listeners. A task decides nothing: it proves and asks [`super::node`]
//! through its inputs, and writes what the node puts into the session's queue. Peers are hostile until they have proved
//! who they are, and stay suspect after: every frame, wait and queue here has a bound.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ed25519_dalek::{Signer, SigningKey};
use gleaner_fabric::{Geometry, shm::Segment};
use gleaner_proto::{
    PROTOCOL,
    control::{NONCE_LEN, challenge_digest},
    endpoint::Endpoint,
    framing::{self, BadFrame, Incoming},
    v1::{self, FromAgent, ToAgent, control_error::Code, from_agent, hello::Purpose, to_agent},
};
use prost::{Message as _, bytes::Bytes};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::timeout,
};
use tracing::debug;

use super::{
    node::Input,
    tune::{ADMISSION_TIMEOUT, GREETING_FRAME_MAX, GREETING_TIMEOUT, WRITE_TIMEOUT},
    uploads::{self, Libraries, Upload},
};
use crate::sys;

/// Bytes that one read of a session takes.
const READ_LEN: usize = 64 << 10;

/// What every connection's task shares.
pub(super) struct Shared {
    /// The executor's key, which clients pin.
    pub(super) key: SigningKey,
    pub(super) libraries: Mutex<Libraries>,
    pub(super) library_max: u64,
    pub(super) inputs: mpsc::Sender<Input>,
    /// One permit for each connection that is greeting.
    pub(super) greetings: Arc<Semaphore>,
}

/// Both sides' nonces, and what the client signed.
#[derive(Debug)]
pub(super) struct Proved {
    pub(super) client_nonce: Bytes,
    pub(super) executor_nonce: [u8; NONCE_LEN],
    pub(super) signature: Bytes,
}

/// A session that the node has begun.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) id: u64,
    pub(super) uid: u32,
    pub(super) attached: v1::Attached,
    pub(super) messages: mpsc::Receiver<FromAgent>,
}

/// Why a client is turned away: its `ControlError`.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Refused {
    pub(super) code: Code,
    pub(super) message: String,
}

/// A stream that a client dialled.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The descriptor, for a worker.
    fn into_fd(self) -> io::Result<OwnedFd>;

    /// Sends a few bytes with a descriptor beside them.
    fn send_with_fd(
        &self,
        bytes: &[u8],
        fd: BorrowedFd<'_>,
    ) -> impl Future<Output = io::Result<()>> + Send;
}

impl Stream for TcpStream {
    fn into_fd(self) -> io::Result<OwnedFd> {
        Ok(self.into_std()?.into())
    }

    async fn send_with_fd(&self, _: &[u8], _: BorrowedFd<'_>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Stream for UnixStream {
    fn into_fd(self) -> io::Result<OwnedFd> {
        Ok(self.into_std()?.into())
    }

    async fn send_with_fd(&self, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
        let send = || sys::send_with_fd(self.as_fd(), bytes, Some(fd));
        self.async_io(Interest::WRITABLE, send).await
    }
}

/// Accepts clients over TCP for as long as the agent lives.
pub(super) async fn listen_tcp(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let permit = permit(&shared).await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(stream, shared.clone(), permit));
            }
            Err(error) => starved(&error).await,
        }
    }
}

/// Accepts clients on this node.
pub(super) async fn listen_local(listener: UnixListener, shared: Arc<Shared>) {
    loop {
        let permit = permit(&shared).await;
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(serve(stream, shared.clone(), permit))),
            Err(error) => starved(&error).await,
        }
    }
}

/// Taken before accepting: what is beyond the bound waits in the kernel's listen queue.
async fn permit(shared: &Shared) -> Option<OwnedSemaphorePermit> {
    shared.greetings.clone().acquire_owned().await.ok()
}

/// Accepting fails when descriptors run out; it would fail again at once.
async fn starved(error: &io::Error) {
    debug!(%error, "cannot accept a client");
    tokio::time::sleep(Duration::from_millis(10)).await;
}

enum Admitted {
    Session(Box<Joined>),
    Lane { session: u64, lane: u32, carrier: Carrier },
}

/// What carries a lane's calls.
#[derive(Debug)]
pub(super) enum Carrier {
    /// The connection itself.
    Stream,
    /// Memory that both map.
    Segment(OwnedFd),
    /// The client's queue pair, and one that the worker makes: the worker answers its client then.
    Verbs(Box<Endpoint>),
}

async fn serve<S: Stream>(
    mut stream: S,
    shared: Arc<Shared>,
    permit: Option<OwnedSemaphorePermit>,
) {
    let admitted = match timeout(GREETING_TIMEOUT, greet(&mut stream, &shared)).await {
        Ok(Ok((purpose, proved))) => admit(&mut stream, &shared, purpose, proved).await,
        Ok(Err(refused)) => Err(refused),
        Err(_) => Err(Refused {
            code: Code::Protocol,
            message: format!("a greeting has to be done within {GREETING_TIMEOUT:?}"),
        }),
    };
    drop(permit);
    match admitted {
        Ok(Admitted::Session(joined)) => {
            let id = joined.id;
            let ended = session(&mut stream, *joined, &shared).await;
            debug!(session = id, ?ended, "session over");
            let _ = shared.inputs.send(Input::SessionClosed { id }).await;
        }
        Ok(Admitted::Lane { session, lane, carrier }) => match stream.into_fd() {
            Ok(socket) => {
                let ready = Input::LaneReady { session, lane, socket, carrier };
                drop(shared.inputs.send(ready).await)
            }
            Err(error) => debug!(%error, "a lane's socket cannot be handed over"),
        },
        Err(refused) => {
            debug!(%refused, "client turned away");
            let _ = write(&mut stream, refusal(refused.code, &refused.message)).await;
        }
    }
}

/// Hello, challenge, proof: what the client wants, and what the node judges it by.
async fn greet<S: Stream>(stream: &mut S, shared: &Shared) -> Result<(Purpose, Proved), Refused> {
    let protocol = |message: &str| Refused { code: Code::Protocol, message: message.to_owned() };
    let to_agent::Message::Hello(hello) = read_exact(stream).await? else {
        return Err(protocol("expected Hello"));
    };
    if hello.protocol != PROTOCOL {
        let message =
            format!("this executor speaks protocol {PROTOCOL}, the client {}", hello.protocol);
        return Err(protocol(&message));
    }
    if hello.client_nonce.len() != NONCE_LEN {
        return Err(protocol("a nonce has 32 bytes"));
    }
    let purpose = hello.purpose.ok_or_else(|| protocol("a Hello of a later version"))?;
    let mut executor_nonce = [0; NONCE_LEN];
    getrandom::fill(&mut executor_nonce)
        .map_err(|_| internal("the system gives no random bytes"))?;
    let digest = challenge_digest(&hello.client_nonce, &executor_nonce);
    let challenge = v1::Challenge {
        protocol: PROTOCOL,
        executor_nonce: executor_nonce.to_vec().into(),
        signature: shared.key.sign(&digest).to_bytes().to_vec().into(),
    };
    write(stream, from_agent::Message::Challenge(challenge)).await.map_err(gone)?;
    let to_agent::Message::Proof(v1::Proof { signature }) = read_exact(stream).await? else {
        return Err(protocol("expected Proof"));
    };
    Ok((purpose, Proved { client_nonce: hello.client_nonce, executor_nonce, signature }))
}

/// The node's word. It has a bound of its own: what the node does until then is no fault of the client's.
async fn admit<S: Stream>(
    stream: &mut S,
    shared: &Shared,
    purpose: Purpose,
    proved: Proved,
) -> Result<Admitted, Refused> {
    match purpose {
        Purpose::Attach(wanted) => {
            let joined = ask(shared, |reply| Input::Attach { wanted, proved, reply }).await?;
            Ok(Admitted::Session(Box::new(joined)))
        }
        Purpose::DataLane(wanted) => {
            let v1::DataLane { session_id: session, lane, .. } = wanted;
            let asked = wanted.clone();
            let geometry =
                ask(shared, |reply| Input::Lane { wanted: asked, proved, reply }).await?;
            let carrier = carrier(stream, &wanted, geometry).await?;
            Ok(Admitted::Lane { session, lane, carrier })
        }
    }
}

/// Tells a lane's client that it may begin, or leaves that to the worker.
async fn carrier<S: Stream>(
    stream: &mut S,
    wanted: &v1::DataLane,
    geometry: Geometry,
) -> Result<Carrier, Refused> {
    let ready = from_agent::Message::DataReady(v1::DataReady::default());
    let protocol = |message: String| Refused { code: Code::Protocol, message };
    match v1::Transport::try_from(wanted.transport) {
        Ok(v1::Transport::SharedMemory) => {
            send_segment(stream, ready, geometry).await.map(Carrier::Segment)
        }
        Ok(v1::Transport::Verbs) => {
            let endpoint = Endpoint::decode(&wanted.endpoint);
            let endpoint = endpoint.map_err(|error| protocol(error.to_string()))?;
            Ok(Carrier::Verbs(Box::new(endpoint)))
        }
        Ok(v1::Transport::Stream) => {
            write(stream, ready).await.map_err(gone)?;
            Ok(Carrier::Stream)
        }
        Err(_) => Err(protocol("a transport of a later version".into())),
    }
}

/// Makes a lane's memory, and gives it to the client beside this message.
async fn send_segment<S: Stream>(
    stream: &S,
    message: from_agent::Message,
    geometry: Geometry,
) -> Result<OwnedFd, Refused> {
    let file = Segment::create(geometry).map_err(|error| internal(&error.to_string()))?;
    let frame = framing::encode(&FromAgent { message: Some(message) });
    let sent = timeout(WRITE_TIMEOUT, stream.send_with_fd(&frame, file.as_fd())).await;
    match sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            let message = "shared memory is for clients on this node: connect to its local socket";
            Err(Refused { code: Code::Protocol, message: message.into() })
        }
        sent => sent.map(|()| file).map_err(gone),
    }
}

/// Asks the node and waits for its word.
async fn ask<R>(
    shared: &Shared,
    input: impl FnOnce(oneshot::Sender<Result<R, Refused>>) -> Input,
) -> Result<R, Refused> {
    let (reply, answer) = oneshot::channel();
    let ending = || internal("the executor is ending");
    let word = async {
        shared.inputs.send(input(reply)).await.map_err(|_| ending())?;
        answer.await.map_err(|_| ending())?
    };
    let late = |_| {
        let message =
            format!("this node could not serve the lease within {ADMISSION_TIMEOUT:?}: try again");
        Err(internal(&message))
    };
    timeout(ADMISSION_TIMEOUT, word).await.unwrap_or_else(late)
}

/// Why a session's stream is over.
#[derive(Debug)]
enum Over {
    /// The node dropped it.
    Node,
    /// The client closed it or does not read, or its connection broke.
    Client(#[expect(dead_code, reason = "shown by Debug in the log")] Option<io::Error>),
    /// The client sent what it must not.
    Fault(#[expect(dead_code, reason = "shown by Debug in the log")] String),
}

async fn session<S: Stream>(stream: &mut S, mut joined: Joined, shared: &Shared) -> Over {
    let attached = from_agent::Message::Attached(joined.attached.clone());
    if let Err(error) = write(stream, attached).await {
        return Over::Client(Some(error));
    }
    let mut incoming = Incoming::<ToAgent>::new();
    let mut buffer = vec![0; READ_LEN];
    let mut upload = None;
    loop {
        tokio::select! {
            message = joined.messages.recv() => {
                let Some(FromAgent { message: Some(message) }) = message else { return Over::Node };
                if let Err(error) = write(stream, message).await {
                    return Over::Client(Some(error));
                }
            }
            read = stream.read(&mut buffer) => match read {
                Ok(0) => return Over::Client(None),
                Err(error) => return Over::Client(Some(error)),
                Ok(length) => {
                    incoming.push(&buffer[..length]);
                    let taken = take_all(stream, &mut incoming, &joined, &mut upload, shared).await;
                    if let Err(over) = taken {
                        return over;
                    }
                }
            },
        }
    }
}

/// Handles every whole message that has arrived.
async fn take_all<S: Stream>(
    stream: &mut S,
    incoming: &mut Incoming<ToAgent>,
    joined: &Joined,
    upload: &mut Option<Upload>,
    shared: &Shared,
) -> Result<(), Over> {
    while let Some(message) = incoming.take().map_err(|error| Over::Fault(error.to_string()))? {
        let message =
            message.message.ok_or_else(|| Over::Fault("a message of a later version".into()))?;
        let to_agent::Message::Upload(chunk) = message else {
            let input = Input::Session { id: joined.id, message };
            shared.inputs.send(input).await.map_err(|_| Over::Node)?;
            continue;
        };
        let answer = {
            let mut libraries = shared.libraries.lock().unwrap_or_else(PoisonError::into_inner);
            uploads::take(&chunk, joined.uid, shared.library_max, upload, &mut libraries)
        };
        let answer = match answer {
            Ok(None) => continue,
            Ok(Some(uploaded)) => from_agent::Message::Uploaded(uploaded),
            Err(error) => refusal(Code::Library, &error.to_string()),
        };
        write(stream, answer).await.map_err(|error| Over::Client(Some(error)))?;
    }
    Ok(())
}

/// One message of a greeting, and not a byte more: what follows may be a lane's.
async fn read_exact<S: Stream>(stream: &mut S) -> Result<to_agent::Message, Refused> {
    let bad = |error: BadFrame| Refused { code: Code::Protocol, message: error.to_string() };
    let length = stream.read_u32_le().await.map_err(gone)? as usize;
    if length > GREETING_FRAME_MAX {
        return Err(bad(BadFrame::TooLong(length)));
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await.map_err(gone)?;
    let message = ToAgent::decode(&frame[..]).map_err(|error| bad(error.into()))?;
    let later = Refused { code: Code::Protocol, message: "a message of a later version".into() };
    message.message.ok_or(later)
}

/// Within a bound: a client that does not read is given up.
async fn write<S: Stream>(stream: &mut S, message: from_agent::Message) -> io::Result<()> {
    let frame = framing::encode(&FromAgent { message: Some(message) });
    let late = |_| Err(io::ErrorKind::TimedOut.into());
    timeout(WRITE_TIMEOUT, stream.write_all(&frame)).await.unwrap_or_else(late)
}

/// A `ControlError` as a message.
pub(super) fn refusal(code: Code, message: &str) -> from_agent::Message {
    from_agent::Message::Error(v1::ControlError { code: code as i32, message: message.to_owned() })
}

fn internal(message: &str) -> Refused {
    Refused { code: Code::Internal, message: message.to_owned() }
}

/// The client is gone: nobody reads this refusal.
fn gone(error: io::Error) -> Refused {
    Refused { code: Code::Protocol, message: format!("the client went away: {error}") }
}
