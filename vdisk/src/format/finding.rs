//! What an examination of an image brought to light, in words for people and JSON for programs.

use serde::Serialize;

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Space of the file that nothing refers to; nothing is wrong with the data.
    Leak,
    /// Off the specification, but read without harm.
    Warning,
    /// The image breaks the format; data may be lost or wrong.
    Error,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Which structure of the file: "header", "region table", "log", "metadata", "BAT", "file".
    pub structure: &'static str,
    /// Byte offset in the file, where there is one.
    pub offset: Option<u64>,
    /// What is wrong, with the field and its value.
    pub message: String,
    /// What follows from it, and what to do.
    pub consequence: String,
}

impl Finding {
    /// A finding of `severity` in `structure`.
    #[must_use]
    pub fn new(
        severity: Severity,
        structure: &'static str,
        message: impl Into<String>,
        consequence: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            structure,
            offset: None,
            message: message.into(),
            consequence: consequence.into(),
        }
    }

    /// A warning in `structure`.
    #[must_use]
    pub fn warning(
        structure: &'static str,
        message: impl Into<String>,
        consequence: impl Into<String>,
    ) -> Self {
        Self::new(Severity::Warning, structure, message, consequence)
    }

    /// The same finding, with the byte offset in the file at which it was made.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }
}
