//! A function library: the bytes of a shared object, named by their hash.

use std::{fmt, path::Path, sync::Arc};

use gleaner_proto::control::LIBRARY_MAX;
use sha2::{Digest, Sha256};

use crate::error::FunctionError;

/// A shared library with functions in it. Cheap to clone; uploaded once to each node, found there by its hash.
#[derive(Clone)]
pub struct Library {
    bytes: Arc<[u8]>,
    hash: [u8; 32],
    name: Arc<str>,
}

impl Library {
    /// Reads a shared library.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, FunctionError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let read = |source| FunctionError::Read { path: name.clone(), source };
        let bytes = path.metadata().map_err(read)?.len();
        if bytes > LIBRARY_MAX {
            return Err(FunctionError::TooLarge { path: name, bytes });
        }
        Ok(Self::new(std::fs::read(path).map_err(read)?, &name))
    }

    /// A library whose bytes are in memory already.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, FunctionError> {
        let size = bytes.len() as u64;
        if size > LIBRARY_MAX {
            return Err(FunctionError::TooLarge { path: "in memory".into(), bytes: size });
        }
        Ok(Self::new(bytes, "library in memory"))
    }

    fn new(bytes: Vec<u8>, name: &str) -> Self {
        Self { hash: Sha256::digest(&bytes).into(), bytes: bytes.into(), name: name.into() }
    }

    /// Its SHA-256.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Library({}, {} bytes)", self.name, self.bytes.len())
    }
}
