//! The console of a machine that runs, as those see it who attach.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::JoinHandle;
use std::time::Duration;

use super::guest::{ask, without_kvm};
use super::process::Running;
use crate::run::{command, diskferry, folder};

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
