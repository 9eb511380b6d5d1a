//! One lease on this node: its worker, its sessions, its functions, and the verdicts of its calls when it ends.
//!
//! Owned by [`super::node`], which decides when a lease starts and ends. Nothing here waits: what cannot be sent to a
//! client at once costs that client its session, what cannot be sent to the worker ends the lease.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use gleaner_fabric::{Geometry, Segment};
use gleaner_lease::{clock::Stamp, state::EndReason, token::Claims};
use gleaner_proto::v1::{self, FromAgent, from_agent};
use tokio::sync::mpsc;

use super::{
    admission::Waiter,
    connection::Carrier,
    functions::Functions,
    tune::{
        CANCEL_GRACE_MAX, CANCEL_LOOK, CANCELS_MAX, SESSION_QUEUE_MAX, SESSION_SLOTS_MAX,
        WINDOW_MAX,
    },
};
use crate::{
    board::{Board, BoardError, Phase, Place, Shape},
    keeper::ipc::End,
    worker::ipc::{self, IpcError, ToWorker},
};

/// One client's session.
#[derive(Debug)]
pub(super) struct Session {
    /// Its index on the board.
    pub(super) index: u16,
    pub(super) geometry: Geometry,
    /// How long its lanes look for its calls after each one.
    hot: Duration,
    /// Lanes that have been connected.
    lanes: Vec<bool>,
    /// Why one of its links broke: the others are being closed too.
    broken: Option<String>,
    queue: mpsc::Sender<FromAgent>,
}

/// One lane's memory. When this is dropped, what the lease pays for is taken back from all who map it.
#[derive(Debug)]
struct HeldSegment {
    /// The session's index on the board.
    session: u16,
    geometry: Geometry,
    file: OwnedFd,
}

impl Drop for HeldSegment {
    fn drop(&mut self) {
        if let Err(error) = Segment::take_back(&self.file, self.geometry) {
            tracing::warn!(%error, "a link's memory stays until its client lets go of it");
        }
    }
}

/// A worker that has been started.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) pid: u32,
    pub(super) socket: Arc<OwnedFd>,
}

/// A cancelled call, and when it is looked at: at the end of its grace, then less and less often. A worker that was not
/// running may still start it, having looked at its cancel word before it was set.
#[derive(Debug, Clone, Copy)]
struct Cancelled {
    at: Stamp,
    again: Duration,
    place: Place,
    invocation: u64,
}

/// One lease.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) claims: Claims,
    pub(super) since: Stamp,
    pub(super) board: Board,
    board_fd: OwnedFd,
    /// `None` until the keeper has started it.
    pub(super) worker: Option<Worker>,
    /// Clients that attach while the worker starts.
    pub(super) waiters: Vec<Waiter>,
    pub(super) sessions: BTreeMap<u64, Session>,
    segments: Vec<HeldSegment>,
    /// Links that each session index still has open in the worker; an index is free when it has none.
    links: Vec<u16>,
    pub(super) functions: Functions,
    /// Since when nobody has been attached; `None` while somebody is, or when the last one said that it will come back.
    pub(super) orphan_since: Option<Stamp>,
    /// A client gave it back: it is over when nobody is attached any more.
    given_back: bool,
    /// Why it is ending, once it is.
    pub(super) ending: Option<(EndReason, String)>,
    /// The worker's socket is closed: until when the keeper's word on its death is awaited.
    pub(super) lost: Option<(Stamp, String)>,
    /// When a worker that was asked to finish is stopped.
    pub(super) stop_at: Option<Stamp>,
    cancels: Vec<Cancelled>,
    overran: Option<(Place, u64)>,
}

/// Why a session cannot begin or go on, for its client.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(
        "this lease has {0} sessions, the most that sessions_per_lease allows here: detach one"
    )]
    Sessions(usize),
    #[error(transparent)]
    Geometry(#[from] gleaner_fabric::link::BadGeometry),
    #[error(
        "links of {needed} bytes in all sessions, and the lease has {memory} bytes of memory: ask for a smaller arena or window, or lease more memory"
    )]
    Memory { needed: u64, memory: u64 },
    #[error("lane {lane} of session {session}: the session has {lanes} lanes, each connected once")]
    Lane { session: u64, lane: u32, lanes: u32 },
}

impl Lease {
    /// A lease whose worker is being started.
    pub(super) fn new(claims: Claims, now: Stamp, sessions_max: u16) -> Result<Self, BoardError> {
        let lanes = u16::try_from(claims.cores).unwrap_or(u16::MAX);
        let shape = Shape { sessions: sessions_max, lanes, window: window_max(claims.cores) };
        let (board, board_fd) = Board::create(shape, claims.epoch.0)?;
        Ok(Self {
            claims,
            since: now,
            board,
            board_fd,
            worker: None,
            waiters: Vec::new(),
            sessions: BTreeMap::new(),
            segments: Vec::new(),
            links: vec![0; usize::from(sessions_max)],
            functions: Functions::default(),
            orphan_since: None,
            given_back: false,
            ending: None,
            lost: None,
            stop_at: None,
            cancels: Vec::new(),
            overran: None,
        })
    }

    /// The keeper has started the worker: hands it the board.
    pub(super) fn started(&mut self, worker: Worker) -> Result<(), IpcError> {
        let init = ToWorker::Init { lease: self.claims.lease.0, lanes: self.board.shape().lanes };
        ipc::send(&worker.socket, &init, Some(self.board_fd.as_fd()))?;
        self.worker = Some(worker);
        Ok(())
    }

    /// Sends a record to the worker; one that does not read, or is gone, is an error.
    pub(super) fn tell(&self, record: &ToWorker, fd: Option<&OwnedFd>) -> Result<(), IpcError> {
        let worker = self.worker.as_ref().ok_or(IpcError::Gone)?;
        ipc::send(&worker.socket, record, fd.map(|fd| fd.as_fd()))
    }

    /// Begins a session with a geometry as near to the wanted one as the board and the memory allow.
    pub(super) fn attach(
        &mut self,
        id: u64,
        wanted: &v1::Attach,
        hot: Duration,
    ) -> Result<(v1::Attached, mpsc::Receiver<FromAgent>), SessionError> {
        let lanes = self.claims.cores;
        let window = wanted.window.clamp(1, u32::from(self.board.shape().window)) as u16;
        let slot_bytes = u32::try_from(wanted.slot_bytes).unwrap_or(u32::MAX);
        let geometry = Geometry { window, slot_bytes, arena_bytes: wanted.arena_bytes }.check()?;
        self.check_memory(geometry)?;
        let in_use = |index: &u16| self.sessions.values().any(|session| session.index == *index);
        let free = (0..self.links.len() as u16)
            .find(|index| self.links[usize::from(*index)] == 0 && !in_use(index));
        let index = free.ok_or(SessionError::Sessions(self.links.len()))?;
        self.board.clear_session(index);
        let (queue, messages) = mpsc::channel(SESSION_QUEUE_MAX);
        let connected = vec![false; lanes as usize];
        let session = Session { index, geometry, hot, lanes: connected, broken: None, queue };
        self.sessions.insert(id, session);
        self.orphan_since = None;
        let attached = v1::Attached {
            session_id: id,
            lanes,
            window: u32::from(window),
            slot_bytes: u64::from(slot_bytes),
            arena_bytes: geometry.arena_bytes,
            grant_epoch: self.claims.epoch.0,
            safe_for_ms: 0,
            hot_timeout_ns: nanos(hot),
            rdma_addresses: Vec::new(),
        };
        Ok((attached, messages))
    }

    /// The links of every session, both directions, are charged to the lease.
    fn check_memory(&self, geometry: Geometry) -> Result<(), SessionError> {
        let of = |geometry: Geometry| geometry.region_bytes() * 2 * u64::from(self.claims.cores);
        let held: u64 = self.sessions.values().map(|session| of(session.geometry)).sum();
        let (needed, memory) = (held + of(geometry), self.claims.memory_bytes);
        if needed <= memory { Ok(()) } else { Err(SessionError::Memory { needed, memory }) }
    }

    /// Sets a lane of a session aside for a connection that is about to be handed over.
    pub(super) fn reserve_lane(&mut self, id: u64, lane: u32) -> Result<Geometry, SessionError> {
        let none = SessionError::Lane { session: id, lane, lanes: self.claims.cores };
        let Some(session) = self.sessions.get_mut(&id) else { return Err(none) };
        let free = session.lanes.get_mut(lane as usize).filter(|connected| !**connected);
        *free.ok_or(none)? = true;
        Ok(session.geometry)
    }

    /// Hands a lane's connection to the worker.
    pub(super) fn add_link(
        &mut self,
        id: u64,
        lane: u32,
        socket: &OwnedFd,
        carrier: Carrier,
    ) -> Result<(), IpcError> {
        let Some(session) = self.sessions.get(&id) else {
            return Ok(());
        };
        let Session { index, geometry, hot, .. } = *session;
        let (lane, hot_ns) = (lane as u16, nanos(hot));
        let record = ToWorker::AddLink { session: index, lane, geometry, hot_ns };
        match carrier {
            Carrier::Stream => {}
            Carrier::Segment(file) => {
                self.tell(&ToWorker::Segment, Some(&file))?;
                self.segments.push(HeldSegment { session: index, geometry, file });
            }
            Carrier::Verbs(endpoint) => self.tell(&ToWorker::Verbs(*endpoint), None)?,
        }
        self.tell(&record, Some(socket))?;
        self.links[usize::from(index)] += 1;
        Ok(())
    }

    /// A session's client wants its lanes to look for its calls for another time.
    pub(super) fn set_hot(&mut self, id: u64, hot: Duration) -> Result<(), IpcError> {
        let Some(session) = self.sessions.get_mut(&id) else {
            return Ok(());
        };
        session.hot = hot;
        let record = ToWorker::SetHot { session: session.index, hot_ns: nanos(hot) };
        self.tell(&record, None)
    }

    /// The worker serves one link less. The memory of a session goes with its last one: until then a function may use it.
    ///
    /// A link that closes while its session is here has broken: the session's other links are closed too, so that nothing
    /// of it begins any more. Returns the session once that is done, to be told how its calls stand.
    pub(super) fn link_closed(&mut self, index: u16, why: &str) -> Result<Option<u64>, IpcError> {
        let Some(links) = self.links.get_mut(usize::from(index)) else { return Ok(None) };
        *links = links.saturating_sub(1);
        let last = *links == 0;
        if last {
            self.segments.retain(|segment| segment.session != index);
        }
        let here = self.sessions.iter_mut().find(|(_, session)| session.index == index);
        let Some((&id, session)) = here else { return Ok(None) };
        if session.broken.is_none() {
            session.broken = Some(why.to_owned());
            self.tell(&ToWorker::DropSession { session: index }, None)?;
        }
        Ok(last.then_some(id))
    }

    /// Ends a session whose links are all closed: its calls' states are final.
    pub(super) fn evict_one(&mut self, id: u64, now: Stamp) {
        let Some(session) = self.sessions.remove(&id) else { return };
        self.forget(id, session.index);
        if self.sessions.is_empty() {
            self.orphan_since = Some(now);
        }
        let why = session.broken.clone().unwrap_or_default();
        self.tell_verdicts(&session, EndReason::ExecutorLost, &why);
    }

    /// Ends one session; the lease goes on. `comes_back`: its client said so.
    pub(super) fn detach(&mut self, id: u64, comes_back: bool, now: Stamp) -> Result<(), IpcError> {
        let Some(session) = self.sessions.remove(&id) else {
            return Ok(());
        };
        self.forget(id, session.index);
        if self.sessions.is_empty() && !comes_back {
            self.orphan_since = Some(now);
        }
        self.tell(&ToWorker::DropSession { session: session.index }, None)
    }

    /// Its client needs it no more. Others may.
    pub(super) fn give_back(&mut self) {
        self.given_back = true;
    }

    /// It was given back, and nobody is attached or has said that it will come back.
    pub(super) fn is_left(&self) -> bool {
        self.given_back && self.orphan_since.is_some()
    }

    fn forget(&mut self, id: u64, index: u16) {
        self.functions.forget(id);
        self.cancels.retain(|cancelled| cancelled.place.session != index);
    }

    /// Puts a message into a session's queue. False: it is full or closed, and the session must go.
    pub(super) fn send(&self, id: u64, message: from_agent::Message) -> bool {
        let message = FromAgent { message: Some(message) };
        self.sessions.get(&id).is_some_and(|session| session.queue.try_send(message).is_ok())
    }

    /// A client gives a call up: it is skipped if it has not started, and stopped if it runs longer than its grace.
    pub(super) fn cancel(&mut self, id: u64, cancel: &v1::Cancel, now: Stamp) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        let (Ok(lane), Ok(slot)) = (u16::try_from(cancel.lane), u16::try_from(cancel.slot)) else {
            return;
        };
        let place = Place { session: session.index, lane, slot };
        let Some(words) = self.board.slot(place) else {
            return;
        };
        words.cancel(cancel.invocation);
        self.cancels.retain(|known| known.place != place);
        if self.cancels.len() < CANCELS_MAX {
            let grace = Duration::from_millis(cancel.grace_ms).min(CANCEL_GRACE_MAX);
            let invocation = cancel.invocation;
            let (at, again) = (now.after(grace), CANCEL_LOOK);
            self.cancels.push(Cancelled { at, again, place, invocation });
        }
    }

    /// When [`overrun`](Self::overrun) has to look next.
    pub(super) fn next_cancel(&self) -> Option<Stamp> {
        self.cancels.iter().map(|cancelled| cancelled.at).min()
    }

    /// True if a cancelled call still runs after its grace: only its worker's end can stop it.
    pub(super) fn overrun(&mut self, now: Stamp) -> bool {
        let board = &self.board;
        let mut overran = None;
        self.cancels.retain_mut(|cancelled| {
            let Cancelled { at, again, place, invocation } = *cancelled;
            if at > now {
                return true;
            }
            let state = board.slot(place).map(|slot| slot.state());
            let Some(state) = state else { return false };
            let same = state.invocation == invocation;
            if same && state.phase == Phase::Started {
                overran = Some((place, invocation));
            }
            *cancelled = Cancelled { at: now.after(again), again: again * 2, place, invocation };
            // Later than this one, or ended: it will not start any more.
            state.invocation < invocation || state.phase == Phase::Idle
        });
        self.overran = self.overran.or(overran);
        overran.is_some()
    }

    /// In words, how the worker ended, from its own record and the keeper's.
    pub(super) fn epitaph(&self, end: End) -> String {
        if let Some((_, detail)) = self.ending.as_ref().filter(|(_, detail)| !detail.is_empty()) {
            return detail.clone();
        }
        match (self.board.fault(), end) {
            (Some(fault), _) => fault.cause.to_string(),
            (None, End::Exited(status)) => format!("the worker ended with status {status}"),
            (None, End::Signalled(signal)) => format!("the worker was killed by signal {signal}"),
            (None, End::OutOfMemory) => "the worker used more memory than its lease has".into(),
            (None, End::Deadline) => "the lease's time was over".into(),
            (None, End::Stopped) => "the lease was ended".into(),
            (None, End::Vacated) => "the node was taken back".into(),
        }
    }

    /// Tells every session how its calls stood. The worker must be gone: the states are final then.
    pub(super) fn evict(&mut self, reason: EndReason, detail: &str) {
        self.segments.clear();
        let sessions = std::mem::take(&mut self.sessions);
        sessions.values().for_each(|session| self.tell_verdicts(session, reason, detail));
    }

    fn tell_verdicts(&self, session: &Session, reason: EndReason, detail: &str) {
        let evicted = v1::Evicted {
            reason: reason as i32,
            detail: detail.to_owned(),
            verdicts: self.verdicts(session.index, reason),
        };
        let message = FromAgent { message: Some(from_agent::Message::Evicted(evicted)) };
        // A full queue is a client that does not read: it gets no verdict, and delays nobody.
        let _ = session.queue.try_send(message);
    }

    fn verdicts(&self, session: u16, reason: EndReason) -> Vec<v1::Verdict> {
        let fault = self.board.fault().and_then(|fault| fault.call).or(self.overran);
        // A worker that died without saying in which call: each that was running may have done it.
        let all_suspect = reason == EndReason::WorkerFailed && fault.is_none();
        let state = |place: Place, invocation: u64, phase: Phase| match phase {
            Phase::Started if fault == Some((place, invocation)) || all_suspect => {
                v1::CallState::Faulted
            }
            Phase::Started => v1::CallState::Started,
            Phase::Finished => v1::CallState::Finished,
            Phase::Faulted => v1::CallState::Faulted,
            Phase::Idle => v1::CallState::NotStarted,
        };
        self.board
            .session_states(session)
            .map(|(place, slot)| v1::Verdict {
                lane: u32::from(place.lane),
                slot: u32::from(place.slot),
                invocation: slot.invocation,
                state: state(place, slot.invocation, slot.phase) as i32,
            })
            .collect()
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The most slots of a lane, so that all verdicts of a session fit one frame.
fn window_max(cores: u32) -> u16 {
    (SESSION_SLOTS_MAX / cores.max(1)).clamp(1, u32::from(WINDOW_MAX)) as u16
}
