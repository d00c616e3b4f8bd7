//! Promises of an open image.
