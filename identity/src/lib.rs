//! Who is calling: munge, loaded at run time, and the single-user mode.
