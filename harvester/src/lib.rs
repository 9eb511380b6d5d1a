//! The harvester daemon: watches Slurm, leases, records.
