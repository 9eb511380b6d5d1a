//! Where several messages arrive at once, or the beginning of one.

use crate::tune::STAGING_BYTES;

#[derive(Debug)]
pub(super) struct Staging {
    bytes: Box<[u8; STAGING_BYTES]>,
    start: usize,
    end: usize,
}

impl Staging {
    pub(super) fn new() -> Self {
        Self { bytes: Box::new([0; STAGING_BYTES]), start: 0, end: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Keeps these bytes, where nothing was.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        (self.start, self.end) = (0, bytes.len());
        self.bytes[..bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Moves bytes to `wanted`, as many as there are.
    pub(super) fn take(&mut self, wanted: &mut [u8]) -> usize {
        let taken = wanted.len().min(self.end - self.start);
        wanted[..taken].copy_from_slice(&self.bytes[self.start..self.start + taken]);
        self.start += taken;
        taken
    }

    /// Room to receive into, after what is left of a header.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.bytes[self.end..]
    }

    /// So many bytes of what is filled are done with.
    pub(super) fn skip(&mut self, count: usize) {
        self.start += count;
    }

    /// So many bytes were received there.
    pub(super) fn received(&mut self, count: usize) {
        self.end += count;
    }
}
