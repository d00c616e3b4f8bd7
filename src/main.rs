//! The command `diskferry`: what was typed becomes a plan, a plan becomes a call into one crate.

#![forbid(unsafe_code)]

fn main() {}
