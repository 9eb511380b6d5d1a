//! The journal: rows that the database did not take, in a local file of bounded size, until it takes them.
//!
//! Called by [`super::writer`] alone. The file's blocks are reserved at start, so that a full disk does not stop it.
//! One batch is one line of JSON and a newline; the first zero byte is the end. A line that was being written when the
//! machine died is no JSON, was never acknowledged, and ends the journal too.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::fcntl::{FallocateFlags, fallocate};

use super::rows::Row;

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    bytes_max: u64,
    end: u64,
}

/// Why the journal does not take rows.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Reading or writing failed.
    #[error("cannot use the journal {path}: check the disk of state_dir: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is full.
    #[error(
        "the journal {path} is full ({bytes_max} bytes): records are lost until the database can be written again"
    )]
    Full {
        /// The file.
        path: PathBuf,
        /// Its bound.
        bytes_max: u64,
    },
    /// A row has no JSON.
    #[error("a record cannot be written down")]
    Encode(#[from] serde_json::Error),
}

impl Journal {
    /// Opens the file, reserving its blocks, and returns what it still holds, batch by batch.
    pub(super) fn open(path: &Path, bytes_max: u64) -> Result<(Self, Vec<Vec<Row>>), JournalError> {
        let error = |source| JournalError::File { path: path.into(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path).map_err(error)?;
        let length = i64::try_from(bytes_max).unwrap_or(i64::MAX);
        match fallocate(file.as_fd(), FallocateFlags::empty(), 0, length) {
            // A file system that cannot reserve (NFS) still takes a journal, if not on a full disk.
            Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP) => {}
            Err(errno) => return Err(error(errno.into())),
        }
        let mut content = Vec::new();
        io::Read::read_to_end(&mut &file, &mut content).map_err(error)?;
        let (batches, end) = parse(&content);
        Ok((Self { path: path.into(), file, bytes_max, end }, batches))
    }

    /// Writes one batch down, durably: all of it or none.
    pub(super) fn append(&mut self, batch: &[Row]) -> Result<(), JournalError> {
        let mut line = serde_json::to_vec(batch)?;
        line.extend(b"\n\0");
        if self.end + line.len() as u64 > self.bytes_max {
            return Err(JournalError::Full { path: self.path.clone(), bytes_max: self.bytes_max });
        }
        self.write(&line, self.end)?;
        self.end += line.len() as u64 - 1;
        Ok(())
    }

    /// Forgets everything, once the database has it.
    pub(super) fn clear(&mut self) -> Result<(), JournalError> {
        // Written over and not cut off: the blocks stay reserved, and no old line can follow a new one.
        let used = usize::try_from(self.end).unwrap_or(usize::MAX);
        self.write(&vec![0; used], 0)?;
        self.end = 0;
        Ok(())
    }

    /// Everything that it holds.
    pub(super) fn read(&self) -> Result<Vec<Vec<Row>>, JournalError> {
        let mut content = vec![0; usize::try_from(self.end).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut content, 0).map_err(|source| self.error(source))?;
        Ok(parse(&content).0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.end == 0
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<(), JournalError> {
        let written = self.file.write_all_at(bytes, at).and_then(|()| self.file.sync_data());
        written.map_err(|source| self.error(source))
    }

    fn error(&self, source: io::Error) -> JournalError {
        JournalError::File { path: self.path.clone(), source }
    }
}

/// The whole lines before the first zero byte or the first that is no batch, and where they end.
fn parse(content: &[u8]) -> (Vec<Vec<Row>>, u64) {
    let (mut batches, mut end) = (Vec::new(), 0);
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        let Some(json) = line.strip_suffix(b"\n") else { break };
        let Ok(batch) = serde_json::from_slice(json) else { break };
        batches.push(batch);
        end += line.len() as u64;
    }
    (batches, end)
}

#[cfg(test)]
mod tests {
    use super::{
        super::rows::{Statement, Value},
        *,
    };

    fn batch(number: i64) -> Vec<Row> {
        let values = vec![
            Value::Integer(number),
            Value::Null,
            Value::Text("a\nb\0c".into()),
            Value::Bytes(vec![0, 10, 255]),
        ];
        vec![Row { statement: Statement::Job, values }; 2]
    }

    #[test]
    fn what_was_appended_is_read_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let (mut journal, old) = Journal::open(&path, 4096).unwrap();
        assert!(old.is_empty());
        journal.append(&batch(1)).unwrap();
        journal.append(&batch(2)).unwrap();
        drop(journal);
        let (mut journal, old) = Journal::open(&path, 4096).unwrap();
        assert_eq!(old, [batch(1), batch(2)]);
        journal.clear().unwrap();
        journal.append(&batch(3)).unwrap();
        assert_eq!(journal.read().unwrap(), [batch(3)]);
        drop(journal);
        assert_eq!(Journal::open(&path, 4096).unwrap().1, [batch(3)]);
    }

    #[test]
    fn a_torn_line_ends_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let (mut journal, _) = Journal::open(&path, 4096).unwrap();
        journal.append(&batch(1)).unwrap();
        let whole = journal.end;
        journal.append(&batch(2)).unwrap();
        journal.file.write_all_at(&[0; 10], whole + 20).unwrap();
        drop(journal);
        let (mut journal, old) = Journal::open(&path, 4096).unwrap();
        assert_eq!(old, [batch(1)]);
        journal.append(&batch(3)).unwrap();
        assert_eq!(journal.read().unwrap(), [batch(1), batch(3)]);
    }

    #[test]
    fn it_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(&directory.path().join("journal"), 400).unwrap();
        journal.append(&batch(1)).unwrap();
        let error = (0..4).find_map(|number| journal.append(&batch(number)).err());
        assert!(matches!(error, Some(JournalError::Full { bytes_max: 400, .. })));
        assert!(!journal.read().unwrap().is_empty());
    }
}
