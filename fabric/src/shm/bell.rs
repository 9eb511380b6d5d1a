//! How a sender learns that the receiver sleeps, and a receiver that it may: one word a direction, no wake-up lost and none
//! sent to who is awake.
//!
//! ```text
//! sender:    publish ▶ fence ▶ sleeping != AWAKE? ▶ swap AWAKE ▶ wake, by what was swapped out
//! receiver:  swap how ▶ fence ▶ look again ▶ sleep
//! ```
//!
//! Only swaps change the word, so that its values have one order. The fences order the two stores against the two loads: either
//! the sender sees that the receiver sleeps, or the receiver sees the message. The sender's swap lets one of its looks wake, and
//! no more. The tests below check this very code in a model of memory (all orders of one message, many of two), and that it
//! fails without either fence or the second look.
//!
//! The peer may store anything in the word: what is no way to sleep wakes nobody but itself.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};

/// The receiver looks by itself.
pub(super) const AWAKE: u32 = 0;

/// How a receiver sleeps, and is to be woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sleep {
    /// On the word itself.
    Futex = 1,
    /// On its socket.
    Socket = 2,
}

/// The word, and the fence that goes with it: std's, or the model's.
pub(super) trait Word {
    fn load(&self) -> u32;
    fn swap(&self, value: u32) -> u32;
    fn fence();
}

impl Word for AtomicU32 {
    #[inline]
    fn load(&self) -> u32 {
        AtomicU32::load(self, Ordering::Relaxed)
    }

    #[inline]
    fn swap(&self, value: u32) -> u32 {
        AtomicU32::swap(self, value, Ordering::Relaxed)
    }

    #[inline]
    fn fence() {
        super::barrier::full();
    }
}

/// The receiver is about to sleep. True if it need not: then it is awake again.
pub(super) fn ask<W: Word>(sleeping: &W, how: Sleep, ready: impl FnOnce() -> bool) -> bool {
    sleeping.swap(how as u32);
    W::fence();
    let found = ready();
    if found {
        sleeping.swap(AWAKE);
    }
    found
}

/// The receiver looks by itself again, whether it was woken or not.
pub(super) fn withdraw<W: Word>(sleeping: &W) {
    if sleeping.load() != AWAKE {
        sleeping.swap(AWAKE);
    }
}

/// The sender has published: whom to wake, and how.
#[inline]
pub(super) fn ring<W: Word>(sleeping: &W) -> Option<Sleep> {
    W::fence();
    if sleeping.load() == AWAKE {
        return None;
    }
    match sleeping.swap(AWAKE) {
        word if word == Sleep::Futex as u32 => Some(Sleep::Futex),
        word if word == Sleep::Socket as u32 => Some(Sleep::Socket),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use loom::{
        sync::{
            Arc, Condvar, Mutex,
            atomic::{AtomicU32, Ordering, fence},
        },
        thread,
    };

    use super::*;

    /// All orders of one message; of two, those with so many preemptions: without a bound, minutes.
    const BOUNDS: [(u32, Option<usize>); 2] = [(1, None), (2, Some(3))];

    /// The model's word, as one thread uses it: with its fence, or without.
    struct Model<'a, const FENCED: bool>(&'a AtomicU32);

    impl<const FENCED: bool> Word for Model<'_, FENCED> {
        fn load(&self) -> u32 {
            self.0.load(Ordering::Relaxed)
        }

        fn swap(&self, value: u32) -> u32 {
            self.0.swap(value, Ordering::Relaxed)
        }

        fn fence() {
            if FENCED {
                fence(Ordering::SeqCst);
            }
        }
    }

    /// What two ends share, and the kernel between them.
    #[derive(Default)]
    struct World {
        published: AtomicU32,
        sleeping: AtomicU32,
        kernel: Mutex<Kernel>,
        woken: Condvar,
    }

    #[derive(Default)]
    struct Kernel {
        byte_in_socket: bool,
        /// The sender has sent all: who sleeps now, sleeps for ever.
        over: bool,
    }

    impl World {
        fn send<const FENCED: bool>(&self, sequence: u32) {
            self.published.store(sequence, Ordering::Release);
            if let Some(how) = ring(&Model::<FENCED>(&self.sleeping)) {
                self.kernel.lock().unwrap().byte_in_socket |= how == Sleep::Socket;
                self.woken.notify_one();
            }
        }

        fn end(&self) {
            self.kernel.lock().unwrap().over = true;
            self.woken.notify_one();
        }

        fn holds(&self, sequence: u32) -> bool {
            self.published.load(Ordering::Acquire) >= sequence
        }

        /// Asks in one way after the other: all but the last sleep are over at once.
        fn receive<const FENCED: bool>(&self, ways: &[Sleep], sequence: u32, looks_again: bool) {
            let word = Model::<FENCED>(&self.sleeping);
            while !self.holds(sequence) {
                let mut asked = ways.iter().take_while(|&&how| {
                    if how == Sleep::Socket {
                        self.kernel.lock().unwrap().byte_in_socket = false;
                    }
                    !ask(&word, how, || looks_again && self.holds(sequence))
                });
                if let Some(&last) = asked.nth(ways.len() - 1) {
                    self.sleep(last);
                }
            }
            withdraw(&word);
        }

        fn sleep(&self, how: Sleep) {
            let mut kernel = self.kernel.lock().unwrap();
            let asleep = |kernel: &Kernel| match how {
                Sleep::Futex => self.sleeping.load(Ordering::Relaxed) == how as u32,
                Sleep::Socket => !kernel.byte_in_socket,
            };
            while asleep(&kernel) {
                assert!(!kernel.over, "a wake-up was lost");
                kernel = self.woken.wait(kernel).unwrap();
            }
        }
    }

    /// A sender of some messages, and a receiver who sleeps before each.
    fn check<const SENDER: bool, const RECEIVER: bool>(ways: &'static [Sleep], looks_again: bool) {
        for (messages, preemption_bound) in BOUNDS {
            let mut model = loom::model::Builder::new();
            model.preemption_bound = preemption_bound;
            model.check(move || {
                let world = Arc::new(World::default());
                let sender = thread::spawn({
                    let world = Arc::clone(&world);
                    move || {
                        (1..=messages).for_each(|sequence| world.send::<SENDER>(sequence));
                        world.end();
                    }
                });
                for sequence in 1..=messages {
                    world.receive::<RECEIVER>(ways, sequence, looks_again);
                }
                sender.join().unwrap();
            });
        }
    }

    #[test]
    fn no_wake_up_by_futex_is_lost_in_any_order() {
        check::<true, true>(&[Sleep::Futex], true);
    }

    #[test]
    fn no_wake_up_by_socket_is_lost_in_any_order() {
        check::<true, true>(&[Sleep::Socket], true);
    }

    #[test]
    fn no_wake_up_is_lost_between_one_way_and_the_other() {
        check::<true, true>(&[Sleep::Futex, Sleep::Socket], true);
        check::<true, true>(&[Sleep::Socket, Sleep::Futex], true);
    }

    #[test]
    #[should_panic = "a wake-up was lost"]
    fn between_them_the_second_look_is_needed() {
        check::<true, true>(&[Sleep::Futex, Sleep::Socket], false);
    }

    #[test]
    #[should_panic = "a wake-up was lost"]
    fn without_the_senders_fence_one_is_lost() {
        check::<false, true>(&[Sleep::Futex], true);
    }

    #[test]
    #[should_panic = "a wake-up was lost"]
    fn without_the_receivers_fence_one_is_lost() {
        check::<true, false>(&[Sleep::Futex], true);
    }

    #[test]
    #[should_panic = "a wake-up was lost"]
    fn without_the_second_look_one_is_lost() {
        check::<true, true>(&[Sleep::Futex], false);
    }

    #[test]
    fn what_is_no_way_to_sleep_wakes_nobody() {
        for word in [3, 7, u32::MAX] {
            let sleeping = std::sync::atomic::AtomicU32::new(word);
            assert_eq!(ring(&sleeping), None);
            assert_eq!(sleeping.into_inner(), AWAKE);
        }
    }
}
