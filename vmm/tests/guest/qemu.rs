//! QEMU with its software processor, running the guest.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

/// After that long a machine is taken for stuck.
const STUCK: Duration = Duration::from_mins(4);
/// The program.
const EMULATOR: &str = "qemu-system-x86_64";

/// What a machine said and how it ended.
pub(crate) struct Ran {
    /// The byte the guest ended it with.
    pub(crate) code: i32,
    pub(crate) events: Vec<Value>,
}

impl Ran {
    /// The only event of that name.
    #[track_caller]
    pub(crate) fn event(&self, name: &str) -> &Value {
        let mut found = self.events.iter().filter(|event| event["event"] == name);
        let event = found.next();
        let event = event.unwrap_or_else(|| panic!("no {name} in {:?}", self.events));
        assert!(found.next().is_none(), "two of {name} in {:?}", self.events);
        event
    }

    /// All events of that name.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Value> {
        let is_it = move |event: &&Value| event["event"] == name;
        self.events.iter().filter(is_it)
    }

    /// The same machine, if it ended well.
    #[track_caller]
    pub(crate) fn good(self) -> Self {
        assert_eq!(self.code, 0, "{:?}", self.events);
        self
    }
}

/// A machine: its type, its disks and devices.
pub(crate) struct Qemu(Vec<String>);

impl Qemu {
    /// A machine of that type, with one processor and 256 MiB.
    pub(crate) fn new(kind: &str) -> Self {
        let machine = Self(Vec::new());
        machine
            .with(&[
                "-machine", kind, "-accel", "tcg", "-cpu", "max", "-m", "256M",
            ])
            .with(&["-nodefaults", "-display", "none", "-no-reboot"])
            .with(&["-serial", "stdio", "-kernel", vmm::guest::PATH])
            .with(&["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
    }

    /// Adds arguments.
    pub(crate) fn with(mut self, arguments: &[&str]) -> Self {
        self.0.extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// Adds a virtio disk in a file of a format.
    pub(crate) fn disk(self, file: &Path, format: &str, more: &str) -> Self {
        let file = file.to_str().expect("UTF-8");
        let drive = format!("driver={format},file.driver=file,file.filename={file}");
        self.drive(&drive, more)
    }

    /// Adds a virtio disk on what QEMU calls a drive.
    pub(crate) fn drive(self, drive: &str, more: &str) -> Self {
        let drive = format!("if=none,id=disk,discard=unmap,werror=report,rerror=report,{drive}");
        let device = format!("virtio-blk-pci,drive=disk,{more}");
        self.with(&["-drive", &drive, "-device", device.trim_end_matches(',')])
    }

    /// Runs the guest to its end with these words.
    #[track_caller]
    pub(crate) fn run(self, words: &str) -> Ran {
        let (code, events) = self.run_to(words);
        // The device turns a byte into twice itself and one more.
        assert_eq!(code % 2, 1, "QEMU ended with {code}: {events:?}");
        Ran {
            code: code >> 1,
            events,
        }
    }

    /// Runs the guest until nobody handles what it did: what it said before.
    #[track_caller]
    pub(crate) fn run_until_shutdown(self, words: &str) -> Vec<Value> {
        let (code, events) = self.run_to(words);
        assert_eq!(code, 0, "{events:?}");
        events
    }

    fn run_to(self, words: &str) -> (i32, Vec<Value>) {
        let mut command = Command::new("timeout");
        command
            .arg(STUCK.as_secs().to_string())
            .arg(emulator())
            .args(&self.0);
        let output = command.args(["-append", words]).output();
        let output = output.expect("timeout can be run");
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains('{'), "the guest said nothing: {said}{errors}");
        let lines = said.lines().filter(|line| !line.is_empty());
        let code = output.status.code().expect("timeout ends by itself");
        (code, lines.map(parse).collect())
    }

    /// Starts the guest with these words; `monitor` is where QEMU listens for orders.
    pub(crate) fn start(self, words: &str, monitor: &Path) -> Running {
        let orders = format!("unix:{},server=on,wait=off", monitor.display());
        let mut child = Command::new(emulator())
            .args(&self.0)
            .args(["-monitor", &orders, "-append", words])
            .stdout(Stdio::piped())
            .spawn()
            .expect("QEMU can be run");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // Nobody listens any more when a test is over.
                let _ = sender.send(line);
            }
        });
        Running {
            child,
            lines,
            monitor: monitor.to_owned(),
        }
    }
}

/// A machine that runs. Dropped, it is killed.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
    monitor: PathBuf,
}

impl Running {
    /// The next thing the guest says.
    #[track_caller]
    pub(crate) fn next(&self) -> Value {
        parse(&self.lines.recv_timeout(STUCK).expect("the guest goes on"))
    }

    /// Gives QEMU an order, and waits until it is done.
    pub(crate) fn order(&self, order: &str) {
        let mut monitor = UnixStream::connect(&self.monitor).expect("QEMU listens");
        let mut said = BufReader::new(monitor.try_clone().expect("a handle"));
        // It says "(qemu)" when it is ready, before and after.
        let mut prompt = || said.read_until(b')', &mut Vec::new()).expect("a prompt");
        prompt();
        writeln!(monitor, "{order}").expect("QEMU takes an order");
        prompt();
    }

    /// Kills it.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// The code that the guest ends the machine with.
    pub(crate) fn ends(mut self) -> i32 {
        while self.lines.recv_timeout(STUCK).is_ok() {}
        let status = self.child.wait().expect("it ends");
        status.code().expect("by itself") >> 1
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// What `scripts/setup.sh` installed, or unpacked where it could not install.
fn emulator() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/qemu");
    std::env::split_paths(&path)
        .chain([unpacked])
        .map(|folder| folder.join(EMULATOR))
        .find(|program| program.is_file())
        .unwrap_or_else(|| panic!("{EMULATOR} is not here: run scripts/setup.sh"))
}
