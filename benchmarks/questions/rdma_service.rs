//! What does a call over RDMA cost through the whole service: lease, client library, worker?
//!
//! Baseline: the ping-pong of writes with an immediate of `rdma_call`, on the same CPUs, in rounds that alternate. The service
//! runs on a private Slurm, all of it on the machine that has the device.

use anyhow::Result;
use gleaner::{Request, Transport, Transports, Waiting};
use gleaner_benchmarks::{
    Arguments, Goal, Outcome, Sample, Stage, caller::echo_round, echo::Beside, effort, peer,
    raw::Raw,
};
use gleaner_testkit::Service;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Bytes each way.
const PAYLOADS: [usize; 6] = [1, 64, KIB, 4 * KIB, 64 * KIB, MIB];
/// How both sides wait: the word for it, the baseline that waits so, what is asked of it.
const WAYS: [(Waiting, &str, Raw, Goal); 2] = [
    (Waiting::Hot, "hot", Raw::Verbs, Goal::Ratio(1.05)),
    (Waiting::Warm, "warm", Raw::VerbsEvents, Goal::Ratio(1.15)),
];
/// This thread and the worker's.
const SPINNING: usize = 2;

fn main() -> Result<()> {
    if peer::play_role()? {
        return Ok(());
    }
    let arguments = Arguments::read();
    let asks =
        "What does a call over RDMA cost through the whole service: lease, client library, worker?";
    let mut outcome = Outcome::begin("rdma_service", asks, SPINNING, &arguments);
    outcome.on_rdma()?;
    let service = Service::with_nodes(1).configure(|config| config.executor.rdma = true).start()?;
    let stage = Stage::on(service, 1)?;
    for (waiting, word, raw, goal) in WAYS {
        let request = Request::new()
            .transport(Transports::Only(Transport::Rdma))
            .waiting(waiting)
            .payload_max(MIB as u64);
        let pool = stage.client()?.acquire(request)?;
        let echo = pool.function(&stage.library, "echo")?;
        let cpus = stage.pin_beside_worker()?;
        for payload in PAYLOADS {
            // A slot has room for the smaller replies without being asked.
            let echo = match payload > 4 * KIB {
                true => echo.clone().reply_capacity(payload as u32),
                false => echo.clone(),
            };
            let (rounds, trips) = effort::of(payload, &arguments);
            let beside = Beside { raw, payload, cpus, rounds, trips, quick: arguments.quick };
            let name = format!("{word} rdma call, {}", effort::size(payload));
            let ours = |sample: &mut Sample| echo_round(&echo, payload, trips, sample);
            outcome.push(beside.measure(name, ours)?.goal(Some(goal)));
        }
        pool.release()?;
    }
    outcome.publish(&arguments)
}
