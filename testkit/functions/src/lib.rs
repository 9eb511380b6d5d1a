//! Functions that behave and misbehave, for the tests and the demo.
