//! The conformance suite between two hosts: two network namespaces with one device each, and two machines on one wire.
//!
//! On one of them the puppet plays the client, on the other the suite holds the worker's end. `guest.rs` starts both.

use gleaner_proto::header::{HEADER_LEN, Immediate};

use super::puppet::Remote;
use crate::{
    Geometry,
    conformance::{self, HostilePair, Pair},
};

fn pair(geometry: Geometry) -> Pair {
    let (client, worker) = Remote::pair(geometry);
    (Box::new(client), Box::new(worker))
}

fn hostile(geometry: Geometry) -> HostilePair {
    let (mut peer, worker) = Remote::pair(geometry);
    let send = move |bytes: &[u8]| {
        // Less than a header is written and not announced: a write has no half.
        let whole = bytes.len() == HEADER_LEN;
        let immediate = Immediate::Headed { block: 0, generation: bytes[0] };
        peer.write(bytes, whole.then(|| immediate.encode()));
    };
    (Box::new(worker), Box::new(send))
}

macro_rules! between_hosts {
    ($make:expr; $($name:ident)*) => { $(
        #[test]
        #[ignore = "needs another host"]
        fn $name() {
            conformance::$name($make);
        }
    )* };
}

between_hosts!(pair; order held_posts_go_out window_is_the_bound payload_sizes both_ways_at_once
    peer_gone_is_seen_after_its_last_message wait_is_woken wait_ends_in_time no_wake_up_is_lost
    wait_sees_what_came_before arena_blocks exchange_gives_both_buffers
    calls_are_served_in_place inputs_are_sent_from_elsewhere calls_like_the_one_before what_is_no_good_answer_is_told_apart
            unread_answers_stay);
between_hosts!(hostile; bad_headers_close_the_link garbage_never_panics cut_messages_never_arrive);
