//! The disk engine in a world where everything happens in an order that a seed decides.

pub mod model;
pub mod random;
pub mod scenario;
pub mod tracking;
pub mod world;
