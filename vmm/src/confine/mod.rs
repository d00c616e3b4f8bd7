//! Confinement: what this process and each of its threads may do while a guest runs.
//!
//! Driver; the lists are in `calls.rs`. A guest that takes over a thread by a fault of ours gets what that
//! thread may do and no more. Three walls: files by Landlock ([`Paths`]), system calls by a filter for each
//! kind of thread ([`Kind`]), and no privileges. [`process`] is called before any other thread is started,
//! [`thread`] by each thread before it does its work; a thread also keeps what the one that started it may
//! not. Rings bypass filters of calls: what those of workers may do is restricted where they are made.
//! Drawn in `docs/vmm.md`.

mod calls;
mod filter;
mod paths;
mod privileges;
mod violation;

use std::sync::OnceLock;

use seccompiler::{BpfProgram, SeccompAction, apply_filter};

pub use self::paths::Paths;
use crate::Result;

/// What the process ends with when a thread makes a system call that it may not: 128 and the signal's number.
pub const EXIT_CODE: u8 = 159;

/// What is done to a system call that a thread may not make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It is said on stderr and the process ends with [`EXIT_CODE`]. What was flushed is safe, as always.
    #[default]
    Kill,
    /// It passes, and the kernel logs it (audit type 1326). Files and privileges are confined all the same.
    Log,
    /// Nothing is confined.
    Off,
}

/// Kinds of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// What no guest reaches: the main thread, control, migration, and whoever starts threads.
    Process,
    /// Runs a processor, and answers its accesses to registers.
    Vcpu,
    /// Serves the queue of a source of entropy.
    Device,
    /// Moves frames between a tap and a guest.
    Network,
    /// Serves queues of disks by a ring.
    Worker,
    /// Serves queues of disks by blocking calls, on threads that it starts.
    BlockingWorker,
    /// Brings memory in that was saved, while the guest runs.
    Memory,
    /// Writes memory to a snapshot.
    Saver,
    /// Reads what is installed on a disk: file systems that a guest has written.
    Reader,
    /// Moves bytes between the serial port and whoever looks at it.
    Console,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Process,
        Self::Vcpu,
        Self::Device,
        Self::Network,
        Self::Worker,
        Self::BlockingWorker,
        Self::Memory,
        Self::Saver,
        Self::Reader,
        Self::Console,
    ];

    /// Its name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Vcpu => "vcpu",
            Self::Device => "device",
            Self::Network => "network",
            Self::Worker => "worker",
            Self::BlockingWorker => "blocking-worker",
            Self::Memory => "memory",
            Self::Saver => "saver",
            Self::Reader => "reader",
            Self::Console => "console",
        }
    }
}

/// How a process is to be confined.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// What is done to system calls that are not allowed.
    pub mode: Mode,
    /// What may be opened.
    pub paths: Paths,
}

/// How this process is confined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// What is done to system calls that are not allowed.
    pub mode: Mode,
    /// The version of Landlock that this host has; 0 without.
    pub landlock: i32,
    /// What this host's Landlock does not hold, in words.
    pub missing: Vec<&'static str>,
}

impl Confinement {
    const NONE: Self = Self {
        mode: Mode::Off,
        landlock: 0,
        missing: Vec::new(),
    };
}

/// The filters, and how the process is confined, once it is.
#[derive(Debug)]
struct Walls {
    programs: Vec<(Kind, Vec<BpfProgram>)>,
    state: Confinement,
}

static WALLS: OnceLock<Walls> = OnceLock::new();

/// How this process is confined.
#[must_use]
pub fn state() -> Confinement {
    let state = WALLS.get().map(|walls| walls.state.clone());
    state.unwrap_or(Confinement::NONE)
}

/// Confine this thread, which must be the only one, and all that it will start.
///
/// # Errors
/// The kernel has no filters of system calls, or a privilege could not be given up. The process must not go
/// on then as if it were confined.
pub fn process(limits: &Limits) -> Result<Confinement> {
    let refused = match limits.mode {
        Mode::Kill => SeccompAction::Trap,
        Mode::Log => SeccompAction::Log,
        Mode::Off => return Ok(Confinement::NONE),
    };
    let programs = Kind::ALL.into_iter().map(|kind| {
        let programs = filter::programs(&calls::of(kind), refused.clone())?;
        Ok((kind, programs))
    });
    let programs = programs.collect::<Result<_>>()?;
    violation::end_on_violation()?;
    privileges::give_up()?;
    let landlock = paths::restrict(&limits.paths)?;
    let state = Confinement {
        mode: limits.mode,
        landlock,
        missing: paths::missing(landlock),
    };
    let walls = WALLS.get_or_init(|| Walls { programs, state });
    thread(Kind::Process);
    Ok(walls.state.clone())
}

/// Confine this thread as one of its kind, for good; nothing happens in a process that is not confined. A
/// thread that cannot be confined ends the process: it must not do its work.
pub fn thread(kind: Kind) {
    violation::remember(kind);
    let Some(walls) = WALLS.get() else {
        return;
    };
    let own = walls.programs.iter().filter(|(whose, _)| *whose == kind);
    for program in own.flat_map(|(_, programs)| programs) {
        if let Err(error) = apply_filter(program) {
            tracing::error!(kind = kind.name(), %error, "a thread cannot be confined: the process ends");
            std::process::abort();
        }
    }
}
