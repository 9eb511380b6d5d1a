//! `gleaner invoke`: one call's result, or many calls' latencies.

use std::{
    collections::VecDeque,
    fs,
    io::{self, IsTerminal, Read, Write},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use gleaner::{CallError, Client, Function, Library, Pool, PoolStats, Request, Ticket};
use gleaner_config::Config;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::{
    arguments::{CallFlags, Common, Invoke, RequestFlags},
    connect::client,
    exit::{Code, Failure},
    figures::nanoseconds,
    latency::{Latencies, Percentiles},
    output,
};

/// Leases, calls, gives back. The exit code says whether every call ended as OK.
pub(crate) fn run(common: &Common, invoke: &Invoke) -> Result<ExitCode, Failure> {
    let input = input(invoke)?;
    let library = Library::from_file(&invoke.library)?;
    let (client, config) = client(common)?;
    let begun = Instant::now();
    let pool = acquire(&client, &config, invoke, input.len())?;
    let ready = begun.elapsed();
    let function = with_flags(pool.function(&library, &invoke.function)?, &invoke.call)?;
    let outcome = match invoke.count {
        1 => once(common.json, invoke, &pool, &function, &input),
        _ => Ok(many(common.json, invoke, &pool, &function, &input, ready)),
    };
    pool.release()?;
    outcome
}

fn input(invoke: &Invoke) -> Result<Vec<u8>, Failure> {
    let named = |path: &Path, error: io::Error| {
        Failure::new(Code::Local, format!("{}: {error}", path.display()))
    };
    match (&invoke.data, &invoke.input) {
        (Some(data), _) => Ok(data.clone().into_bytes()),
        (None, Some(path)) if path.as_os_str() == "-" => {
            let mut bytes = Vec::new();
            io::stdin().read_to_end(&mut bytes).map_err(|error| named(path, error))?;
            Ok(bytes)
        }
        (None, Some(path)) => fs::read(path).map_err(|error| named(path, error)),
        (None, None) => Ok(Vec::new()),
    }
}

fn acquire(
    client: &Client,
    config: &Config,
    invoke: &Invoke,
    input: usize,
) -> Result<Pool, Failure> {
    let request = request(config, &invoke.request, &invoke.call)
        .arena_bytes(arena_bytes(config, invoke, input));
    let waiting = spinner(&format!("leasing {} nodes", invoke.request.nodes.0.end()));
    let pool = client.acquire(request);
    waiting.finish_and_clear();
    Ok(pool?)
}

/// A lease as the flags, else the configuration, want it.
fn request(config: &Config, flags: &RequestFlags, call: &CallFlags) -> Request {
    let defaults = &config.client;
    let account = flags.account.as_ref().or(defaults.account.as_ref());
    let mut request = Request::from(config)
        .nodes(flags.nodes.0.clone())
        .cores(flags.cpus_per_task)
        .memory(flags.mem.unwrap_or(defaults.memory).0)
        .ttl(flags.time.unwrap_or(defaults.ttl))
        .partition(flags.partition.clone().unwrap_or_default())
        .account(account.cloned().unwrap_or_default())
        .local_fallback(call.local_fallback || defaults.local_fallback);
    if call.warm {
        request = request.waiting(gleaner::Waiting::Warm);
    }
    match call.transport {
        Some(transport) => request.transport(transport.into()),
        None => request,
    }
}

/// Room for what does not fit a slot: for every call under way, the larger of input and reply, and its header.
fn arena_bytes(config: &Config, invoke: &Invoke, input: usize) -> u64 {
    const HEADER_AND_GUARD: u64 = 192;
    const PAGE: u64 = 4096;
    let reply = invoke.call.reply_max.map_or(0, |size| size.0);
    let block = (input as u64).max(reply).saturating_add(HEADER_AND_GUARD);
    if block <= config.client.slot.0 {
        return config.client.arena.0;
    }
    let blocks = invoke.depth.min(u64::from(config.client.window));
    let room = block.next_multiple_of(PAGE).saturating_mul(blocks);
    room.max(config.client.arena.0)
}

fn with_flags<'p>(function: Function<'p>, flags: &CallFlags) -> Result<Function<'p>, Failure> {
    let mut function = function.idempotent(flags.idempotent);
    if let Some(deadline) = flags.deadline {
        function = function.deadline(deadline);
    }
    if let Some(size) = flags.reply_max {
        let too_large = |_| {
            Failure::new(Code::Refused, format!("--reply-max {size}: no reply is larger than 4G"))
        };
        function = function.reply_capacity(u32::try_from(size.0).map_err(too_large)?);
    }
    Ok(function)
}

/// One call as `--json` prints it.
#[derive(Debug, Serialize)]
struct Once<'a> {
    outcome: &'static str,
    node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    reply_bytes: Option<usize>,
    reply_text: Option<&'a str>,
    reply_hex: Option<String>,
    call_ns: u64,
}

fn once(
    as_json: bool,
    invoke: &Invoke,
    pool: &Pool,
    function: &Function<'_>,
    input: &[u8],
) -> Result<ExitCode, Failure> {
    let node = pool.leases().first().map(|lease| lease.node.clone());
    let begun = Instant::now();
    let result = function.invoke(input);
    let call_ns = nanoseconds_of(begun.elapsed());
    let reply = result.as_deref().ok();
    if let (Some(path), Some(reply)) = (&invoke.output, reply) {
        let named = |error| Failure::new(Code::Local, format!("{}: {error}", path.display()));
        fs::write(path, reply).map_err(named)?;
    }
    if as_json {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let once = Once {
            outcome: result.as_ref().map_or_else(outcome_of, |_| "OK"),
            node,
            error: result.as_ref().err().map(CallError::to_string),
            reply_bytes: reply.map(<[u8]>::len),
            reply_text: reply.and_then(|bytes| str::from_utf8(bytes).ok()),
            reply_hex: reply.map(hex),
            call_ns,
        };
        output::json("invoke", &once);
    } else if let (None, Some(reply)) = (&invoke.output, reply) {
        io::stdout().write_all(reply)?;
    }
    match result {
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err(_) if as_json => Ok(Code::Call.into()),
        Err(error) => Err(Failure::new(Code::Call, error.to_string())),
    }
}

fn outcome_of(error: &CallError) -> &'static str {
    match error {
        CallError::Failed(_) => "FAILED",
        CallError::Evicted { .. } => "EVICTED",
        CallError::Unknown { .. } => "UNKNOWN",
    }
}

/// Many calls as `--json` prints them.
#[derive(Debug, Serialize)]
struct Many {
    calls: u64,
    depth: u64,
    ok: u64,
    failed: u64,
    evicted: u64,
    unknown: u64,
    reruns: u64,
    evictions: u64,
    local: u64,
    first_error: Option<String>,
    nodes: Vec<String>,
    ready_ns: u64,
    first_call_ns: Option<u64>,
    elapsed_ns: u64,
    calls_per_second: f64,
    latency: Percentiles,
}

fn many(
    as_json: bool,
    invoke: &Invoke,
    pool: &Pool,
    function: &Function<'_>,
    input: &[u8],
    ready: Duration,
) -> ExitCode {
    let nodes = pool.leases().into_iter().map(|lease| lease.node).collect();
    let mut run = Run::new(invoke.count);
    let begun = Instant::now();
    if invoke.depth == 1 {
        run.one_by_one(function, input);
    } else {
        run.pipelined(function, input, invoke.depth as usize);
    }
    let elapsed = begun.elapsed();
    run.progress.finish_and_clear();
    let PoolStats { ok, failed, evicted, unknown, reruns, local, evictions } = pool.stats();
    let many = Many {
        calls: invoke.count,
        depth: invoke.depth,
        ok,
        failed,
        evicted,
        unknown,
        reruns,
        evictions,
        local,
        first_error: run.first_error,
        nodes,
        ready_ns: nanoseconds_of(ready),
        first_call_ns: run.first_call_ns,
        elapsed_ns: nanoseconds_of(elapsed),
        calls_per_second: run.done as f64 / elapsed.as_secs_f64().max(f64::MIN_POSITIVE),
        latency: run.latencies.percentiles(),
    };
    output::print(as_json, "invoke", &many, |many| many_text(many, &run.latencies));
    if many.ok == many.calls { ExitCode::SUCCESS } else { Code::Call.into() }
}

/// A run of many calls under way.
struct Run {
    count: u64,
    done: u64,
    latencies: Latencies,
    first_call_ns: Option<u64>,
    first_error: Option<String>,
    progress: ProgressBar,
}

/// Calls between two looks at the progress bar, so that the bar costs the calls nothing.
const PROGRESS_STEP: u64 = 1024;

impl Run {
    fn new(count: u64) -> Self {
        let style = "{bar:40} {pos}/{len} calls  {per_sec}  {eta} left";
        let style =
            ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        let progress =
            ProgressBar::with_draw_target(Some(count), ProgressDrawTarget::stderr_with_hz(5));
        let progress = progress.with_style(style);
        Self {
            count,
            done: 0,
            latencies: Latencies::new(),
            first_call_ns: None,
            first_error: None,
            progress,
        }
    }

    fn one_by_one(&mut self, function: &Function<'_>, input: &[u8]) {
        for _ in 0..self.count {
            let begun = Instant::now();
            let result =
                function.invoke_with(input.len(), |buffer| buffer.copy_from_slice(input), |_| ());
            self.ended(begun, result);
        }
    }

    fn pipelined(&mut self, function: &Function<'_>, input: &[u8], depth: usize) {
        let mut under_way: VecDeque<(Instant, Ticket<'_>)> = VecDeque::with_capacity(depth);
        for _ in 0..self.count {
            if under_way.len() == depth
                && let Some((begun, ticket)) = under_way.pop_front()
            {
                self.ended(begun, ticket.wait_with(|_| ()));
            }
            let begun = Instant::now();
            match function.submit(input) {
                Ok(ticket) => under_way.push_back((begun, ticket)),
                Err(error) => self.ended(begun, Err(error)),
            }
        }
        for (begun, ticket) in under_way {
            self.ended(begun, ticket.wait_with(|_| ()));
        }
    }

    fn ended(&mut self, begun: Instant, result: Result<(), CallError>) {
        let ns = nanoseconds_of(begun.elapsed());
        self.done += 1;
        match result {
            Ok(()) => {
                self.first_call_ns.get_or_insert(ns);
                self.latencies.record(ns);
            }
            Err(error) => {
                self.first_error.get_or_insert_with(|| error.to_string());
            }
        }
        if self.done.is_multiple_of(PROGRESS_STEP) {
            self.progress.set_position(self.done);
        }
    }
}

fn many_text(many: &Many, latencies: &Latencies) -> String {
    let figures = &many.latency;
    let elapsed = nanoseconds(many.elapsed_ns);
    let mut text = output::pairs(&[
        ("nodes", many.nodes.join(",")),
        (
            "calls",
            format!(
                "{} ok, {} failed, {} evicted, {} unknown",
                many.ok, many.failed, many.evicted, many.unknown
            ),
        ),
        (
            "moved",
            format!(
                "{} calls run again after {} evictions, {} run here",
                many.reruns, many.evictions, many.local
            ),
        ),
        (
            "rate",
            format!(
                "{:.0} calls/s, {} under way, {elapsed} in all",
                many.calls_per_second, many.depth
            ),
        ),
        ("lease", format!("ready after {}", nanoseconds(many.ready_ns))),
        ("first", many.first_call_ns.map_or_else(|| "-".into(), nanoseconds)),
        (
            "latency",
            format!(
                "min {}  p50 {}  p90 {}  p99 {}  p99.9 {}  max {}",
                nanoseconds(figures.min_ns),
                nanoseconds(figures.p50_ns),
                nanoseconds(figures.p90_ns),
                nanoseconds(figures.p99_ns),
                nanoseconds(figures.p99_9_ns),
                nanoseconds(figures.max_ns)
            ),
        ),
    ]);
    text += "\n\n";
    text += &latencies.picture();
    if let Some(error) = &many.first_error {
        text += &format!("\n\nfirst call that was not OK: {error}");
    }
    text
}

fn nanoseconds_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A spinner on a terminal; nothing elsewhere.
fn spinner(message: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner().with_message(message.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
