//! Tokens: what is signed comes back, and nothing else is taken.

#![allow(clippy::unwrap_used, reason = "a test's helpers panic as its tests do")]

use gleaner_lease::{
    clock::{BootId, Stamp},
    token::{Claims, Expected, NodeDigest, SigningKey, TOKEN_LEN, TokenError, verify},
};
use gleaner_proto::ids::{Epoch, LeaseId, NodeName, Term, Uid};
use proptest::prelude::*;

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

prop_compose! {
    fn claims()(
        lease: u64, uid: u32, gid: u32, epoch in 1u64.., expires in 1u64.., boot: [u8; 16],
        memory_bytes: u64, cores: u32, term: u64, client_key: [u8; 32], node: [u8; 32],
    ) -> Claims {
        Claims {
            lease: LeaseId(lease), uid: Uid(uid), gid, epoch: Epoch(epoch), expires: Stamp(expires), boot: BootId(boot),
            memory_bytes, cores, term: Term(term), client_key, node: NodeDigest(node),
        }
    }
}

/// What the executor that the claims are for would hold against them, just in time.
fn expected(claims: &Claims) -> Expected {
    Expected {
        node: claims.node,
        boot: claims.boot,
        epoch: claims.epoch,
        now: Stamp(claims.expires.0 - 1),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn what_was_signed_comes_back(claims in claims()) {
        let token = claims.sign(&key());
        prop_assert_eq!(verify(&token, &key().verifying_key(), &expected(&claims)), Ok(claims));
    }

    #[test]
    fn any_changed_bit_is_refused(claims in claims(), bit in 0..TOKEN_LEN * 8) {
        let mut token = claims.sign(&key());
        token[bit / 8] ^= 1 << (bit % 8);
        let refused = verify(&token, &key().verifying_key(), &expected(&claims));
        let malformed = Err(TokenError::Malformed { len: TOKEN_LEN });
        prop_assert_eq!(refused, if bit < 32 { malformed } else { Err(TokenError::Forged) });
    }

    #[test]
    fn another_harvesters_token_is_refused(claims in claims(), other: [u8; 32]) {
        prop_assume!(other != [7; 32]);
        let token = claims.sign(&SigningKey::from_bytes(&other));
        let refused = verify(&token, &key().verifying_key(), &expected(&claims));
        prop_assert_eq!(refused, Err(TokenError::Forged));
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2 * TOKEN_LEN), claims in claims()) {
        prop_assert!(verify(&bytes, &key().verifying_key(), &expected(&claims)).is_err());
    }

    #[test]
    fn a_token_for_elsewhere_or_another_time_is_refused_by_name(claims in claims(), late in 0u64..1 << 60) {
        let token = claims.sign(&key());
        let right = expected(&claims);
        let lease = claims.lease;
        let check = |expected| verify(&token, &key().verifying_key(), &expected);
        let node = NodeDigest::of(&NodeName::new("elsewhere").unwrap());
        prop_assert_eq!(check(Expected { node, ..right }), Err(TokenError::Node { lease }));
        let boot = BootId(claims.boot.0.map(|byte| !byte));
        prop_assert_eq!(check(Expected { boot, ..right }), Err(TokenError::Boot { lease }));
        let serving = Epoch(claims.epoch.0 ^ 1);
        let stale = Err(TokenError::Epoch { lease, token: claims.epoch, serving });
        prop_assert_eq!(check(Expected { epoch: serving, ..right }), stale);
        let now = Stamp(claims.expires.0.saturating_add(late));
        let expired = check(Expected { now, ..right });
        prop_assert!(matches!(expired, Err(TokenError::Expired { .. })), "{:?}", expired);
    }
}

#[test]
fn every_truncation_and_extension_is_malformed() {
    let claims = Claims {
        lease: LeaseId(1),
        uid: Uid(2),
        gid: 3,
        epoch: Epoch(4),
        expires: Stamp(5),
        boot: BootId([6; 16]),
        memory_bytes: 7,
        cores: 8,
        term: Term(9),
        client_key: [10; 32],
        node: NodeDigest([11; 32]),
    };
    let mut token = claims.sign(&key()).to_vec();
    token.push(0);
    for len in (0..=token.len()).filter(|len| *len != TOKEN_LEN) {
        let refused = verify(&token[..len], &key().verifying_key(), &expected(&claims));
        assert_eq!(refused, Err(TokenError::Malformed { len }));
    }
}

#[test]
fn an_executor_without_a_grant_takes_no_token_not_even_of_epoch_0() {
    let expected =
        |epoch| Expected { node: NodeDigest([1; 32]), boot: BootId([2; 16]), epoch, now: Stamp(1) };
    let claims = Claims {
        lease: LeaseId(1),
        uid: Uid(2),
        gid: 3,
        epoch: Epoch(0),
        expires: Stamp(5),
        boot: BootId([2; 16]),
        memory_bytes: 7,
        cores: 8,
        term: Term(9),
        client_key: [10; 32],
        node: NodeDigest([1; 32]),
    };
    assert!(matches!(claims.check(&expected(Epoch(0))), Err(TokenError::Epoch { .. })));
}
