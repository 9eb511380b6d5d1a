//! `gleaner-hook`: Slurm's Prolog and Epilog on one node. One bounded local message: "a job starts here, vacate".
//!
//! Slurm waits for it and drains the node if it fails. So it always exits 0, within its bound, whatever happens: what
//! goes wrong is written to standard error, which slurmd logs. It starts fast: no runtime, no parser, no allocation
//! beyond a few strings.

mod alone;
mod arguments;
mod ask;
mod job;
mod processes;

use std::{io::Write, panic, time::Instant};

use gleaner_proto::hook::{HookKind, HookMessage};

use crate::{alone::Alone, arguments::Arguments, ask::Asked, job::Job};

fn main() {
    panic::set_hook(Box::new(|_| {}));
    // A panic is no reason to drain a node either.
    if panic::catch_unwind(hook).is_err() {
        complain("internal error: report it; the node may not be vacated");
    }
}

fn hook() {
    let begun = Instant::now();
    let arguments = Arguments::from_process();
    match Job::from_environment(arguments.kind) {
        Ok(job) => serve(&arguments, &job, begun),
        Err(missing) => complain(missing),
    }
}

/// Asks the node's keeper; does its work if it does not answer.
fn serve(arguments: &Arguments, job: &Job, begun: Instant) {
    let bound = arguments.bound;
    let run_dir = arguments.run_dir.join(job.node.as_str());
    let Job { kind, id: job_id, uid: job_uid, .. } = *job;
    let message = HookMessage { kind, job_id, job_uid, bound_ms: bound.as_millis() as u32 };
    let asked = ask::ask(&run_dir, &message, begun + bound / 2);
    match (&asked, kind) {
        (Asked::Answered(answer), _) if answer.remaining == 0 => {}
        (_, HookKind::Epilog) => {
            alone::forget_job(&run_dir, job);
            if !matches!(asked, Asked::NoKeeper) {
                complain(&format!(
                    "the keeper {asked}: the node becomes available with the next poll"
                ));
            }
        }
        (_, HookKind::Prolog) => {
            let alone = Alone { run_dir: &run_dir, job, begun, until: begun + bound };
            if let Some(done) = alone.vacate() {
                complain(&format!("the keeper {asked}: {done}"));
            }
        }
    }
}

/// Writes one line for slurmd's log; a closed standard error is no reason to fail.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "gleaner-hook: {text}");
}
