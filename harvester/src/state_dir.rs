//! The harvester's own directory: one daemon at a time holds it, and its signing key lives there.
//!
//! Called once, at start. What lies here besides: the database ([`crate::store`]) and its journal.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use gleaner_lease::token::SigningKey;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::geteuid,
};

/// The directory, locked for as long as this lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: Flock<File>,
}

/// Why the directory or the key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// It cannot be made.
    #[error("cannot create state_dir {path}: make it by hand, owned by the harvester's user")]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody else's, or open to others.
    #[error(
        "state_dir {path} has owner {owner} and mode {mode:o}: it holds the signing key, so it must be uid {own}'s and closed to others (chown, chmod go-rwx)"
    )]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its permissions.
        mode: u32,
        /// This process's user.
        own: u32,
    },
    /// Another daemon holds it.
    #[error(
        "another harvester (process {holder}) holds state_dir {path}: stop it first; one harvester serves a cluster"
    )]
    Busy {
        /// The directory.
        path: PathBuf,
        /// What the lock file says.
        holder: String,
    },
    /// Reading or writing there failed.
    #[error("cannot use {path}: check the disk, and that state_dir is writable")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A key file that is not ours.
    #[error(
        "{path} is no signing key (32 bytes, closed to others): restore it, or remove it to make a new one, which ends all leases"
    )]
    BadKey {
        /// The file.
        path: PathBuf,
    },
    /// No randomness.
    #[error("cannot make a signing key: the kernel gives no random bytes")]
    Random(#[source] getrandom::Error),
}

impl StateDir {
    /// Makes the directory if need be, checks it, and takes its lock.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        let (path, own) = (path.to_owned(), geteuid().as_raw());
        if let Err(source) = DirBuilder::new().recursive(true).mode(0o700).create(&path) {
            return Err(StateDirError::Create { path, source });
        }
        let metadata = fs::metadata(&path).map_err(file_error(&path))?;
        let (owner, mode) = (metadata.uid(), metadata.mode() & 0o777);
        if owner != own || mode & 0o077 != 0 {
            return Err(StateDirError::Open { path, owner, mode, own });
        }
        let lock = lock(&path)?;
        Ok(Self { path, _lock: lock })
    }

    /// A file of the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The key that signs tokens; made at the first start. Losing it ends all leases, since executors learn the new one.
    pub fn signing_key(&self) -> Result<SigningKey, StateDirError> {
        let path = self.file("signing.key");
        match read_key(&path) {
            Err(StateDirError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                self.make_key(&path)?;
                read_key(&path)
            }
            result => result,
        }
    }

    fn make_key(&self, path: &Path) -> Result<(), StateDirError> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(StateDirError::Random)?;
        let fresh = self.file("signing.key.new");
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&fresh)?;
            file.write_all(&key)?;
            file.sync_all()?;
            fs::rename(&fresh, path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(file_error(path))
    }
}

fn lock(directory: &Path) -> Result<Flock<File>, StateDirError> {
    let path = directory.join("lock");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(&path).map_err(file_error(&path))?;
    let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            return Err(StateDirError::Busy {
                path: directory.into(),
                holder: holder.trim().into(),
            });
        }
        Err((_, errno)) => return Err(file_error(&path)(errno.into())),
    };
    // Only for the message above: a full disk must not keep the daemon from starting.
    let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
    Ok(lock)
}

fn read_key(path: &Path) -> Result<SigningKey, StateDirError> {
    let mut file = File::open(path).map_err(file_error(path))?;
    let metadata = file.metadata().map_err(file_error(path))?;
    let mut key = [0; 32];
    let private = metadata.mode() & 0o077 == 0 && metadata.len() == key.len() as u64;
    if !private {
        return Err(StateDirError::BadKey { path: path.into() });
    }
    file.read_exact(&mut key).map_err(file_error(path))?;
    Ok(SigningKey::from_bytes(&key))
}

fn file_error(path: &Path) -> impl Fn(io::Error) -> StateDirError {
    move |source| StateDirError::File { path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("state");
        (outer, path)
    }

    #[test]
    fn one_daemon_at_a_time() {
        let (_outer, path) = directory();
        let first = StateDir::open(&path).unwrap();
        let error = StateDir::open(&path).unwrap_err();
        let own = std::process::id().to_string();
        assert!(matches!(&error, StateDirError::Busy { holder, .. } if *holder == own), "{error}");
        drop(first);
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn the_key_stays_and_is_private() {
        let (_outer, path) = directory();
        let state = StateDir::open(&path).unwrap();
        let key = state.signing_key().unwrap();
        assert_eq!(state.signing_key().unwrap().to_bytes(), key.to_bytes());
        let file = state.file("signing.key");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(state.signing_key(), Err(StateDirError::BadKey { .. })));
    }

    #[test]
    fn a_short_key_is_not_used() {
        let (_outer, path) = directory();
        let state = StateDir::open(&path).unwrap();
        state.signing_key().unwrap();
        fs::write(state.file("signing.key"), b"short").unwrap();
        assert!(matches!(state.signing_key(), Err(StateDirError::BadKey { .. })));
    }

    #[test]
    fn an_open_directory_is_refused() {
        let (_outer, path) = directory();
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(StateDir::open(&path), Err(StateDirError::Open { mode: 0o755, .. })));
    }
}
