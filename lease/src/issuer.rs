//! The harvester's book of grants and leases.
