//! How the command can end: one exit code for each thing a script may have to tell apart, and the
//! words for a person.
//!
//! The codes are a promise (README, man page). A code that is not in the list means failure.

use std::fmt;

use vdisk::ErrorKind;

/// The exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// It failed, in no way listed below.
    Failed = 1,
    /// What was typed makes no sense.
    Usage = 2,
    /// The disk breaks its format.
    Corrupt = 3,
    /// The disk has a log to be replayed, or damage that a repair mends.
    NeedsRepair = 4,
    /// Another process holds the disk, or it belongs to another host.
    InUse = 5,
    /// Two things that should be equal are not.
    Mismatch = 6,
    /// The network failed; the same command resumes.
    Network = 7,
    /// Cancelled; the source is intact and still the owner.
    Cancelled = 8,
    /// Legal, but not done by this version.
    Unsupported = 9,
    /// The destination has taken over: the source must not be started.
    TookOver = 10,
    /// Something cannot be moved, or was not, by the deadline.
    NotInTime = 11,
    /// Ctrl-C.
    Interrupted = 130,
    /// A thread of a machine made a system call that it may not (128 and SIGSYS).
    Confined = vmm::confine::EXIT_CODE,
}

impl Exit {
    /// All of them but success, with what `--help` says of each.
    pub(crate) const ALL: [(Self, &'static str); 13] = [
        (Self::Failed, "failed"),
        (Self::Usage, "usage: what was typed makes no sense"),
        (Self::Corrupt, "the disk is corrupt"),
        (Self::NeedsRepair, "the disk needs a repair or a log replay"),
        (Self::InUse, "in use, locked, or owned by another host"),
        (Self::Mismatch, "two things that should be equal are not"),
        (
            Self::Network,
            "the network failed; the same command resumes",
        ),
        (Self::Cancelled, "cancelled; the source is intact"),
        (Self::Unsupported, "not supported by this version"),
        (
            Self::TookOver,
            "the destination took over: do not start the source",
        ),
        (Self::NotInTime, "not everything moves by the deadline"),
        (Self::Interrupted, "interrupted by Ctrl-C"),
        (
            Self::Confined,
            "a thread of a machine made a system call that it may not",
        ),
    ];
}

impl Exit {
    /// The one with this code.
    pub(crate) fn of_code(code: u8) -> Option<Self> {
        Self::ALL
            .into_iter()
            .map(|(exit, _)| exit)
            .find(|exit| *exit as u8 == code)
    }
}

/// Why a command ended badly.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What the process exits with.
    pub(crate) exit: Exit,
    /// What went wrong, and where.
    pub(crate) what: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
}

/// The result of everything in the command.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        let what = what.into();
        Self {
            exit,
            what,
            hint: None,
        }
    }

    /// What was typed makes no sense.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::new(Exit::Usage, what)
    }

    /// A failed system call while doing `what`.
    pub(crate) fn io(what: impl fmt::Display, error: &std::io::Error) -> Self {
        Self::new(Exit::Failed, format!("{what}: {error}"))
    }

    /// Ctrl-C, after which `state` holds.
    pub(crate) fn interrupted(state: &str) -> Self {
        Self::new(Exit::Interrupted, format!("interrupted; {state}"))
    }

    /// The same failure, with what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same failure, with one thing more to do about it.
    pub(crate) fn and_hint(self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        let both = match &self.hint {
            Some(first) => format!("{first}; {hint}"),
            None => hint,
        };
        self.hint(both)
    }
}

impl From<vdisk::Error> for Failure {
    fn from(error: vdisk::Error) -> Self {
        let (exit, hint) = match error.kind() {
            ErrorKind::Corrupt => (
                Exit::Corrupt,
                Some("`diskferry check` lists all that is wrong"),
            ),
            ErrorKind::NeedsRepair => (
                Exit::NeedsRepair,
                Some("opening the disk for writing (`diskferry serve`) replays its log"),
            ),
            ErrorKind::Unsupported => (Exit::Unsupported, None),
            ErrorKind::InvalidArgument => (Exit::Usage, None),
            ErrorKind::Locked => (
                Exit::InUse,
                Some("stop the other process; a disk that nobody writes may be read by many"),
            ),
            ErrorKind::NotOwned => (
                Exit::InUse,
                Some("find the owner with `diskferry info`; only it may be served"),
            ),
            ErrorKind::NoParent => (
                Exit::Failed,
                Some(
                    "--parent-dir DIR allows a folder for parents, --parent DISK names the parent",
                ),
            ),
            ErrorKind::NoSpace => (
                Exit::Failed,
                Some(
                    "free space on the host's file system, or use one that holds larger files; \
                     quotas and `ulimit -f` are limits too",
                ),
            ),
            _ => (Exit::Failed, None),
        };
        let failure = Self::new(exit, error.to_string());
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}
