//! Looks at a library's file before the loader does: sealed, whole, and an ELF shared object for this machine. What fails
//! here is refused by name instead of crashing the loader.
#![forbid(unsafe_code)]

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};

/// Why a file is no library to load.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadLibrary {
    #[error("its memory is not sealed against change")]
    Unsealed,
    #[error("it is not an ELF file")]
    NotElf,
    #[error("it is an ELF file for another kind of machine")]
    Machine,
    #[error("it is an ELF file but no shared object: build it with -shared, or as a cdylib")]
    NotShared,
    #[error("it is cut short or its program headers are damaged")]
    Cut,
    #[error("reading it: {0}")]
    Io(#[from] io::Error),
}

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Most program headers that are looked at; libraries have about ten.
const PROGRAM_HEADERS_MAX: u16 = 128;
const TYPE_SHARED: u16 = 3;
const SEGMENT_LOAD: u32 = 1;

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

pub(super) fn check(file: &OwnedFd) -> Result<(), BadLibrary> {
    let seals = fcntl(file, FcntlArg::F_GET_SEALS).map_err(|_| BadLibrary::Unsealed)?;
    let wanted = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    if !SealFlag::from_bits_retain(seals).contains(wanted) {
        return Err(BadLibrary::Unsealed);
    }
    let file = File::from(file.as_fd().try_clone_to_owned()?);
    let size = file.metadata()?.len();
    let header: [u8; HEADER] = read(&file, 0, BadLibrary::NotElf)?;
    // Magic, 64 bits, little-endian.
    if header[..6] != *b"\x7fELF\x02\x01" {
        return Err(BadLibrary::NotElf);
    }
    if half(&header, 18) != MACHINE {
        return Err(BadLibrary::Machine);
    }
    if half(&header, 16) != TYPE_SHARED {
        return Err(BadLibrary::NotShared);
    }
    check_segments(&file, size, &header)
}

/// Each segment's bytes lie inside the file: the loader maps them, and touching what is not there is a SIGBUS.
fn check_segments(file: &File, size: u64, header: &[u8; HEADER]) -> Result<(), BadLibrary> {
    let (first, each, count) = (long(header, 32), half(header, 54), half(header, 56));
    if usize::from(each) != PROGRAM_HEADER || !(1..=PROGRAM_HEADERS_MAX).contains(&count) {
        return Err(BadLibrary::Cut);
    }
    for number in 0..u64::from(count) {
        let at = first.checked_add(number * PROGRAM_HEADER as u64).ok_or(BadLibrary::Cut)?;
        let segment: [u8; PROGRAM_HEADER] = read(file, at, BadLibrary::Cut)?;
        let kind = u32::from(half(&segment, 0)) | u32::from(half(&segment, 2)) << 16;
        let end = long(&segment, 8).checked_add(long(&segment, 32)).ok_or(BadLibrary::Cut)?;
        if kind == SEGMENT_LOAD && end > size {
            return Err(BadLibrary::Cut);
        }
    }
    Ok(())
}

fn read<const N: usize>(file: &File, at: u64, short: BadLibrary) -> Result<[u8; N], BadLibrary> {
    let mut bytes = [0; N];
    match file.read_exact_at(&mut bytes, at) {
        Ok(()) => Ok(bytes),
        // An offset beyond what any file can have is refused as such.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(short),
        Err(_) if i64::try_from(at).is_err() => Err(short),
        Err(error) => Err(error.into()),
    }
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn long(bytes: &[u8], at: usize) -> u64 {
    (0..4).map(|part| u64::from(half(bytes, at + 2 * part)) << (16 * part)).sum()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    fn memfd(bytes: &[u8], seals: SealFlag) -> OwnedFd {
        let fd = memfd_create(c"library", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        File::from(fd.try_clone().unwrap()).write_all(bytes).unwrap();
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        fd
    }

    fn sealed(bytes: &[u8]) -> Result<(), BadLibrary> {
        check(&memfd(bytes, SealFlag::all()))
    }

    /// Any shared object of this machine: one that this very test is linked with.
    fn library() -> Vec<u8> {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mut paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
        std::fs::read(paths.find(|path| path.contains("libc.so")).unwrap()).unwrap()
    }

    #[test]
    fn a_sealed_library_passes() {
        sealed(&library()).unwrap();
    }

    #[test]
    fn what_may_still_change_is_refused() {
        for missing in [SealFlag::F_SEAL_WRITE, SealFlag::F_SEAL_SHRINK, SealFlag::F_SEAL_GROW] {
            let fd = memfd(&library(), SealFlag::all() - missing);
            assert!(matches!(check(&fd), Err(BadLibrary::Unsealed)), "{missing:?}");
        }
        let file = File::open("/proc/self/exe").unwrap();
        assert!(matches!(check(&file.into()), Err(BadLibrary::Unsealed)));
    }

    #[test]
    fn what_is_no_library_is_refused_by_name() {
        assert!(matches!(sealed(b""), Err(BadLibrary::NotElf)));
        assert!(matches!(sealed(&[b'x'; 5000]), Err(BadLibrary::NotElf)));
        let whole = library();
        let change = |at: usize, to: u8| {
            let mut bytes = whole.clone();
            bytes[at] = to;
            sealed(&bytes).unwrap_err()
        };
        assert!(matches!(change(4, 1), BadLibrary::NotElf));
        assert!(matches!(change(18, 3), BadLibrary::Machine));
        assert!(matches!(change(16, 2), BadLibrary::NotShared));
        assert!(matches!(change(54, 1), BadLibrary::Cut));
        assert!(matches!(change(39, 255), BadLibrary::Cut));
        assert!(matches!(sealed(&whole[..whole.len() / 2]), Err(BadLibrary::Cut)));
        assert!(matches!(sealed(&whole[..70]), Err(BadLibrary::Cut)));
    }
}
