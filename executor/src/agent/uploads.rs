//! Function libraries: taken in chunks, verified, sealed, and kept for the next lease of the same user.
//!
//! [`super::connection`] feeds the chunks of its session into an [`Upload`]; [`Libraries`] is shared by all of them. A
//! library is found by its uid and hash: nobody learns from this cache whether somebody else uses one.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
    sync::Arc,
};

use gleaner_proto::v1;
use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use sha2::{Digest, Sha256};

/// A library's hash.
pub(super) type Hash = [u8; 32];

/// Why a chunk is not taken. The upload is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    /// Not a SHA-256.
    #[error("a library's hash has 32 bytes, this one {0}")]
    Hash(usize),
    /// More than the site takes.
    #[error("a library of {bytes} bytes, more than the {max} that are taken here")]
    TooLarge { bytes: u64, max: u64 },
    /// A chunk that does not follow the one before.
    #[error(
        "a chunk at offset {offset} where {expected} was next: send a library from its start, in order"
    )]
    Order { offset: u64, expected: u64 },
    /// The bytes are others than announced.
    #[error(
        "the library's bytes do not have the announced hash: it was damaged on the way, or changed while it was sent"
    )]
    Differs,
    /// The system refused.
    #[error("cannot keep the library: {0}")]
    Io(#[from] io::Error),
}

/// The node's libraries, at most so many bytes; the ones unused longest go first.
#[derive(Debug)]
pub(super) struct Libraries {
    bytes_max: u64,
    bytes: u64,
    used: u64,
    kept: BTreeMap<(u32, Hash), Kept>,
}

#[derive(Debug)]
struct Kept {
    file: Arc<OwnedFd>,
    bytes: u64,
    used: u64,
}

impl Libraries {
    /// None yet.
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, bytes: 0, used: 0, kept: BTreeMap::new() }
    }

    /// A library that this user has uploaded here before.
    pub(super) fn find(&mut self, uid: u32, hash: &Hash) -> Option<Arc<OwnedFd>> {
        self.used += 1;
        let kept = self.kept.get_mut(&(uid, *hash))?;
        kept.used = self.used;
        Some(kept.file.clone())
    }

    /// Keeps a verified library. Leases that use one which goes keep it until they end.
    fn keep(&mut self, uid: u32, hash: Hash, file: Arc<OwnedFd>, bytes: u64) {
        self.used += 1;
        let used = self.used;
        if let Some(same) = self.kept.insert((uid, hash), Kept { file, bytes, used }) {
            self.bytes -= same.bytes;
        }
        self.bytes += bytes;
        while self.bytes > self.bytes_max && self.kept.len() > 1 {
            let Some(oldest) =
                self.kept.iter().min_by_key(|(_, kept)| kept.used).map(|(key, _)| *key)
            else {
                return;
            };
            self.bytes -= self.kept.remove(&oldest).map_or(0, |kept| kept.bytes);
        }
    }
}

/// A library on its way in: one at a time for each session.
#[derive(Debug)]
pub(super) struct Upload {
    hash: Hash,
    size: u64,
    taken: u64,
    digest: Sha256,
    file: File,
}

impl Upload {
    fn begin(hash: Hash, size: u64) -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"gleaner-library", flags)?);
        Ok(Self { hash, size, taken: 0, digest: Sha256::new(), file })
    }

    fn take(&mut self, offset: u64, chunk: &[u8]) -> Result<(), UploadError> {
        if offset != self.taken {
            return Err(UploadError::Order { offset, expected: self.taken });
        }
        let bytes = self.taken + chunk.len() as u64;
        if bytes > self.size {
            return Err(UploadError::TooLarge { bytes, max: self.size });
        }
        self.file.write_all(chunk)?;
        self.digest.update(chunk);
        self.taken = bytes;
        Ok(())
    }

    /// Seals the file, so that what was verified is what will be loaded.
    fn finish(self) -> Result<OwnedFd, UploadError> {
        if Hash::from(self.digest.finalize()) != self.hash {
            return Err(UploadError::Differs);
        }
        let seals = SealFlag::F_SEAL_WRITE
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_SEAL;
        fcntl(&self.file, FcntlArg::F_ADD_SEALS(seals)).map_err(io::Error::from)?;
        Ok(self.file.into())
    }
}

/// Takes one message of a session's upload; the answer says whether the library is here. `current` is the session's own.
pub(super) fn take(
    message: &v1::Upload,
    uid: u32,
    library_max: u64,
    current: &mut Option<Upload>,
    libraries: &mut Libraries,
) -> Result<Option<v1::Uploaded>, UploadError> {
    let v1::Upload { sha256, size_bytes, offset, chunk } = message;
    let hash = Hash::try_from(&sha256[..]).map_err(|_| UploadError::Hash(sha256.len()))?;
    let answer = |complete| Ok(Some(v1::Uploaded { sha256: sha256.clone(), complete }));
    if chunk.is_empty() {
        return answer(libraries.find(uid, &hash).is_some());
    }
    if *size_bytes > library_max {
        *current = None;
        return Err(UploadError::TooLarge { bytes: *size_bytes, max: library_max });
    }
    if *offset == 0 {
        *current = Some(Upload::begin(hash, *size_bytes)?);
    }
    let mut upload = current
        .take()
        .filter(|upload| upload.hash == hash)
        .ok_or(UploadError::Order { offset: *offset, expected: 0 })?;
    upload.take(*offset, chunk)?;
    if upload.taken < upload.size {
        *current = Some(upload);
        return Ok(None);
    }
    let size = upload.size;
    libraries.keep(uid, hash, Arc::new(upload.finish()?), size);
    answer(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(bytes: &[u8], offset: usize, len: usize) -> v1::Upload {
        v1::Upload {
            sha256: Sha256::digest(bytes).to_vec().into(),
            size_bytes: bytes.len() as u64,
            offset: offset as u64,
            chunk: bytes[offset..offset + len].to_vec().into(),
        }
    }

    fn send(bytes: &[u8], libraries: &mut Libraries, uid: u32) -> Result<bool, UploadError> {
        let mut current = None;
        let mut complete = false;
        for offset in (0..bytes.len()).step_by(100) {
            let len = 100.min(bytes.len() - offset);
            let answer = take(&chunk(bytes, offset, len), uid, 1000, &mut current, libraries)?;
            complete = answer.is_some_and(|answer| answer.complete);
        }
        Ok(complete)
    }

    #[test]
    fn a_library_is_kept_sealed_and_for_its_own_user_alone() {
        let mut libraries = Libraries::new(4096);
        let bytes = vec![7; 950];
        assert!(send(&bytes, &mut libraries, 1).unwrap());
        let hash = Sha256::digest(&bytes).into();
        let file = libraries.find(1, &hash).unwrap();
        assert!(libraries.find(2, &hash).is_none());
        let mut again = File::from(file.try_clone().unwrap());
        assert!(again.write_all(b"x").is_err(), "sealed");
    }

    #[test]
    fn what_differs_from_its_hash_is_too_large_or_out_of_order_is_refused() {
        let mut libraries = Libraries::new(4096);
        let mut current = None;
        let mut wrong = chunk(&[1; 10], 0, 10);
        wrong.chunk = vec![2; 10].into();
        let refused = take(&wrong, 1, 1000, &mut current, &mut libraries);
        assert!(matches!(refused, Err(UploadError::Differs)));
        let late = take(&chunk(&[1; 10], 5, 5), 1, 1000, &mut current, &mut libraries);
        assert!(matches!(late, Err(UploadError::Order { .. })));
        assert!(matches!(send(&[1; 1001], &mut libraries, 1), Err(UploadError::TooLarge { .. })));
        let mut longer = chunk(&[1; 10], 0, 10);
        longer.size_bytes = 5;
        let refused = take(&longer, 1, 1000, &mut current, &mut libraries);
        assert!(matches!(refused, Err(UploadError::TooLarge { .. })));
        assert!(libraries.kept.is_empty());
    }

    #[test]
    fn the_library_unused_longest_goes_first() {
        let mut libraries = Libraries::new(250);
        let hash = |byte: u8| Hash::from(Sha256::digest([byte; 100]));
        for byte in 0..2 {
            assert!(send(&[byte; 100], &mut libraries, 1).unwrap());
        }
        libraries.find(1, &hash(0)).unwrap();
        assert!(send(&[2; 100], &mut libraries, 1).unwrap());
        assert!(libraries.find(1, &hash(0)).is_some());
        assert!(libraries.find(1, &hash(1)).is_none());
        assert_eq!(libraries.bytes, 200);
    }
}
