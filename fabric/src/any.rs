//! A link of any backend. Each is named, so that its few instructions are compiled into those of its caller: calls by way of a table, and
//! their results by way of memory, would cost as much as they do.
#![forbid(unsafe_code)]

use std::{os::fd::BorrowedFd, sync::atomic::AtomicU32, time::Duration};

use gleaner_proto::header::Header;

use crate::{
    call::{Expected, Found, Runs},
    link::{Arrival, Block, Geometry, Link, LinkError, Payload},
    rdma::RdmaLink,
    shm::ShmLink,
    tcp::TcpLink,
};

/// One end of a link.
pub enum AnyLink {
    /// Over shared memory.
    Shm(Box<ShmLink>),
    /// Over verbs.
    Rdma(Box<RdmaLink>),
    /// Over a socket.
    Tcp(Box<TcpLink>),
}

impl From<ShmLink> for AnyLink {
    fn from(link: ShmLink) -> Self {
        Self::Shm(Box::new(link))
    }
}

impl From<RdmaLink> for AnyLink {
    fn from(link: RdmaLink) -> Self {
        Self::Rdma(Box::new(link))
    }
}

impl From<TcpLink> for AnyLink {
    fn from(link: TcpLink) -> Self {
        Self::Tcp(Box::new(link))
    }
}

/// The same call on whichever link it is.
macro_rules! on {
    ($self:ident, $link:ident => $call:expr) => {
        match $self {
            AnyLink::Shm($link) => $call,
            AnyLink::Rdma($link) => $call,
            AnyLink::Tcp($link) => $call,
        }
    };
}

impl Link for AnyLink {
    #[inline]
    fn geometry(&self) -> Geometry {
        on!(self, link => link.geometry())
    }

    #[inline]
    fn outgoing(&mut self, block: Block) -> &mut [u8] {
        on!(self, link => link.outgoing(block))
    }

    #[inline]
    fn post(&mut self, block: Block, header: &Header) -> Result<(), Box<LinkError>> {
        on!(self, link => link.post(block, header))
    }

    #[inline]
    fn ask(&mut self, call: &Expected, time_ns: u64) -> Result<(), Box<LinkError>> {
        on!(self, link => link.ask(call, time_ns))
    }

    #[inline]
    fn ask_with(
        &mut self,
        call: &Expected,
        input: &[u8],
        time_ns: u64,
    ) -> Result<(), Box<LinkError>> {
        on!(self, link => link.ask_with(call, input, time_ns))
    }

    #[inline]
    fn ask_keeping(
        &mut self,
        call: &Expected,
        input: &[u8],
        time_ns: u64,
    ) -> Result<(), Box<LinkError>> {
        on!(self, link => link.ask_keeping(call, input, time_ns))
    }

    fn carries(&self, call: &Expected) -> bool {
        on!(self, link => link.carries(call))
    }

    #[inline]
    fn hold(&mut self) {
        on!(self, link => link.hold());
    }

    #[inline]
    fn release(&mut self) -> Result<(), LinkError> {
        on!(self, link => link.release())
    }

    #[inline]
    fn poll(&mut self) -> Result<Option<Arrival>, Box<LinkError>> {
        on!(self, link => link.poll())
    }

    #[inline]
    fn incoming(&self, payload: Payload) -> &[u8] {
        on!(self, link => link.incoming(payload))
    }

    #[inline]
    fn intact(&self) -> bool {
        on!(self, link => link.intact())
    }

    #[inline]
    fn exchange(&mut self, payload: Payload, reply: Block) -> (&mut [u8], &mut [u8]) {
        on!(self, link => link.exchange(payload, reply))
    }

    fn answer(&mut self, expected: &Expected, looks: u32) -> Result<Found<'_>, Box<LinkError>> {
        on!(self, link => link.answer(expected, looks))
    }

    fn serve(&mut self, runs: &mut dyn Runs) -> Result<bool, Box<LinkError>> {
        on!(self, link => link.serve(runs))
    }

    fn serve_with<R: Runs + ?Sized>(&mut self, runs: &mut R) -> Result<bool, Box<LinkError>> {
        on!(self, link => link.serve_with(runs))
    }

    fn unsent(&self) -> bool {
        on!(self, link => link.unsent())
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), LinkError> {
        on!(self, link => link.wait(timeout))
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        on!(self, link => link.wait_fd())
    }

    fn arm(&mut self) -> Result<bool, LinkError> {
        on!(self, link => link.arm())
    }

    fn wait_word(&self) -> Option<(&AtomicU32, u32)> {
        on!(self, link => link.wait_word())
    }

    fn arm_word(&mut self) -> Result<bool, LinkError> {
        on!(self, link => link.arm_word())
    }

    #[inline]
    fn emptied(&self) -> bool {
        on!(self, link => link.emptied())
    }
}
