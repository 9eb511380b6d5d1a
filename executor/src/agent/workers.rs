//! Listens to a worker: one task each, which turns its records into the node's inputs.
//!
//! A worker runs foreign code: what it sends is decoded with bounds, and one bad record ends the listening and the lease.

use std::{io, os::fd::OwnedFd};

use gleaner_proto::ids::LeaseId;
use tokio::{io::unix::AsyncFd, sync::mpsc};

use super::node::Input;
use crate::worker::ipc::{self, FromWorker, IpcError};

/// Starts listening; ends with the worker.
pub(super) fn watch(
    lease: LeaseId,
    socket: &OwnedFd,
    inputs: mpsc::Sender<Input>,
) -> io::Result<()> {
    let socket = crate::sys::watch(socket.try_clone()?)?;
    tokio::spawn(async move {
        let why = listen(lease, &socket, &inputs).await;
        let _ = inputs.send(Input::WorkerLost { lease, why }).await;
    });
    Ok(())
}

async fn listen(lease: LeaseId, socket: &AsyncFd<OwnedFd>, inputs: &mpsc::Sender<Input>) -> String {
    loop {
        let Ok(mut ready) = socket.readable().await else {
            return "the agent is ending".into();
        };
        match ipc::receive::<FromWorker>(socket.get_ref()) {
            Ok((record, _)) => {
                if inputs.send(Input::Worker { lease, record }).await.is_err() {
                    return "the agent is ending".into();
                }
            }
            Err(IpcError::WouldBlock) => ready.clear_ready(),
            Err(error) => return error.to_string(),
        }
    }
}
