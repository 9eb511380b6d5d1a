//! Who is told that a call has ended: nobody, a completion queue, or a task. Nobody looks through calls to find out.
//!
//! A call may be told of twice: a reply that is taken back with its memory is answered again. So who is told looks at the
//! call itself before it believes.

use std::{collections::VecDeque, task::Waker};

use crate::calls::{CallKey, Calls};

/// Who waits for one call's end.
#[derive(Default)]
pub(crate) enum Listener {
    /// Who holds its ticket, and looks by himself.
    #[default]
    Nobody,
    /// The completion queue of this number.
    Queue(usize),
    /// A task, to be woken once.
    Task(Waker),
}

/// What was told and not taken yet.
#[derive(Default)]
pub(crate) struct Ended {
    queues: Vec<Option<VecDeque<CallKey>>>,
    /// Tasks to be woken once nobody is inside the pool: a waker may run anything.
    pub(crate) tasks: Vec<Waker>,
}

impl Ended {
    /// A new completion queue's number, with room for so many calls.
    pub(crate) fn open_queue(&mut self, calls: usize) -> usize {
        let queue = Some(VecDeque::with_capacity(calls));
        match self.queues.iter().position(Option::is_none) {
            Some(free) => {
                self.queues[free] = queue;
                free
            }
            None => {
                self.queues.push(queue);
                self.queues.len() - 1
            }
        }
    }

    /// The queue is of no more use.
    pub(crate) fn close_queue(&mut self, queue: usize) {
        self.queues[queue] = None;
    }

    /// Whether there is anything to be taken.
    #[inline]
    pub(crate) fn told(&self, queue: usize) -> bool {
        self.queues[queue].as_ref().is_some_and(|keys| !keys.is_empty())
    }

    /// The next call that has ended, or had when it was told.
    pub(crate) fn next_of(&mut self, queue: usize) -> Option<CallKey> {
        self.queues[queue].as_mut()?.pop_front()
    }
}

impl Calls {
    /// Says who is told of a call's end; returns who was to be told before. A task's waker is dropped outside the pool.
    pub(crate) fn set_listener(&mut self, key: CallKey, listener: Listener) -> Listener {
        let known = &mut self.calls[key.index as usize].listener;
        let before = std::mem::replace(known, listener);
        if self.is_done(key) {
            self.tell(key.index);
        }
        before
    }

    /// A call has ended.
    #[inline(always)]
    pub(crate) fn tell(&mut self, index: u32) {
        let call = &mut self.calls[index as usize];
        match call.listener {
            Listener::Nobody => {}
            Listener::Task(_) => {
                if let Listener::Task(waker) = std::mem::take(&mut call.listener) {
                    self.ended.tasks.push(waker);
                }
            }
            Listener::Queue(queue) => {
                let key = CallKey { index, number: call.number };
                self.ended.queues[queue].iter_mut().for_each(|keys| keys.push_back(key));
            }
        }
    }
}
