//! A private Slurm and a whole Gleaner beside it, for tests and the demo.
