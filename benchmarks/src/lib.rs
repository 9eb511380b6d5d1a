//! One question a file; raw baselines in the same run.
