//! Gleaner's one configuration file: parsed once, validated, with origins.
