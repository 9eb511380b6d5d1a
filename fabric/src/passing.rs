//! Descriptors beside bytes on a Unix socket, without allocation: between the executor's processes, and from an executor to
//! the clients on its node.
// UNSAFETY: raw system calls; each takes only memory that lives in the caller's frame.
#![allow(unsafe_code)]

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

/// Room for one descriptor in a control message, aligned for its header.
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

// SAFETY: the macro computes a constant.
const CONTROL_LEN: usize = unsafe { libc::CMSG_SPACE(mem::size_of::<RawFd>() as u32) } as usize;

/// Sends one record, or a few bytes of a stream, and up to one descriptor. Never raises SIGPIPE, never blocks; allocates nothing.
pub fn send_with_fd(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut part = libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: bytes.len() };
    let mut control = Control([0; CONTROL_LEN]);
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    if let Some(fd) = fd {
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_LEN as _;
        // SAFETY: the control buffer has room for one header and one descriptor, and is aligned for them.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(mem::size_of::<RawFd>() as u32) as _;
            ptr::write_unaligned(libc::CMSG_DATA(header).cast(), fd.as_raw_fd());
        }
    }
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: `message` points at `bytes` and `control`, which outlive the call; the kernel only reads them.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, flags) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    debug_assert_eq!(sent as usize, bytes.len());
    Ok(())
}

/// Receives one record into `bytes`, or a stream's next bytes, and the descriptor that came with it, close-on-exec. 0 bytes: the peer is gone. Never
/// blocks; allocates nothing. A record that is longer than `bytes` is an error.
pub fn recv_with_fd(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut control = Control([0; CONTROL_LEN]);
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    // Without the padding: it has room for a second descriptor, which would stay open.
    // SAFETY: the macro computes a constant.
    message.msg_controllen = unsafe { libc::CMSG_LEN(mem::size_of::<RawFd>() as u32) } as _;
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: `message` points at `bytes` and `control`, which outlive the call and have the stated lengths.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, flags) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled the control buffer; its first header, if there is one, lies inside it.
    let fd = unsafe {
        let header = libc::CMSG_FIRSTHDR(&message);
        let carries = !header.is_null()
            && (*header).cmsg_level == libc::SOL_SOCKET
            && (*header).cmsg_type == libc::SCM_RIGHTS;
        carries.then(|| OwnedFd::from_raw_fd(ptr::read_unaligned(libc::CMSG_DATA(header).cast())))
    };
    if message.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((got as usize, fd))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::net::UnixStream};

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    use super::*;

    #[test]
    fn of_two_descriptors_none_stays_open_unseen() {
        let open = || fs::read_dir("/proc/self/fd").unwrap().count();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let before = open();
        let both = [theirs.as_raw_fd(), theirs.as_raw_fd()];
        let beside = [ControlMessage::ScmRights(&both)];
        let parts = [io::IoSlice::new(b"x")];
        sendmsg::<()>(theirs.as_raw_fd(), &parts, &beside, MsgFlags::empty(), None).unwrap();
        let (length, fd) = recv_with_fd(std::os::fd::AsFd::as_fd(&ours), &mut [0; 8]).unwrap();
        assert!(length == 1 && fd.is_some());
        drop(fd);
        assert_eq!(open(), before);
    }
}
