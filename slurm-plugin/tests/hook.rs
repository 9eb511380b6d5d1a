//! The hook's program against every keeper that it may meet: a live one, none, a stopped one, a full socket, another
//! version. It must always exit 0 within its bound, and nothing of Gleaner may run afterwards.

#![allow(unsafe_code)] // one thread ends alone
#![allow(clippy::unwrap_used)] // the shared support code too is a test's

#[path = "../../executor/tests/support/mod.rs"]
mod support;

use std::{
    fs,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::Path,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use gleaner_executor::keeper::ipc::Notice;
use gleaner_proto::{
    hook::HookAnswer,
    vacates::{Trigger, VacateRecord, next_record},
    workers::{CGROUP_PATH_MAX, Entry, HEAD_LEN, Head, Process, TABLE_LEN, parse_stat},
};
use gleaner_testkit::process::run_bounded;
use libtest_mimic::{Arguments, Failed, Trial};
use nix::{
    sys::{
        signal::Signal,
        socket::{Backlog, UnixAddr, bind, listen},
    },
    unistd::geteuid,
};
use support::{Bench, NODE, PATIENCE, groups, lives, process, seqpacket, signal, until};

/// The role of a process whose first thread ends before the others.
const HEADLESS: &str = "headless";
const BOUND: Duration = Duration::from_millis(200);
/// What starting a process may take on a machine that does a hundred other things.
const SLACK: Duration = Duration::from_millis(800);

fn main() {
    support::play_role();
    if std::env::args().nth(1).is_some_and(|role| role == HEADLESS) {
        outlive_the_first_thread();
    }
    let root: &[(&str, fn())] = &[
        ("a_live_keeper_clears_the_node", live_keeper),
        ("an_epilog_is_told", epilog),
        ("a_stopped_keeper_is_killed_with_all_it_started", stopped_keeper),
        ("a_killed_keeper_leaves_nothing_to_do", killed_keeper),
        ("processes_without_a_keeper_are_killed", orphans),
        ("threads_that_outlive_the_first_are_killed", headless),
        ("a_pid_of_another_process_is_left_alone", reused_pid),
        ("a_table_of_another_boot_is_left_alone", other_boot),
        ("a_full_socket_is_not_waited_for", full_socket),
        ("another_version_is_not_trusted", other_version),
        ("a_keeper_that_failed_is_helped", remaining),
        ("no_executor_is_no_error", no_executor),
        ("without_slurm_it_says_so", without_slurm),
    ];
    let trials = root.iter().map(|&(name, test)| {
        let trial = Trial::test(name, move || {
            test();
            Ok::<(), Failed>(())
        });
        trial.with_ignored_flag(!geteuid().is_root())
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// Runs the hook as slurmd does; returns what it said. It must succeed within its bound.
fn hook(bench: &Bench, context: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gleaner-hook"));
    command.env_clear().envs([
        ("SLURM_JOB_ID", "42"),
        ("SLURM_JOB_UID", "1000"),
        ("SLURMD_NODENAME", NODE),
        ("SLURM_SCRIPT_CONTEXT", context),
    ]);
    command.arg("--run-dir").arg(bench.dir.path().join("run"));
    let begun = Instant::now();
    let output = run_bounded(command, PATIENCE).unwrap();
    let took = begun.elapsed();
    assert!(output.status.success(), "{output:?}");
    assert!(took < BOUND + SLACK, "{took:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn prolog(bench: &Bench) -> String {
    hook(bench, "prolog_slurmd")
}

/// The journal, read without the files that only a keeper makes.
fn records(bench: &Bench) -> Vec<VacateRecord> {
    let bytes = fs::read(bench.node_dir().join("vacates")).unwrap_or_default();
    let mut rest = &bytes[..];
    std::iter::from_fn(|| {
        let (record, used) = next_record(rest)?;
        rest = &rest[used..];
        Some(record)
    })
    .collect()
}

fn held(bench: &Bench) -> bool {
    bench.node_dir().join("held/42").exists()
}

/// Whether nothing runs in a group, of whichever version.
fn is_empty(group: &Path) -> bool {
    let members = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let events = fs::read_to_string(group.join("cgroup.events")).unwrap_or_default();
    members.is_empty() && !events.contains("populated 1")
}

fn live_keeper() {
    let bench = Bench::start();
    let worker = bench.leased();
    worker.ask("spin");
    assert_eq!(prolog(&bench), "");
    assert!(!lives(worker.process) && bench.table().is_empty() && held(&bench));
    let record = records(&bench)[0];
    assert_eq!((record.trigger, record.job_id, record.job_uid), (Trigger::Prolog, 42, 1000));
    assert!(lives(process(bench.keeper_pid())));
}

fn epilog() {
    let bench = Bench::start();
    prolog(&bench);
    assert!(held(&bench));
    assert_eq!(hook(&bench, "epilog_slurmd"), "");
    assert!(!held(&bench));
    bench.find(|notice| {
        matches!(notice, Notice::JobEvent { ended: true, job_id: 42, .. }).then_some(())
    });
}

fn stopped_keeper() {
    for isolation in ["auto", "namespace", "single"] {
        let mut bench = Bench::start_with(isolation, 0, 1);
        let worker = bench.leased();
        worker.ask("spin");
        signal(worker.process.pid, Signal::SIGSTOP);
        let agent = process(bench.agent_pid);
        signal(bench.keeper_pid(), Signal::SIGSTOP);
        let said = prolog(&bench);
        assert!(said.contains("did not answer in time: killed"), "{said}");
        assert!(!lives(worker.process), "{isolation}");
        bench.keeper_ends();
        until("the agent ends with its keeper", || (!lives(agent)).then_some(()));
        let record = records(&bench)[0];
        assert_eq!((record.trigger, record.leases, record.remaining), (Trigger::HookAlone, 1, 0));
        assert!(record.processes >= 2 && record.steps_us.is_sorted(), "{record:?}");
        bench.keeper = Some(bench.command().spawn().unwrap());
        let welcome = bench.next_agent();
        assert!(matches!(welcome, Notice::Welcome { hold_job_id: 42, .. }), "{welcome:?}");
        assert_eq!(hook(&bench, "epilog_slurmd"), "");
        assert!(!held(&bench));
    }
}

fn killed_keeper() {
    let mut bench = Bench::start();
    let worker = bench.leased();
    signal(bench.keeper_pid(), Signal::SIGKILL);
    bench.keeper_ends();
    // The pool's worker too: one that was just forked holds the keeper's sockets for a moment. And whatever of a process
    // outlives its first thread, or was forked and is in no table yet.
    let children = bench.table();
    until("its workers end with it", || {
        let gone = children.iter().all(|child| !lives(child.process));
        (gone && groups(&bench.node_dir()).iter().all(|group| is_empty(group))).then_some(())
    });
    assert!(!lives(worker.process));
    assert_eq!(prolog(&bench), "");
    assert!(records(&bench).is_empty(), "nothing was there");
    assert!(held(&bench), "for the next keeper");
    hook(&bench, "epilog_slurmd");
    assert!(!held(&bench));
}

/// A node directory without a keeper, whose table names these processes.
fn without_keeper(workers: &[Process], boot: u8) -> Bench {
    let bench = Bench::prepare("auto", 0, 1);
    fs::create_dir_all(bench.node_dir().join("held")).unwrap();
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().replace('-', "");
    let mut boot_id = u128::from_str_radix(text.trim(), 16).unwrap().to_be_bytes();
    boot_id[0] ^= boot;
    let keeper = Process { pid: std::process::id(), start: 1 };
    let table = fs::File::create(bench.node_dir().join("workers")).unwrap();
    table.set_len(TABLE_LEN as u64).unwrap();
    let head = Head { boot_id, keeper, cgroup: [0; CGROUP_PATH_MAX] }.encode();
    table.write_all_at(&head[..HEAD_LEN], 0).unwrap();
    for (index, &process) in workers.iter().enumerate() {
        table.write_all_at(&Entry { process, lease_id: 1 }.encode(), Entry::offset(index)).unwrap();
    }
    bench
}

/// A process that nobody parents well.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        Self(Command::new("sleep").arg("600").spawn().unwrap())
    }

    fn process(&self) -> Process {
        process(self.0.id())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn orphans() {
    let worker = Sleeper::start();
    let bench = without_keeper(&[worker.process()], 0);
    assert!(prolog(&bench).contains("does not run: killed 1 processes"));
    assert!(!lives(worker.process()));
    let record = records(&bench)[0];
    assert_eq!((record.trigger, record.processes, record.job_id), (Trigger::HookAlone, 1, 42));
}

fn outlive_the_first_thread() -> ! {
    thread::spawn(|| thread::sleep(Duration::from_secs(600)));
    // SAFETY: it ends this thread alone, which owns nothing that the other one uses.
    unsafe { nix::libc::syscall(nix::libc::SYS_exit, 0) };
    unreachable!("the thread has ended")
}

/// A process whose first thread has ended shows as a zombie while its others run on.
fn headless() {
    let own = std::env::current_exe().unwrap();
    let headless = Sleeper(Command::new(own).arg(HEADLESS).spawn().unwrap());
    until("its first thread has ended", || {
        let stat = fs::read(format!("/proc/{}/stat", headless.process().pid)).unwrap();
        matches!(parse_stat(&stat), Some((b'Z', _))).then_some(())
    });
    let bench = without_keeper(&[headless.process()], 0);
    assert!(prolog(&bench).contains("does not run: killed 1 processes"));
}

fn reused_pid() {
    let stranger = Sleeper::start();
    let was = Process { start: stranger.process().start - 1, ..stranger.process() };
    let bench = without_keeper(&[was], 0);
    assert_eq!(prolog(&bench), "");
    assert!(lives(stranger.process()) && records(&bench).is_empty());
}

fn other_boot() {
    let stranger = Sleeper::start();
    let bench = without_keeper(&[stranger.process()], 1);
    assert_eq!(prolog(&bench), "");
    assert!(lives(stranger.process()));
}

fn listener(bench: &Bench, backlog: i32) -> OwnedFd {
    let listener = seqpacket();
    let path = bench.node_dir().join("hook.sock");
    bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    listen(&listener, Backlog::new(backlog).unwrap()).unwrap();
    listener
}

fn full_socket() {
    let worker = Sleeper::start();
    let bench = without_keeper(&[worker.process()], 0);
    let _listener = listener(&bench, 1);
    let waiting: Vec<_> = std::iter::from_fn(|| bench.dial_hook().ok()).collect();
    assert!(prolog(&bench).contains("did not answer in time: killed 1 processes"));
    assert!(!lives(worker.process()));
    drop(waiting);
}

/// A keeper that answers one hook with these bytes.
fn answers(bytes: Vec<u8>, expect: &str) {
    let worker = Sleeper::start();
    let bench = without_keeper(&[worker.process()], 0);
    let listener = listener(&bench, 4);
    let keeper = thread::spawn(move || {
        use gleaner_executor::sys::{accept, recv_with_fd, send_with_fd};
        let peer = until("the hook comes", || accept(listener.as_fd()).ok());
        until("the hook asks", || recv_with_fd(peer.as_fd(), &mut [0; 64]).ok());
        if !bytes.is_empty() {
            send_with_fd(peer.as_fd(), &bytes, None).unwrap();
        }
    });
    let said = prolog(&bench);
    assert!(said.contains(expect) && said.contains("killed 1 processes"), "{said}");
    assert!(!lives(worker.process()));
    keeper.join().unwrap();
}

fn other_version() {
    let mut answer = HookAnswer::default().encode();
    answer[6] = 9;
    answers(answer.to_vec(), "of another release");
    answers(Vec::new(), "of another release");
    answers(vec![1; 5], "of another release");
}

fn remaining() {
    let answer = HookAnswer { remaining: 1, ..HookAnswer::default() };
    answers(answer.encode().to_vec(), "could not end 1 processes in time");
}

fn no_executor() {
    let bench = Bench::prepare("auto", 0, 1);
    assert_eq!(prolog(&bench), "");
    assert_eq!(hook(&bench, "epilog_slurmd"), "");
    assert!(!bench.node_dir().exists() && groups(&bench.node_dir()).is_empty());
}

fn without_slurm() {
    let hook = || Command::new(env!("CARGO_BIN_EXE_gleaner-hook"));
    let bare = hook().env_clear().output().unwrap();
    assert!(bare.status.success());
    assert!(String::from_utf8_lossy(&bare.stderr).contains("no SLURM_JOB_ID"));
    let mut strange = hook();
    strange.env_clear().envs([("SLURM_JOB_ID", "7"), ("SLURMD_NODENAME", "../../etc")]);
    let strange = strange.args(["--bound-ms", "-3", "what"]).output().unwrap();
    assert!(strange.status.success());
    assert!(String::from_utf8_lossy(&strange.stderr).contains("no SLURMD_NODENAME"));
}
