//! What goes wrong with a store, in words: what, where, and what to do. A store's own words are hostile bytes, and go
//! into a message cut short and without control characters.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::sync::Arc;

use object_store::Error;

use crate::failure::{Exit, Failure};

/// Most characters of a store's words in a message.
const MOST_WORDS: usize = 400;

/// Why a request came to nothing.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Ctrl-C.
    Interrupted,
    /// In words already.
    Told(Failure),
    Store(Error),
}

/// One that travels through readers and writers.
#[derive(Clone, Debug)]
pub(super) struct Told(Arc<Trouble>);

impl fmt::Display for Told {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the store failed")
    }
}

impl std::error::Error for Told {}

impl Told {
    /// The trouble that an error of a reader or writer came from.
    pub(super) fn of(error: &io::Error) -> Option<&Trouble> {
        let told = error.get_ref()?.downcast_ref::<Self>()?;
        Some(&told.0)
    }
}

impl From<Trouble> for io::Error {
    fn from(trouble: Trouble) -> Self {
        Self::other(Told(Arc::new(trouble)))
    }
}

impl Trouble {
    /// Whether it is that the object is not there, and its bucket is.
    pub(super) fn is_absence(&self) -> bool {
        match self {
            Self::Store(error @ Error::NotFound { .. }) => !words(error).contains("NoSuchBucket"),
            _ => false,
        }
    }

    /// Whether trying once more is in vain.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Interrupted | Self::Told(_) => true,
            Self::Store(error) => matches!(
                error,
                Error::NotFound { .. }
                    | Error::PermissionDenied { .. }
                    | Error::Unauthenticated { .. }
                    | Error::InvalidPath { .. }
            ),
        }
    }

    /// In words, behind what could not be done and where.
    pub(super) fn told(&self, what: &str) -> Failure {
        match self {
            Self::Interrupted => Failure::interrupted("the same command goes on"),
            Self::Told(failure) => Failure {
                exit: failure.exit,
                what: failure.what.clone(),
                hint: failure.hint.clone(),
            },
            Self::Store(error) => told(what, error),
        }
    }
}

fn told(what: &str, error: &Error) -> Failure {
    let words = words(error);
    let (exit, hint) = match error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => (
            Exit::Failed,
            "look at the credentials in the environment (AWS_ACCESS_KEY_ID and so on), and that they allow to get, put, \
             delete and list objects of the bucket and to end uploads",
        ),
        _ if words.contains("NoSuchBucket") => (
            Exit::Failed,
            "there is no such bucket: make it, or look at --endpoint and --region",
        ),
        Error::NotFound { .. } => (
            Exit::Failed,
            "it is not there: another export or a rule of the bucket may have removed it, or the bucket's name is wrong",
        ),
        _ if says_region(&words) => (
            Exit::Failed,
            "the bucket is in another region: --region, or AWS_REGION in the environment",
        ),
        _ if says_full(&words) => (
            Exit::Failed,
            "the store has no room: make some there; the same command goes on",
        ),
        Error::Generic { .. } | Error::JoinError { .. } => (
            Exit::Network,
            "the same command goes on; if the store cannot be reached at all, look at --endpoint",
        ),
        _ => (Exit::Failed, "the same command goes on"),
    };
    Failure::new(exit, format!("{what}: {words}")).hint(hint)
}

fn says_region(words: &str) -> bool {
    let signs = [
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
        "configured region",
    ];
    signs.iter().any(|sign| words.contains(sign))
}

fn says_full(words: &str) -> bool {
    let signs = [
        "507",
        "XMinioStorageFull",
        "QuotaExceeded",
        "InsufficientStorage",
    ];
    signs.iter().any(|sign| words.contains(sign))
}

/// What an error says, and those it came from, as far as they say more.
fn words(error: &Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(cause) = below {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        below = cause.source();
    }
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = plain.take(MOST_WORDS).collect();
    if text.chars().nth(MOST_WORDS).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> Error {
        Error::Generic {
            store: "S3",
            source: text.to_owned().into(),
        }
    }

    #[test]
    fn what_a_store_says_is_cut_short_and_cannot_steer_a_terminal() {
        let failure = told("x", &generic(&format!("\u{1b}[2J{}", "a".repeat(9000))));
        assert!(failure.what.len() < 500, "{}", failure.what);
        assert!(!failure.what.contains('\u{1b}'));
    }

    #[test]
    fn each_trouble_says_what_to_do() {
        let hint = |error: &Error| told("x", error).hint.unwrap();
        let source = || "<Code>NoSuchBucket</Code>".into();
        let path = String::new;
        let no_bucket = Error::NotFound {
            path: path(),
            source: source(),
        };
        assert!(hint(&no_bucket).contains("bucket: make it"));
        assert!(!Trouble::Store(no_bucket).is_absence());
        let denied = Error::PermissionDenied {
            path: path(),
            source: source(),
        };
        assert!(hint(&denied).contains("AWS_ACCESS_KEY_ID"));
        assert!(hint(&generic("<Code>PermanentRedirect</Code>")).contains("--region"));
        assert!(hint(&generic("status code: 507 Insufficient Storage")).contains("no room"));
        assert!(hint(&generic("connection refused")).contains("--endpoint"));
    }
}
