//! What a confined process and its threads cannot do any more, tried by processes of their own: each test runs
//! this program again with the name of what is to be tried.

use std::fs::{self, File};
use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixListener;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use rustix::net::netdevice::name_to_index;
use vmm::confine::{self, EXIT_CODE, Kind, Limits, Mode, Paths};
use vmm::memory::Faults;

/// Says to a process that it is one that tries.
const TRY: &str = "DISKFERRY_TEST_TRY";
const FOLDER: &str = "DISKFERRY_TEST_FOLDER";

type Try = fn(&Path);

/// What is tried, by name. Whoever returns was let do it.
const TRIES: [(&str, Try); 27] = [
    ("work", work),
    ("last-words", last_words),
    ("files", files),
    ("exec", |_| drop(Command::new("/bin/true").exec())),
    ("listen", |_| {
        let refused = TcpListener::bind("127.0.0.1:10809").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
        // By this a disk is mirrored to another path.
        TcpListener::bind("127.0.0.1:0").unwrap();
    }),
    ("connect", |_| {
        // Nobody listens there; a confined process gets as far as to be told so.
        let refused = TcpStream::connect("127.0.0.1:1").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }),
    ("vcpu-connect", |_| {
        on(Kind::Vcpu, || drop(TcpStream::connect("127.0.0.1:1")));
    }),
    ("vcpu-open", |_| {
        on(Kind::Vcpu, || {
            let refused = File::open("/etc/hosts").unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
        });
    }),
    ("vcpu-thread", |_| {
        on(Kind::Vcpu, || drop(thread::spawn(|| {}).join()));
    }),
    ("worker-socket", |_| {
        on(Kind::Worker, || drop(UdpSocket::bind("127.0.0.1:0")));
    }),
    ("device-remove", |folder| {
        let file = folder.join("in/kept");
        on(Kind::Device, move || drop(fs::remove_file(file)));
    }),
    ("blocking-worker-thread", |_| {
        on(Kind::BlockingWorker, || {
            thread::spawn(|| {}).join().unwrap();
        });
    }),
    ("console-exec", |_| {
        on(Kind::Console, || drop(Command::new("/bin/true").exec()));
    }),
    ("process", |_| drop(Command::new("/bin/true").status())),
    ("process-faults", |_| drop(Faults::open(false))),
    ("process-sockets", sockets),
    ("vcpu-terminal", |_| {
        on(Kind::Vcpu, || {
            std::io::stdin().is_terminal();
        });
    }),
    ("worker-open", |folder| opens_nothing(Kind::Worker, folder)),
    ("device-open", |folder| opens_nothing(Kind::Device, folder)),
    ("network-open", |folder| {
        opens_nothing(Kind::Network, folder);
    }),
    ("network-connect", |_| {
        on(Kind::Network, || drop(TcpStream::connect("127.0.0.1:1")));
    }),
    ("network-other-interface", |_| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        on(Kind::Network, move || {
            let _ = name_to_index(&socket, "lo");
        });
    }),
    ("memory-open", |folder| opens_nothing(Kind::Memory, folder)),
    ("memory-write", |folder| {
        let file = File::create(folder.join("in/new")).unwrap();
        on(Kind::Memory, move || drop(file.write_at(b"x", 0)));
    }),
    ("saver-remove", |folder| {
        let file = folder.join("in/kept");
        on(Kind::Saver, move || drop(fs::remove_file(file)));
    }),
    ("reader-cut", |folder| {
        let file = File::create(folder.join("in/new")).unwrap();
        on(Kind::Reader, move || drop(file.set_len(0)));
    }),
    ("reader-connect", |_| {
        on(Kind::Reader, || drop(TcpStream::connect("127.0.0.1:1")));
    }),
];

/// Also not what the process may open.
fn opens_nothing(kind: Kind, folder: &Path) {
    let file = folder.join("in/kept");
    on(kind, move || {
        let refused = File::open(file).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    });
}

/// In a folder for sockets there is nothing else to be had.
fn sockets(folder: &Path) {
    let place = folder.join("sockets");
    let socket = place.join("a.sock");
    drop(UnixListener::bind(&socket).unwrap());
    fs::remove_file(&socket).unwrap();
    let denied = |error: std::io::Error| error.kind() == ErrorKind::PermissionDenied;
    assert!(denied(File::open(place.join("kept")).unwrap_err()));
    assert!(denied(fs::write(place.join("new"), "x").unwrap_err()));
    assert!(denied(fs::create_dir(place.join("new")).unwrap_err()));
    let elsewhere = folder.join("read/a.sock");
    assert!(denied(UnixListener::bind(elsewhere).unwrap_err()));
}

/// The thread that watches memory come in ends the process where it is lost, and says why.
fn last_words(_: &Path) {
    on(Kind::Memory, || {
        // To a terminal they go in colours. The tests' stderr is none.
        assert!(!std::io::stderr().is_terminal());
    });
}

fn on(kind: Kind, body: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(move || {
        confine::thread(kind);
        body();
    });
    thread.join().unwrap();
}

/// What every kind of thread has to be able to do.
fn work(_: &Path) {
    for kind in Kind::ALL {
        on(kind, move || {
            let memory = vec![1_u8; 8 << 20];
            let (sender, receiver) = std::sync::mpsc::channel();
            sender
                .send(memory.iter().map(|n| u64::from(*n)).sum::<u64>())
                .unwrap();
            assert_eq!(receiver.recv().unwrap(), 8 << 20);
            thread::sleep(std::time::Duration::from_millis(1));
            std::io::stderr().write_all(kind.name().as_bytes()).unwrap();
        });
    }
}

/// What may be opened, and what not; nor by a link, nor by a name that leads out.
fn files(folder: &Path) {
    fs::write(folder.join("in/new"), "x").unwrap();
    fs::rename(folder.join("in/new"), folder.join("in/newer")).unwrap();
    fs::remove_file(folder.join("in/newer")).unwrap();
    assert_eq!(fs::read(folder.join("read/kept")).unwrap(), b"kept");
    let outside = folder.join("out/kept");
    std::os::unix::fs::symlink(&outside, folder.join("in/link")).unwrap();
    for path in [
        Path::new("/etc/passwd"),
        &outside,
        &folder.join("in/link"),
        &folder.join("in/../out/kept"),
        Path::new("/proc/self/environ"),
    ] {
        let refused = File::open(path).unwrap_err();
        assert_eq!(
            refused.kind(),
            ErrorKind::PermissionDenied,
            "{}",
            path.display()
        );
    }
    for device in ["/dev/kvm", "/dev/ptmx", "/dev/net/tun", "/dev/userfaultfd"] {
        assert!(
            File::options().write(true).open(device).is_err(),
            "{device}"
        );
    }
    // Whoever is started later neither.
    let later = thread::spawn(|| File::open("/etc/passwd").unwrap_err().kind());
    assert_eq!(later.join().unwrap(), ErrorKind::PermissionDenied);
    assert!(fs::write(folder.join("read/kept"), "y").is_err());
    assert!(fs::write(folder.join("out/new"), "y").is_err());
    assert!(fs::hard_link(&outside, folder.join("in/hard")).is_err());
    assert!(fs::rename(&outside, folder.join("in/moved")).is_err());
}

/// The child's side of every test here: nothing in a run of the tests.
#[test]
fn what_is_tried_is_tried_by_a_process_of_its_own() {
    let (Some(what), Some(folder)) = (std::env::var_os(TRY), std::env::var_os(FOLDER)) else {
        return;
    };
    let folder = Path::new(&folder);
    let (_, try_it) = TRIES
        .into_iter()
        .find(|(name, _)| what == *name)
        .expect("a name of the list");
    // The test harness has a thread besides, which is left as it is.
    let limits = Limits {
        mode: Mode::Kill,
        paths: Paths {
            read: vec![folder.join("read"), "/etc/hosts".into()],
            write: vec![folder.join("in")],
            sockets: vec![folder.join("sockets")],
        },
    };
    let confined = confine::process(&limits).unwrap();
    assert_eq!(confined, confine::state());
    try_it(folder);
    println!("let through");
}

fn tried(what: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    for place in ["in", "out", "read", "sockets"] {
        fs::create_dir(folder.path().join(place)).unwrap();
        fs::write(folder.path().join(place).join("kept"), "kept").unwrap();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "what_is_tried_is_tried_by_a_process_of_its_own",
            "--nocapture",
        ])
        .env(TRY, what)
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    assert!(folder.path().join("in/kept").exists());
    output
}

#[track_caller]
fn passes(what: &str) {
    let output = tried(what);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("let through"),
        "{what}: {output:?}"
    );
}

/// The process ends, and says who has made which call.
#[track_caller]
fn ends(what: &str, (kind, call): (&str, &str)) {
    let output = tried(what);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(EXIT_CODE.into()),
        "{what}: {output:?}"
    );
    assert!(said.contains(&format!("`{kind}`")), "{what}: {said}");
    assert!(said.contains(&format!("({call})")), "{what}: {said}");
}

/// The C library has all signals wait while it starts a thread or a process, so the kernel ends the process
/// itself.
#[track_caller]
fn ends_unsaid(what: &str) {
    let output = tried(what);
    assert_eq!(
        output.status.signal(),
        Some(libc::SIGSYS),
        "{what}: {output:?}"
    );
}

#[test]
fn every_kind_of_thread_can_do_what_threads_do() {
    passes("work");
}

#[test]
fn only_the_files_that_were_given_can_be_opened() {
    passes("files");
}

#[test]
fn nobody_runs_another_program() {
    ends("exec", ("process", "execve"));
    // Before it, signals are set back.
    ends("console-exec", ("console", "rt_sigaction"));
    ends_unsaid("process");
}

#[test]
fn nobody_listens_where_others_look_and_the_process_may_connect() {
    passes("listen");
    passes("connect");
}

#[test]
fn what_a_guest_reaches_neither_connects_nor_opens_nor_starts_anything() {
    ends("vcpu-connect", ("vcpu", "socket"));
    ends_unsaid("vcpu-thread");
    ends("worker-socket", ("worker", "socket"));
    ends("device-remove", ("device", "unlink"));
    passes("vcpu-open");
}

#[test]
fn nobody_opens_anything_but_the_process() {
    for kind in ["worker", "device", "network", "memory"] {
        passes(&format!("{kind}-open"));
    }
    passes("process-sockets");
}

#[test]
fn what_moves_frames_asks_for_its_tap_and_no_other_interface() {
    ends("network-connect", ("network", "socket"));
    ends("network-other-interface", ("network", "ioctl"));
}

#[test]
fn what_brings_memory_in_writes_no_file_and_what_writes_it_removes_none() {
    ends("memory-write", ("memory", "pwrite64"));
    ends("saver-remove", ("saver", "unlink"));
}

#[test]
fn what_watches_memory_come_in_may_say_why_the_machine_ends() {
    passes("last-words");
}

#[test]
fn what_reads_a_guest_s_file_systems_reaches_nothing() {
    ends("reader-cut", ("reader", "ftruncate"));
    ends("reader-connect", ("reader", "socket"));
}

#[test]
fn what_a_process_has_opened_before_cannot_be_had_again() {
    ends("process-faults", ("process", "userfaultfd"));
    ends("vcpu-terminal", ("vcpu", "ioctl"));
}

#[test]
fn workers_without_rings_may_start_threads() {
    passes("blocking-worker-thread");
}
