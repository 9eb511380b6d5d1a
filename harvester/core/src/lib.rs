//! Decides what to harvest and give back: pure.
