//! A shared segment whose peer writes what it likes where it likes, while we call our end in any order.

#![no_main]

use std::{
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::FileExt, net::UnixStream},
    },
    time::Duration,
};

use gleaner_fabric::{
    Asked, Done, Expected, Found, Geometry, Link, LinkError, Segment, ShmLink, Side,
    shm::{Direction, Layout},
};
use gleaner_proto::header::{GUARD_LEN, HEADER_LEN, Header, Status};
use libfuzzer_sys::{arbitrary, arbitrary::Arbitrary, fuzz_target};

const GEOMETRY: Geometry = Geometry { window: 4, slot_bytes: 256, arena_bytes: 4096 };

#[derive(Debug, Arbitrary)]
enum Step {
    /// Bytes anywhere in the segment.
    Write {
        at: u32,
        bytes: [u8; 16],
    },
    /// A whole line, with the number that makes it a message or with another.
    Line {
        number: u8,
        bytes: [u8; HEADER_LEN],
    },
    Poll,
    Post {
        slot: u8,
        len: u8,
    },
    /// The good answer to a call as a line, less one byte that is another; and the look for it.
    Answer {
        number: u8,
        slot: u8,
        at: u8,
        byte: u8,
        /// Nothing else may be taken.
        alone: bool,
    },
    Serve,
    Arm,
    Wait,
}

fuzz_target!(|input: (bool, Vec<Step>)| {
    let (client, steps) = input;
    let side = if client { Side::Client } else { Side::Worker };
    let layout = Layout::new(GEOMETRY).expect("it is a geometry");
    let file: OwnedFd = Segment::create(GEOMETRY).expect("memory files can be made");
    let segment = Segment::open(file.as_fd(), GEOMETRY).expect("our own file opens");
    let (_peer, socket) = UnixStream::pair().expect("sockets can be made");
    let mut link = ShmLink::new(segment, socket.into(), side);
    let peer = File::from(file);
    for step in steps {
        run(&mut link, &peer, &layout, side, step);
    }
});

fn run(link: &mut ShmLink, peer: &File, layout: &Layout, side: Side, step: Step) {
    let write = |at: usize, bytes: &[u8]| {
        peer.write_all_at(bytes, at as u64).expect("a write inside the file succeeds");
    };
    match step {
        Step::Write { at, bytes } => write(at as usize % (layout.bytes - bytes.len()), &bytes),
        Step::Line { number, mut bytes } => {
            let number = u32::from(number);
            bytes[56..60].copy_from_slice(&number.to_le_bytes());
            write(layout.half(Direction::sent_by(side).opposite()).line(number), &bytes);
        }
        Step::Poll => look(link),
        Step::Post { slot, len } => post(link, side, u16::from(slot) % GEOMETRY.window, len),
        Step::Answer { number, slot, at, byte, alone } if side == Side::Client => {
            let slot = u16::from(slot) % GEOMETRY.window;
            let mut call = Expected::new(slot, 1, GEOMETRY.slot(slot));
            call.begin(1, 0);
            let header = Header { kind: side.takes(), payload_len: 100, ..call.request(0) };
            let mut bytes = header.encode();
            bytes[56] = number;
            bytes[usize::from(at) % HEADER_LEN] ^= byte;
            write(layout.half(Direction::Responses).line(number.into()), &bytes);
            let reply = match alone {
                true => link.reply_to(&call),
                false => match link.answer(&call, 1) {
                    Ok(Found::Reply(reply)) => Some(reply),
                    _ => None,
                },
            };
            if let Some(reply) = reply {
                assert!(reply.len() <= call.block().capacity as usize);
            }
        }
        Step::Serve if side == Side::Worker => {
            let run = &mut |_: Asked, input: &mut [u8], output: &mut [u8]| {
                output.fill(1);
                Done::well(input.len().min(output.len() - GUARD_LEN), 0)
            };
            // What the peer has written closes the link, or not.
            let _ = link.serve(run);
        }
        Step::Answer { .. } | Step::Serve => {}
        Step::Arm => {
            link.arm().expect("the peer's socket is open");
        }
        Step::Wait => link.wait(Duration::ZERO).expect("the peer's socket is open"),
    }
}

/// What arrives lies inside the regions, as does its reply's place.
fn look(link: &mut ShmLink) {
    let Ok(Some(arrival)) = link.poll() else { return };
    assert_eq!(link.incoming(arrival.payload()).len(), arrival.header.payload_len as usize);
    if let Some(reply) = arrival.reply {
        let (_, output) = link.exchange(arrival.payload(), reply);
        assert_eq!(output.len(), reply.capacity as usize + GUARD_LEN);
        output.fill(1);
    }
}

/// The peer may refuse to take messages, but not break how they are sent.
fn post(link: &mut ShmLink, side: Side, slot: u16, len: u8) {
    let block = GEOMETRY.slot(slot);
    let header = Header {
        generation: 1,
        slot,
        kind: match side {
            Side::Client => Side::Worker.takes(),
            Side::Worker => Side::Client.takes(),
        },
        status: Status::Ok,
        epoch: 1,
        invocation: 1,
        function: 0,
        code: 0,
        payload_len: u32::from(len).min(block.capacity),
        block: block.index(),
        reply_block: block.index(),
        reply_capacity: block.capacity,
        time_ns: 0,
    };
    if let Err(error) = link.post(block, &header) {
        assert!(matches!(*error, LinkError::Window { .. }), "{error}");
    }
}
