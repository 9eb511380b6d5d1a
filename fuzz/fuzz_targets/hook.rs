//! Messages at the keeper's hook socket, and answers at the hook.

#![no_main]

use gleaner_proto::hook::{HookAnswer, HookMessage};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = HookMessage::decode(bytes) {
        assert_eq!(HookMessage::decode(&message.encode()), Ok(message));
    }
    if let Ok(answer) = HookAnswer::decode(bytes) {
        assert_eq!(HookAnswer::decode(&answer.encode()), Ok(answer));
    }
});
