//! Moving many machines in time: which, in which order, how fast, and what the others would need.
//!
//! | module | what it does |
//! |---|---|
//! | [`input`], [`mod@check`] | from a file to a problem, or to what makes no sense in it |
//! | [`schedule`] | what can be done in time, and when |
//! | [`answer`], [`needs`] | the same as people read it, and what the others need |
//! | [`conductor`] | what to do now, as it goes on: used by `diskferry evacuate` and by the simulation |
//! | [`world`] | machines and links as they might be, for the conductor to be tried on |
//!
//! Machines: nothing here does I/O, reads a clock or takes a chance that no seed gave. What they decide, how sure that
//! is and what they do not know is written down in `docs/evacuation.md`.
//!
//! Must never be used to decide what of a disk is right to send, or who owns it: the moves do that.

pub mod answer;
pub mod check;
pub mod conductor;
mod ground;
pub mod input;
pub mod moment;
pub mod needs;
pub mod odds;
pub mod problem;
pub mod schedule;
pub mod state;
pub mod steps;
mod table;
mod units;
pub mod world;

pub use check::{Wrong, check};
pub use input::Evacuation;
pub use problem::Problem;

#[cfg(test)]
mod tests;
