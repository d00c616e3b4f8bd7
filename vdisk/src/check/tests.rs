//! Promises of an examination.
