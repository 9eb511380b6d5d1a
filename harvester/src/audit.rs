//! Lines for the audit trail that the core does not know of: calls whose sender could not be identified.
//!
//! Made by [`crate::grpc`], stored like any record. What admins ask, the core records itself.

use gleaner_harvester_core::{effect::Need, event::Identity, record::Record};
use gleaner_proto::ids::Uid;

use crate::{
    clock,
    store::{Batch, NOBODY_KNOWN, Store},
};

/// Takes lines for the audit trail; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Audit {
    store: Store,
}

impl Audit {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }

    /// Records that a call of `action` was refused because its sender is not known.
    pub(crate) fn refused(&self, action: &str, outcome: String) {
        let nobody = Identity { uid: Uid(NOBODY_KNOWN), gid: NOBODY_KNOWN, user: String::new() };
        let record = Record::Audit {
            who: nobody,
            action: action.into(),
            outcome,
            unix_ms: clock::unix_ms(),
        };
        let batch = Batch { ticket: None, records: vec![record], need: Need::Journal };
        if self.store.offer(batch).is_err() {
            tracing::error!(action, "the audit trail lost a refusal: the store is behind");
        }
    }
}
