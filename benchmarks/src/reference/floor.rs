//! Floors that were measured once, by hand, on a machine like the ones that build this.

use super::Reference;
use crate::raw::Raw;

/// Most bytes of a message that shares one cache line with its flag. A round trip then moves two lines: there, and back.
const ONE_LINE: usize = 56;
/// Most bytes that cost a socket no more than one does.
const SMALL: usize = 64;

/// The floor for an echo, where there is one.
///
/// Round trips between two cores of a virtual Xeon (Ice Lake, Linux 6.18, nothing else running), medians of several runs of a
/// loop in C that shares no code with this.
pub(super) fn of_echo(raw: Raw, payload: usize) -> Option<Reference> {
    let (low, high) = match raw {
        Raw::Shm if payload <= ONE_LINE => (280, 310),
        Raw::TcpBusy if payload <= SMALL => (5_900, 6_300),
        Raw::TcpBlocking if payload <= SMALL => (46_000, 87_000),
        _ => return None,
    };
    Some(Reference { name: "floor, measured on 2 cores".into(), low, high, ratio: None })
}
