//! The grant and lease state machine, tokens, epochs and clocks: pure.
