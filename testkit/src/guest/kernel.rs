//! The guest's kernel and initramfs: Debian's own kernel packages, unpacked below `target/guest/` and never installed.
//!
//! Made once, under a lock, and made again when the recipe is another.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use super::{
    Guest, GuestError, Network, io_error,
    packages::{Repository, failed, run, run_within, tool},
};
use crate::process::find;

const INITRAMFS: &str = include_str!("initramfs.sh");
/// What must be there before the first program can run, and every kind of network; each with what it depends on.
const MODULES: [&str; 12] = [
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
    "virtio_net",
    "crc32_generic", // rdma_rxe asks for it without depending on it
    "rdma_rxe",
    "rdma_ucm",
    "ib_umad",
    "dummy",
    "veth",
];
pub(super) const QEMU: &str = "qemu-system-x86_64";
const USER_MODE: &str = include_str!("user-mode.sh");
/// How long building a kernel may take.
const BUILD_BOUND: Duration = Duration::from_secs(1800);

/// What a guest runs on.
#[derive(Debug)]
pub(super) enum Kernel {
    /// Debian's kernel on an emulated machine.
    Stock(Image),
    /// A kernel that is a program.
    UserMode(PathBuf),
}

impl Kernel {
    /// The kernel that a guest asks for, made if need be.
    pub(super) fn of(guest: &Guest) -> Result<Self, GuestError> {
        if guest.user_mode {
            return user_mode().map(Self::UserMode);
        }
        find(QEMU).ok_or(GuestError::Missing { program: QEMU })?;
        let newest = guest.network == Network::Namespaces;
        image(if newest { Stock::Newest } else { Stock::Release }).map(Self::Stock)
    }
}

/// Which of Debian's kernels.
#[derive(Debug, Clone, Copy)]
enum Stock {
    /// This system's own release's: what most clusters run is no newer.
    Release,
    /// The next release's backports': Soft-RoCE lives in network namespaces from 7.2 on.
    Newest,
}

impl Stock {
    /// The file that says that it is ready.
    fn note(self) -> &'static str {
        match self {
            Self::Release => "ready",
            Self::Newest => "ready-newest",
        }
    }

    fn repository(self, cache: &Path) -> Result<Repository, GuestError> {
        match self {
            Self::Release => Ok(Repository::system()),
            Self::Newest => Repository::backports(cache),
        }
    }
}

/// Builds User-Mode Linux, unless that is done: some minutes, and 2 GB meanwhile.
pub fn prepare_user_mode() -> Result<(), GuestError> {
    user_mode().map(drop)
}

fn user_mode() -> Result<PathBuf, GuestError> {
    for program in ["apt-get", "make", "gcc", "flex", "bison", "bc", "xz"] {
        find(program).ok_or(GuestError::Missing { program })?;
    }
    let cache = cache();
    let _lock = lock(&cache)?;
    let directory = cache.join("user-mode");
    let linux = directory.join("linux");
    if !linux.is_file() {
        let mut build = Command::new("sh");
        build.args(["-c", USER_MODE, "user-mode.sh"]).arg(&directory);
        build.args(Repository::backports(&cache)?.options());
        run_within(&mut build, BUILD_BOUND)?;
    }
    Ok(linux)
}

/// What qemu starts, and where the guest finds the rest of the modules.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
    pub(super) modules: PathBuf,
}

/// Fetches the kernels and makes their initramfs, unless all are there.
pub fn prepare() -> Result<(), GuestError> {
    [Stock::Release, Stock::Newest].into_iter().try_for_each(|stock| image(stock).map(drop))
}

/// Where the guest's parts are kept between runs.
pub(super) fn cache() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let target = target.canonicalize().unwrap_or(target);
    target.join("guest")
}

/// Makes the cache's directory; whoever holds the lock may fill it.
fn lock(cache: &Path) -> Result<File, GuestError> {
    fs::create_dir_all(cache).map_err(io_error(format!("make {}", cache.display())))?;
    let lock = File::create(cache.join("lock")).map_err(io_error("make the cache's lock"))?;
    lock.lock().map_err(io_error("wait for the cache's lock"))?;
    Ok(lock)
}

fn image(stock: Stock) -> Result<Image, GuestError> {
    let cache = cache();
    let _lock = lock(&cache)?;
    let ready = cache.join(stock.note());
    let made = fs::read_to_string(&ready).unwrap_or_default();
    let release = match made.split_once('\n') {
        Some((release, recipe)) if recipe == recipe_text() => release.to_owned(),
        _ => {
            let release = make(stock, &cache)?;
            fs::write(&ready, format!("{release}\n{}", recipe_text()))
                .map_err(io_error("note that the guest is ready"))?;
            release
        }
    };
    let root = cache.join(&release);
    Ok(Image {
        kernel: root.join("vmlinux"),
        initramfs: root.join("initramfs"),
        modules: root.join("lib/modules").join(release),
    })
}

/// All that the initramfs is made from, but for the kernel.
fn recipe_text() -> String {
    format!("{}\n{INITRAMFS}", MODULES.join(" "))
}

/// Fetches, unpacks, and packs what is needed to boot. Returns the kernel's release.
fn make(stock: Stock, cache: &Path) -> Result<String, GuestError> {
    for program in ["apt-get", "apt-cache", "dpkg-deb", "depmod", "modprobe", "busybox", "xz"] {
        find(program).ok_or(GuestError::Missing { program })?;
    }
    let release = stock.repository(cache)?.fetch_kernel(cache)?;
    let root = cache.join(&release);
    run(Command::new(tool("depmod")).arg("-b").arg(&root).arg(&release))?;
    let tree = root.join("initramfs.d");
    plant(&tree, &root, &release)?;
    pack(&tree, &root.join("initramfs"))?;
    let packed = [
        root.join("boot").join(format!("vmlinuz-{release}")),
        root.join("lib/modules").join(&release).join("vmlinuz"),
    ];
    unpack(packed.iter().find(|file| file.is_file()).unwrap_or(&packed[0]), &root.join("vmlinux"))?;
    Ok(release)
}

/// The initramfs as a directory: busybox, the first program, and the modules in the order in which they load.
fn plant(tree: &Path, root: &Path, release: &str) -> Result<(), GuestError> {
    let named = || io_error(format!("fill {}", tree.display()));
    let _ = fs::remove_dir_all(tree);
    for directory in ["bin", "modules", "proc", "sys", "dev", "lower", "upper", "new"] {
        fs::create_dir_all(tree.join(directory)).map_err(named())?;
    }
    fs::copy(tool("busybox"), tree.join("bin/busybox")).map_err(named())?;
    fs::write(tree.join("init"), INITRAMFS).map_err(named())?;
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755)).map_err(named())?;
    for (number, module) in modules(root, release)?.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let to = tree.join("modules").join(format!("{number:02}-{}", name.trim_end_matches(".xz")));
        if name.ends_with(".xz") {
            let to = File::create(to).map_err(named())?;
            let mut unpack = Command::new("xz");
            let status = unpack.arg("-dc").arg(module).stdout(to).status().map_err(named())?;
            if !status.success() {
                return Err(failed(&unpack, &status.to_string(), ""));
            }
        } else {
            fs::copy(module, to).map_err(named())?;
        }
    }
    Ok(())
}

/// The files of [`MODULES`] and of what these depend on, each once and after its dependencies.
fn modules(root: &Path, release: &str) -> Result<Vec<PathBuf>, GuestError> {
    let mut files = Vec::new();
    for module in MODULES {
        let mut ask = Command::new(tool("modprobe"));
        ask.arg("-d").arg(root).args(["-S", release, "--show-depends", module]);
        // A module that this kernel has built in, or no longer has, is none to load.
        let text = run(&mut ask).unwrap_or_default();
        for line in text.lines() {
            // The file, then perhaps options of this system's own configuration.
            let file = line.strip_prefix("insmod ").and_then(|rest| rest.split_whitespace().next());
            let file = file.map(PathBuf::from);
            files.extend(file.filter(|file| !files.contains(file)));
        }
    }
    Ok(files)
}

/// Packs a directory as the kernel wants it; not compressed, which an emulated CPU would pay for at each boot.
fn pack(tree: &Path, archive: &Path) -> Result<(), GuestError> {
    let named = || io_error(format!("pack {}", archive.display()));
    let listing = run(Command::new("find").arg(".").current_dir(tree))?;
    let mut cpio = Command::new("busybox");
    cpio.args(["cpio", "-o", "-H", "newc"]).current_dir(tree);
    cpio.stdin(Stdio::piped()).stderr(Stdio::null());
    cpio.stdout(File::create(archive).map_err(named())?);
    let mut child = cpio.spawn().map_err(named())?;
    if let Some(mut names) = child.stdin.take() {
        names.write_all(listing.as_bytes()).map_err(named())?;
    }
    let status = child.wait().map_err(named())?;
    if status.success() { Ok(()) } else { Err(failed(&cpio, &status.to_string(), "")) }
}

/// How a packaged kernel may be compressed: how that begins, and what undoes it.
const COMPRESSIONS: [(&[u8], &[&str]); 2] = [
    (b"\xfd7zXZ\0", &["xz", "--decompress", "--stdout", "--single-stream"]),
    (b"\x28\xb5\x2f\xfd", &["zstd", "--decompress", "--stdout", "--quiet"]),
];

/// Takes the kernel out of the program that unpacks it at boot, which takes an emulated CPU several seconds.
fn unpack(packed: &Path, kernel: &Path) -> Result<(), GuestError> {
    let named = || io_error(format!("unpack {}", packed.display()));
    let bytes = fs::read(packed).map_err(named())?;
    for (begin, command) in COMPRESSIONS {
        let Some(at) = bytes.windows(begin.len()).position(|window| window == begin) else {
            continue;
        };
        let mut input = File::open(packed).map_err(named())?;
        input.seek(SeekFrom::Start(at as u64)).map_err(named())?;
        let mut unpack = Command::new(command[0]);
        unpack.args(&command[1..]).stdin(input).stderr(Stdio::null());
        // What follows the kernel is none, and complained of: its first bytes tell whether it was unpacked.
        let ran = unpack.stdout(File::create(kernel).map_err(named())?).status();
        let mut magic = [0; 4];
        let read = File::open(kernel).and_then(|mut file| file.read_exact(&mut magic));
        if ran.is_ok() && read.is_ok() && magic == *b"\x7fELF" {
            return Ok(());
        }
    }
    fs::copy(packed, kernel).map(drop).map_err(named())
}
