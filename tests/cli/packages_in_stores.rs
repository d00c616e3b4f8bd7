//! Packages in a store that speaks S3: a server of another project, and a line to it that fails now and then.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use teststore::{Line, Server};

use super::packages::noise;
use super::packages_of_changes::{same, served, tracked, write_noise};
use super::packages_sealed::identity;
use super::run::{Ran, command, folder, program, ran};

const MIB: u64 = 1 << 20;
const ID: &str = "the-id-of-the-key";
const SECRET: &str = "open-sesame-0123456789";
const PLACE: &str = "s3://bucket/disks/a";

/// A folder with a server of it, which has one bucket.
struct Shop {
    here: tempfile::TempDir,
    server: Server,
}

impl Shop {
    fn open() -> Self {
        let here = folder();
        fs::create_dir_all(here.path().join("store/bucket")).unwrap();
        let server = Server::start(&here.path().join("store"), (ID, SECRET)).unwrap();
        Self { here, server }
    }

    fn here(&self) -> &Path {
        self.here.path()
    }

    /// Where the object of that file is kept.
    fn object(&self, file: &str) -> PathBuf {
        self.here().join("store/bucket/disks/a").join(file)
    }

    /// How many parts there are of uploads that were begun and not ended: what would be paid for.
    fn unfinished(&self) -> usize {
        let files = fs::read_dir(self.here().join("store")).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(".upload_id-")).count()
    }

    fn command(&self, at: SocketAddr, words: &[&str]) -> Command {
        let mut command = command(self.here(), "diskferry", words);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("AWS_") {
                command.env_remove(name);
            }
        }
        command
            .env("AWS_ACCESS_KEY_ID", ID)
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .env("AWS_ENDPOINT_URL", format!("http://{at}"))
            .env("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1");
        command
    }

    /// Runs the program; whatever it says, it says no secret.
    #[track_caller]
    fn run(&self, words: &[&str]) -> Ran {
        discreet(ran(&mut self.command(self.server.address(), words)))
    }
}

#[track_caller]
fn discreet(ran: Ran) -> Ran {
    let said = format!("{}{}", ran.stdout, ran.stderr);
    assert!(!said.contains(SECRET), "{said}");
    ran
}

#[track_caller]
fn says(ran: &Ran, words: &str) {
    assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
}

fn summary(ran: &Ran) -> Value {
    ran.json_lines().last().unwrap().clone()
}

/// A disk of `len` bytes of noise, with a hole in it.
fn disk(here: &Path, len: u64) {
    use std::os::unix::fs::FileExt as _;
    let disk = fs::File::create(here.join("a.img")).unwrap();
    disk.set_len(len + 50 * MIB).unwrap();
    disk.write_all_at(&noise(len, 5), 3 * MIB + 4096).unwrap();
}

#[track_caller]
fn same_as_raw(here: &Path) {
    let words = ["compare", "-f", "raw", "-F", "vhdx", "a.img", "b.vhdx"];
    program(here, "qemu-img", &words).ok();
}

const EXPORT: [&str; 6] = ["export", "a.img", "--to", PLACE, "--volume-size", "20M"];
const IMPORT: [&str; 4] = ["import", "b.vhdx", "--from", PLACE];

#[test]
fn a_package_in_a_store_becomes_the_same_disk_and_may_be_carried_to_a_folder() {
    let shop = Shop::open();
    let here = shop.here();
    disk(here, 50 * MIB);
    let exported = shop
        .run(&[&EXPORT[..], &["--verify", "--json"]].concat())
        .ok();
    let exported = summary(&exported);
    assert_eq!(exported["volumes"], 3, "{exported}");
    assert_eq!(exported["manifest"], format!("{PLACE}/a.manifest"));
    shop.run(&IMPORT).ok();
    same_as_raw(here);
    assert_eq!(shop.unfinished(), 0);
    // Nothing but the package is there, and by its names it is one in a folder too.
    let mut files: Vec<_> = fs::read_dir(shop.object("")).unwrap().collect();
    assert_eq!(files.len(), 4, "{files:?}");
    fs::create_dir(here.join("carried")).unwrap();
    for file in files.drain(..) {
        let file = file.unwrap();
        fs::copy(file.path(), here.join("carried").join(file.file_name())).unwrap();
    }
    let print = exported["fingerprint"].as_str().unwrap();
    let words = [
        "import", "b.vhdx", "--force", "--from", "carried", "--expect", print,
    ];
    shop.run(&words).ok();
    same_as_raw(here);
    // It is whole: nobody writes over it.
    says(&shop.run(&EXPORT).fails(1), "is of a whole package");
    let checked = shop
        .run(&["import", "--check", "--from", PLACE, "--name", "a"])
        .ok();
    assert!(checked.stdout.contains("sound") || checked.stderr.contains("sound"));
}

#[test]
fn changes_travel_through_a_store() {
    let shop = Shop::open();
    let here = shop.here();
    tracked(here, 16 * MIB);
    let to = ["export", "a.vhdx", "--to"];
    shop.run(&[&to[..], &["s3://bucket/one"]].concat()).ok();
    served(here, "a.vhdx", |client| {
        write_noise(client, 100 * MIB, 4 * MIB);
        client.write(11 * MIB, &[0; 4096], false).unwrap();
    });
    let words = [&to[..], &["s3://bucket/two", "--since", "last", "--json"]].concat();
    let two = summary(&shop.run(&words).ok());
    assert!(two["stored_bytes"].as_u64().unwrap() < 5 * MIB, "{two}");
    for package in ["s3://bucket/one", "s3://bucket/two"] {
        shop.run(&["import", "b.vhdx", "--from", package]).ok();
    }
    same(here);
}

#[test]
fn an_encrypted_package_in_a_store_is_read_with_its_key_alone() {
    let shop = Shop::open();
    let here = shop.here();
    let recipient = identity(here, "key.txt");
    identity(here, "other.txt");
    disk(here, 9 * MIB);
    shop.run(&[&EXPORT[..], &["--encrypt-to", &recipient]].concat())
        .ok();
    assert!(shop.object("a.001.age").exists());
    shop.run(&IMPORT).fails(2);
    shop.run(&[&IMPORT[..], &["--identity", "other.txt"]].concat())
        .fails(1);
    shop.run(&[&IMPORT[..], &["--identity", "key.txt"]].concat())
        .ok();
    same_as_raw(here);
}

/// Exports until it is in the midst of an upload, and kills it; until that was so.
fn killed_in_an_upload(shop: &Shop) {
    for _ in 0..20 {
        let mut child = shop
            .command(shop.server.address(), &EXPORT)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while !(shop.object("a.002").exists() && shop.unfinished() > 0) {
            assert!(child.try_wait().unwrap().is_none(), "it was too fast");
            thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if shop.unfinished() > 0 {
            return;
        }
    }
    panic!("it was never killed in an upload");
}

#[test]
fn an_export_that_was_killed_goes_on_and_leaves_no_upload_unfinished() {
    let shop = Shop::open();
    let here = shop.here();
    disk(here, 300 * MIB);
    killed_in_an_upload(&shop);
    assert!(shop.object("a.export.json").exists());
    // Half a package is none.
    says(&shop.run(&IMPORT).fails(1), "there is no manifest");
    let first = fs::metadata(shop.object("a.001"))
        .unwrap()
        .modified()
        .unwrap();
    let exported = summary(&shop.run(&[&EXPORT[..], &["--json"]].concat()).ok());
    assert!(
        exported["resumed_volumes"].as_u64().unwrap() >= 1,
        "{exported}"
    );
    let now = fs::metadata(shop.object("a.001"))
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(first, now, "whole volumes are kept");
    assert_eq!(shop.unfinished(), 0);
    assert!(!shop.object("a.export.json").exists());
    shop.run(&IMPORT).ok();
    same_as_raw(here);
}

#[test]
fn starting_over_leaves_nothing_of_what_was_begun() {
    let shop = Shop::open();
    let here = shop.here();
    disk(here, 300 * MIB);
    killed_in_an_upload(&shop);
    // Another disk has come: it is not gone on with.
    disk(here, 30 * MIB);
    says(&shop.run(&EXPORT).fails(1), "--restart");
    shop.run(&[&EXPORT[..], &["--restart"]].concat()).ok();
    assert_eq!(shop.unfinished(), 0);
    assert_eq!(fs::read_dir(shop.object("")).unwrap().count(), 3);
    shop.run(&IMPORT).ok();
    same_as_raw(here);
}

#[test]
fn what_is_not_the_object_that_was_exported_is_refused() {
    let shop = Shop::open();
    let here = shop.here();
    disk(here, 50 * MIB);
    shop.run(&EXPORT).ok();
    let (one, two) = (shop.object("a.001"), shop.object("a.002"));
    let sound = fs::read(&two).unwrap();
    let refused = |what: &str| {
        let ran = shop.run(&IMPORT).fails(3);
        says(&ran, "a.002");
        assert!(!here.join("b.vhdx").exists(), "{what}");
        says(
            &shop.run(&["import", "--check", "--from", PLACE]).fails(3),
            "a.002",
        );
    };
    let mut harmed = sound.clone();
    harmed[(9 * MIB) as usize] ^= 1;
    fs::write(&two, &harmed).unwrap();
    refused("one bit is another");
    fs::write(&two, &sound[..(9 * MIB) as usize]).unwrap();
    refused("it is cut off");
    fs::write(&two, fs::read(&one).unwrap()).unwrap();
    refused("it is another volume");
    fs::remove_file(&two).unwrap();
    refused("it is missing");
    // What came before is kept, and with the right object the import goes on.
    fs::write(&two, &sound).unwrap();
    shop.run(&IMPORT).ok();
    same_as_raw(here);
    let manifest = shop.object("a.manifest");
    let mut text = fs::read(&manifest).unwrap();
    let last = text.len() - 3;
    text[last] ^= 1;
    fs::write(&manifest, text).unwrap();
    shop.run(&[&IMPORT[..], &["--force"]].concat()).fails(3);
}

#[test]
fn a_store_that_fails_now_and_then_and_drops_connections_is_borne() {
    let shop = Shop::open();
    let here = shop.here();
    disk(here, 60 * MIB);
    let line = Line::start(shop.server.address()).unwrap();
    let run = |words: &[&str]| discreet(ran(&mut shop.command(line.address(), words)));
    run(&[&EXPORT[..], &["--verify"]].concat()).ok();
    let exporting = line.failures();
    assert!(exporting > 3, "{exporting}");
    assert_eq!(shop.unfinished(), 0);
    run(&IMPORT).ok();
    assert!(line.failures() > exporting + 3, "{}", line.failures());
    same_as_raw(here);
}

#[test]
fn of_two_exports_to_one_place_at_most_one_ends_and_the_package_is_sound() {
    let shop = Shop::open();
    let here = shop.here();
    disk(here, 300 * MIB);
    let start = || {
        shop.command(shop.server.address(), &EXPORT)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let first = start();
    while !shop.object("a.001").exists() {
        thread::sleep(Duration::from_millis(1));
    }
    // One of another disk has no chance at all.
    fs::write(here.join("c.img"), noise(3 * MIB, 9)).unwrap();
    let other = ["export", "c.img", "--name", "a", "--to", PLACE];
    says(&shop.run(&other).fails(1), "another");
    // One of the same disk goes on where it was, and the first one notices.
    let second = start();
    let ends = [first, second].map(|child| child.wait_with_output().unwrap());
    let codes = ends.each_ref().map(|end| end.status.code().unwrap());
    let whole = codes.iter().filter(|code| **code == 0).count();
    assert!(whole < 2, "{codes:?}");
    if whole == 0 {
        // The first one finished a volume just as the second one was to begin it: both are refused.
        shop.run(&EXPORT).ok();
    }
    assert_eq!(shop.unfinished(), 0);
    shop.run(&IMPORT).ok();
    same_as_raw(here);
}

#[test]
fn troubles_say_what_where_and_what_to_do_and_no_secret() {
    let shop = Shop::open();
    let here = shop.here();
    disk(here, MIB);
    let at = shop.server.address();
    let none = ran(shop
        .command(at, &EXPORT)
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY"));
    says(&none.fails(1), "AWS_SECRET_ACCESS_KEY in the environment");
    let wrong = ran(shop
        .command(at, &EXPORT)
        .env("AWS_SECRET_ACCESS_KEY", "other-secret"));
    assert!(!wrong.stderr.contains("other-secret"), "{}", wrong.stderr);
    says(&wrong.fails(1), "look at the credentials");
    let typed = format!("s3://{ID}:{SECRET}@bucket/a");
    says(
        &shop.run(&["export", "a.img", "--to", &typed]).fails(2),
        "credentials",
    );
    let plain = [
        "export",
        "a.img",
        "--to",
        PLACE,
        "--endpoint",
        "http://store.example",
    ];
    says(&shop.run(&plain).fails(2), "--allow-http");
    // Nothing of all that left anything.
    assert!(!shop.object("").exists());
    assert_eq!(shop.unfinished(), 0);
}
