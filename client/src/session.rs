//! One lease's session with its executor: attaching, libraries and functions, renewal, what the control stream says.
//!
//! Owned by [`crate::calls`]. It knows no calls: it carries messages, and its lanes carry calls.

use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use gleaner_fabric::Geometry;
use gleaner_proto::{
    control::UPLOAD_CHUNK,
    v1::{self, Detach, OpenFunction, Renew, Upload, from_agent::Message, to_agent},
};

use crate::{
    control::{Control, refused},
    dial::{Dialler, Transport},
    error::AttachError,
    lane::Lane,
    library::Library,
    options::Options,
    request::{Request, Waiting},
    seat::Seat,
};

/// A session with one lease's executor.
pub(crate) struct Session {
    pub(crate) seat: Seat,
    pub(crate) lease: v1::Lease,
    pub(crate) transport: Transport,
    pub(crate) lanes: Vec<Lane>,
    pub(crate) control: Control,
    /// The executor's numbers of the pool's functions, by the pool's own.
    pub(crate) functions: Vec<u32>,
    /// Until when the lease is safe, as far as is known.
    pub(crate) safe_until: Instant,
    /// When a renewal was asked for that is not answered yet.
    pub(crate) renewing: Option<Instant>,
    /// When a renewal was last asked for.
    pub(crate) last_asked: Option<Instant>,
    /// Since when its lanes are dead and its verdicts awaited, and why.
    pub(crate) closing: Option<Box<(Instant, String)>>,
    answer_timeout: Duration,
}

impl Session {
    /// Attaches to a lease and opens its lanes.
    pub(crate) fn attach(
        seat: Seat,
        lease: &v1::Lease,
        key: &SigningKey,
        request: &Request,
        options: &Options,
    ) -> Result<Self, AttachError> {
        let dialler = Dialler::new(lease, key, options)?;
        let mut refused = None;
        for &transport in dialler.transports(request.transport) {
            match Self::attach_over(seat, transport, &dialler, request) {
                Err(error) if error.is_of_the_way() => refused = Some(error),
                result => return result,
            }
        }
        Err(refused.unwrap_or_else(|| dialler.no_way()))
    }

    fn attach_over(
        seat: Seat,
        transport: Transport,
        dialler: &Dialler<'_>,
        request: &Request,
    ) -> Result<Self, AttachError> {
        let began = Instant::now();
        let Dialler { lease, options, .. } = *dialler;
        let (control, attached) = dialler.attach(transport, request)?;
        let geometry = Geometry {
            window: u16::try_from(attached.window).unwrap_or(0),
            slot_bytes: u32::try_from(attached.slot_bytes).unwrap_or(0),
            arena_bytes: attached.arena_bytes,
        };
        let geometry = geometry.check().map_err(|error| control.broke(&error.to_string()))?;
        if attached.lanes == 0 || attached.lanes > lease.cores {
            return Err(control.broke("it has other lanes than the lease has cores"));
        }
        let carrier = dialler.carrier(transport, request.transport, &attached)?;
        let lanes = (0..attached.lanes)
            .map(|lane| dialler.lane(&carrier, &attached, lane, geometry))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            seat,
            lease: lease.clone(),
            transport: carrier.transport(),
            lanes,
            control,
            functions: Vec::new(),
            safe_until: began + Duration::from_millis(attached.safe_for_ms),
            renewing: None,
            last_asked: None,
            closing: None,
            answer_timeout: options.answer_timeout,
        })
    }

    /// Opens a function, after its library if the executor has not got that yet.
    pub(crate) fn open(&mut self, library: &Library, name: &str) -> Result<(), AttachError> {
        self.upload(library)?;
        self.send(to_agent::Message::OpenFunction(OpenFunction {
            sha256: library.hash().to_vec().into(),
            name: name.to_owned(),
            abi: v1::Abi::Unspecified.into(),
        }))?;
        match self.answer()? {
            Message::FunctionOpened(opened) => {
                self.functions.push(opened.function);
                Ok(())
            }
            other => Err(refused(&self.control, other)),
        }
    }

    /// Asks for another `ttl` from now, and waits for the answer.
    pub(crate) fn renew(&mut self, ttl: Duration) -> Result<(), AttachError> {
        self.ask_renewal(ttl)?;
        let until = Instant::now() + self.answer_timeout;
        loop {
            match self.control.receive(until)? {
                Message::Renewed(renewed) => {
                    self.renewed(renewed.safe_for_ms);
                    return Ok(());
                }
                Message::WaitingSet(_) => {}
                other => return Err(refused(&self.control, other)),
            }
        }
    }

    /// Asks for another `ttl` from now; the answer comes to [`Session::renewed`].
    pub(crate) fn ask_renewal(&mut self, ttl: Duration) -> Result<(), AttachError> {
        self.renewing.get_or_insert_with(Instant::now);
        self.send(to_agent::Message::Renew(Renew { ttl_ms: ttl.as_millis() as u64 }))
    }

    /// Tells the executor how this client waits from now on; the answer is of no use here.
    pub(crate) fn set_waiting(&mut self, waiting: Waiting) -> Result<(), AttachError> {
        let (waiting, hot_timeout_ns) = waiting.wire();
        let waiting = waiting.into();
        self.send(to_agent::Message::SetWaiting(v1::SetWaiting { waiting, hot_timeout_ns }))
    }

    /// The answer to a renewal.
    pub(crate) fn renewed(&mut self, safe_for_ms: u64) {
        if let Some(asked) = self.renewing.take() {
            self.safe_until = asked + Duration::from_millis(safe_for_ms);
        }
    }

    /// Gives up on a call.
    pub(crate) fn cancel(&mut self, lane: usize, slot: u16, grace: Duration) {
        let invocation = self.lanes[lane].invocation(slot);
        let grace_ms = grace.as_millis() as u64;
        let (lane, slot) = (lane as u32, u32::from(slot));
        let cancel = v1::Cancel { lane, slot, invocation, grace_ms };
        if let Err(error) = self.send(to_agent::Message::Cancel(cancel)) {
            self.close(error.to_string());
        }
    }

    /// Says goodbye: the lease ends when nobody else is attached to it. True if the executor confirmed it in time.
    pub(crate) fn release(mut self, until: Instant) -> bool {
        let detach = to_agent::Message::Detach(Detach { release: true });
        if self.control.send(detach, until).is_err() {
            return false;
        }
        loop {
            match self.control.receive(until) {
                Ok(Message::Detached(_) | Message::Evicted(_)) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }

    /// Its lanes are of no more use: from now on its verdicts are awaited.
    pub(crate) fn close(&mut self, why: String) {
        self.closing.get_or_insert_with(|| Box::new((Instant::now(), why)));
    }

    fn upload(&mut self, library: &Library) -> Result<(), AttachError> {
        let size_bytes = library.bytes().len() as u64;
        let chunk = |offset: usize, chunk: &[u8]| {
            to_agent::Message::Upload(Upload {
                sha256: library.hash().to_vec().into(),
                size_bytes,
                offset: offset as u64,
                chunk: chunk.to_vec().into(),
            })
        };
        self.send(chunk(0, &[]))?;
        if self.uploaded()? {
            return Ok(());
        }
        for (index, bytes) in library.bytes().chunks(UPLOAD_CHUNK).enumerate() {
            self.send(chunk(index * UPLOAD_CHUNK, bytes))?;
        }
        match self.uploaded()? {
            true => Ok(()),
            false => Err(self.control.broke("it lost a library that was just uploaded")),
        }
    }

    fn uploaded(&mut self) -> Result<bool, AttachError> {
        match self.answer()? {
            Message::Uploaded(uploaded) => Ok(uploaded.complete),
            other => Err(refused(&self.control, other)),
        }
    }

    fn send(&mut self, message: to_agent::Message) -> Result<(), AttachError> {
        self.control.send(message, Instant::now() + self.answer_timeout)
    }

    /// The answer to a question that was just asked; that to an earlier renewal is taken on the way.
    fn answer(&mut self) -> Result<Message, AttachError> {
        let until = Instant::now() + self.answer_timeout;
        loop {
            match self.control.receive(until)? {
                Message::Renewed(renewed) => self.renewed(renewed.safe_for_ms),
                Message::WaitingSet(_) => {}
                other => return Ok(other),
            }
        }
    }
}
