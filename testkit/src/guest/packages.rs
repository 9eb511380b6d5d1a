//! Debian's packages, downloaded and unpacked: what a guest's kernel comes in. Nothing is installed, and the system's lists of
//! packages stay as they are.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{GuestError, io_error};
use crate::process::{find, run_bounded};

/// Debian's name for a repository's newest kernel.
const KERNEL: &str = "linux-image-amd64";
/// What newer kernels are split into; older ones are one package.
const PARTS: [&str; 2] = ["linux-binary-", "linux-modules-"];
/// Where a kernel is newer than this system's.
const BACKPORTS: &str = "trixie-backports";
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// How long fetching or unpacking may take.
const STEP_BOUND: Duration = Duration::from_secs(300);

/// Where packages come from.
pub(super) struct Repository {
    /// apt's, for every command: none where its own lists are meant.
    options: Vec<String>,
}

impl Repository {
    /// What this system gets its packages from.
    pub(super) fn system() -> Self {
        Self { options: Vec::new() }
    }

    /// The backports of Debian's next release, from the mirror that this system already uses, by lists of their own.
    pub(super) fn backports(cache: &Path) -> Result<Self, GuestError> {
        let directory = cache.join("backports");
        for lists in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(directory.join(lists))
                .map_err(io_error("make lists of packages"))?;
        }
        let source = directory.join("sources.list");
        let text = format!("deb [signed-by={KEYS}] {} {BACKPORTS} main\n", mirror()?);
        fs::write(&source, text).map_err(io_error("name a list of packages"))?;
        let shown = directory.display();
        let settings = [
            format!("Dir::Etc::sourcelist={}", source.display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={shown}/lists"),
            format!("Dir::Cache::archives={shown}/archives"),
            "Dir::Cache::pkgcache=".to_owned(),
            "Dir::Cache::srcpkgcache=".to_owned(),
        ];
        let options = settings.into_iter().flat_map(|setting| ["-o".to_owned(), setting]).collect();
        Ok(Self { options })
    }

    /// What apt's commands are to be given.
    pub(super) fn options(&self) -> &[String] {
        &self.options
    }

    /// Downloads the newest kernel and unpacks it below `cache`, in a directory named after its release, which it returns.
    pub(super) fn fetch_kernel(&self, cache: &Path) -> Result<String, GuestError> {
        let release = match self.release() {
            Ok(release) => release,
            // The lists were never fetched, or were removed.
            Err(_) => {
                self.update()?;
                self.release()?
            }
        };
        let root = cache.join(&release);
        if root.join("lib/modules").is_dir() {
            return Ok(release);
        }
        let download = tempfile::tempdir_in(cache).map_err(io_error("make a directory"))?;
        let unpacked = download.path().join("unpacked");
        for package in self.packages(&release)? {
            let file = self.download(&package, download.path())?;
            run(Command::new("dpkg-deb").arg("-x").arg(file).arg(&unpacked))?;
        }
        // Newer packages keep the modules below usr/, where a merged system's /lib points.
        if !unpacked.join("lib").exists() {
            symlink("usr/lib", unpacked.join("lib")).map_err(io_error("link lib"))?;
        }
        fs::rename(&unpacked, &root).map_err(io_error(format!("make {}", root.display())))?;
        Ok(release)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options);
        command
    }

    fn update(&self) -> Result<(), GuestError> {
        run(self.apt("apt-get").args(["update", "-qq"])).map(drop)
    }

    /// The newest kernel's release, as the lists name it.
    fn release(&self) -> Result<String, GuestError> {
        let text = run(self.apt("apt-cache").args(["depends", KERNEL]))?;
        let prefix = "Depends: linux-image-";
        let release = text.lines().find_map(|line| line.trim().strip_prefix(prefix));
        release.map(str::to_owned).ok_or_else(|| GuestError::Command {
            command: format!("apt-cache depends {KERNEL}"),
            status: "no answer".into(),
            complaint: "it names no linux-image-<release>; run `apt-get update`".into(),
        })
    }

    /// Those that a release's files are in.
    fn packages(&self, release: &str) -> Result<Vec<String>, GuestError> {
        let whole = format!("linux-image-{release}");
        let text = run(self.apt("apt-cache").args(["depends", &whole]))?;
        let parts: Vec<_> = PARTS.iter().map(|part| format!("{part}{release}")).collect();
        let is_split = parts.iter().all(|part| text.contains(&format!("Depends: {part}")));
        Ok(if is_split { parts } else { vec![whole] })
    }

    /// The package's file, in a directory of its own below `directory`.
    fn download(&self, package: &str, directory: &Path) -> Result<PathBuf, GuestError> {
        let into = directory.join(package);
        fs::create_dir(&into).map_err(io_error("make a directory"))?;
        let fetch = || {
            let mut command = self.apt("apt-get");
            run(command.args(["download", "-qq", package]).current_dir(&into))
        };
        if fetch().is_err() {
            // The lists name a version that the mirror has replaced meanwhile.
            self.update()?;
            fetch()?;
        }
        let entries = fs::read_dir(&into).map_err(io_error("look for the package"))?;
        let file = entries.flatten().map(|entry| entry.path()).next();
        file.ok_or_else(|| io_error("look for the package")(io::ErrorKind::NotFound.into()))
    }
}

/// Where this system gets Debian's packages from.
fn mirror() -> Result<String, GuestError> {
    let words =
        ["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian"];
    let mut ask = Command::new("apt-get");
    let text = run(ask.args(words))?;
    let mirror = text.lines().next().map(|line| line.trim_end_matches('/').to_owned());
    mirror.ok_or_else(|| failed(&ask, "no answer", "the lists of packages name no Debian mirror"))
}

/// Runs a command to its end and returns what it wrote.
pub(super) fn run(command: &mut Command) -> Result<String, GuestError> {
    run_within(command, STEP_BOUND)
}

pub(super) fn run_within(command: &mut Command, bound: Duration) -> Result<String, GuestError> {
    let output = run_bounded(&mut *command, bound);
    let output = output.map_err(io_error(format!("run {command:?}")))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        return Err(failed(command, &output.status.to_string(), complaint.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub(super) fn failed(command: &Command, status: &str, complaint: &str) -> GuestError {
    GuestError::Command {
        command: format!("{command:?}"),
        status: status.to_owned(),
        complaint: complaint.to_owned(),
    }
}

/// The path of a program, in directories that users' paths may lack.
pub(super) fn tool(program: &str) -> PathBuf {
    find(program).unwrap_or_else(|| program.into())
}
