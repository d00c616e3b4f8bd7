//! How much may be asked of an export: requests a second, bytes a second, and how much of that at once.
//!
//! Machine and codec: it never sleeps and never reads a clock. Times are nanoseconds since whenever the
//! driver likes. Whoever cannot begin now learns how long it takes, and asks again then.
//!
//! | module | what it is |
//! |---|---|
//! | `bucket` | tokens of one kind: they come at a rate, and some are kept |
//! | `gate` | buckets of every kind, and the line of those who wait |
//! | `limits` | what somebody writes down about it |
//!
//! A request larger than a bucket begins when the bucket is full and leaves it in debt, which those
//! behind it wait for. So nothing is too large ever to begin, and the rate still holds.

mod bucket;
mod gate;
mod limits;

pub use bucket::{Bucket, Rate};
pub use gate::{Cost, Gate, Place, Wait};
pub use limits::{BadLimits, Limits};

#[cfg(test)]
mod tests;
