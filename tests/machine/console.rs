//! The console of a machine that runs, as those see it who attach.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::guest::{ask, describe, without_kvm};
use super::process::{Running, STUCK};
use crate::run::{self, command, diskferry, folder};

/// Starts a machine that does what `line` says, with its console there.
fn start(here: &Path, console: &str, line: &str) -> Running {
    let text = format!(
        "vcpus = 2\nmemory = \"64M\"\nboot.kernel = \"built-in\"\nboot.command_line = \"{line}\"\n\
         console.to = \"{console}\"\n"
    );
    std::fs::write(here.join("vm.toml"), text).unwrap();
    let mut running = Running::start(here, &["run", "vm.toml"]);
    running.says("running");
    running
}

/// Where one attaches to a machine.
fn socket(here: &Path) -> PathBuf {
    let all = std::fs::read_dir(here.join("run")).unwrap();
    let mut paths = all.map(|entry| entry.unwrap().path());
    let found = paths.find(|path| path.extension().is_some_and(|suffix| suffix == "console"));
    found.expect("a socket for the console")
}

/// Reads until `word` was printed.
fn until(console: &mut impl Read, word: &str) -> String {
    let mut text = String::new();
    let mut bytes = [0; 512];
    while !text.contains(word) {
        let len = console.read(&mut bytes).unwrap();
        assert!(len > 0, "no {word} in: {text}");
        text.push_str(std::str::from_utf8(&bytes[..len]).unwrap());
    }
    text
}

fn to_its_end(mut console: UnixStream) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        console.read_to_string(&mut text).unwrap();
        text
    })
}

#[test]
fn all_who_attach_see_everything_and_may_type() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    let mut running = start(here, "socket:con", "do=hello do=echo");
    let mut first = UnixStream::connect(here.join("con")).unwrap();
    until(&mut first, "listening");
    first.write_all(b"one\n").unwrap();
    until(&mut first, "\"line\":\"one\"");
    // Who comes later sees what was printed before.
    let mut second = UnixStream::connect(socket(here)).unwrap();
    let seen = until(&mut second, "\"line\":\"one\"");
    assert!(
        seen.contains("hello") && seen.contains("listening"),
        "{seen}"
    );
    second.write_all(b"two\n").unwrap();
    until(&mut second, "\"line\":\"two\"");
    until(&mut first, "\"line\":\"two\"");
    drop(first);
    let seen = to_its_end(second.try_clone().unwrap());
    second.write_all(b"three\nend\n").unwrap();
    let seen = seen.join().unwrap();
    assert!(
        seen.contains("\"line\":\"three\"") && seen.ends_with("\"line\":\"end\"}\n"),
        "{seen}"
    );
    assert_eq!(running.says("summary")["end"], "power_off");
    let left = std::fs::read_dir(here.join("run")).unwrap().count();
    assert_eq!(
        (left, here.join("con").exists()),
        (0, false),
        "sockets are left"
    );
}

#[test]
fn a_terminal_attaches_and_leaves_and_the_machine_goes_on() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    let mut running = start(here, "none", "do=echo");
    let attach = |typed: &'static [u8]| {
        let mut child = command(here, "diskferry", &["machine", "console", "vm.toml"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(typed).unwrap();
        // It goes on to look when nothing is typed any more.
        drop(stdin);
        let ended = child.wait_with_output().unwrap();
        (
            ended.status.code(),
            String::from_utf8(ended.stdout).unwrap(),
        )
    };
    let (code, _) = attach(b"typed\n\x01x");
    assert_eq!(code, Some(0));
    assert_eq!(
        ask(here, "status", "vm.toml").ok().json()["state"],
        "running"
    );
    let (code, seen) = attach(b"\x01\x01\nend\n");
    assert_eq!(code, Some(0));
    for line in ["listening", "typed", "\"line\":\"?\"", "\"line\":\"end\""] {
        assert!(seen.contains(line), "{line}: {seen}");
    }
    assert_eq!(running.says("summary")["end"], "power_off");
    diskferry(here, &["machine", "console", "vm.toml"]).fails(2);
}

#[test]
fn a_pseudoterminal_shows_what_is_kept_to_each_who_opens_it() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    let mut running = start(here, "pty", "do=hello do=echo");
    let name = running.says("running")["terminal"].clone();
    let name = name.as_str().expect("the name of a pseudoterminal");
    for round in 0..2 {
        // Who opens it in the moment that another closes it is taken for the other.
        std::thread::sleep(Duration::from_millis(500));
        let mut options = OpenOptions::new();
        let mut terminal = options.read(true).write(true).open(name).unwrap();
        let seen = until(&mut terminal, "listening");
        assert!(seen.contains("hello"), "{round}: {seen}");
        terminal
            .write_all(format!("round{round}\n").as_bytes())
            .unwrap();
        until(&mut terminal, &format!("\"line\":\"round{round}\""));
    }
    let mut last = OpenOptions::new().write(true).open(name).unwrap();
    last.write_all(b"end\n").unwrap();
    assert_eq!(running.says("summary")["end"], "power_off");
}

#[test]
fn a_guest_waits_for_nobody_who_does_not_read() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    // More than is kept and than the socket takes.
    let mut running = start(here, "socket:con", "do=echo do=spin every=1 rounds=800");
    let idle = UnixStream::connect(here.join("con")).unwrap();
    let mut typing = UnixStream::connect(here.join("con")).unwrap();
    typing.write_all(b"end\n").unwrap();
    assert_eq!(running.says("summary")["end"], "power_off");
    drop(idle);
}

#[test]
fn a_file_that_is_no_socket_is_not_replaced_by_one() {
    let here = folder();
    let here = here.path();
    let text = "memory = \"64M\"\nboot.kernel = \"built-in\"\nconsole.to = \"socket:con\"\n";
    std::fs::write(here.join("vm.toml"), text).unwrap();
    std::fs::write(here.join("con"), "of value").unwrap();
    let ran = diskferry(here, &["run", "vm.toml"]).fails(2);
    assert!(ran.stderr.contains("con:"), "{}", ran.stderr);
    assert_eq!(std::fs::read(here.join("con")).unwrap(), b"of value");
}

#[test]
fn a_second_run_leaves_the_console_of_the_first_as_it_is() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    describe(here, "vm.toml", ("do=hello do=echo", &[]));
    let running = super::guest::start(here, "vm.toml");
    super::guest::until(here, "vm.toml", ("listening", 1));
    let before = std::fs::read(here.join("vm.toml.console")).unwrap();
    diskferry(here, &["run", "vm.toml"]).fails(5);
    let after = std::fs::read(here.join("vm.toml.console")).unwrap();
    assert_eq!(after, before);
    running.end();
}

#[test]
fn a_start_that_fails_leaves_no_socket() {
    let here = folder();
    let here = here.path();
    let text = "memory = \"64M\"\nboot.kernel = \"nothing\"\nconsole.to = \"socket:con\"\n";
    std::fs::write(here.join("vm.toml"), text).unwrap();
    let ran = diskferry(here, &["run", "vm.toml"]);
    assert_ne!(ran.code, 0);
    let left = std::fs::read_dir(here.join("run")).unwrap().count();
    assert_eq!((left, here.join("con").exists()), (0, false));
}

/// Runs a machine whose console is in nobody's eyes, and has it do what it is told all the same.
#[track_caller]
fn nobody_reads(here: &Path, mut child: Child) {
    let told = |verb: &str| {
        let program = env!("CARGO_BIN_EXE_diskferry");
        let words = ["60", program, "machine", verb, "vm.toml", "--json"];
        run::program(here, "timeout", &words)
    };
    let since = Instant::now();
    while told("status").code != 0 {
        assert!(since.elapsed() < STUCK, "it does not begin");
    }
    let mut attached = UnixStream::connect(socket(here)).unwrap();
    attached.set_read_timeout(Some(STUCK)).unwrap();
    let mut seen = Vec::new();
    // It prints on when a pipe is long full.
    while seen.len() < 160 << 10 {
        let len = attached.read(&mut [0; 4096]).unwrap();
        assert!(len > 0);
        seen.resize(seen.len() + len, 0);
    }
    assert_eq!(told("pause").ok().json()["state"], "paused");
    assert_eq!(told("status").ok().json()["state"], "paused");
    told("power-off").ok();
    let since = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if since.elapsed() > STUCK {
            child.kill().unwrap();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_console_that_nobody_reads_holds_nothing_up() {
    if without_kvm() {
        return;
    }
    for fifo in [false, true] {
        let here = folder();
        let here = here.path();
        let console = if fifo { "file:con" } else { "stdio" };
        let text = format!(
            "memory = \"64M\"\nboot.kernel = \"built-in\"\nboot.command_line = \"do=spin every=1\"\n\
             console.to = \"{console}\"\n"
        );
        std::fs::write(here.join("vm.toml"), text).unwrap();
        run::program(here, "mkfifo", &["con"]).ok();
        let mut child = command(here, "diskferry", &["run", "vm.toml"]);
        let out = if fifo { Stdio::null() } else { Stdio::piped() };
        nobody_reads(
            here,
            child.stdin(Stdio::null()).stdout(out).spawn().unwrap(),
        );
    }
}

#[test]
fn a_stdout_that_is_read_gets_every_line() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    let text = "memory = \"64M\"\nboot.kernel = \"built-in\"\n\
                boot.command_line = \"do=spin every=1 rounds=5000\"\n";
    std::fs::write(here.join("vm.toml"), text).unwrap();
    let ran = diskferry(here, &["run", "vm.toml"]).ok();
    assert_eq!(ran.stdout.matches("\"spin\"").count(), 5000);
    assert!(ran.stdout.contains("vm.toml: "), "the summary comes last");
}

#[test]
fn who_is_turned_away_is_not_told_that_the_machine_has_ended() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    let running = start(here, "none", "do=hello do=echo");
    let attached: Vec<_> = (0..32)
        .map(|_| {
            let mut stream = UnixStream::connect(socket(here)).unwrap();
            until(&mut stream, "hello");
            stream
        })
        .collect();
    let turned = diskferry(here, &["machine", "console", "vm.toml", "--json"]).fails(1);
    assert!(turned.stderr.contains("turned away"), "{}", turned.stderr);
    drop(attached);
    running.end();
}
