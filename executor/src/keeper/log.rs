//! The keeper's log: short lines on standard error that neither allocate nor block. A line that the reader of the log
//! does not take in time is lost: vacating does not wait for a log.

use std::{
    fmt::{self, Write as _},
    io::Write as _,
    os::fd::AsFd,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const LINE_MAX: usize = 512;

struct Line {
    bytes: [u8; LINE_MAX],
    len: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = LINE_MAX - 1 - self.len;
        let taken = text.len().min(room);
        self.bytes[self.len..self.len + taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.len += taken;
        Ok(())
    }
}

/// Writes one line.
pub(super) fn say(text: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; LINE_MAX], len: 0 };
    let _ = write!(line, "gleaner-keeper[{}]: {text}", std::process::id());
    line.bytes[line.len] = b'\n';
    let mut out = std::io::stderr().lock();
    let writable = {
        let mut fds = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    };
    if writable {
        // Shorter than PIPE_BUF: a pipe that is writable takes it whole.
        let _ = out.write_all(&line.bytes[..=line.len]);
    }
}
