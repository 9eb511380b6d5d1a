//! Background renewal, for callers who asked for it: one thread a pool, with a control stream of its own to each lease.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use gleaner_proto::v1::{Renew, to_agent};

use crate::control::Control;

/// How long one stream may take a message.
const SEND_BOUND: Duration = Duration::from_secs(1);

/// The thread's handle; dropping it ends the thread.
pub(crate) struct Renewer {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<Renewing>,
    changed: Condvar,
    ttl: Duration,
}

#[derive(Default)]
struct Renewing {
    streams: Vec<Control>,
    over: bool,
}

impl Renewer {
    /// Starts the thread. It renews every lease for `ttl`, four times in that time.
    pub(crate) fn start(ttl: Duration) -> std::io::Result<Self> {
        let state = Mutex::new(Renewing::default());
        let shared = Arc::new(Shared { state, changed: Condvar::new(), ttl });
        let thread = shared.clone();
        thread::Builder::new().name("gleaner-renew".into()).spawn(move || thread.run())?;
        Ok(Self { shared })
    }

    /// Renews one more lease, until its stream ends.
    pub(crate) fn add(&self, stream: Control) {
        self.shared.lock().streams.push(stream);
    }
}

impl Drop for Renewer {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Renewing> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.lock();
        while !state.over {
            state.streams.retain_mut(|stream| self.renew(stream));
            let waited = self.changed.wait_timeout(state, self.ttl / 4);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Asks once more and reads what came; false when the stream is over.
    fn renew(&self, stream: &mut Control) -> bool {
        let renew = to_agent::Message::Renew(Renew { ttl_ms: self.ttl.as_millis() as u64 });
        if stream.send(renew, Instant::now() + SEND_BOUND).is_err() {
            return false;
        }
        loop {
            match stream.look() {
                Ok(Some(_)) => {}
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }
}
