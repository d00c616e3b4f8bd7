//! The disk engine: requests in, file operations out.
//!
//! ```text
//!   submit(id, Request)     a guest-visible operation
//!   next_op() -> FileOp     what to do to the file now
//!   complete(op, Outcome)   one was done, or failed
//!   next_completion()       what to tell the guest
//! ```

mod op;
pub use op::{
    Completion, Done, Extent, FileOp, FileOpKind, Mark, OpId, Outcome, Request, RequestId,
};
