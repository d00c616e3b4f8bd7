//! Many disks move as planned, also when whoever moves them is killed in the middle.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use mirror::evacuation::moment;
use serde_json::{Value, json};

use super::ledger::{Ledger, Promise};
use super::load::{Area, Load, verify};
use super::process::Running;
use crate::run::{diskferry, folder};

const MIB: u64 = 1 << 20;

/// Bytes that do not pack, other ones for each seed.
fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let bytes = (0..len / 8).flat_map(|_| {
        state = state.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) ^ 0x5851_f42d;
        state.to_le_bytes()
    });
    bytes.collect()
}

/// Five machines of two servers, one of them with two disks, one of them before all others and one after another.
fn described(at: &str, deadline: &str) -> Value {
    let machine = |name: &str, more: Value| {
        let mut machine = json!({
            "name": name, "site": "here",
            "disks": [{"image": format!("{name}.img"), "allocated": 8 * MIB}],
        });
        for (field, value) in more.as_object().expect("fields") {
            machine[field] = value.clone();
        }
        machine
    };
    let half = |image: &str| json!({"image": image, "allocated": 8 * MIB});
    let files = json!([half("files.img"), half("more.img")]);
    let db = json!([{"image": "db.vhdx", "allocated": 48 * MIB, "control": "unix:c"}]);
    json!({
        "deadline": deadline,
        "links": [{"name": "wire", "from": "here", "to": "there", "bandwidth": 12 * MIB, "share": 0.5}],
        "targets": [{"site": "there", "free": "1G", "address": at}],
        "machines": [
            machine("app", json!({"after": ["db"]})),
            machine("files", json!({"disks": files})),
            machine("mail", json!({"together": "office"})),
            machine("urgent", json!({"priority": 5})),
            machine("db", json!({"disks": db, "writes": 400_000, "together": "office"})),
        ],
    })
}

/// The machines that a run saw move, in that order.
fn moved(lines: &[Value]) -> Vec<String> {
    let moved = lines.iter().filter(|line| line["what"] == "moved");
    let names = moved.map(|line| line["machine"].as_str().expect("a name").to_owned());
    names.collect()
}

fn write(here: &Path, described: &Value) {
    let text = serde_json::to_string_pretty(described).expect("JSON");
    std::fs::write(here.join("all.json"), text).unwrap();
}

/// A moment so many seconds from now.
fn later(seconds: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    moment::show(now.as_secs() + seconds)
}

/// Two servers with six disks and a site that waits for them, all in one folder.
struct Office {
    folder: tempfile::TempDir,
    running: Vec<Running>,
}

const IMAGES: [&str; 5] = ["app", "files", "more", "mail", "urgent"];

impl Office {
    fn new() -> Self {
        let folder = folder();
        let here = folder.path();
        std::fs::create_dir(here.join("in")).unwrap();
        for (seed, name) in IMAGES.iter().enumerate() {
            let bytes = noise(seed as u64 + 7, 8 * MIB);
            std::fs::write(here.join(format!("{name}.img")), bytes).unwrap();
        }
        diskferry(here, &["create", "db.vhdx", "1G", "--block-size", "1M"]).ok();
        let words = "serve app.img mail.img files.img more.img --listen unix:s";
        let other = "serve urgent.img db.vhdx --listen unix:t --control unix:c";
        let receive = "receive --listen tcp:127.0.0.1:0 --into in --serve unix:r";
        let mut office = Self {
            running: Vec::new(),
            folder,
        };
        for (words, says) in [
            (words, "serving"),
            (other, "serving"),
            (receive, "receiving"),
        ] {
            let words: Vec<_> = words.split(' ').collect();
            let mut running = Running::start(office.here(), &words);
            let line = running.says(says);
            office.running.push(running);
            if let Some(at) = line["listen"].as_str() {
                write(office.here(), &described(at, &later(600)));
            }
        }
        office
    }

    fn here(&self) -> &Path {
        self.folder.path()
    }

    /// The database as clients of a server find it.
    fn database(&self, socket: &str) -> String {
        format!(
            "nbd+unix:///db?socket={}",
            self.here().join(socket).display()
        )
    }

    fn evacuate(&self) -> Running {
        Running::start(self.here(), &["evacuate", "all.json", "--every", "1s"])
    }

    /// Ends all, and looks at what arrived.
    fn arrived(self) {
        let Self { folder, running } = self;
        running.into_iter().for_each(Running::end);
        let here = folder.path();
        for name in IMAGES {
            let (had, has) = (format!("{name}.img"), format!("in/{name}.img"));
            let had = std::fs::read(here.join(had)).unwrap();
            let same = had == std::fs::read(here.join(has)).unwrap();
            assert!(same, "{name} is another disk there");
        }
        diskferry(here, &["check", "in/db.vhdx"]).ok();
        // Nothing is left to do, also where no server is asked any more and the deadline is past.
        for deadline in [later(600), "2026-01-01T00:00:00Z".to_owned()] {
            write(here, &described("tcp:127.0.0.1:1", &deadline));
            let again = diskferry(here, &["evacuate", "all.json", "--json"]).ok();
            let summary = again.json_lines().pop().expect("a summary");
            assert_eq!(summary["moved"], 5, "{summary}");
        }
    }
}

#[test]
fn an_evacuation_that_is_killed_goes_on_and_everything_arrives_in_the_order_asked() {
    let office = Office::new();
    let area = Area {
        seed: 3,
        disk: 1024 * MIB,
        regions: 3,
        length: 16 * MIB,
        rate: 100,
    };
    let load = Load::start(&office.database("t"), area, Ledger::default());
    load.goes_on(300);
    // What would be done is said, and nothing is.
    let words = ["evacuate", "all.json", "--dry-run", "--json"];
    let dry = diskferry(office.here(), &words).ok().json();
    assert_eq!(dry["machines"][0]["machine"], "urgent", "{dry}");
    assert_eq!(dry["in_time"], 5, "{dry}");
    let arriving = std::fs::read_dir(office.here().join("in")).unwrap();
    assert_eq!(arriving.count(), 0);
    // It is killed once the first has moved, while others are on their way.
    let mut first = office.evacuate();
    first.says_that("moved", |line| line["what"] == "moved");
    first.says_that("another begun", |line| {
        line["what"] == "begun" && line["machine"] != "urgent"
    });
    let before = moved(&first.said());
    first.kill();
    let mut second = office.evacuate();
    let summary = second.says("summary");
    assert!(second.ended().success(), "{summary}");
    let lines = second.said();
    let already = lines.iter();
    let already = already.filter(|line| line["what"] == "has moved already");
    assert!(already.count() >= before.len(), "{lines:?}");
    assert_eq!(
        (&summary["moved"], &summary["late"]),
        (&json!(5), &json!(0))
    );
    let order = [before, moved(&lines)].concat();
    println!("{order:?}");
    assert_eq!(order[0], "urgent", "{order:?}");
    let place = |name: &str| order.iter().position(|moved| moved == name);
    assert!(place("db") < place("app"), "{order:?}");
    // Nothing is lost, of what lay there and of what was written meanwhile.
    load.goes_on(100);
    verify(&office.database("r"), &load.well(), Promise::Acknowledged);
    office.arrived();
}

#[test]
fn an_evacuation_that_is_interrupted_begins_nothing_more_or_ends_what_runs_if_asked() {
    let folder = folder();
    let here = folder.path();
    std::fs::create_dir(here.join("in")).unwrap();
    for name in ["a", "b"] {
        std::fs::write(here.join(format!("{name}.img")), noise(9, 16 * MIB)).unwrap();
    }
    let mut serve = Running::start(here, &["serve", "a.img", "b.img", "--listen", "unix:s"]);
    serve.says("serving");
    let receive = [
        "receive",
        "--listen",
        "tcp:127.0.0.1:0",
        "--into",
        "in",
        "--serve",
        "unix:r",
    ];
    let mut receive = Running::start(here, &receive);
    let listen = receive.says("receiving")["listen"].clone();
    let machine = |name: &str| json!({"name": name, "site": "x", "disks": [{"image": format!("{name}.img"), "allocated": 16 * MIB}]});
    write(
        here,
        &json!({
            "deadline": later(6000),
            "links": [{"name": "wire", "from": "x", "to": "y", "bandwidth": 400_000, "share": 0.5}],
            "targets": [{"site": "y", "free": "1G", "address": listen}],
            "machines": [machine("a"), machine("b")],
        }),
    );
    let status = |name: &str| {
        let disk = format!("{name}.img");
        diskferry(here, &["mirror", "status", &disk, "--json"])
    };
    let interrupted = |words: &[&str]| {
        let mut run = Running::start(here, &[&["evacuate", "all.json"], words].concat());
        run.says("progress");
        let pid = run.pid().to_string();
        std::process::Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .expect("kill can be run");
        let ended = run.ended();
        assert_eq!(ended.code(), Some(130), "{}", run.log());
    };
    interrupted(&[]);
    assert_eq!(status("a").ok().json()["ended"], false);
    assert_ne!(status("b").code, 0, "the other one was begun");
    interrupted(&["--cancel-on-interrupt"]);
    let since = std::time::Instant::now();
    while status("a").ok().json()["ended"] != true {
        assert!(since.elapsed() < super::process::STUCK, "it goes on");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    serve.end();
    receive.end();
    assert_eq!(
        std::fs::read(here.join("a.img")).unwrap(),
        noise(9, 16 * MIB)
    );
}

#[test]
fn what_cannot_be_moved_is_named_and_the_rest_moves() {
    let folder = folder();
    let here = folder.path();
    std::fs::create_dir(here.join("in")).unwrap();
    std::fs::write(here.join("a.img"), noise(9, MIB)).unwrap();
    let mut serve = Running::start(here, &["serve", "a.img", "--listen", "unix:s"]);
    serve.says("serving");
    let receive = [
        "receive",
        "--listen",
        "tcp:127.0.0.1:0",
        "--into",
        "in",
        "--serve",
        "unix:r",
    ];
    let mut receive = Running::start(here, &receive);
    let listen = receive.says("receiving")["listen"].clone();
    let machine = |name: &str, bytes: u64| json!({"name": name, "site": "x", "disks": [{"image": format!("{name}.img"), "allocated": bytes}]});
    write(
        here,
        &json!({
            "deadline": later(600),
            "links": [{"name": "wire", "from": "x", "to": "y", "bandwidth": "20M", "share": 0.5}],
            "targets": [{"site": "y", "free": "10T", "address": listen}],
            "machines": [machine("a", MIB), machine("huge", 1 << 40)],
        }),
    );
    let ran = diskferry(here, &["evacuate", "all.json", "--json"]).ends(11);
    let lines = ran.json_lines();
    let summary = lines.iter().find(|line| line["type"] == "summary");
    let summary = summary.expect("a summary");
    assert_eq!(
        (&summary["moved"], &summary["not_moved"]),
        (&json!(1), &json!(1))
    );
    let huge = &summary["machines"][1];
    assert_eq!(huge["machine"], "huge");
    assert!(huge["why"].is_string(), "{summary}");
    serve.end();
    receive.end();
    assert_eq!(std::fs::read(here.join("in/a.img")).unwrap(), noise(9, MIB));
}
