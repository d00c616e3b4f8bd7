//! The VHDX codec: bytes to checked types and back, total on every input.
