//! Reads the node's journal of vacates for the agent, and appends to it for the keeper. The format is `proto`'s.
//!
//! The agent reads from where the harvester last acknowledged, reports, and calls [`Reader::acknowledge`]. How far it
//! got lies in a file beside the journal, so that a restarted agent goes on there. The keeper empties the journal when
//! it starts and everything in it was acknowledged.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use gleaner_proto::vacates::{VACATES_FILE, VacateRecord, next_record};

/// The file that says how far the journal was acknowledged, in the node's runtime directory. The agent owns it.
pub const ACKNOWLEDGED_FILE: &str = "vacates.acknowledged";

/// Bytes that one [`Reader::unacknowledged`] looks at: what a node could write in years. The journal is emptied at each
/// start of the keeper.
const READ_MAX: u64 = 1 << 20;

/// The agent's view of the journal.
#[derive(Debug)]
pub struct Reader {
    journal: File,
    acknowledged: File,
}

/// A record, and the position that acknowledges it and everything before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Journalled {
    /// The record.
    pub record: VacateRecord,
    /// For [`Reader::acknowledge`].
    pub position: u64,
}

impl Reader {
    /// Opens the journal of the node whose runtime directory this is; the keeper has made both files.
    pub fn open(run_dir: &Path) -> io::Result<Self> {
        let journal = File::open(run_dir.join(VACATES_FILE))?;
        let path = run_dir.join(ACKNOWLEDGED_FILE);
        let acknowledged = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self { journal, acknowledged })
    }

    /// The records that are not acknowledged yet, oldest first.
    pub fn unacknowledged(&self) -> io::Result<Vec<Journalled>> {
        let mut position = self.position()?;
        let len = self.journal.metadata()?.len().saturating_sub(position);
        let mut bytes = vec![0; len.min(READ_MAX) as usize];
        self.journal.read_exact_at(&mut bytes, position)?;
        let mut records = Vec::new();
        let mut rest = &bytes[..];
        while let Some((record, used)) = next_record(rest) {
            position += used as u64;
            rest = &rest[used..];
            records.push(Journalled { record, position });
        }
        Ok(records)
    }

    /// The harvester has stored everything up to this position.
    pub fn acknowledge(&self, position: u64) -> io::Result<()> {
        if position > self.position()? {
            self.acknowledged.write_all_at(&position.to_le_bytes(), 0)?;
        }
        Ok(())
    }

    fn position(&self) -> io::Result<u64> {
        position(&self.acknowledged)
    }
}

/// A short or empty file is position 0: everything is reported again, and stored once by its record id.
fn position(acknowledged: &File) -> io::Result<u64> {
    let mut bytes = [0; 8];
    match acknowledged.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(u64::from_le_bytes(bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
        Err(error) => Err(error),
    }
}

/// The keeper's end: appends.
#[derive(Debug)]
pub struct Appender {
    journal: File,
}

impl Appender {
    /// Opens the journal, makes it if there is none, and empties it if all of it was acknowledged.
    pub fn open(run_dir: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let journal =
            options.append(true).create(true).mode(0o644).open(run_dir.join(VACATES_FILE))?;
        let path = run_dir.join(ACKNOWLEDGED_FILE);
        let mut options = OpenOptions::new();
        let acknowledged =
            options.read(true).write(true).create(true).truncate(false).mode(0o644).open(path)?;
        if position(&acknowledged)? >= journal.metadata()?.len() {
            // The position first: a crash between the two reports all again and loses nothing.
            acknowledged.set_len(0)?;
            journal.set_len(0)?;
        }
        Ok(Self { journal })
    }

    /// Appends one record; allocates nothing.
    pub fn append(&mut self, record: &VacateRecord) -> io::Result<()> {
        self.journal.write_all(&record.encode())
    }
}

#[cfg(test)]
mod tests {
    use gleaner_proto::vacates::Trigger;

    use super::*;

    fn record(job_id: u32) -> VacateRecord {
        VacateRecord {
            id: [job_id as u8; 16],
            trigger: Trigger::Prolog,
            epoch: 1,
            job_id,
            job_uid: 0,
            leases: 0,
            processes: 0,
            remaining: 0,
            memory_bytes: 0,
            steps_us: [0; 5],
            stamp_ns: 0,
            unix_ms: 0,
            boot_id: [0; 16],
        }
    }

    fn jobs(reader: &Reader) -> Vec<u32> {
        let records = reader.unacknowledged().unwrap();
        records.iter().map(|journalled| journalled.record.job_id).collect()
    }

    #[test]
    fn what_is_not_acknowledged_is_read_again_by_the_next_agent_and_keeper() {
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = Appender::open(dir.path()).unwrap();
        keeper.append(&record(1)).unwrap();
        keeper.append(&record(2)).unwrap();
        let agent = Reader::open(dir.path()).unwrap();
        let first = agent.unacknowledged().unwrap()[0];
        agent.acknowledge(first.position).unwrap();
        assert_eq!(jobs(&agent), [2]);
        drop((keeper, agent));
        let mut keeper = Appender::open(dir.path()).unwrap();
        // A writer that was killed in the middle of its record.
        keeper.journal.write_all(&record(3).encode()[..50]).unwrap();
        keeper.append(&record(4)).unwrap();
        let agent = Reader::open(dir.path()).unwrap();
        assert_eq!(jobs(&agent), [2, 4]);
        let last = agent.unacknowledged().unwrap()[1];
        agent.acknowledge(last.position).unwrap();
        assert!(jobs(&agent).is_empty());
        let _keeper = Appender::open(dir.path()).unwrap();
        assert_eq!(dir.path().join(VACATES_FILE).metadata().unwrap().len(), 0, "emptied");
    }
}
