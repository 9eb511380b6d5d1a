//! Moves bytes between a client and a worker: Link and its backends.
