//! The agent's clock: stamps of this machine's CLOCK_BOOTTIME, and the boot that they belong to.

use std::{fs, io};

use gleaner_lease::clock::{BootId, Stamp};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Now.
pub(super) fn now() -> Stamp {
    Stamp(crate::sys::boottime_ns())
}

/// This boot's name.
pub(super) fn boot_id() -> io::Result<BootId> {
    let text = fs::read_to_string(BOOT_ID)?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16)
        .map(|number| BootId(number.to_be_bytes()))
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
