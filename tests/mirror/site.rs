//! Two sites in one folder: `serve` has a disk, `receive` waits for it.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use blockserver::nbd::blocking_client::BlockingClient;
use mirror::files::{load_record, sidecar_path};
use mirror::record::State;
use serde_json::Value;

use super::ledger::BLOCK;
use super::load::address;
use super::process::{Running, STUCK, last_json};
use crate::run::{Ran, diskferry};

/// The folder, and what runs in it.
pub(crate) struct Sites {
    folder: tempfile::TempDir,
    pub(crate) disk: String,
    pub(crate) source: Option<Running>,
    pub(crate) target: Option<Running>,
    /// Where the target's host is reached.
    pub(crate) host: String,
    /// Where `receive` listens once it was started.
    pub(crate) port: u16,
    /// What it is told of who decides.
    pub(crate) arbiter: Option<String>,
    /// What else it is told.
    pub(crate) taking: Vec<&'static str>,
    /// Where it serves the disk, as `--serve` has it.
    pub(crate) serves: String,
}

impl Sites {
    /// A disk made by `diskferry create` with `words`; nothing runs yet.
    pub(crate) fn new(disk: &str, words: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        std::fs::create_dir(folder.path().join("in")).expect("a folder");
        let sites = Self {
            folder,
            disk: disk.to_owned(),
            source: None,
            target: None,
            host: "127.0.0.1".to_owned(),
            port: 0,
            arbiter: None,
            taking: Vec::new(),
            serves: "unix:t".to_owned(),
        };
        sites.run(&[&["create", disk], words].concat()).ends(0);
        sites
    }

    /// The same, with both running.
    pub(crate) fn running(disk: &str, words: &[&str]) -> Self {
        let mut sites = Self::new(disk, words);
        sites.serve();
        sites.receive();
        sites
    }

    pub(crate) fn here(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn run(&self, words: &[&str]) -> Ran {
        diskferry(self.here(), words)
    }

    /// Starts `serve`, always with the same words.
    pub(crate) fn serve(&mut self) {
        let mut serve = Running::start(self.here(), &["serve", &self.disk, "--listen", "unix:s"]);
        serve.says("serving");
        self.source = Some(serve);
    }

    /// Starts `receive`, always with the same words and at the same port.
    pub(crate) fn receive(&mut self) {
        let listen = self.to();
        let mut words = vec![
            "receive",
            "--listen",
            &listen,
            "--into",
            "in",
            "--serve",
            &self.serves,
        ];
        words.extend(self.plainly());
        words.extend(&self.taking);
        if let Some(arbiter) = &self.arbiter {
            words.extend(["--arbiter", arbiter]);
        }
        let mut receive = Running::start(self.here(), &words);
        let line = receive.says("receiving");
        let at = line["listen"].as_str().expect("an address");
        self.port = at.rsplit(':').next().unwrap().parse().expect("a port");
        self.target = Some(receive);
    }

    pub(crate) fn export(&self) -> &str {
        self.disk.split('.').next().expect("a name")
    }

    /// The disk as clients of the source find it.
    pub(crate) fn at_source(&self) -> String {
        let socket = self.here().join("s");
        format!("nbd+unix:///{}?socket={}", self.export(), socket.display())
    }

    /// The disk as clients of the target find it.
    pub(crate) fn at_target(&self) -> String {
        if let Some(at) = self.serves.strip_prefix("tcp:") {
            return format!("nbd://{at}/{}", self.export());
        }
        let socket = self.here().join("t");
        format!("nbd+unix:///{}?socket={}", self.export(), socket.display())
    }

    /// The target's image.
    pub(crate) fn arriving(&self) -> PathBuf {
        Path::new("in").join(&self.disk)
    }

    pub(crate) fn to(&self) -> String {
        format!("tcp:{}:{}", self.host, self.port)
    }

    /// What allows a move to another host without TLS.
    fn plainly(&self) -> &'static [&'static str] {
        if self.host == "127.0.0.1" {
            &[]
        } else {
            &["--plain"]
        }
    }

    /// The same, for a relay.
    pub(crate) fn to_port(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `diskferry mirror start DISK --to …` with more words.
    pub(crate) fn start(&self, words: &[&str]) -> Ran {
        let to = self.to();
        let start: &[&str] = &["mirror", "start", &self.disk, "--to", &to];
        let all = [start, self.plainly(), words];
        self.run(&all.concat())
    }

    /// `diskferry mirror VERB DISK`.
    pub(crate) fn mirror(&self, verb: &str) -> Ran {
        self.run(&["mirror", verb, &self.disk, "--json"])
    }

    pub(crate) fn tell(&self, verb: &str, what: &str) -> Ran {
        self.run(&["mirror", verb, &self.disk, what, "--json"])
    }

    /// Waits until the status is as wanted.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let since = Instant::now();
        loop {
            let status = last_json(&self.mirror("status").ends(0));
            if wanted(&status) {
                return status;
            }
            assert!(since.elapsed() < STUCK, "never {what}: {status}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the disk has moved.
    #[track_caller]
    pub(crate) fn moved(&self) -> Value {
        let status = self.until("moved", |status| status["ended"] == true);
        assert_eq!(status["error"], Value::Null, "{status}");
        status
    }

    /// What the record of the source says, and that of the target.
    pub(crate) fn records(&self) -> (Option<State>, Option<State>) {
        let state = |disk: &Path| {
            let record = load_record(&sidecar_path(&self.here().join(disk)));
            record.expect("a whole record").map(|record| record.state)
        };
        (state(Path::new(&self.disk)), state(&self.arriving()))
    }

    /// Ends both in order.
    #[track_caller]
    pub(crate) fn end(&mut self) {
        self.source.take().expect("it runs").end();
        self.target.take().expect("it runs").end();
    }
}

/// Whether a write at `at` is answered well, within a short while.
pub(crate) fn writable(at: &str, offset: u64) -> bool {
    let (say, heard) = mpsc::channel();
    let at = address(at);
    thread::spawn(move || {
        let written = BlockingClient::connect(&at)
            .and_then(|mut client| client.write(offset, &[0x77; BLOCK], false));
        let _ = say.send(written.is_ok());
    });
    heard.recv_timeout(Duration::from_secs(2)).unwrap_or(false)
}
