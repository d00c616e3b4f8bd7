//! Why bytes are not the state of a machine: which part, where, and what is wrong with it.

use std::fmt;

use super::container::Kind;

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// They do not begin as the state of a machine does.
    Magic,
    /// A format that this version does not know: its number.
    Format(u32),
    /// A kind of message that this version does not know, and may not skip.
    Kind(u16),
    /// A version of a message that this version does not know: its number.
    Version(u16),
    /// The bytes end too early.
    Cut,
    /// Bytes are left.
    Trailing,
    /// A checksum is not that of its bytes.
    Checksum,
    /// More bytes than a state may have.
    Size,
    /// A message that must be there is not, or not there.
    Missing,
    /// A message that is there already, or comes too late.
    Order,
    /// A value that cannot be: why.
    Value(&'static str),
}

/// Bytes that are not the state of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    at: u64,
    field: &'static str,
    message: Option<Kind>,
    fault: Fault,
}

impl DecodeError {
    pub(super) fn new(at: u64, field: &'static str, fault: Fault) -> Self {
        Self {
            at,
            field,
            message: None,
            fault,
        }
    }

    /// The same error, in this message.
    pub(super) fn within(self, message: Kind) -> Self {
        Self {
            message: Some(message),
            ..self
        }
    }

    /// The offset in the bytes at which it was seen.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.at
    }

    /// What is wrong.
    #[must_use]
    pub fn fault(&self) -> &Fault {
        &self.fault
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the state of the machine: ")?;
        if let Some(message) = self.message {
            write!(f, "{message}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        match &self.fault {
            Fault::Magic => f.write_str("this is not the state of a machine"),
            Fault::Format(version) => {
                write!(
                    f,
                    "format {version} is not known to this version of Diskferry"
                )
            }
            Fault::Kind(kind) => {
                write!(
                    f,
                    "a message of kind {kind:#x} is not known to this version of Diskferry"
                )
            }
            Fault::Version(version) => {
                write!(
                    f,
                    "version {version} of it is not known to this version of Diskferry"
                )
            }
            Fault::Cut => f.write_str("it ends too early"),
            Fault::Trailing => f.write_str("bytes follow that do not belong to it"),
            Fault::Checksum => f.write_str("its checksum is wrong"),
            Fault::Size => f.write_str("it is longer than a state can be"),
            Fault::Missing => f.write_str("a part is missing here"),
            Fault::Order => f.write_str("it is not where it has to be"),
            Fault::Value(why) => f.write_str(why),
        }?;
        write!(f, " (at byte {})", self.at)
    }
}

impl std::error::Error for DecodeError {}

impl From<DecodeError> for crate::Error {
    fn from(error: DecodeError) -> Self {
        Self::new(crate::ErrorKind::BadSnapshot, error.to_string())
    }
}
