//! Sleeping on words of memory that two processes or threads share: on one, or on several at once.
//!
//! [`Words`] is one such sleep. Worker and client sleep so while an answer is likely to come soon: nothing wakes a sleeper for
//! less. It sees no socket and no death, so who has waited for longer sleeps in poll(2).
// UNSAFETY: the system calls take addresses; a borrow of an atomic is one that stays mapped.
#![allow(unsafe_code)]

use std::{io, marker::PhantomData, ptr, sync::atomic::AtomicU32, time::Duration};

/// Most words of one sleep: more are poll(2)'s. The kernel takes 128.
pub const WORDS_MAX: usize = 16;

/// Words, and what they hold for as long as the sleep shall last. It lives on the stack.
#[derive(Debug)]
pub struct Words<'a> {
    list: [Word; WORDS_MAX],
    len: usize,
    borrowed: PhantomData<&'a AtomicU32>,
}

/// The kernel's `struct futex_waitv`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Word {
    expected: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}

/// `FUTEX2_SIZE_U32`, shared with other processes.
const SHARED_U32: u32 = 2;

impl<'a> Words<'a> {
    /// None yet.
    pub fn new() -> Self {
        let none = Word { expected: 0, address: 0, flags: SHARED_U32, reserved: 0 };
        Self { list: [none; WORDS_MAX], len: 0, borrowed: PhantomData }
    }

    /// Adds one. False if there are [`WORDS_MAX`].
    pub fn push(&mut self, (word, expected): (&'a AtomicU32, u32)) -> bool {
        let Some(free) = self.list.get_mut(self.len) else { return false };
        free.address = word.as_ptr() as u64;
        free.expected = expected.into();
        self.len += 1;
        true
    }

    /// Sleeps while all words hold what is expected of them, until one is woken or `timeout` is over. True unless the time is
    /// over; also for no reason. Several words are refused by kernels before Linux 5.16.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        match &self.list[..self.len] {
            [word] => wait_for(word.address as *mut u32, word.expected as u32, timeout),
            words => wait_for_any(words, timeout),
        }
    }
}

impl Default for Words<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// Wakes the one who sleeps on `word`, if somebody does.
pub fn wake(word: &AtomicU32) {
    // SAFETY: the address is a borrowed value's. It can only fail for an address that is none, which a borrow excludes.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1, ptr::null::<u8>());
    }
}

fn wait_for(address: *mut u32, expected: u32, timeout: Duration) -> io::Result<bool> {
    let timeout = timespec(timeout);
    // SAFETY: both addresses are of borrowed values that outlive the call; the kernel only reads them.
    woken(unsafe {
        libc::syscall(libc::SYS_futex, address, libc::FUTEX_WAIT, expected, &raw const timeout)
    })
}

fn wait_for_any(words: &[Word], timeout: Duration) -> io::Result<bool> {
    let mut until = timespec(Duration::ZERO);
    // SAFETY: the kernel fills in a value of ours; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut until) };
    let now = Duration::new(until.tv_sec as u64, until.tv_nsec as u32);
    let until = timespec(now.saturating_add(timeout));
    // SAFETY: as above; the list has as many words as it is said to have.
    woken(unsafe {
        libc::syscall(
            libc::SYS_futex_waitv,
            words.as_ptr(),
            words.len(),
            0,
            &raw const until,
            libc::CLOCK_MONOTONIC,
        )
    })
}

fn timespec(time: Duration) -> libc::timespec {
    let tv_sec = libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX);
    libc::timespec { tv_sec, tv_nsec: time.subsec_nanos().into() }
}

/// A word that had changed already and a signal are wake-ups: the caller looks at everything itself.
fn woken(slept: libc::c_long) -> io::Result<bool> {
    if slept >= 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EINTR) => Ok(true),
        Some(libc::ETIMEDOUT) => Ok(false),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::Ordering, thread};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn any_of_the_words_ends_the_sleep() {
        for woken in 0..3 {
            let words = [0, 1, 2].map(AtomicU32::new);
            thread::scope(|scope| {
                let sleeper = scope.spawn(|| {
                    let mut sleep = Words::new();
                    words.iter().zip(0..).for_each(|word| assert!(sleep.push(word)));
                    sleep.wait(LONG)
                });
                words[woken].store(7, Ordering::Release);
                wake(&words[woken]);
                assert!(sleeper.join().unwrap().unwrap());
            });
        }
    }

    #[test]
    fn a_sleep_ends_in_time() {
        let words = [0, 0].map(AtomicU32::new);
        for several in 1..=2 {
            let mut sleep = Words::new();
            words[..several].iter().for_each(|word| assert!(sleep.push((word, 0))));
            assert!(!sleep.wait(Duration::from_millis(1)).unwrap(), "{several}");
        }
    }

    #[test]
    fn there_is_room_for_so_many_and_no_more() {
        let word = AtomicU32::new(0);
        let mut sleep = Words::new();
        (0..WORDS_MAX).for_each(|_| assert!(sleep.push((&word, 0))));
        assert!(!sleep.push((&word, 0)));
    }
}
