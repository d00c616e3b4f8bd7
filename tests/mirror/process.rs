//! Programs that run beside a test, or are run by it.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::run::{Ran, command};

/// After that long something is taken for stuck.
pub(crate) const STUCK: Duration = Duration::from_mins(1);

/// The last line of JSON that a program printed.
#[track_caller]
pub(crate) fn last_json(ran: &Ran) -> Value {
    let last = ran.stdout.lines().last().expect("a line");
    serde_json::from_str(last).expect("JSON")
}

#[derive(Default)]
struct Said {
    lines: Mutex<Vec<Value>>,
    more: Condvar,
    /// Nothing comes any more.
    all: AtomicBool,
}

/// `diskferry VERB --json …` that runs until it is ended.
pub(crate) struct Running {
    child: Child,
    said: Arc<Said>,
    log: PathBuf,
}

impl Running {
    /// Starts it in `here`; its stderr goes to a file there that a failing test shows.
    pub(crate) fn start(here: &Path, words: &[&str]) -> Self {
        Self::start_with(here, words, None)
    }

    /// The same, with something in its environment.
    pub(crate) fn start_with(here: &Path, words: &[&str], with: Option<(&str, &str)>) -> Self {
        let log = here.join(format!("{}.log", words[0]));
        let stderr = OpenOptions::new().append(true).create(true).open(&log);
        let mut child = command(here, "diskferry", words)
            .args(["--json", "-v"])
            .envs(with)
            .stdout(Stdio::piped())
            .stderr(stderr.expect("a log can be made"))
            .spawn()
            .expect("the program can be run");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let said = Arc::new(Said::default());
        let listener = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).expect("JSON");
                listener.lines.lock().unwrap().push(line);
                listener.more.notify_all();
            }
            listener.all.store(true, Ordering::SeqCst);
        });
        Self { child, said, log }
    }

    /// Waits for a line of that type.
    #[track_caller]
    pub(crate) fn says(&mut self, kind: &str) -> Value {
        self.says_that(kind, |line| line["type"] == kind)
    }

    /// All that it has said so far.
    pub(crate) fn said(&self) -> Vec<Value> {
        self.said.lines.lock().unwrap().clone()
    }

    /// Waits for a line that is so.
    #[track_caller]
    pub(crate) fn says_that(&mut self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let since = Instant::now();
        let mut lines = self.said.lines.lock().unwrap();
        loop {
            if let Some(line) = lines.iter().find(|line| is_so(line)) {
                return line.clone();
            }
            // What it said last may be heard after it has ended.
            let all = self.said.all.load(Ordering::SeqCst);
            let ended = self.child.try_wait().expect("it can be looked at");
            assert!(
                !(all && ended.is_some()) && since.elapsed() < STUCK,
                "no `{what}` ({ended:?}): {}",
                self.log()
            );
            let short = Duration::from_millis(100);
            lines = self.said.more.wait_timeout(lines, short).unwrap().0;
        }
    }

    /// What it wrote for people.
    pub(crate) fn log(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Kills it at once.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// Its number.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it in order; it has to come to its end, and well.
    #[track_caller]
    pub(crate) fn end(mut self) {
        let pid = self.pid().to_string();
        let told = Command::new("kill").args(["-TERM", &pid]).status();
        told.expect("kill can be run");
        let status = self.ended();
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// Waits until it has ended; how.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be looked at") {
                return status;
            }
            assert!(since.elapsed() < STUCK, "it does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, or the test failed: then its log is worth something.
        if std::thread::panicking() {
            println!("--- {}\n{}", self.log.display(), self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A sparse file with `bytes` at a few places.
pub(crate) fn sparse(path: &Path, size: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt as _;
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for at in [0, size / 3 / 4096 * 4096, size - bytes.len() as u64] {
        file.write_all_at(bytes, at).unwrap();
    }
}
