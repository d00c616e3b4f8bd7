//! Network namespaces: made or joined, and what runs inside.

use std::fs::File;
use std::io::{self, Error};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use rustix::thread::LinkNameSpaceType;

use crate::kernel;

/// Set where a test runs with namespaces of its own.
const INSIDE: &str = "DISKFERRY_TEST_NAMESPACE";
/// Where `ip netns` keeps the names.
const NAMED: &str = "/run/netns";

/// A network namespace. It goes when this and all that runs in it are gone, unless it has a name.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// One of its own, without a name.
    ///
    /// # Errors
    /// Not permitted, usually.
    pub fn new() -> io::Result<Self> {
        let fresh = || {
            kernel::leave_network()?;
            let file = File::open("/proc/thread-self/ns/net")?;
            Ok::<_, Error>(Self { file })
        };
        // The thread ends inside; the others stay where they are.
        let made = thread::scope(|scope| scope.spawn(fresh).join());
        let made = made.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let made = made.map_err(|e| said("a network namespace cannot be made", &e))?;
        made.run("ip link set lo up")?;
        Ok(made)
    }

    /// The one that `ip netns add` made, or that of a path.
    ///
    /// # Errors
    /// There is none.
    pub fn named(name: &str) -> io::Result<Self> {
        let path = if name.contains('/') {
            PathBuf::from(name)
        } else {
            Path::new(NAMED).join(name)
        };
        let file = File::open(&path);
        let file = file.map_err(|e| said(&format!("no namespace at {}", path.display()), &e))?;
        Ok(Self { file })
    }

    /// Does `work` on a thread in it. Programs that are started there belong to it.
    ///
    /// # Errors
    /// It cannot be entered.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let inside = || {
            let network = Some(LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(self.file.as_fd(), network)?;
            Ok::<_, rustix::io::Errno>(work())
        };
        let done = thread::scope(|scope| scope.spawn(inside).join());
        let done = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        done.map_err(|e| said("a network namespace cannot be entered", &e.into()))
    }

    /// Runs a program with these words in it, to its good end.
    ///
    /// # Errors
    /// It is missing, or it failed; with what it said.
    pub fn run(&self, words: &str) -> io::Result<()> {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut all = words.split(' ');
        let mut command = Command::new(all.next().unwrap_or_default());
        command.args(all);
        command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
        let output = self.enter(move || command.output())?;
        let output = output.map_err(|e| said(words, &e))?;
        if output.status.success() {
            return Ok(());
        }
        let heard = String::from_utf8_lossy(&output.stderr);
        Err(Error::other(format!("{words}: {}", heard.trim())))
    }

    /// Sets a number or word of its network below `/proc/sys/net`, such as `ipv4/tcp_congestion_control`.
    ///
    /// # Errors
    /// There is no such thing, or it may not be set.
    pub fn set(&self, what: &str, to: &str) -> io::Result<()> {
        let path = Path::new("/proc/sys/net").join(what);
        let set = self.enter(|| std::fs::write(&path, to))?;
        set.map_err(|e| said(&format!("{what} cannot be {to}"), &e))
    }
}

/// The same error, and what failed.
pub(crate) fn said(what: &str, error: &Error) -> Error {
    Error::new(error.kind(), format!("{what}: {error}"))
}

/// Runs the test `name` of this program once more where it may make namespaces, whoever runs it; `true` in there, and the
/// caller goes on. `false` also where `DISKFERRY_NO_TAP=1` says that there are none.
///
/// # Panics
/// The test failed there, or there are no namespaces.
#[must_use]
#[track_caller]
pub fn inside(name: &str) -> bool {
    if std::env::var_os("DISKFERRY_NO_TAP").is_some_and(|value| value == "1") {
        println!("skipped: DISKFERRY_NO_TAP=1");
        return false;
    }
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let this = std::env::current_exe().expect("this program has a path");
    let status = Command::new("timeout")
        .args(["300", "unshare", "--user", "--map-root-user", "--net", "--"])
        .arg(this)
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .status();
    let status = status.expect("timeout can be run");
    assert!(
        status.success(),
        "{name} in network namespaces: {status}; where there are none, DISKFERRY_NO_TAP=1 leaves it out"
    );
    false
}
