//! A second loop for large payloads, by other means than the baseline's: `recv` and `send` told not to wait, on sockets that
//! would, and vectors handed from thread to thread, which look for them without pause.

use std::{
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::mpsc::{Receiver, TryRecvError, sync_channel},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv, send},
};

use crate::{
    latencies::Latencies,
    stage::{Cpus, Trips, pin},
};

/// The sum of the bytes, sent over a socket.
pub(super) fn socket(bytes: usize, trips: Trips, cpus: Cpus) -> Result<Option<u64>> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listen")?;
    let address = listener.local_addr()?;
    let peer = thread::spawn(move || -> Result<()> {
        pin(cpus.worker)?;
        let socket = listener.accept()?.0;
        socket.set_nodelay(true)?;
        let mut received = vec![0; bytes];
        for _ in 0..trips.all() {
            receive_all(&socket, &mut received)?;
            send_all(&socket, &words(&received).to_ne_bytes())?;
        }
        Ok(())
    });
    let socket = TcpStream::connect(address).context("connect")?;
    socket.set_nodelay(true)?;
    let mut sum = [0; 8];
    let p50 = measure(bytes, trips, |payload| {
        send_all(&socket, payload)?;
        receive_all(&socket, &mut sum)?;
        Ok(u64::from_ne_bytes(sum))
    })?;
    peer.join().map_err(|_| anyhow::anyhow!("the second loop's peer panicked"))??;
    Ok(Some(p50))
}

/// The sum of the bytes, copied into a vector that another thread is handed.
pub(super) fn memory(bytes: usize, trips: Trips, cpus: Cpus) -> Result<Option<u64>> {
    let (to_peer, inbox) = sync_channel::<Vec<u8>>(1);
    let (to_caller, answers) = sync_channel::<(u64, Vec<u8>)>(1);
    let peer = thread::spawn(move || -> Result<()> {
        pin(cpus.worker)?;
        while let Some(received) = spin(&inbox) {
            to_caller.send((words(&received), received))?;
        }
        Ok(())
    });
    let mut shared = Some(vec![0; bytes]);
    let p50 = measure(bytes, trips, |payload| {
        let mut vector = shared.take().context("the vector did not come back")?;
        vector.copy_from_slice(payload);
        to_peer.send(vector)?;
        let (sum, vector) = spin(&answers).context("the second loop's peer is gone")?;
        shared = Some(vector);
        Ok(sum)
    })?;
    drop(to_peer);
    peer.join().map_err(|_| anyhow::anyhow!("the second loop's peer panicked"))??;
    Ok(Some(p50))
}

fn measure(
    bytes: usize,
    trips: Trips,
    mut sum_of: impl FnMut(&[u8]) -> Result<u64>,
) -> Result<u64> {
    let (mut payload, mut latencies) = (vec![3; bytes], Latencies::new()?);
    for trip in 0..trips.all() {
        payload[0] = trip as u8;
        let began = Instant::now();
        let sum = sum_of(&payload)?;
        if trip >= trips.warm_up {
            latencies.record(began.elapsed());
        }
        ensure!(sum == words(&payload), "the second loop's sum is wrong");
    }
    Ok(latencies.p50())
}

/// The next one; `None` if there will be none.
fn spin<T>(inbox: &Receiver<T>) -> Option<T> {
    loop {
        match inbox.try_recv() {
            Ok(next) => return Some(next),
            Err(TryRecvError::Empty) => std::hint::spin_loop(),
            Err(TryRecvError::Disconnected) => return None,
        }
    }
}

fn words(bytes: &[u8]) -> u64 {
    let word = |word: &[u8]| word.try_into().map_or(0, u64::from_ne_bytes);
    bytes.chunks_exact(size_of::<u64>()).map(word).fold(0, u64::wrapping_add)
}

fn receive_all(socket: &TcpStream, bytes: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match recv(socket.as_raw_fd(), &mut bytes[done..], MsgFlags::MSG_DONTWAIT) {
            Ok(0) => bail!("the second loop's other end closed"),
            Ok(len) => done += len,
            Err(Errno::EAGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn send_all(socket: &TcpStream, bytes: &[u8]) -> Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match send(socket.as_raw_fd(), &bytes[done..], MsgFlags::MSG_DONTWAIT) {
            Ok(len) => done += len,
            Err(Errno::EAGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
