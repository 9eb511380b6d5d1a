//! A loopback socket that neither end ever sleeps on.

use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    thread,
};

use anyhow::{Context, Result, bail};

use super::{Load, Transport};
use crate::stage::pin;

/// The caller's end.
pub(super) struct End(TcpStream);

/// Starts the peer; it goes when the caller's end is closed.
pub(super) fn start(load: Load) -> Result<End> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listen")?;
    let address = listener.local_addr()?;
    thread::spawn(move || -> Result<()> {
        pin(load.cpu)?;
        let mut peer = ready(listener.accept()?.0)?;
        let (mut request, mut reply) = (vec![0; load.request], vec![0; load.reply()]);
        while read_all(&mut peer, &mut request).is_ok() {
            load.work.run(&request, &mut reply);
            write_all(&mut peer, &reply)?;
        }
        Ok(())
    });
    ready(TcpStream::connect(address).context("connect")?).map(End)
}

impl Transport for End {
    fn send(&mut self, request: &[u8]) -> Result<()> {
        write_all(&mut self.0, request)
    }

    fn receive(&mut self, reply: &mut [u8]) -> Result<()> {
        read_all(&mut self.0, reply)
    }
}

fn ready(stream: TcpStream) -> Result<TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

fn read_all(peer: &mut TcpStream, mut bytes: &mut [u8]) -> Result<()> {
    while !bytes.is_empty() {
        match peer.read(bytes) {
            Ok(0) => bail!("the baseline's other end closed"),
            Ok(read) => bytes = &mut bytes[read..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn write_all(peer: &mut TcpStream, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match peer.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
