//! What two Gleaner processes agree on: services, types, headers.
