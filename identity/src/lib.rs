//! Who is calling: munge, loaded at run time, and the single-user mode (`docs/src/adr/0001-identity-and-token.md`).
//!
//! The harvester, the executor's agent, the client and the CLI load one [`Authority`] at start. It signs digests
//! (`gleaner_proto::credential`) into credentials and tells whose credential it was handed. Every call is synchronous
//! and may wait for munged for a few seconds: callers run it off their event loop, within a time bound of their own.
//! It decides who somebody is, never what they may do.

mod libmunge;
mod loopback;
mod munge;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

pub use loopback::{LoopbackError, require_loopback};
pub use munge::{CREDENTIAL_MAX, Decoded, Munge, MungeError};

/// How callers prove who they are: the configuration's `auth` and `munge_socket`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// Slurm's own: any user of the cluster, checked by munged.
    Munge {
        /// munged's socket; `None` is the one that libmunge was built with.
        socket: Option<PathBuf>,
    },
    /// A laptop: loopback only, and only the uid that the harvester itself runs under.
    SingleUser,
}

/// Whose credential it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The caller's effective uid.
    pub uid: u32,
    /// The caller's effective gid.
    pub gid: u32,
}

/// The connection that a credential came over; single-user mode looks at its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// A server's view: an accepted connection.
    Accepted {
        /// The caller's end.
        peer: SocketAddr,
        /// The server's end.
        local: SocketAddr,
    },
    /// A client's view: the server that it dialled, as it answers at this address.
    Dialled {
        /// The server's address.
        server: SocketAddr,
    },
}

/// Why a credential could not be made, or was refused.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// munge said no.
    #[error(transparent)]
    Munge(#[from] MungeError),
    /// The credential is sound, but was made for another message.
    #[error(
        "the credential of uid {uid} covers another message: it was taken from another call, or both ends do not speak the same protocol version"
    )]
    OtherMessage {
        /// Whose credential it is.
        uid: u32,
    },
    /// The single-user mode could not find the caller to be this user.
    #[error(transparent)]
    Loopback(#[from] LoopbackError),
}

/// Makes and checks credentials; cheap to clone.
#[derive(Debug, Clone)]
pub enum Authority {
    /// Credentials by munge.
    Munge(Arc<Munge>),
    /// No credentials: connections of this same user on this same machine.
    SingleUser,
}

/// What a single-user "credential" says, so that a peer in another mode gets a clear refusal.
const SINGLE_USER: &str = "single-user";

impl Authority {
    /// Loads what `auth` needs. Reaches no daemon yet.
    pub fn load(auth: &Auth) -> Result<Self, IdentityError> {
        Ok(match auth {
            Auth::Munge { socket } => Self::Munge(Arc::new(Munge::load(socket.clone())?)),
            Auth::SingleUser => Self::SingleUser,
        })
    }

    /// A credential that says: this process's user, now, for the message with this digest. With `restrict`, only
    /// that uid can read it. Good for one check.
    pub fn sign(&self, digest: &[u8; 32], restrict: Option<u32>) -> Result<String, IdentityError> {
        Ok(match self {
            Self::Munge(munge) => munge.encode(digest, restrict)?,
            Self::SingleUser => SINGLE_USER.into(),
        })
    }

    /// Whose credential this is, if it is sound and covers the message with this digest.
    pub fn verify(
        &self,
        credential: &str,
        digest: &[u8; 32],
        via: Via,
    ) -> Result<Caller, IdentityError> {
        match self {
            Self::Munge(munge) => {
                let Decoded { payload, uid, gid } = munge.decode(credential)?;
                if payload != digest {
                    return Err(IdentityError::OtherMessage { uid });
                }
                Ok(Caller { uid, gid })
            }
            Self::SingleUser if credential != SINGLE_USER => {
                Err(LoopbackError::OtherMode { expected: SINGLE_USER }.into())
            }
            Self::SingleUser => Ok(loopback::same_user(via)?),
        }
    }
}
