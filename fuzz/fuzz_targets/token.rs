//! Tokens that a client shows: none of these is signed, so none is taken.

#![no_main]

use std::sync::LazyLock;

use ed25519_dalek::{SigningKey, VerifyingKey};
use libfuzzer_sys::fuzz_target;

static KEY: LazyLock<VerifyingKey> =
    LazyLock::new(|| SigningKey::from_bytes(&[7; 32]).verifying_key());

fuzz_target!(|bytes: &[u8]| {
    assert!(gleaner_lease::token::verify_signature(bytes, &KEY).is_err());
});
