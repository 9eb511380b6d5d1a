//! The functions of one lease: opened once by the worker, shared by its sessions.
//!
//! Part of [`super::lease`]; turns a session's request into records for the worker, and the worker's answer into messages
//! for the sessions that wait for it.

use std::{collections::BTreeMap, os::fd::OwnedFd, sync::Arc};

use gleaner_lease::clock::Stamp;
use gleaner_proto::v1::{self, control_error::Code, from_agent};

use super::{connection::refusal, tune::OPEN_TIMEOUT, uploads::Hash};
use crate::worker::ipc::{Abi, FUNCTION_NAME_MAX, FUNCTIONS_MAX, LIBRARIES_MAX, ToWorker};

/// A lease's functions and libraries, by number.
#[derive(Debug, Default)]
pub(super) struct Functions {
    libraries: BTreeMap<Hash, u32>,
    functions: Vec<Function>,
}

#[derive(Debug)]
struct Function {
    library: u32,
    name: String,
    abi: Abi,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The worker was asked then; these sessions wait.
    Opening(Stamp, Vec<u64>),
    Open(Abi),
    /// May be asked for again.
    Failed,
}

/// What to do about a request.
pub(super) enum Open {
    /// Answer the session.
    Answer(from_agent::Message),
    /// Send these records to the worker; the answer follows.
    Ask(Vec<(ToWorker, Option<Arc<OwnedFd>>)>),
}

/// An answer, and the sessions that wait for it.
pub(super) type Answers = Vec<(u64, from_agent::Message)>;

impl Functions {
    /// A session wants a function of a library, which is `file` if it was uploaded.
    pub(super) fn open(
        &mut self,
        session: u64,
        request: &v1::OpenFunction,
        file: Option<Arc<OwnedFd>>,
        now: Stamp,
    ) -> Open {
        let refuse = |code, message: &str| Open::Answer(refusal(code, message));
        let Ok(hash) = Hash::try_from(&request.sha256[..]) else {
            return refuse(Code::Library, "a library's hash has 32 bytes");
        };
        let name = &request.name;
        if name.is_empty() || name.len() > FUNCTION_NAME_MAX || name.contains('\0') {
            return refuse(Code::Function, "a function's name has 1 to 255 bytes, none of them 0");
        }
        let abi = match v1::Abi::try_from(request.abi).unwrap_or_default() {
            v1::Abi::Unspecified => Abi::Any,
            v1::Abi::Rfaas => Abi::Rfaas,
            v1::Abi::Gleaner => Abi::Gleaner,
        };
        let mut records = Vec::with_capacity(2);
        let library = match (self.libraries.get(&hash), file) {
            (Some(library), _) => *library,
            (None, None) => {
                return refuse(Code::Library, "the library is not on this node: upload it first");
            }
            (None, Some(_)) if self.libraries.len() >= LIBRARIES_MAX as usize => {
                return refuse(Code::Limit, "this lease has as many libraries as one may have");
            }
            (None, Some(file)) => {
                let library = self.libraries.len() as u32;
                self.libraries.insert(hash, library);
                records.push((ToWorker::Library { library }, Some(file)));
                library
            }
        };
        let Some(function) = self.number(library, name, abi) else {
            return refuse(Code::Limit, "this lease has as many functions as one may have");
        };
        let known = &mut self.functions[function as usize].state;
        match known {
            State::Open(abi) => return Open::Answer(opened(function, *abi)),
            State::Opening(_, waiting) => {
                if !waiting.contains(&session) {
                    waiting.push(session);
                }
                return Open::Ask(Vec::new());
            }
            State::Failed => *known = State::Opening(now, vec![session]),
        }
        records.push((ToWorker::OpenFunction { function, library, name: name.clone(), abi }, None));
        Open::Ask(records)
    }

    /// The function's number; a new one starts as not opened.
    fn number(&mut self, library: u32, name: &str, abi: Abi) -> Option<u32> {
        let same = |function: &Function| {
            function.library == library && function.name == name && function.abi == abi
        };
        if let Some(number) = self.functions.iter().position(same) {
            return Some(number as u32);
        }
        if self.functions.len() >= FUNCTIONS_MAX as usize {
            return None;
        }
        self.functions.push(Function { library, name: name.to_owned(), abi, state: State::Failed });
        Some(self.functions.len() as u32 - 1)
    }

    /// The worker opened it.
    pub(super) fn opened(&mut self, function: u32, abi: Abi) -> Answers {
        self.answered(function, State::Open(abi), opened(function, abi))
    }

    /// The worker could not.
    pub(super) fn failed(&mut self, function: u32, message: &str) -> Answers {
        self.answered(function, State::Failed, refusal(Code::Function, message))
    }

    fn answered(&mut self, function: u32, state: State, answer: from_agent::Message) -> Answers {
        let Some(known) = self.functions.get_mut(function as usize) else {
            return Vec::new();
        };
        match std::mem::replace(&mut known.state, state) {
            State::Opening(_, waiting) => {
                waiting.into_iter().map(|session| (session, answer.clone())).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Gives up on a worker that does not answer.
    pub(super) fn overdue(&mut self, now: Stamp) -> Answers {
        let late = |function: &Function| matches!(&function.state, State::Opening(since, _) if since.after(OPEN_TIMEOUT) <= now);
        let late: Vec<u32> = (0..self.functions.len() as u32)
            .filter(|number| late(&self.functions[*number as usize]))
            .collect();
        let message =
            format!("the library was not loaded within {OPEN_TIMEOUT:?}: its constructors hang");
        late.into_iter().flat_map(|function| self.failed(function, &message)).collect()
    }

    /// When [`overdue`](Self::overdue) has to look next.
    pub(super) fn next_overdue(&self) -> Option<Stamp> {
        let since = self.functions.iter().filter_map(|function| match &function.state {
            State::Opening(since, _) => Some(since.after(OPEN_TIMEOUT)),
            _ => None,
        });
        since.min()
    }

    /// A session that is gone waits for nothing.
    pub(super) fn forget(&mut self, session: u64) {
        for function in &mut self.functions {
            if let State::Opening(_, waiting) = &mut function.state {
                waiting.retain(|waiting| *waiting != session);
            }
        }
    }
}

fn opened(function: u32, abi: Abi) -> from_agent::Message {
    let abi = match abi {
        Abi::Any => v1::Abi::Unspecified,
        Abi::Rfaas => v1::Abi::Rfaas,
        Abi::Gleaner => v1::Abi::Gleaner,
    };
    from_agent::Message::FunctionOpened(v1::FunctionOpened { function, abi: abi as i32 })
}
