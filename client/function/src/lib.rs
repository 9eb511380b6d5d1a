//! What a function library is written with.
