//! The conformance suite over shared memory, and what only shared memory has: hostile lines and words, a peer that is killed,
//! files that are refused, pages that are taken back.
#![allow(clippy::unwrap_used)]

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::fs::FileExt, unix::net::UnixStream},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use gleaner_proto::header::HEADER_LEN;

use super::*;
use crate::conformance::{HostilePair, Pair};

fn open(file: &OwnedFd, geometry: Geometry) -> Segment {
    Segment::open(file.as_fd(), geometry).unwrap()
}

fn ends(geometry: Geometry) -> (ShmLink, ShmLink) {
    let file = Segment::create(geometry).unwrap();
    let (client, worker) = UnixStream::pair().unwrap();
    let end = |socket: UnixStream, side| ShmLink::new(open(&file, geometry), socket.into(), side);
    (end(client, Side::Client), end(worker, Side::Worker))
}

fn pair(geometry: Geometry) -> Pair {
    let (client, worker) = ends(geometry);
    (Box::new(client), Box::new(worker))
}

/// A peer that writes what it likes where it likes, through the file.
struct Hostile {
    file: File,
    layout: Layout,
    _socket: UnixStream,
}

impl Hostile {
    fn against(side: Side, geometry: Geometry) -> (Self, ShmLink) {
        let file = Segment::create(geometry).unwrap();
        let (socket, ours) = UnixStream::pair().unwrap();
        let link = ShmLink::new(open(&file, geometry), ours.into(), side);
        let layout = Layout::new(geometry).unwrap();
        (Self { file: file.into(), layout, _socket: socket }, link)
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        self.file.write_all_at(bytes, at as u64).unwrap();
    }
}

fn hostile(geometry: Geometry) -> HostilePair {
    let (peer, worker) = Hostile::against(Side::Worker, geometry);
    let mut sequence = 0u32;
    let send = move |bytes: &[u8]| {
        let mut line = [0; HEADER_LEN];
        line[..bytes.len()].copy_from_slice(bytes);
        // Without its number, which comes last, a line is none.
        if bytes.len() == HEADER_LEN {
            sequence += 1;
            line[56..60].copy_from_slice(&sequence.to_le_bytes());
        }
        peer.write(peer.layout.line(Direction::Requests, sequence.max(1)), &line);
    };
    (Box::new(worker), Box::new(send))
}

crate::conformance_suite!(pair, hostile);
