//! What a peer did against the protocol: the field, the value found, and where in the stream.

use std::fmt;

/// A peer broke the protocol in a way after which the connection cannot go on.
///
/// This is always the peer's fault; what goes wrong on our side is answered with an errno.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtocolError {
    field: &'static str,
    value: String,
    offset: u64,
    reason: &'static str,
}

impl ProtocolError {
    /// `field` held `value` at byte `offset` of what the peer sent; `reason` is the rule it breaks.
    pub(crate) fn new(
        field: &'static str,
        value: impl fmt::Display,
        offset: u64,
        reason: &'static str,
    ) -> Self {
        Self {
            field,
            value: value.to_string(),
            offset,
            reason,
        }
    }

    /// The name of the field, as in the protocol document.
    #[must_use]
    pub fn field(&self) -> &'static str {
        self.field
    }

    /// The value found, as text; shortened when a peer sent something long.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }

    /// How many bytes of the peer's stream came before the field.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "NBD peer broke the protocol: {} is {} at byte {} of its stream ({})",
            self.field, self.value, self.offset, self.reason
        )
    }
}

impl std::error::Error for ProtocolError {}

/// A number shown in hexadecimal, as the protocol document writes magics and flags.
pub(crate) struct Hex(pub(crate) u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A peer's string, quoted and cut at 64 characters.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown: String = self.0.chars().take(64).collect();
        if shown.len() < self.0.len() {
            shown.push('…');
        }
        write!(f, "{shown:?}")
    }
}
