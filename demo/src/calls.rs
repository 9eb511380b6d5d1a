//! Cold start, then hot calls with their latencies: one core, one call at a time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gleaner::{Client, Library, Request, Transport, Transports, Waiting};
use hdrhistogram::Histogram;

use crate::{screen, summary::Summary};

/// Calls that warm the path up and are not counted.
const WARM_UP: u32 = 2_000;
/// Calls that are counted.
const CALLS: u32 = 50_000;
/// As from another node: these all are on one machine.
const TCP: Transports = Transports::Only(Transport::Tcp);

/// Bytes of the payload, each way.
const PAYLOAD: usize = 64;

/// Longest latency that is told apart, in nanoseconds.
const LATENCY_MAX_NS: u64 = 10_000_000_000;

/// Leases one core, measures the cold start twice (library to upload, then cached) and the hot calls.
pub(crate) fn measure(client: &Client, library: &Library, summary: &mut Summary) -> Result<()> {
    screen::heading("Calls on a leased core");
    summary.cold_start_ms = millis(cold_start(client, library)?);
    summary.cold_start_cached_ms = millis(cold_start(client, library)?);
    screen::line(&format!(
        "cold start, request for a lease to first result: {:.1} ms; library cached: {:.1} ms",
        summary.cold_start_ms, summary.cold_start_cached_ms
    ));
    let latencies = hot_calls(client, library)?;
    summary.hot_tcp_p50_ns = latencies.value_at_quantile(0.5);
    summary.hot_tcp_p99_ns = latencies.value_at_quantile(0.99);
    summary.hot_tcp_calls = latencies.len();
    summary.calls_ok += latencies.len();
    screen::histogram(&latencies);
    Ok(())
}

fn cold_start(client: &Client, library: &Library) -> Result<Duration> {
    let started = Instant::now();
    let pool = client.acquire(Request::new().waiting(Waiting::Hot).transport(TCP))?;
    let reply = pool.function(library, "echo")?.invoke(b"first")?;
    let took = started.elapsed();
    ensure!(reply == b"first", "echo answered {reply:?}");
    pool.release()?;
    Ok(took)
}

fn hot_calls(client: &Client, library: &Library) -> Result<Histogram<u64>> {
    let mut latencies = Histogram::new_with_max(LATENCY_MAX_NS, 3).context("histogram")?;
    let pool = client.acquire(Request::new().waiting(Waiting::Hot).transport(TCP))?;
    let echo = pool.function(library, "echo")?;
    let (input, mut output) = ([7; PAYLOAD], [0; PAYLOAD]);
    for round in 0..WARM_UP + CALLS {
        let started = Instant::now();
        let len = echo.invoke_into(&input, &mut output)?;
        if round >= WARM_UP {
            latencies.saturating_record(started.elapsed().as_nanos() as u64);
        }
        ensure!(output[..len] == input, "echo answered something else");
    }
    pool.release()?;
    Ok(latencies)
}

/// A duration in milliseconds.
pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
