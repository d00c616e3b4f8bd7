//! What encrypts the files of a package, and what opens them: the format and the library are those of age.

use std::fs;
use std::io::{BufRead, Write};
use std::path::Path;

use age::secrecy::SecretString;
use age::stream::{StreamReader, StreamWriter};
use age::{DecryptError, Decryptor, Encryptor, scrypt, x25519};

use crate::args::{KeyArgs, LockArgs};
use crate::failure::{Exit, Failure, Result};

/// Most bytes before what is encrypted; there is one line for each recipient, and no more is read.
pub(crate) const HEAD_LIMIT: usize = 64 << 10;

/// What encrypts.
pub(crate) enum Lock {
    Open,
    Recipients(Vec<x25519::Recipient>),
    Passphrase(SecretString),
}

/// What decrypts.
pub(crate) enum Keys {
    None,
    Identities(Vec<Box<dyn age::Identity + Send + Sync>>),
    Passphrase(SecretString),
}

/// Why a file is not decrypted.
#[derive(Debug)]
pub(crate) struct Unopened {
    /// Whether it may be sound, and is for another key.
    pub(crate) other_key: bool,
    pub(crate) what: String,
}

impl Lock {
    pub(crate) fn read(args: &LockArgs) -> Result<Self> {
        if let Some(file) = &args.passphrase_file {
            return Ok(Self::Passphrase(passphrase(file)?));
        }
        let mut recipients = Vec::new();
        for text in &args.encrypt_to {
            recipients.push(recipient(text).map_err(Failure::usage)?);
        }
        for file in &args.recipients_file {
            for (number, line) in text_of(file)?.lines().enumerate() {
                let line = line.trim();
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                let named = |what| format!("{}, line {}: {what}", file.display(), number + 1);
                recipients.push(recipient(line).map_err(|what| Failure::usage(named(what)))?);
            }
        }
        let wanted = !args.encrypt_to.is_empty() || !args.recipients_file.is_empty();
        match (wanted, recipients.is_empty()) {
            (false, _) => Ok(Self::Open),
            (true, false) => Ok(Self::Recipients(recipients)),
            (true, true) => Err(Failure::usage("the recipients' files name no recipient")),
        }
    }

    pub(crate) fn is_on(&self) -> bool {
        !matches!(self, Self::Open)
    }

    /// What tells one lock from another, without saying what a passphrase is.
    pub(crate) fn in_words(&self) -> String {
        match self {
            Self::Open => String::new(),
            Self::Passphrase(_) => "passphrase".to_owned(),
            Self::Recipients(recipients) => {
                let mut names: Vec<String> = recipients.iter().map(ToString::to_string).collect();
                names.sort();
                names.join(" ")
            }
        }
    }

    /// Encrypts what is written; `None` if nothing is encrypted.
    pub(crate) fn wrap<W: Write>(&self, output: W) -> Result<Result<StreamWriter<W>, W>> {
        let failed =
            |e: &dyn std::fmt::Display| Failure::new(Exit::Failed, format!("cannot encrypt: {e}"));
        let encryptor = match self {
            Self::Open => return Ok(Err(output)),
            Self::Passphrase(secret) => Encryptor::with_user_passphrase(secret.clone()),
            Self::Recipients(recipients) => {
                let recipients = recipients.iter().map(|one| one as &dyn age::Recipient);
                Encryptor::with_recipients(recipients).map_err(|e| failed(&e))?
            }
        };
        let stream = encryptor.wrap_output(output).map_err(|e| failed(&e))?;
        Ok(Ok(stream))
    }
}

impl Keys {
    pub(crate) fn read(args: &KeyArgs) -> Result<Self> {
        if let Some(file) = &args.passphrase_file {
            return Ok(Self::Passphrase(passphrase(file)?));
        }
        let mut identities = Vec::new();
        for file in &args.identity {
            // What is in the file must not show in an error.
            let refused = || {
                let what = format!("{}: holds something that is no identity", file.display());
                Failure::usage(what)
                    .hint("lines of AGE-SECRET-KEY-1..., as `age-keygen` makes them")
            };
            let text = text_of(file)?;
            let read = age::IdentityFile::from_buffer(text.as_bytes()).map_err(|_| refused())?;
            identities.extend(read.into_identities().map_err(|_| refused())?);
        }
        if args.identity.is_empty() {
            return Ok(Self::None);
        }
        Ok(Self::Identities(identities))
    }

    pub(crate) fn are_there(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// Decrypts `input`, which is the whole of an encrypted file, or says why it cannot be.
    pub(crate) fn open<R: BufRead>(&self, mut input: R) -> Result<StreamReader<R>, Unopened> {
        let damaged = |why: &dyn std::fmt::Display| Unopened {
            other_key: false,
            what: format!("is damaged: it cannot be decrypted ({why})"),
        };
        let start = input.fill_buf().map_err(|e| damaged(&e))?;
        if !ends_its_head(start) {
            return Err(damaged(&"it does not begin as a file of age"));
        }
        let decryptor = Decryptor::new_buffered(input).map_err(|e| damaged(&e))?;
        let opened = match self {
            Self::None => Err(DecryptError::NoMatchingKeys),
            Self::Identities(identities) => {
                decryptor.decrypt(identities.iter().map(|one| &**one as &dyn age::Identity))
            }
            Self::Passphrase(secret) => {
                let identity = scrypt::Identity::new(secret.clone());
                decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity))
            }
        };
        opened.map_err(|e| match e {
            DecryptError::NoMatchingKeys
            | DecryptError::DecryptionFailed
            | DecryptError::KeyDecryptionFailed => Unopened {
                other_key: true,
                what: "is encrypted for another key".to_owned(),
            },
            other => damaged(&other),
        })
    }
}

/// Whether the head of an encrypted file ends in these bytes, the first of it; else it could be endless.
fn ends_its_head(start: &[u8]) -> bool {
    let head = &start[..start.len().min(HEAD_LIMIT)];
    head.windows(5).any(|bytes| bytes == b"\n--- ")
}

fn recipient(text: &str) -> Result<x25519::Recipient, String> {
    let parsed = text.parse();
    parsed.map_err(|e| format!("`{text}` is no recipient of age: {e}"))
}

fn passphrase(file: &Path) -> Result<SecretString> {
    let text = text_of(file)?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        let what = format!("{}: its first line is no passphrase", file.display());
        return Err(Failure::usage(what));
    }
    Ok(SecretString::from(line.to_owned()))
}

fn text_of(file: &Path) -> Result<String> {
    fs::read_to_string(file)
        .map_err(|e| Failure::io(format!("{}: cannot be read", file.display()), &e))
}
