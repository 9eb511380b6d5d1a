//! Developer commands: setup, demo, test, lint, sim, bench.

fn main() {}
