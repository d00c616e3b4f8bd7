//! What an examination of an image brought to light, in words for people and JSON for programs.

use serde::Serialize;

use super::Code;

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Info,
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
    /// What kind of thing it is; a name that does not change.
    pub code: Code,
    /// Which structure of the file: "file", "header", "log", "region table", "metadata", "BAT",
    /// "sector bitmap", or "parent" for a disk beneath.
    pub structure: &'static str,
    /// Byte offset in the file, where there is one.
    pub offset: Option<u64>,
    /// Of an overlap: byte offset in the file of what says that the space is its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_offset: Option<u64>,
    /// What is wrong, with the field and its value.
    pub message: String,
    /// What follows from it, and what to do.
    pub consequence: String,
    /// What a repair does about it; `None` if that would need a guess, or nothing is wrong.
    pub repair: Option<&'static str>,
}

impl Finding {
    /// A finding of `severity` in `structure`.
    #[must_use]
    pub fn new(
        code: Code,
        severity: Severity,
        structure: &'static str,
        message: impl Into<String>,
        consequence: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            code,
            structure,
            offset: None,
            other_offset: None,
            message: message.into(),
            consequence: consequence.into(),
            repair: code.remedy().map(super::Remedy::words),
        }
    }

    /// A warning in `structure`.
    #[must_use]
    pub fn warning(
        code: Code,
        structure: &'static str,
        message: impl Into<String>,
        consequence: impl Into<String>,
    ) -> Self {
        Self::new(code, Severity::Warning, structure, message, consequence)
    }

    /// Something worth knowing in `structure`.
    #[must_use]
    pub fn info(
        code: Code,
        structure: &'static str,
        message: impl Into<String>,
        consequence: impl Into<String>,
    ) -> Self {
        Self::new(code, Severity::Info, structure, message, consequence)
    }

    /// The same finding, with the byte offset in the file at which it was made.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }
}
