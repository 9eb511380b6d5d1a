//! One guest's life: its run directory, its machine's command line, the wait for its end.
//!
//! Ends with its owner in every way: dropped, killed by the kernel when we die, and swept by the warden.

use std::{
    fs::{self, File},
    io::{self, Seek, SeekFrom},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::{
    Ended, Guest, GuestError, INSIDE, io_error,
    kernel::{Image, Kernel},
};
use crate::{poll_until, process::Daemon, warden::Warden};

const BOOT: &str = include_str!("boot.sh");
const USER_MODE_INIT: &str = include_str!("user-mode-init.sh");
/// How the emulated machine's share is mounted.
const MOUNT_SHARE: &str = "-t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none share";
/// Fast to boot on an emulated CPU, and silent but for errors.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet loglevel=4 panic=-1 nokaslr mitigations=off nopti tsc=reliable \
     no_timer_check random.trust_cpu=on audit=0 apparmor=0";
/// How long a machine may take until its command begins (seconds are usual), and how many are started for one command: an
/// emulated kernel stops now and then before it has run anything.
const BEGIN_BOUND: Duration = Duration::from_secs(60);
const MACHINES: u32 = 3;
/// Made by boot.sh before the command.
const BEGUN: &str = "begun";
/// Bytes of each log's end that an error shows.
const LOG_TAIL_BYTES: usize = 3_000;

/// The wire between two guests: a socket for each end.
pub(super) struct Wire(TempDir);

/// One of its ends, 1 or 2.
pub(super) struct WireEnd {
    number: u8,
    own: PathBuf,
    other: PathBuf,
}

impl Wire {
    pub(super) fn lay() -> Result<Self, GuestError> {
        tempfile::tempdir().map(Self).map_err(io_error("make the wire's directory"))
    }

    pub(super) fn end(&self, number: u8) -> WireEnd {
        let socket = |number: u8| self.0.path().join(number.to_string());
        WireEnd { number, own: socket(number), other: socket(3 - number) }
    }
}

/// A guest that runs its command. Dropped: it is ended, and its directory is removed.
pub struct Running {
    machine: Daemon,
    directory: TempDir,
    bound: Duration,
    aloud: bool,
    _warden: Warden,
}

impl Running {
    /// Starts it; its output is kept.
    pub(super) fn start(
        guest: &Guest,
        command: &Command,
        wire: Option<WireEnd>,
    ) -> Result<Self, GuestError> {
        Self::boot(guest, command, wire, false)
    }

    /// Starts it; its output also goes to our own standard output.
    pub(super) fn start_aloud(guest: &Guest, command: &Command) -> Result<Self, GuestError> {
        Self::boot(guest, command, None, true)
    }

    fn boot(
        guest: &Guest,
        command: &Command,
        wire: Option<WireEnd>,
        aloud: bool,
    ) -> Result<Self, GuestError> {
        let kernel = Kernel::of(guest)?;
        let directory = tempfile::tempdir().map_err(io_error("make the run directory"))?;
        let warden = Warden::over(directory.path()).map_err(io_error("start the warden"))?;
        let write = |name: &str, text: String| {
            fs::write(directory.path().join(name), text).map_err(io_error(format!("write {name}")))
        };
        write("boot", boot_script(guest, &kernel, wire.as_ref()))?;
        write("command", script(guest, command))?;
        fs::create_dir(directory.path().join("share")).map_err(io_error("make the share"))?;
        let file = |name: &str| {
            File::create(directory.path().join(name)).map_err(io_error(format!("make {name}")))
        };
        if let Kernel::UserMode(_) = kernel {
            write("cpuinfo", fs::read_to_string("/proc/cpuinfo").unwrap_or_default())?;
            let run = quoted(&directory.path().to_string_lossy());
            write("init", USER_MODE_INIT.replacen('\n', &format!("\nrun={run}\n"), 1))?;
        }
        let machine = begun(directory.path(), BEGIN_BOUND, || {
            let mut machine = match &kernel {
                Kernel::Stock(image) => qemu(guest, image, directory.path(), wire.as_ref()),
                Kernel::UserMode(linux) => user_mode(guest, linux, directory.path())?,
            };
            machine.stdout(file("output")?).stderr(file("machine.log")?);
            Daemon::start("guest", machine, None).map_err(io_error("start the machine"))
        })?;
        Ok(Self { machine, directory, bound: guest.bound, aloud, _warden: warden })
    }

    /// Waits for the command's end and the guest's, which is ended when its bound is over.
    pub fn wait(mut self) -> Result<Ended, GuestError> {
        let mut said = 0;
        let mut status = None;
        poll_until(self.bound, || {
            status = self.machine.wait(Duration::ZERO);
            said += if self.aloud { self.say(said) } else { 0 };
            status.is_some()
        });
        let died = |what: String| GuestError::Died { what, log: self.log() };
        let Some(status) = status else {
            return Err(died(format!("it did not end within {:?}", self.bound)));
        };
        let told = fs::read_to_string(self.path("status")).unwrap_or_default();
        let told = told.trim().parse();
        let status = told.map_err(|_| died(format!("its command left no status ({status})")))?;
        Ok(Ended { status, output: self.output() })
    }

    /// What its command has written so far.
    pub(super) fn output(&self) -> String {
        let bytes = fs::read(self.path("output")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Writes what has come since `said` bytes to our standard output; returns how much.
    fn say(&self, said: u64) -> u64 {
        let copy = || {
            let mut output = File::open(self.path("output"))?;
            output.seek(SeekFrom::Start(said))?;
            io::copy(&mut output, &mut io::stdout())
        };
        copy().unwrap_or(0)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn log(&self) -> String {
        log(self.directory.path())
    }
}

/// The end of each log in a run directory.
fn log(directory: &Path) -> String {
    let tail = |name: &str| {
        let bytes = fs::read(directory.join(name)).unwrap_or_default();
        let from = bytes.len().saturating_sub(LOG_TAIL_BYTES);
        format!("-- {name}\n{}\n", String::from_utf8_lossy(&bytes[from..]).trim_end())
    };
    ["output", "console", "boot.log", "machine.log"].map(tail).concat()
}

/// A machine that has come as far as its command, or has ended. One that stops on the way is ended, and another is started.
fn begun(
    directory: &Path,
    bound: Duration,
    start: impl Fn() -> Result<Daemon, GuestError>,
) -> Result<Daemon, GuestError> {
    for number in 1..=MACHINES {
        let mut machine = start()?;
        let come = poll_until(bound, || {
            directory.join(BEGUN).exists() || machine.wait(Duration::ZERO).is_some()
        });
        if come {
            return Ok(machine);
        }
        let log = log(directory);
        eprintln!("guest: machine {number} did not begin its command within {bound:?}:\n{log}");
        machine.signal(Signal::SIGKILL);
        machine.wait(BEGIN_BOUND);
    }
    let what = format!("none of {MACHINES} machines began its command within {bound:?}");
    Err(GuestError::Died { what, log: log(directory) })
}

/// boot.sh with its variables.
fn boot_script(guest: &Guest, kernel: &Kernel, wire: Option<&WireEnd>) -> String {
    let number = wire.map_or(1, |wire| wire.number);
    let network = guest.network.name();
    let (modules, share) = match kernel {
        Kernel::Stock(image) => (shown(&image.modules), MOUNT_SHARE.to_owned()),
        Kernel::UserMode(_) => {
            let share = guest.share.as_deref().unwrap_or(Path::new("/"));
            (String::new(), format!("-t hostfs -o {} none", share.display()))
        }
    };
    let share = quoted(if guest.share.is_some() { &share } else { "" });
    format!(
        "network={network} name=guest{number} address=10.97.0.{number} modules={modules} share={share}\n{BOOT}"
    )
}

/// The command as a script, in its directory and with its variables.
fn script(guest: &Guest, command: &Command) -> String {
    let directory = command.get_current_dir().map(Path::to_owned);
    let directory = directory.or_else(|| std::env::current_dir().ok()).unwrap_or("/".into());
    let mut text = format!("cd {}\nexport {INSIDE}={}\n", shown(&directory), guest.network.name());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            text += &format!("export {}={}\n", name.to_string_lossy(), shown(value));
        }
    }
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    text + "exec " + &words.map(shown).collect::<Vec<_>>().join(" ") + "\n"
}

fn shown(word: &(impl AsRef<std::ffi::OsStr> + ?Sized)) -> String {
    quoted(&word.as_ref().to_string_lossy())
}

/// A word for the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// User-Mode Linux: a kernel that is a program. Its memory is a file, best kept in memory itself.
fn user_mode(guest: &Guest, linux: &Path, directory: &Path) -> Result<Command, GuestError> {
    let init = directory.join("init");
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&init, executable).map_err(io_error("make init executable"))?;
    let mut command = Command::new(linux);
    command.args(["rootfstype=hostfs", "rootflags=/", "ro", "quiet", "loglevel=3", "seccomp=on"]);
    command.args(["con=null", "con0=null,fd:2", "con1=null,fd:1", "ssl=null"]);
    command.arg(format!("mem={}M", guest.memory_mib)).arg(format!("ncpus={}", guest.cpus));
    command.arg(format!("init={}", init.display())).env("TMPDIR", "/dev/shm");
    Ok(command)
}

/// The machine: an emulated CPU, since a kernel that runs anywhere asks nothing of the host's.
fn qemu(guest: &Guest, image: &Image, directory: &Path, wire: Option<&WireEnd>) -> Command {
    let shown = directory.display();
    let mut qemu = Command::new(super::kernel::QEMU);
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-M", "q35"]);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    qemu.args(["-smp", &guest.cpus.to_string(), "-m", &guest.memory_mib.to_string()]);
    qemu.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initramfs);
    qemu.args(["-append", KERNEL_ARGUMENTS]);
    qemu.args(["-serial", &format!("file:{shown}/console")]);
    let mut folder = |tag: &str, path: &Path, readonly: &str| {
        let path = path.display();
        let local = format!("local,id={tag},path={path},security_model=none,multidevs=remap");
        qemu.args(["-fsdev", &format!("{local}{readonly}")]);
        qemu.args(["-device", &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
    };
    folder("root", Path::new("/"), ",readonly=on");
    folder("run", directory, "");
    if let Some(share) = &guest.share {
        folder("share", share, "");
    }
    qemu.args(["-chardev", "file,id=output,path=/dev/stdout", "-device"]);
    qemu.args(["virtio-serial-pci", "-device", "virtserialport,chardev=output,name=output"]);
    match wire {
        None => qemu.args(["-nic", "none"]),
        Some(WireEnd { number, own, other }) => qemu.args([
            "-netdev",
            &format!(
                "dgram,id=wire,local.type=unix,local.path={},remote.type=unix,remote.path={}",
                own.display(),
                other.display()
            ),
            "-device",
            &format!("virtio-net-pci,netdev=wire,mac=52:54:00:00:00:0{number},romfile="),
        ]),
    };
    qemu
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::guest::Network;

    #[test]
    fn a_machine_that_stops_before_its_command_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let first = directory.path().join("first");
        let text = format!(
            "if mkdir {}; then exec sleep 1000; fi; touch {}",
            shown(&first),
            shown(&directory.path().join(BEGUN)),
        );
        let started = std::cell::RefCell::new(Vec::new());
        let mut machine = begun(directory.path(), Duration::from_millis(500), || {
            let mut command = Command::new("sh");
            command.args(["-c", &text]);
            let machine = Daemon::start("machine", command, None).unwrap();
            started.borrow_mut().push(machine.pid());
            Ok(machine)
        });
        let ended = machine.as_mut().unwrap().wait(BEGIN_BOUND).unwrap();
        assert!(ended.success());
        let started = started.into_inner();
        assert_eq!(started.len(), 2);
        assert!(!crate::process::is_alive(started[0]));
    }

    #[test]
    fn a_command_reaches_the_guest_as_it_is() {
        let mut command = Command::new("echo");
        command.args(["it's", "$HOME", "a b"]).env("NAME", "x y").current_dir("/");
        let text = script(&Guest::new(Network::None), &command);
        assert_eq!(
            text,
            "cd '/'\nexport GLEANER_GUEST=none\nexport NAME='x y'\nexec 'echo' 'it'\\''s' '$HOME' 'a b'\n"
        );
    }
}
