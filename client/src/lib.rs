//! Gleaner's client library: acquire leases, call functions on harvested nodes.
