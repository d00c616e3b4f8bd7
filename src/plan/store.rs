//! Where a package is: folders, or a store that speaks S3 (`s3://BUCKET/PREFIX`).
//!
//! What was typed may hold a secret by mistake (`s3://KEY:SECRET@...`), so no error here repeats more than names.

#![cfg_attr(
    not(feature = "s3"),
    allow(
        dead_code,
        reason = "without stores their names are refused, and not looked into"
    )
)]

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::args::StoreArgs;
use crate::failure::{Exit, Failure, Result};

const SCHEME: &str = "s3://";
/// Most bytes of a volume in a store: in parts of bounded size, of which an upload has at most ten thousand.
pub(crate) const MOST_IN_STORE: u64 = 500 << 30;

/// Where the files of a package are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PlaceName {
    Folders(Vec<PathBuf>),
    Store(StoreName),
}

/// A place in a store, and how the store is reached. Credentials are no part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoreName {
    pub(crate) bucket: String,
    /// What all names begin with, without a `/` at its end; may be empty.
    pub(crate) prefix: String,
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
    /// Whether bytes and credentials' signatures may travel unencrypted.
    pub(crate) allow_http: bool,
}

impl fmt::Display for StoreName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{SCHEME}{}", self.bucket)?;
        if self.prefix.is_empty() {
            return Ok(());
        }
        write!(out, "/{}", self.prefix)
    }
}

/// What the words of `--to` or `--from` name.
pub(super) fn place_name(words: &[PathBuf], args: &StoreArgs) -> Result<PlaceName> {
    let scheme = |word: &PathBuf| Some(word.to_str()?.split_once("://")?.0.to_owned());
    let schemes: Vec<String> = words.iter().filter_map(scheme).collect();
    match (schemes.as_slice(), words) {
        ([], _) if args.endpoint.is_some() || args.region.is_some() || args.allow_http => {
            let what = "--endpoint, --region and --allow-http are for a store";
            Err(Failure::usage(what).hint("s3://BUCKET/PREFIX names one"))
        }
        ([], _) => Ok(PlaceName::Folders(words.to_vec())),
        ([scheme], [word]) if scheme == "s3" => {
            let rest = word.to_str().and_then(|word| word.strip_prefix(SCHEME));
            Ok(PlaceName::Store(store_name(
                rest.unwrap_or_default(),
                args,
            )?))
        }
        ([scheme], [_]) => {
            let what = format!("stores of the kind `{scheme}` are not known");
            Err(Failure::new(Exit::Unsupported, what)
                .hint("s3://BUCKET/PREFIX, with --endpoint for a store that is not Amazon's"))
        }
        _ => Err(Failure::usage("a package is in one store, or in folders")
            .hint("give one s3://BUCKET/PREFIX and nothing else")),
    }
}

fn store_name(rest: &str, args: &StoreArgs) -> Result<StoreName> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if rest.contains('@') {
        let what = "the name of a store holds an `@`: credentials do not belong there";
        return Err(Failure::usage(what)
            .hint("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"));
    }
    if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(is_plain) {
        return Err(Failure::usage("that is no name of a bucket")
            .hint("s3://BUCKET/PREFIX; a bucket has 3 to 63 letters, digits, `.` and `-`"));
    }
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let is_part = |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(is_plain);
    let good = prefix.len() <= 512 && prefix.split('/').all(is_part);
    if !prefix.is_empty() && !good {
        return Err(Failure::usage("that is no prefix of a package's files")
            .hint("s3://BUCKET/PREFIX; parts of letters, digits, `.`, `_` and `-`, with a `/` between them"));
    }
    Ok(StoreName {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        endpoint: args.endpoint.clone(),
        region: args.region.clone(),
        allow_http: args.allow_http,
    })
}

impl StoreName {
    /// Whether a store at `endpoint` may be spoken to without encryption; refuses what is no address of one.
    ///
    /// `asked` says whether somebody asked for it elsewhere than on the command line.
    pub(crate) fn may_be_plain(&self, endpoint: &str, asked: bool) -> Result<bool> {
        let (scheme, rest) = endpoint.split_once("://").unwrap_or_default();
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if !matches!(scheme, "http" | "https") || host.is_empty() || host.contains('@') {
            return Err(Failure::usage("the endpoint is no address of a store")
                .hint("https://HOST or https://HOST:PORT; credentials do not belong there"));
        }
        if scheme == "https" || self.allow_http || asked || is_loopback(host) {
            return Ok(scheme == "http");
        }
        Err(
            Failure::usage("the endpoint is http://, where everybody on the way reads along")
                .hint("https://, or --allow-http if the network is to be trusted"),
        )
    }
}

/// Whether `host`, perhaps with a port, is this host itself.
fn is_loopback(host: &str) -> bool {
    let bracketed = host
        .strip_prefix('[')
        .and_then(|rest| rest.split(']').next());
    let name = bracketed.or_else(|| host.split(':').next()).unwrap_or(host);
    let address = name.parse::<IpAddr>();
    name == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(words: &[&str], args: &StoreArgs) -> Result<PlaceName> {
        let words: Vec<PathBuf> = words.iter().map(PathBuf::from).collect();
        place_name(&words, args)
    }

    #[test]
    fn a_store_is_one_place_and_folders_are_as_they_were() {
        let none = StoreArgs::default();
        let store = |word: &str| match place(&[word], &none).unwrap() {
            PlaceName::Store(name) => name,
            other @ PlaceName::Folders(_) => panic!("{other:?}"),
        };
        assert_eq!(store("s3://bucket/a/b/").to_string(), "s3://bucket/a/b");
        assert_eq!(store("s3://bucket").prefix, "");
        assert!(matches!(
            place(&["a", "b"], &none),
            Ok(PlaceName::Folders(_))
        ));
        for words in [&["s3://bucket/a", "b"][..], &["s3://buc/a", "s3://buc/b"]] {
            assert!(place(words, &none).is_err(), "{words:?}");
        }
        for word in [
            "s3://",
            "s3://b/",
            "s3://bucket/../x",
            "s3://bucket//x",
            "s3://bucket/a b",
        ] {
            assert!(place(&[word], &none).is_err(), "{word}");
        }
    }

    #[test]
    fn a_secret_in_the_name_of_a_store_is_refused_and_not_repeated() {
        let refused = place(&["s3://id:sesame@bucket/a"], &StoreArgs::default()).unwrap_err();
        assert!(!format!("{refused:?}").contains("sesame"), "{refused:?}");
        let args = StoreArgs::default();
        let Ok(PlaceName::Store(name)) = place(&["s3://bucket/a"], &args) else {
            panic!("no store");
        };
        let refused = name
            .may_be_plain("https://id:sesame@host", true)
            .unwrap_err();
        assert!(!format!("{refused:?}").contains("sesame"), "{refused:?}");
    }

    #[test]
    fn a_store_is_spoken_to_in_the_clear_only_here_or_when_asked() {
        let name = |allow_http| StoreName {
            bucket: "bucket".to_owned(),
            prefix: String::new(),
            endpoint: None,
            region: None,
            allow_http,
        };
        for here in [
            "http://127.0.0.1:9000",
            "http://[::1]:9000/",
            "http://localhost",
        ] {
            assert!(name(false).may_be_plain(here, false).unwrap(), "{here}");
        }
        for there in [
            "http://host:9000",
            "http://127.0.0.1.example",
            "http://localhost.example",
        ] {
            assert!(name(false).may_be_plain(there, false).is_err(), "{there}");
            assert!(name(true).may_be_plain(there, false).unwrap(), "{there}");
            assert!(name(false).may_be_plain(there, true).unwrap(), "{there}");
        }
        assert!(!name(true).may_be_plain("https://host", true).unwrap());
    }
}
