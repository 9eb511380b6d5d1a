//! The memory that a client and a worker on one node share: a sealed memory file, mapped by both.
//!
//! The agent makes it, passes the descriptor to both and keeps one; the worker fills in the pages, so that they are charged to
//! its lease; at the lease's end the agent takes the pages back, whoever still maps them.
//!
//! ```text
//! agent: create ──fd──▶ worker: open, prefault      ──fd──▶ client: open      agent: take_back
//! ```
// UNSAFETY: another process writes this mapping while we look. What says where things lie is seen as atomics alone. Payloads
// are slices, in ranges of one region that the geometry has checked: by `Link`'s rule the peer does not touch a block that is
// ours. A peer that breaks the rule is outside Rust's model, as for every mapped file; it changes bytes that had any value to
// begin with and that nobody may look at twice, never a length or a place.
#![allow(unsafe_code)]

use std::{
    io,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU32, Ordering, fence},
};

use gleaner_proto::header::{BLOCK_ALIGN, GUARD_LEN, HEADER_LEN};
use nix::{
    fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        stat::fstat,
        statfs::{TMPFS_MAGIC, fstatfs},
        uio::pwrite,
    },
    unistd::ftruncate,
};

use super::{
    bell::{self, Sleep},
    layout::{Direction, Half, Layout, PAGE, WHOLE},
    line::Line,
};
use crate::{
    futex,
    link::{BadGeometry, Block, Geometry, Payload},
    region::Mapping,
    tune::HUGE_PAGE_BYTES,
};

/// Without these a peer could change the size under us.
const SEALS: SealFlag =
    SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SEAL);

/// Not executable, and never to be: since Linux 6.3, `MFD_NOEXEC_SEAL`.
const NO_EXEC: MFdFlags = MFdFlags::from_bits_retain(8);

/// One process's view of a segment.
#[derive(Debug)]
pub struct Segment {
    mapping: Mapping,
    geometry: Geometry,
    layout: Layout,
}

/// Why a segment cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// No segment has such a geometry.
    #[error(transparent)]
    Geometry(#[from] BadGeometry),
    /// The descriptor is of another kind of file, whose pages can fail under us.
    #[error(
        "shared segment: the descriptor that was passed is no memory file of small pages; \
         pass one that Segment::create made, or force the transport tcp"
    )]
    NotMemory,
    /// Who holds the file could shrink it, and reading it would end us.
    #[error(
        "shared segment: the memory file lacks the seals {missing:?}, so its size is not fixed; \
         pass one that Segment::create made, or force the transport tcp"
    )]
    Unsealed {
        /// What is not there.
        missing: SealFlag,
    },
    /// It was made for another geometry.
    #[error(
        "shared segment: the memory file has {found} bytes and {geometry:?} needs {expected}; \
         both ends must use the geometry agreed on when the session attached"
    )]
    Size {
        /// The file's bytes.
        found: u64,
        /// The geometry's.
        expected: u64,
        /// What was agreed on.
        geometry: Geometry,
    },
    /// The operating system refused.
    #[error("shared segment of {bytes} bytes: cannot {step}: {source}; {remedy}")]
    System {
        /// What was tried.
        step: &'static str,
        /// The segment's size.
        bytes: u64,
        /// The system's answer.
        source: io::Error,
        /// What helps.
        remedy: &'static str,
    },
}

/// Bytes of one direction's region, which was found to hold them: only its own segment makes it, and is asked for them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot {
    /// From the segment's start.
    at: usize,
    len: usize,
}

impl Spot {
    /// No byte.
    pub(super) const NOTHING: Self = Self { at: 0, len: 0 };

    /// Bytes.
    #[inline(always)]
    pub(super) fn len(self) -> usize {
        self.len
    }
}

impl Segment {
    /// Makes the memory file for a geometry. No page of it exists yet.
    pub fn create(geometry: Geometry) -> Result<OwnedFd, SegmentError> {
        let bytes = Layout::new(geometry)?.bytes as u64;
        let failed = |step, remedy| move |error| system(step, bytes, error, remedy);
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = match memfd_create("gleaner-link", flags | NO_EXEC) {
            Err(nix::Error::EINVAL) => memfd_create("gleaner-link", flags),
            made => made,
        }
        .map_err(failed("make a memory file", "raise the limit on open files"))?;
        ftruncate(&file, bytes as i64)
            .map_err(failed("set the memory file's size", "use a smaller arena or window"))?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS))
            .map_err(failed("seal the memory file", "Gleaner needs Linux 3.17 or later"))?;
        Ok(file)
    }

    /// Maps a memory file that somebody else made. What could hurt later is refused before it is mapped: a size that may
    /// change, and pages that may be missing when they are touched.
    pub fn open(file: BorrowedFd<'_>, geometry: Geometry) -> Result<Self, SegmentError> {
        let layout = Layout::new(geometry)?;
        check_file(file, geometry, layout.bytes as u64)?;
        let mapping = Mapping::shared(file, layout.bytes).map_err(|source| {
            let (bytes, remedy) = (layout.bytes as u64, "raise the limit on address space");
            SegmentError::System { step: "map the memory file", bytes, source, remedy }
        })?;
        let segment = Self { mapping, geometry, layout };
        segment.advise_huge();
        Ok(segment)
    }

    /// Brings the pages of one direction into existence, charged to the caller's cgroup, and into its page tables: what is
    /// sent is paid for by who sends it, and the worker pays for the control area too. What was written stays.
    pub fn prefault(&self, direction: Direction) -> Result<(), SegmentError> {
        let region = self.layout.half(direction).region;
        if direction == Direction::Responses {
            self.populate(0..self.layout.control_bytes())?;
        }
        self.populate(region..region + self.layout.region_bytes.next_multiple_of(PAGE))
    }

    fn populate(&self, range: Range<usize>) -> Result<(), SegmentError> {
        debug_assert!(range.end <= self.mapping.len());
        let start = self.mapping.base().as_ptr().wrapping_add(range.start);
        // SAFETY: the range lies inside the mapping, and the advice changes no byte of it.
        match unsafe { libc::madvise(start.cast(), range.len(), libc::MADV_POPULATE_WRITE) } {
            0 => Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::EINVAL) => {
                    self.touch(range);
                    Ok(())
                }
                source => Err(SegmentError::System {
                    step: "fill in its pages",
                    bytes: range.len() as u64,
                    source,
                    remedy: "raise the lease's memory, or use a smaller arena or window",
                }),
            },
        }
    }

    /// Takes the responses' pages back, also from a client that still maps them: it reads zeros from now on, and what it writes
    /// is its own to pay for. Says so first, in the word that [`is_whole`](Self::is_whole) looks at, and wakes it at the end. The requests
    /// stay for as long as their client maps them: they are its own memory, and it may want to send them elsewhere.
    pub fn take_back(file: impl AsFd, geometry: Geometry) -> Result<(), SegmentError> {
        let layout = Layout::new(geometry)?;
        let remedy = "close the descriptor: the pages go when nobody maps them any more";
        let failed = |step| move |error| system(step, layout.bytes as u64, error, remedy);
        pwrite(&file, &[0; 4], WHOLE as i64).map_err(failed("say that its pages go"))?;
        let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let start = layout.half(Direction::Responses).region;
        // Whole pages of any size at the end: of one that is cut, the bytes would go and the page stay.
        let bytes = layout.bytes - start + HUGE_PAGE_BYTES;
        fallocate(&file, how, start as i64, bytes as i64).map_err(failed("give its pages back"))?;
        let segment = Self::open(file.as_fd(), geometry)?;
        let sleeping = segment.sleeping(layout.half(Direction::Responses));
        // Who sleeps in poll(2) hears of it over a socket.
        if bell::ring(sleeping) == Some(Sleep::Futex) {
            futex::wake(sleeping);
        }
        Ok(())
    }

    /// What it was opened with.
    #[inline]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Where things lie in it.
    #[inline]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How the receiver of this direction sleeps.
    #[inline]
    pub(super) fn sleeping(&self, half: &Half) -> &AtomicU32 {
        self.word(half.sleeping)
    }

    /// Says that the memory is the link's: the worker does, once.
    pub(super) fn begin(&self) {
        self.word(WHOLE).store(1, Ordering::Release);
    }

    /// Whether what was read of the responses before this call was still the link's memory.
    #[inline]
    pub(super) fn is_whole(&self) -> bool {
        fence(Ordering::Acquire);
        self.word(WHOLE).load(Ordering::Relaxed) != 0
    }

    /// The number of the last message that the receiver of this direction has taken.
    #[inline]
    pub(super) fn taken(&self, half: &Half) -> &AtomicU32 {
        self.word(half.taken)
    }

    /// The ring's line for the message with this number.
    #[inline(always)]
    pub(super) fn line(&self, half: &Half, sequence: u32) -> &Line {
        let at = half.line(sequence);
        debug_assert!(at + HEADER_LEN <= self.mapping.len());
        // SAFETY: `half` is of this segment's layout, whose lines lie inside the mapping, which has the layout's size, and are
        // 64-aligned; a line is atomics alone, for which every bit pattern is a value.
        unsafe { self.mapping.base().add(at).cast::<Line>().as_ref() }
    }

    /// Begins to bring the ring's line for this message into the cache.
    #[inline]
    pub(super) fn prefetch_line(&self, half: &Half, sequence: u32) {
        prefetch(std::ptr::from_ref(self.line(half, sequence)).cast());
    }

    /// Begins to bring the payload of this message into the cache, if it is here already. What its header says is a hint, and
    /// checked when it is taken.
    #[inline]
    pub(super) fn prefetch_payload_of(&self, half: &Half, sequence: u32) {
        let line = self.line(half, sequence);
        if let Some(block) = line.block()
            && line.holds(sequence)
        {
            let at = block as usize * BLOCK_ALIGN + HEADER_LEN;
            if at < self.layout.region_bytes {
                self.prefetch(Spot { at: half.region + at, len: 1 });
            }
        }
    }

    /// Begins to make the ring's line for this message our core's own, to be written without waiting for it.
    #[inline]
    pub(super) fn own_line(&self, half: &Half, sequence: u32) {
        let line = std::ptr::from_ref(self.line(half, sequence));
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint, which faults nowhere, changes nothing, and is a no-operation where the processor does not know it.
        unsafe {
            core::arch::asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags));
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }

    /// Begins to bring the first line of these bytes into the cache.
    #[inline]
    pub(super) fn prefetch(&self, spot: Spot) {
        debug_assert!(spot.at + spot.len <= self.mapping.len());
        prefetch(self.mapping.base().as_ptr().wrapping_add(spot.at));
    }

    /// Where an arrival's payload lies. Panics if that is not inside: callers have checked what peers named.
    #[inline(always)]
    pub(super) fn payload(&self, half: &Half, payload: Payload) -> Spot {
        self.spot(half, payload.offset as usize, payload.len as usize)
    }

    /// Where the payload and guard of a block lie that is to be sent.
    #[inline(always)]
    pub(super) fn room(&self, half: &Half, block: Block) -> Spot {
        self.spot(half, block.payload_offset() as usize, block.capacity as usize + GUARD_LEN)
    }

    #[inline(always)]
    fn spot(&self, half: &Half, start: usize, len: usize) -> Spot {
        let region = self.layout.region_bytes;
        assert!(start <= region && len <= region - start, "bytes outside the region");
        Spot { at: half.region + start, len }
    }

    /// An arrival's payload.
    #[inline(always)]
    pub(super) fn incoming(&self, payload: Spot) -> &[u8] {
        // SAFETY: inside the region, and ours to read until the slot is used again.
        unsafe { &*self.bytes(payload) }
    }

    /// What is to be sent.
    #[inline(always)]
    pub(super) fn outgoing(&mut self, room: Spot) -> &mut [u8] {
        // SAFETY: inside the region, and ours to write until it is posted; `&mut self` is our only access.
        unsafe { &mut *self.bytes(room) }
    }

    /// Copies what is to be sent to this place of a region. Panics if it does not fit there.
    #[inline(always)]
    pub(super) fn put(&mut self, half: &Half, offset: u64, bytes: &[u8]) {
        self.outgoing(self.spot(half, offset as usize, bytes.len())).copy_from_slice(bytes);
    }

    /// An arrival's payload, and the block of its reply in the other direction's region.
    #[inline(always)]
    pub(super) fn exchange(&mut self, payload: Spot, room: Spot) -> (&mut [u8], &mut [u8]) {
        let apart = payload.at + payload.len <= room.at || room.at + room.len <= payload.at;
        debug_assert!(apart || payload.len == 0, "one region for both directions");
        // SAFETY: as above; the two lie in two regions, which do not overlap.
        unsafe { (&mut *self.bytes(payload), &mut *self.bytes(room)) }
    }

    #[inline(always)]
    fn bytes(&self, spot: Spot) -> *mut [u8] {
        debug_assert!(spot.at + spot.len <= self.mapping.len());
        let start = self.mapping.base().as_ptr().wrapping_add(spot.at);
        std::ptr::slice_from_raw_parts_mut(start, spot.len)
    }

    /// A word of the control area or, for [`touch`](Self::touch), of any page.
    #[inline]
    fn word(&self, at: usize) -> &AtomicU32 {
        debug_assert!(at.is_multiple_of(4) && at < self.mapping.len());
        // SAFETY: inside the mapping and 4-aligned, and every bit pattern is a value.
        unsafe { self.mapping.base().add(at).cast::<AtomicU32>().as_ref() }
    }

    /// Writes to each page what is there: for kernels before 5.14, which do not know how to be asked.
    pub(super) fn touch(&self, range: Range<usize>) {
        for at in range.step_by(PAGE) {
            let _ = self.word(at).compare_exchange(0, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Huge pages for large arenas, where the system has them for shared memory
    /// (`/sys/kernel/mm/transparent_hugepage/shmem_enabled`: `advise`, `within_size` or `always`).
    fn advise_huge(&self) {
        let arena = (self.geometry.arena_offset() as usize).next_multiple_of(4096);
        for direction in [Direction::Requests, Direction::Responses] {
            let region = self.layout.half(direction).region;
            self.mapping.advise_huge(region + arena, region + self.layout.region_bytes);
        }
    }
}

/// Begins to bring the cache line at an address into the cache.
#[inline(always)]
fn prefetch(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Refuses a file whose size or pages could change under us.
fn check_file(file: BorrowedFd<'_>, geometry: Geometry, bytes: u64) -> Result<(), SegmentError> {
    let failed = |step| move |error| system(step, bytes, error, "force the transport tcp");
    let kind = fstatfs(file).map_err(failed("look at its file system"))?.filesystem_type();
    if kind != TMPFS_MAGIC {
        return Err(SegmentError::NotMemory);
    }
    let seals = fcntl(file, FcntlArg::F_GET_SEALS).map_err(failed("read its seals"))?;
    let missing = SEALS.difference(SealFlag::from_bits_retain(seals));
    if !missing.is_empty() {
        return Err(SegmentError::Unsealed { missing });
    }
    // After the seals: what is sealed stays as it is seen.
    let found = fstat(file).map_err(failed("look at its size"))?.st_size as u64;
    match found == bytes {
        true => Ok(()),
        false => Err(SegmentError::Size { found, expected: bytes, geometry }),
    }
}

fn system(step: &'static str, bytes: u64, error: nix::Error, remedy: &'static str) -> SegmentError {
    SegmentError::System { step, bytes, source: error.into(), remedy }
}
