//! Calls that are run where they arrive, and answers that are compared where they lie.

use std::{thread, time::Instant};

use gleaner_proto::header::{GUARD_LEN, Header, Status};

use super::{PATIENCE, Pair, SMALL, next, payload, post, request, response};
use crate::{
    call::{Asked, Done, Expected, Failure, Found},
    link::{Arrival, Geometry, Link},
};

/// A call is run where it arrives, and its answer is found by who expects it.
pub fn calls_are_served_in_place(make: impl Fn(Geometry) -> Pair) {
    let (mut client, mut worker) = make(SMALL);
    for (call, size) in [0, 1, 7, 8, 16, 17, 64, 200, 5, 300].into_iter().enumerate() {
        let (slot, call) = (call as u16 % 3, call as u64);
        let data = payload(slot, call, size);
        let header = Header { function: 6, time_ns: 99, ..request(slot, call) };
        post(&mut *client, &header, &data);
        serve(&mut *worker, |asked, input, output| {
            let wanted = Asked { slot, epoch: 3, invocation: call, function: 6, time_ns: 99 };
            assert_eq!((asked, &*input), (wanted, &data[..]));
            assert_eq!(output.len(), SMALL.slot_capacity() as usize + GUARD_LEN);
            output[..size].copy_from_slice(input);
            output[..size].reverse();
            Done::well(size, 5000)
        });
        answer(&mut *client, &Expected::of(&header), |found| match found {
            Found::Reply(reply) => assert!(reply.iter().eq(data.iter().rev())),
            other => panic!("{other:?}"),
        });
        assert!(client.intact());
    }
    let nobody = &mut |_: Asked, _: &mut [u8], _: &mut [u8]| panic!("nothing was asked");
    assert!(!worker.serve(nobody).unwrap());
    assert!(matches!(client.answer(&Expected::of(&request(0, 0)), 3), Ok(Found::None)));
}

/// An input arrives as it is, wherever it was sent from; one that may be wanted again is in its block too.
pub fn inputs_are_sent_from_elsewhere(make: impl Fn(Geometry) -> Pair) {
    for keeping in [false, true] {
        send_from_elsewhere(make(SMALL), keeping);
    }
}

fn send_from_elsewhere((mut client, mut worker): Pair, keeping: bool) {
    let mut calls = [0, 1].map(|slot| Expected::new(slot, 3, SMALL.slot(slot)));
    for (number, size) in [0, 1, 7, 8, 15, 16, 17, 200, 3, 300].into_iter().enumerate() {
        let slot = number % calls.len();
        let (call, data) = (&mut calls[slot], payload(slot as u16, number as u64, size));
        call.set_lengths(size as u32, SMALL.slot_capacity());
        call.begin(number as u64, 6);
        match keeping {
            true => client.ask_keeping(call, &data, 99).unwrap(),
            false => client.ask_with(call, &data, 99).unwrap(),
        }
        let arrival = next(&mut *worker);
        assert_eq!(arrival.header, call.request(99));
        assert!(worker.incoming(arrival.payload()) == data, "{size} bytes");
        post(&mut *worker, &response(&arrival), &data);
        answer(&mut *client, call, |found| assert_eq!(found, Found::Reply(&data)));
        let may_lack = client.carries(call) && !keeping;
        assert!(may_lack || client.outgoing(call.input())[..size] == data);
    }
}

/// A call like the one before, asked, run and answered without a header in anybody's hands; and one that fails among them.
pub fn calls_like_the_one_before(make: impl Fn(Geometry) -> Pair) {
    let (mut client, mut worker) = make(SMALL);
    let capacity = SMALL.slot_capacity();
    let mut calls = [0, 1].map(|slot| Expected::new(slot, 3, SMALL.slot(slot)));
    let how = Failure { status: Status::FunctionError, code: 9, wanted: 0 };
    for (number, size) in [5, 0, 16, 17, 380, 1, 200, 64, 3, 380].into_iter().enumerate() {
        let (slot, number) = (number % calls.len(), number as u64 + 1);
        let (call, data) = (&mut calls[slot], payload(slot as u16, number, size));
        call.set_lengths(size as u32, capacity);
        call.begin(number, 6);
        client.ask_with(call, &data, 0).unwrap();
        let fails = number % 4 == 3;
        serve(&mut *worker, |asked, input, output| {
            let (slot, invocation) = (slot as u16, number);
            let wanted = Asked { slot, epoch: 3, invocation, function: 6, time_ns: 0 };
            assert_eq!((asked, &*input), (wanted, &data[..]));
            assert_eq!(output.len(), capacity as usize + GUARD_LEN);
            output[..size].copy_from_slice(input);
            Done { failure: fails.then_some(how), ..Done::well(size, 5000) }
        });
        let mut failed = None;
        answer(&mut *client, call, |found| match found {
            Found::Reply(reply) if !fails => assert!(reply == data),
            Found::Other(arrival) if fails => failed = Some(*arrival),
            other => panic!("call {number}: {other:?}"),
        });
        if let Some(arrival) = failed {
            assert_eq!((arrival.header.status, arrival.header.code), (how.status, 9));
            assert!(call.is_of(&arrival) && client.incoming(arrival.payload()) == data);
        }
    }
}

/// A call that ends otherwise, and another call's answer, are no good answer to this one.
pub fn what_is_no_good_answer_is_told_apart(make: impl Fn(Geometry) -> Pair) {
    let (mut client, mut worker) = make(SMALL);
    let asked = request(1, 4);
    let how = Failure { status: Status::FunctionError, code: 9, wanted: 0 };
    post(&mut *client, &asked, b"input");
    serve(&mut *worker, |_, _, output| {
        output[..3].copy_from_slice(b"why");
        Done { failure: Some(how), ..Done::well(3, 0) }
    });
    let mut arrived = None;
    answer(&mut *client, &Expected::of(&asked), |found| match found {
        Found::Other(arrival) => arrived = Some(*arrival),
        other => panic!("{other:?}"),
    });
    let Arrival { header, .. } = arrived.unwrap();
    assert_eq!((header.status, header.code, header.invocation), (how.status, 9, 4));
    assert_eq!(client.incoming(arrived.unwrap().payload()), b"why");
    let others = [
        Header { slot: 2, ..asked },
        Header { generation: 2, ..asked },
        Header { epoch: 4, ..asked },
        Header { invocation: 5, ..asked },
        Header { reply_block: SMALL.slot(2).index(), ..asked },
        Header { reply_capacity: 4, ..asked },
    ];
    for other in others.iter().map(Expected::of) {
        post(&mut *client, &asked, b"input");
        serve(&mut *worker, |_, input, output| {
            output[..5].copy_from_slice(input);
            Done::well(5, 0)
        });
        answer(&mut *client, &other, |found| match found {
            Found::Other(arrival) => assert_eq!(arrival.header.invocation, 4),
            other => panic!("{other:?}"),
        });
    }
}

/// An answer that nobody has read yet stays as it is while others come, in whichever order.
pub fn unread_answers_stay(make: impl Fn(Geometry) -> Pair) {
    let (mut client, mut worker) = make(SMALL);
    let mut unread = Vec::new();
    for call in 0..4u64 {
        for slot in 0..3 {
            post(&mut *client, &request(slot, call), b"ask");
        }
        let asked = [(); 3].map(|()| next(&mut *worker));
        // First the one that was asked for last, or another with calls in between.
        let (order, between) = if call % 2 == 0 { ([2, 1, 0], false) } else { ([1, 2, 0], true) };
        for arrival in order.map(|number| &asked[number]) {
            let slot = arrival.header.slot;
            post(&mut *worker, &response(arrival), &payload(slot, call, 250));
            let answer = next(&mut *client);
            assert_eq!(answer.header.slot, slot);
            unread.push((answer.payload(), payload(slot, call, 250)));
            if !between {
                continue;
            }
            post(&mut *client, &request(3, call), b"ask");
            let other = next(&mut *worker);
            post(&mut *worker, &response(&other), &payload(3, call, 200));
            let other = next(&mut *client);
            assert_eq!(client.incoming(other.payload()), payload(3, call, 200));
        }
        for (place, data) in unread.drain(..) {
            assert!(client.incoming(place) == data, "slot {}", place.slot);
        }
    }
}

fn serve(worker: &mut dyn Link, mut run: impl FnMut(Asked, &mut [u8], &mut [u8]) -> Done) {
    let until = Instant::now() + PATIENCE;
    while !worker.serve(&mut run).unwrap() {
        assert!(Instant::now() < until, "no call arrived");
        thread::yield_now();
    }
}

fn answer(client: &mut dyn Link, expected: &Expected, mut look: impl FnMut(Found<'_>)) {
    let until = Instant::now() + PATIENCE;
    loop {
        match client.answer(expected, 3).unwrap() {
            Found::None => assert!(Instant::now() < until, "no answer arrived"),
            found => return look(found),
        }
        thread::yield_now();
    }
}
