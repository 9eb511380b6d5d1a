//! The workers' cgroups: one group for the node, one in it for each worker. Used by [`workers`](super::workers).
//!
//! With cgroup v2, `cgroup.kill` ends a whole group by one write. Memory is limited by whichever hierarchy has the memory
//! controller, and the CPU controller's makes the workers idle ([`idle_group`](super::idle_group)). All lie below the cgroup that the keeper was started in, so that whoever manages that one (systemd, a
//! Slurm job) stays in charge. After [`Hierarchy::find`] nothing here allocates.

use std::{
    ffi::CStr,
    fmt::{self, Write},
    fs,
    io::{self, Read, Write as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{
    idle_group::{IdleGroup, Rank},
    log::say,
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::{Mode, mkdirat},
    unistd::{UnlinkatFlags, unlinkat},
};

/// How long the groups of a killed keeper may take to be empty.
const LEFTOVERS_BOUND: Duration = Duration::from_secs(1);
const LEFTOVERS_LOOK: Duration = Duration::from_millis(5);

/// A short file name on the stack.
pub(super) struct Name {
    bytes: [u8; 64],
    len: usize,
}

impl Name {
    /// Formats a name; what does not fit is cut, and then names no file.
    pub(super) fn new(text: fmt::Arguments<'_>) -> Self {
        let mut name = Self { bytes: [0; 64], len: 0 };
        let _ = name.write_fmt(text);
        name
    }

    pub(super) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c"")
    }
}

impl Write for Name {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        let room = self.bytes.len() - 1;
        let place = self.bytes.get_mut(self.len..end.min(room)).ok_or(fmt::Error)?;
        place.copy_from_slice(&text.as_bytes()[..place.len()]);
        self.len = end.min(room);
        if end <= room { Ok(()) } else { Err(fmt::Error) }
    }
}

/// Opens a file of a directory, without allocating.
pub(super) fn open_at(dir: impl AsFd, name: &CStr, flags: OFlag) -> io::Result<OwnedFd> {
    Ok(openat(dir, name, flags | OFlag::O_CLOEXEC, Mode::empty())?)
}

pub(super) fn write_at(dir: impl AsFd, name: &CStr, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::File::from(open_at(dir, name, OFlag::O_WRONLY)?);
    file.write_all(bytes)
}

/// The first bytes of a small file, into `buffer`.
pub(super) fn read_at<'a>(
    dir: impl AsFd,
    name: &CStr,
    buffer: &'a mut [u8],
) -> io::Result<&'a [u8]> {
    let mut file = fs::File::from(open_at(dir, name, OFlag::O_RDONLY)?);
    let len = file.read(buffer)?;
    Ok(&buffer[..len])
}

/// The number after `key` in a file of `key value` lines.
fn value_of(text: &[u8], key: &str) -> Option<u64> {
    let lines = std::str::from_utf8(text).ok()?.lines();
    let value = lines.filter_map(|line| line.strip_prefix(key)?.strip_prefix(' ')).next();
    value?.trim().parse().ok()
}

/// Which files limit memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MemoryFiles {
    V1,
    V2,
}

/// What this machine lets the keeper use.
#[derive(Debug)]
pub(super) struct Hierarchy {
    /// The node's group in v2 and its path, if there is `cgroup.kill` and the keeper may make groups.
    v2: Option<(OwnedFd, PathBuf)>,
    /// The node's group in the memory controller's hierarchy.
    memory: Option<(OwnedFd, PathBuf, MemoryFiles)>,
    /// The node's group in the CPU controller's.
    cpu: Option<IdleGroup>,
}

/// One worker's group.
#[derive(Debug)]
pub(super) struct Group {
    index: usize,
    v2: Option<OwnedFd>,
    memory: Option<(OwnedFd, MemoryFiles)>,
}

impl Hierarchy {
    /// Makes the node's groups, of that `name`, where the system lets it.
    pub(super) fn find(name: &str, allow_v2: bool) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let v2_own = if allow_v2 { own_group(&mounts, &own, None) } else { None };
        let v2 = v2_own.as_deref().and_then(|own| make(&own.join(name)));
        let v2 = v2.filter(|(fd, _)| open_at(fd, c"cgroup.kill", OFlag::O_WRONLY).is_ok());
        let memory_v2 = match (&v2, &v2_own) {
            (Some((fd, path)), Some(own)) if delegate(own, name, path) => fd.try_clone().ok(),
            _ => None,
        };
        if let (Some(_), Some((_, path)), Some(own)) = (&memory_v2, &v2, &v2_own) {
            delegate_rdma(own, path);
        }
        let memory = match (memory_v2, &v2) {
            (Some(fd), Some((_, path))) => Some((fd, path.clone(), MemoryFiles::V2)),
            _ => own_group(&mounts, &own, Some("memory"))
                .and_then(|own| make(&own.join(name)))
                .filter(|(fd, _)| open_at(fd, c"memory.limit_in_bytes", OFlag::O_WRONLY).is_ok())
                .map(|(fd, path)| (fd, path, MemoryFiles::V1)),
        };
        let cpu_own = own_group(&mounts, &own, Some("cpu"));
        let cpu = IdleGroup::find(v2.as_ref().map(|(dir, _)| dir), cpu_own, name);
        Self { v2, memory, cpu }
    }

    /// Whether the workers stand back from all else that runs on the machine.
    pub(super) fn is_idle(&self) -> bool {
        self.cpu.is_some()
    }

    /// How the workers stand to all else.
    pub(super) fn rank(&self, rank: Rank) {
        if let Some(cpu) = &self.cpu {
            cpu.set(rank);
        }
    }

    /// The `tasks` of the v1 groups that a worker enters.
    pub(super) fn tasks_v1(&self, group: &Group) -> io::Result<[Option<OwnedFd>; 2]> {
        let cpu = self.cpu.as_ref().map_or(Ok(None), IdleGroup::tasks_v1)?;
        Ok([group.tasks_v1()?, cpu])
    }

    /// The directory whose `cgroup.kill` ends every worker.
    pub(super) fn kill_path(&self) -> Option<&Path> {
        self.v2.as_ref().map(|(_, path)| path.as_path())
    }

    /// Whether a lease's memory can be limited by a group.
    pub(super) fn limits_memory(&self) -> bool {
        self.memory.is_some()
    }

    /// Makes worker `index`'s group; one that a killed keeper left is taken over.
    pub(super) fn make_group(&self, index: usize) -> io::Result<Group> {
        let name = group_name(index);
        let enter = |dir: &OwnedFd| -> io::Result<OwnedFd> {
            match mkdirat(dir, name.as_c_str(), Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(nix::Error::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
            open_at(dir, name.as_c_str(), OFlag::O_DIRECTORY)
        };
        let v2 = self.v2.as_ref().map(|(dir, _)| enter(dir)).transpose()?;
        let memory = match (&self.memory, &v2) {
            (Some((_, _, MemoryFiles::V2)), Some(v2)) => Some((v2.try_clone()?, MemoryFiles::V2)),
            (Some((dir, _, files)), _) => Some((enter(dir)?, *files)),
            (None, _) => None,
        };
        Ok(Group { index, v2, memory })
    }

    /// Ends every worker by one write; false if there is no v2 group.
    pub(super) fn kill_all(&self) -> bool {
        self.v2.as_ref().is_some_and(|(dir, _)| write_at(dir, c"cgroup.kill", b"1").is_ok())
    }

    /// Whether a process is left in any worker's v2 group; false if there is none.
    pub(super) fn is_populated(&self) -> bool {
        let Some((dir, _)) = &self.v2 else { return false };
        let mut buffer = [0; 128];
        let events = read_at(dir, c"cgroup.events", &mut buffer).unwrap_or_default();
        value_of(events, "populated") == Some(1)
    }

    /// Removes a worker's group; an error while a process is left in it.
    pub(super) fn remove(&self, group: &Group) -> io::Result<()> {
        let name = group_name(group.index);
        let dirs =
            [self.v2.as_ref().map(|(dir, _)| dir), self.memory.as_ref().map(|(dir, ..)| dir)];
        for dir in dirs.into_iter().flatten() {
            match unlinkat(dir, name.as_c_str(), UnlinkatFlags::RemoveDir) {
                Ok(()) | Err(nix::Error::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Removes the workers' groups that a killed keeper left. Its processes are dead, but may still be on their way out:
    /// waits for that, within a bound.
    pub(super) fn remove_leftovers(&self) {
        let until = Instant::now() + LEFTOVERS_BOUND;
        while self.remove_some() > 0 && Instant::now() < until {
            thread::sleep(LEFTOVERS_LOOK);
        }
    }

    /// Removes the workers' groups that are empty; returns how many are not.
    fn remove_some(&self) -> usize {
        let entries = self.paths().filter_map(|path| fs::read_dir(path).ok()).flatten();
        let groups = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
        groups.filter(|group| fs::remove_dir(group).is_err()).count()
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        let v2 = self.v2.as_ref().map(|(_, path)| path.as_path());
        v2.into_iter().chain(self.memory.as_ref().map(|(_, path, _)| path.as_path()))
    }

    /// Removes the node's groups, which must be empty. The keeper's own, if it has one, goes with its manager's.
    /// Those of the last keeper too that were not empty yet when this one started.
    pub(super) fn remove_all(&self) {
        self.remove_leftovers();
        let cpu = self.cpu.as_ref().and_then(IdleGroup::own);
        self.paths().chain(cpu).for_each(|path| drop(fs::remove_dir(path)));
    }
}

impl Group {
    /// The v2 directory to start the worker in.
    pub(super) fn v2(&self) -> Option<BorrowedFd<'_>> {
        self.v2.as_ref().map(AsFd::as_fd)
    }

    /// The v1 memory group's `tasks`, for the worker to enter.
    fn tasks_v1(&self) -> io::Result<Option<OwnedFd>> {
        match &self.memory {
            Some((dir, MemoryFiles::V1)) => open_at(dir, c"tasks", OFlag::O_WRONLY).map(Some),
            _ => Ok(None),
        }
    }

    /// Limits the group's memory; no swap beyond it where the kernel can say so.
    pub(super) fn limit_memory(&self, bytes: u64) -> io::Result<()> {
        let Some((dir, files)) = &self.memory else { return Ok(()) };
        let text = Name::new(format_args!("{bytes}"));
        let text = text.as_c_str().to_bytes();
        match files {
            MemoryFiles::V1 => {
                write_at(dir, c"memory.limit_in_bytes", text)?;
                let _ = write_at(dir, c"memory.memsw.limit_in_bytes", text);
            }
            MemoryFiles::V2 => {
                write_at(dir, c"memory.max", text)?;
                let _ = write_at(dir, c"memory.swap.max", b"0");
                let _ = write_at(dir, c"memory.oom.group", b"1");
            }
        }
        Ok(())
    }

    /// Limits what the group holds of each RDMA device: one open context, and so many objects. Where the kernel does not count
    /// them, nothing is limited.
    pub(super) fn limit_rdma(&self, objects: u32) -> io::Result<()> {
        let Some(dir) = &self.v2 else { return Ok(()) };
        let mut buffer = [0; 4096];
        let limits = match read_at(dir, c"rdma.max", &mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            limits => std::str::from_utf8(limits?).map_err(io::Error::other)?,
        };
        for device in limits.lines().filter_map(|line| line.split(' ').next()) {
            let limit = Name::new(format_args!("{device} hca_handle=1 hca_object={objects}"));
            write_at(dir, c"rdma.max", limit.as_c_str().to_bytes())?;
        }
        Ok(())
    }

    /// The most memory that the group has held.
    pub(super) fn memory_peak(&self) -> Option<u64> {
        let (dir, files) = self.memory.as_ref()?;
        let name = match files {
            MemoryFiles::V1 => c"memory.max_usage_in_bytes",
            MemoryFiles::V2 => c"memory.peak",
        };
        let mut buffer = [0; 64];
        let text = read_at(dir, name, &mut buffer).ok()?;
        std::str::from_utf8(text).ok()?.trim().parse().ok()
    }

    /// Whether the kernel has killed in this group for its memory limit.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        let Some((dir, files)) = &self.memory else { return false };
        let name = match files {
            MemoryFiles::V1 => c"memory.oom_control",
            MemoryFiles::V2 => c"memory.events",
        };
        let mut buffer = [0; 512];
        let text = read_at(dir, name, &mut buffer).unwrap_or_default();
        value_of(text, "oom_kill").is_some_and(|kills| kills > 0)
    }

    /// Kills every process in the group; false if there is no v2 group.
    pub(super) fn kill(&self) -> bool {
        self.v2.as_ref().is_some_and(|dir| write_at(dir, c"cgroup.kill", b"1").is_ok())
    }
}

fn group_name(index: usize) -> Name {
    Name::new(format_args!("w{index}"))
}

/// Makes a group and opens it.
pub(super) fn make(path: &Path) -> Option<(OwnedFd, PathBuf)> {
    match fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(_) => return None,
    }
    let dir = fs::File::open(path).ok()?;
    Some((dir.into(), path.to_owned()))
}

/// Passes v2's rdma controller down as well, if it is there; the memory controller has made room for that.
fn delegate_rdma(own: &Path, node_group: &Path) {
    let passed = fs::write(own.join("cgroup.subtree_control"), "+rdma")
        .and_then(|()| fs::write(node_group.join("cgroup.subtree_control"), "+rdma"));
    if let Err(error) = passed {
        say(format_args!("the rdma controller is not used: {error}"));
    }
}

/// Passes v2's memory controller down to the workers' groups, and the CPU controller to the node's, if it is there. A group that
/// passes controllers on may hold no process but the root, so the keeper moves into a group beside the node's.
fn delegate(own: &Path, name: &str, node_group: &Path) -> bool {
    let pass = |path: &Path| fs::write(path.join("cgroup.subtree_control"), "+memory");
    let has_memory = |path: &Path| {
        let text = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
        text.split_whitespace().any(|controller| controller == "memory")
    };
    if !has_memory(own) {
        return false;
    }
    if pass(own).is_err() {
        let beside = own.join(format!("{name}.keeper"));
        if make(&beside).is_none() || fs::write(beside.join("cgroup.procs"), "0").is_err() {
            return false;
        }
        if pass(own).is_err() {
            // Others live there too: back, so that the manager finds the keeper where it put it.
            let _ = fs::write(own.join("cgroup.procs"), "0");
            let _ = fs::remove_dir(&beside);
            return false;
        }
    }
    let _ = fs::write(own.join("cgroup.subtree_control"), "+cpu");
    has_memory(node_group) && pass(node_group).is_ok()
}

/// The directory of the keeper's own cgroup: v2's for `None`, else of that v1 controller.
fn own_group(mounts: &str, own: &str, controller: Option<&str>) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let found = match controller {
            None => controllers.is_empty(),
            Some(name) => controllers.split(',').any(|found| found == name),
        };
        found.then_some(path)
    })?;
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ').skip(3);
        let (root, mount) = (fields.next()?, fields.next()?);
        let mut kind = right.split(' ');
        let kind_name = kind.next()?;
        let fits = match controller {
            None => kind_name == "cgroup2",
            Some(name) => {
                kind_name == "cgroup" && kind.nth(1)?.split(',').any(|option| option == name)
            }
        };
        let below = Path::new(path).strip_prefix(root).ok()?;
        fits.then(|| Path::new(mount).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_groups_are_found_in_a_hybrid_a_pure_and_a_namespaced_system() {
        let hybrid = "30 20 0:1 / /sys/fs/cgroup/unified rw shared:1 - cgroup2 cgroup2 rw\n\
                      31 20 0:2 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let own = "8:memory:/a/b\n1:cpu,cpuacct:/\n0::/c\n";
        assert_eq!(own_group(hybrid, own, None), Some("/sys/fs/cgroup/unified/c".into()));
        assert_eq!(
            own_group(hybrid, own, Some("memory")),
            Some("/sys/fs/cgroup/memory/a/b".into())
        );
        let container = "30 20 0:1 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        assert_eq!(own_group(container, "0::/docker/x/y\n", None), Some("/sys/fs/cgroup/y".into()));
        assert_eq!(own_group(container, "0::/../z\n", None), None);
        assert_eq!(own_group("", "", None), None);
    }

    #[test]
    fn a_name_that_does_not_fit_is_cut() {
        let name = Name::new(format_args!("{}", "x".repeat(200)));
        assert_eq!(name.as_c_str().to_bytes().len(), 63);
    }

    #[test]
    fn values_are_read_by_whole_key() {
        let text = b"oom_kill_disable 0\nunder_oom 0\noom_kill 2\n";
        assert_eq!(value_of(text, "oom_kill"), Some(2));
        assert_eq!(value_of(text, "oom"), None);
    }
}
