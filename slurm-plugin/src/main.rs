//! The Prolog and Epilog helper: one bounded local message.

fn main() {}
