//! A loopback socket on which both ends sleep.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
};

use anyhow::{Context, Result};

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
        let mut peer = listener.accept()?.0;
        peer.set_nodelay(true)?;
        let (mut request, mut reply) = (vec![0; load.request], vec![0; load.reply()]);
        while peer.read_exact(&mut request).is_ok() {
            load.work.run(&request, &mut reply);
            peer.write_all(&reply)?;
        }
        Ok(())
    });
    let stream = TcpStream::connect(address).context("connect")?;
    stream.set_nodelay(true)?;
    Ok(End(stream))
}

impl Transport for End {
    fn send(&mut self, request: &[u8]) -> Result<()> {
        Ok(self.0.write_all(request)?)
    }

    fn receive(&mut self, reply: &mut [u8]) -> Result<()> {
        Ok(self.0.read_exact(reply)?)
    }
}
