//! Credentials by munge: made by any user of the cluster, read once, by the daemon that shares the cluster's key.
//!
//! Called by [`crate::Authority`]; also used alone by `gleaner doctor`, which shows whether munge works here.

use std::{
    ffi::CString,
    fmt,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::libmunge::{Code, LibMunge, Opened};

/// The library's name: its soname has not changed since munge 0.5 of 2004.
const LIBRARY: &str = "libmunge.so.2";

/// Longest credential that is handed to munge, in bytes; ours are about 200.
pub const CREDENTIAL_MAX: usize = 8 << 10;

/// libmunge, loaded, and the daemon it speaks to.
pub struct Munge {
    library: LibMunge,
    socket: Option<CString>,
}

/// What a sound credential says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// The bytes that its maker put in.
    pub payload: Vec<u8>,
    /// Who made it.
    pub uid: u32,
    /// The maker's group.
    pub gid: u32,
}

/// Why munge made or took no credential.
#[derive(Debug, thiserror::Error)]
pub enum MungeError {
    /// The library is not here, or is not munge's.
    #[error(
        "cannot load {LIBRARY}: install the package libmunge2 (Debian) or munge-libs (RHEL, SUSE), or set auth = \"single-user\" on a laptop"
    )]
    Missing(#[source] libloading::Error),
    /// The socket's path cannot be one.
    #[error("munge_socket {0:?} holds a NUL byte: correct the path")]
    BadSocket(PathBuf),
    /// munged does not answer.
    #[error(
        "munged cannot be reached ({detail}): start it (systemctl start munge), or correct munge_socket"
    )]
    NoDaemon {
        /// munge's own words.
        detail: String,
    },
    /// The same credential was read before.
    #[error(
        "the credential of uid {uid} was used before: each call needs a new one; somebody may be replaying it"
    )]
    Replayed {
        /// Who made it.
        uid: u32,
    },
    /// Too old.
    #[error(
        "the credential of uid {uid} has expired: send it sooner, and check that the clocks of both machines agree"
    )]
    Expired {
        /// Who made it.
        uid: u32,
    },
    /// From the future.
    #[error(
        "the credential of uid {uid} is dated in the future: check that the clocks of both machines agree"
    )]
    Rewound {
        /// Who made it.
        uid: u32,
    },
    /// Made for another reader.
    #[error(
        "the credential is meant for another user than uid {reader}: it was made for somebody else's reply, or is stolen"
    )]
    Unauthorized {
        /// Who tried to read it.
        reader: u32,
    },
    /// Not munge's, damaged, or sealed with another key.
    #[error(
        "this is no credential of this cluster's munge ({detail}): it is forged or damaged, or /etc/munge/munge.key differs between the machines"
    )]
    Invalid {
        /// munge's own words.
        detail: String,
    },
    /// Anything else.
    #[error("munge failed with code {code} ({detail}): see munged's log")]
    Other {
        /// munge's own code.
        code: i32,
        /// munge's own words.
        detail: String,
    },
}

impl Munge {
    /// Loads libmunge. `socket` is munged's; `None` is the one libmunge was built with.
    pub fn load(socket: Option<PathBuf>) -> Result<Self, MungeError> {
        Self::load_library(LIBRARY, socket)
    }

    fn load_library(file: &str, socket: Option<PathBuf>) -> Result<Self, MungeError> {
        let socket = socket.as_deref().map(socket_text).transpose()?;
        let library = LibMunge::load(file).map_err(MungeError::Missing)?;
        Ok(Self { library, socket })
    }

    /// A credential of this process's user with `payload` in it; with `restrict_uid`, only that uid can read it.
    pub fn encode(&self, payload: &[u8], restrict_uid: Option<u32>) -> Result<String, MungeError> {
        let made = self.library.encode(self.socket.as_deref(), payload, restrict_uid);
        let text = made.map_err(|code| refusal(code, u32::MAX))?;
        Ok(text.to_string_lossy().into_owned())
    }

    /// Reads a credential, once: munged refuses the second time, on this machine.
    pub fn decode(&self, credential: &str) -> Result<Decoded, MungeError> {
        let invalid = |detail: &str| MungeError::Invalid { detail: detail.into() };
        if credential.is_empty() {
            return Err(invalid("it is empty"));
        }
        if credential.len() > CREDENTIAL_MAX {
            return Err(invalid("it is too long"));
        }
        let credential = CString::new(credential).map_err(|_| invalid("it holds a NUL byte"))?;
        let (Opened { payload, uid, gid }, result) =
            self.library.decode(self.socket.as_deref(), &credential);
        result.map_err(|code| refusal(code, uid))?;
        Ok(Decoded { payload, uid, gid })
    }
}

impl fmt::Debug for Munge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Munge").field("socket", &self.socket).finish_non_exhaustive()
    }
}

fn socket_text(path: &Path) -> Result<CString, MungeError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| MungeError::BadSocket(path.into()))
}

/// munge's codes (`munge_err_t` of munge.h) as what an operator can act on.
fn refusal(Code { code, text }: Code, uid: u32) -> MungeError {
    match code {
        6 | 7 => MungeError::NoDaemon { detail: text },
        3 | 8..=14 => MungeError::Invalid { detail: text },
        15 => MungeError::Expired { uid },
        16 => MungeError::Rewound { uid },
        17 => MungeError::Replayed { uid },
        18 => MungeError::Unauthorized { reader: nix::unistd::geteuid().as_raw() },
        _ => MungeError::Other { code, detail: text },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_names_the_package() {
        let error = Munge::load_library("libmunge-is-not-here.so.2", None).unwrap_err();
        assert!(matches!(error, MungeError::Missing(_)));
        assert!(error.to_string().contains("libmunge2"), "{error}");
    }

    #[test]
    fn a_library_without_munge_in_it_is_refused() {
        assert!(matches!(Munge::load_library("libc.so.6", None), Err(MungeError::Missing(_))));
    }

    #[test]
    fn no_daemon_is_said_so() {
        let munge = Munge::load(Some("/nonexistent/munge.socket".into())).unwrap();
        let error = munge.encode(b"x", None).unwrap_err();
        assert!(matches!(error, MungeError::NoDaemon { .. }), "{error}");
        assert!(error.to_string().contains("/nonexistent/munge.socket"), "{error}");
    }
}
