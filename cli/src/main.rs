//! The `gleaner` command: what people see of a cluster, and what they may do to it.
//!
//! Uses the client crate's public calls alone and has no private powers. Each verb is a module with one `run`; what it
//! prints goes through [`output`], so that `--json` holds everywhere.
//!
//! ```text
//! arguments ── verb ── connect (configuration → client) ── view (wire types → what is shown) ── output
//! ```

#![forbid(unsafe_code)]

mod admin;
mod arguments;
mod configuration;
mod connect;
mod doctor;
mod exit;
mod figures;
mod invoke;
mod latency;
mod manual;
mod new;
mod output;
mod report;
mod show;
mod time;
mod view;

use std::process::ExitCode;

use arguments::{Arguments, Verb};
use clap::Parser;
use exit::Failure;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let json = arguments.common.json;
    match run(arguments) {
        Ok(code) => code,
        Err(failure) => failure.report(json),
    }
}

fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let common = &arguments.common;
    match arguments.verb {
        Verb::Status => show::status(common)?,
        Verb::Nodes(nodes) => show::nodes(common, &nodes)?,
        Verb::Leases(leases) => show::leases(common, &leases)?,
        Verb::Invoke(invoke) => return invoke::run(common, &invoke),
        Verb::New(new) => new::run(common.json, &new)?,
        Verb::Drain(drain) => admin::drain(common, &drain)?,
        Verb::Resume(resume) => admin::resume(common, &resume)?,
        Verb::Off(off) => admin::off(common, &off)?,
        Verb::On => admin::on(common)?,
        Verb::Report(report) => report::run(common, &report)?,
        Verb::Config(config) => configuration::run(common, &config)?,
        Verb::Doctor => return doctor::run(common),
        Verb::Completions(completions) => manual::completions(&completions),
        Verb::Manual(manual) => manual::write(&manual)?,
    }
    Ok(ExitCode::SUCCESS)
}
