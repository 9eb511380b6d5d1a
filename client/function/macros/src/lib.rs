//! The #[gleaner::function] attribute.
