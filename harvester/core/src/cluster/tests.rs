//! Tests of the whole core, event by event.
