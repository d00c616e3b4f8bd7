//! Fast switchovers: an arbiter decides, and one side goes on whatever happens to the other.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use mirror::record::State;
use mirror::wire::Message;
use serde_json::Value;

use super::ledger::{Ledger, Promise};
use super::load::{Area, Load, verify};
use super::process::{Running, STUCK, last_json};
use super::relay::Relay;
use super::site::{Sites, writable};
use crate::run::{command, program};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Sites that know an arbiter, with a disk that a client writes to.
fn busy(arbiter: &str) -> (Sites, Load) {
    let mut sites = Sites::new("a.vhdx", &["1G", "--block-size", "1M"]);
    sites.arbiter = Some(arbiter.to_owned());
    sites.run(&["arbiter", "new", arbiter]).ends(0);
    sites.serve();
    sites.receive();
    let load = Load::start(&sites.at_source(), area(), Ledger::default());
    load.goes_on(200);
    (sites, load)
}

fn area() -> Area {
    Area {
        seed: 23,
        disk: GIB,
        regions: 3,
        length: 16 * MIB,
        rate: 800,
    }
}

/// A directory at a third place.
struct Third(tempfile::TempDir);

impl Third {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn name(&self) -> String {
        format!("file:{}", self.0.path().display())
    }

    /// It is away until what is returned is dropped.
    fn away(&self) -> impl Drop {
        struct Away(std::path::PathBuf, std::path::PathBuf);
        impl Drop for Away {
            fn drop(&mut self) {
                std::fs::rename(&self.1, &self.0).expect("it comes back");
            }
        }
        let (here, there) = (
            self.0.path().to_owned(),
            self.0.path().with_extension("away"),
        );
        std::fs::rename(&here, &there).expect("it goes");
        Away(here, there)
    }
}

/// Who won, attempt by attempt.
#[track_caller]
fn decided(sites: &Sites) -> Vec<String> {
    let arbiter = sites.arbiter.as_deref().expect("an arbiter");
    let listed = last_json(&sites.run(&["arbiter", "list", arbiter, "--json"]).ends(0));
    let all = listed["decided"].as_array().expect("a list").iter();
    all.map(|one| one["winner"].as_str().expect("a side").to_owned())
        .collect()
}

/// Start a move through `relay` that waits for a `cutover`, and is in step.
fn in_step(sites: &Sites, relay: Option<&Relay>) {
    let arbiter = sites.arbiter.as_deref().expect("an arbiter");
    let to = relay.map_or_else(|| sites.to(), |relay| format!("tcp:{}", relay.address));
    let words = ["--manual", "--switchover", "fast", "--arbiter", arbiter];
    let start = [&["mirror", "start", "a.vhdx", "--to", &to], &words[..]].concat();
    sites.run(&start).ends(0);
    sites.until("in step", |status| status["stage"] == "synced");
}

/// Waits until the source's record is as wanted.
#[track_caller]
fn until_source(sites: &Sites, wanted: impl Fn(Option<&State>) -> bool) {
    let since = Instant::now();
    while !wanted(sites.records().0.as_ref()) {
        assert!(since.elapsed() < STUCK, "{:?}", sites.records());
        thread::sleep(Duration::from_millis(5));
    }
}

fn is_offered(state: Option<&State>) -> bool {
    matches!(state, Some(State::Offered { .. }))
}

/// The disk is the target's, with everything.
fn all_is_there(mut sites: Sites, load: Load) {
    load.goes_on(200);
    let ledger = load.well();
    verify(&sites.at_source(), &ledger, Promise::Acknowledged);
    verify(&sites.at_target(), &ledger, Promise::Acknowledged);
    let (source, target) = sites.records();
    assert!(
        matches!(source, Some(State::Released { epoch: 2, .. })),
        "{source:?}"
    );
    assert!(
        matches!(target, Some(State::Owner { epoch: 2, .. })),
        "{target:?}"
    );
    sites.end();
    program(sites.here(), "qemu-img", &["check", "in/a.vhdx"]).ends(0);
}

#[test]
fn a_busy_disk_moves_by_the_word_of_a_directory_that_both_reach() {
    let third = Third::new();
    let (sites, load) = busy(&third.name());
    in_step(&sites, None);
    sites.mirror("cutover").ends(0);
    let status = sites.moved();
    println!("held for {} us", status["pause"]);
    assert_eq!(decided(&sites), ["target"]);
    all_is_there(sites, load);
}

/// etcd, as Debian has it.
struct Etcd {
    child: Child,
    data: tempfile::TempDir,
    port: u16,
}

impl Etcd {
    fn start() -> Self {
        let free = || {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            listener.local_addr().expect("it has one").port()
        };
        let data = tempfile::tempdir().expect("a folder");
        let port = free();
        let child = run_etcd(data.path(), ("http", port, free()), &[]);
        Self { child, data, port }
    }

    fn name(&self) -> String {
        // The first member is not there.
        format!("etcd:http://127.0.0.1:1,http://127.0.0.1:{}", self.port)
    }

    fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    fn start_again(&mut self) {
        self.child = run_etcd(self.data.path(), ("http", self.port, 0), &[]);
    }
}

fn run_etcd(data: &Path, (scheme, port, peers): (&str, u16, u16), words: &[&str]) -> Child {
    let (client, peer) = (
        format!("{scheme}://127.0.0.1:{port}"),
        format!("http://127.0.0.1:{peers}"),
    );
    let log = std::fs::File::create(data.join("log")).expect("a log");
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/etcd/usr/bin/etcd");
    let etcd = if unpacked.exists() {
        unpacked.to_str().expect("UTF-8").to_owned()
    } else {
        "etcd".to_owned()
    };
    command(data, &etcd, &["--data-dir", "data"])
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args(["--listen-peer-urls", &peer])
        .args(words)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("etcd can be run: scripts/setup.sh provides it")
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let log = std::fs::read_to_string(self.data.path().join("log"));
            println!("--- etcd\n{}", log.unwrap_or_default());
        }
    }
}

/// `sites` can ask their arbiter.
#[track_caller]
fn until_it_answers(here: &Path, arbiter: &str) {
    let since = Instant::now();
    while crate::run::diskferry(here, &["arbiter", "list", arbiter]).code != 0 {
        assert!(since.elapsed() < STUCK, "{arbiter} never answers");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn etcd_decides_and_while_it_is_away_the_disk_stays_where_it_is() {
    let mut etcd = Etcd::start();
    let arbiter = etcd.name();
    let here = tempfile::tempdir().expect("a folder");
    let since = Instant::now();
    while crate::run::diskferry(here.path(), &["arbiter", "new", &arbiter]).code != 0 {
        assert!(since.elapsed() < STUCK, "etcd never answers");
        thread::sleep(Duration::from_millis(100));
    }
    let mut sites = Sites::new("a.vhdx", &["1G", "--block-size", "1M"]);
    let twice = sites.run(&["arbiter", "new", &arbiter]).ends(1);
    assert!(twice.stderr.contains("already"), "{}", twice.stderr);
    sites.arbiter = Some(arbiter.clone());
    sites.serve();
    sites.receive();
    let load = Load::start(&sites.at_source(), area(), Ledger::default());
    in_step(&sites, None);
    etcd.kill();
    sites.mirror("cutover").ends(0);
    let status = sites.until("given up", |status| status["given_up"] == 1);
    let trouble = status["trouble"].as_str().expect("a reason");
    assert!(trouble.contains("arbiter"), "{status}");
    load.goes_on(200);
    etcd.start_again();
    until_it_answers(sites.here(), &arbiter);
    assert!(decided(&sites).is_empty());
    sites.until("in step again", |status| status["stage"] == "synced");
    sites.mirror("cutover").ends(0);
    sites.moved();
    assert_eq!(decided(&sites), ["target"]);
    all_is_there(sites, load);
}

/// An authority, and a certificate of it for `127.0.0.1`, as files `NAME-ca.pem`, `NAME.pem` and `NAME-key.pem`.
fn certified(here: &Path, name: &str) {
    let write = |end: &str, pem: String| {
        std::fs::write(here.join(format!("{name}{end}.pem")), pem).expect("it is written");
    };
    let (own, other) = (rcgen::KeyPair::generate(), rcgen::KeyPair::generate());
    let (authority, key) = (own.expect("a key"), other.expect("a key"));
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&authority).expect("a certificate");
    let issuer = rcgen::Issuer::new(params, authority);
    let names = vec!["127.0.0.1".to_owned()];
    let leaf = rcgen::CertificateParams::new(names).expect("names");
    let leaf = leaf.signed_by(&key, &issuer).expect("a certificate");
    write("-ca", root.pem());
    write("", leaf.pem());
    write("-key", key.serialize_pem());
}

#[test]
fn etcd_over_tls_is_asked_only_where_either_side_knows_the_other() {
    let mut etcd = Etcd::start();
    etcd.kill();
    let here = etcd.data.path().to_owned();
    certified(&here, "a");
    certified(&here, "b");
    let words = ["--client-cert-auth", "--trusted-ca-file", "a-ca.pem"];
    let files = ["--cert-file", "a.pem", "--key-file", "a-key.pem"];
    let words = [words.as_slice(), &files].concat();
    etcd.child = run_etcd(&here, ("https", etcd.port, 0), &words);
    let address = format!("etcd:https://127.0.0.1:{}", etcd.port);
    let ask = |verb: &str, (authority, own): (&str, &str)| {
        let mut ask = command(&here, env!("CARGO_BIN_EXE_diskferry"), &["arbiter", verb]);
        ask.arg(&address);
        ask.env("ETCDCTL_CACERT", format!("{authority}-ca.pem"));
        if !own.is_empty() {
            ask.env("ETCDCTL_CERT", format!("{own}.pem"));
            ask.env("ETCDCTL_KEY", format!("{own}-key.pem"));
        }
        let out = ask.output().expect("it runs");
        (
            out.status.code(),
            String::from_utf8_lossy(&out.stderr).into_owned(),
        )
    };
    let since = Instant::now();
    while ask("new", ("a", "a")).0 != Some(0) {
        assert!(since.elapsed() < STUCK, "{}", ask("new", ("a", "a")).1);
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(ask("list", ("a", "a")).0, Some(0));
    let (code, said) = ask("list", ("b", "a"));
    assert!(
        code != Some(0) && said.contains("invalid peer certificate"),
        "{said}"
    );
    for nobody in ["", "b"] {
        let (code, said) = ask("list", ("a", nobody));
        assert!(code != Some(0), "{nobody}: {said}");
        println!("{said}");
    }
}

#[test]
fn without_its_arbiter_a_disk_can_still_move_safely() {
    let third = Third::new();
    let (sites, load) = busy(&third.name());
    in_step(&sites, None);
    {
        let _away = third.away();
        let cutover = ["mirror", "cutover", "a.vhdx", "--switchover", "safe"];
        sites.run(&cutover).ends(0);
        sites.moved();
    }
    assert!(decided(&sites).is_empty());
    all_is_there(sites, load);
}

#[test]
fn when_the_target_is_lost_after_the_offer_the_source_goes_on_by_itself() {
    let third = Third::new();
    let (sites, load) = busy(&third.name());
    let relay = Relay::start_until(sites.to_port(), |said| matches!(said, Message::Final(_)));
    in_step(&sites, Some(&relay));
    sites.mirror("cutover").ends(0);
    until_source(&sites, is_offered);
    let status = sites.until("given up", |status| status["given_up"] == 1);
    assert!(status["ended"] == false, "{status}");
    load.goes_on(200);
    assert_eq!(decided(&sites), ["source"]);
    let record = sites.records().0;
    assert!(
        matches!(record, Some(State::Owner { epoch: 1, .. })),
        "{record:?}"
    );
    relay.open();
    sites.until("in step again", |status| {
        status["connected"] == true && status["stage"] == "synced"
    });
    sites.mirror("cutover").ends(0);
    sites.moved();
    assert_eq!(decided(&sites), ["source", "target"]);
    all_is_there(sites, load);
}

#[test]
fn a_source_that_dies_after_its_offer_serves_again_only_by_the_arbiter_s_word() {
    let third = Third::new();
    let (mut sites, load) = busy(&third.name());
    let relay = Relay::start_until(sites.to_port(), |said| matches!(said, Message::Final(_)));
    in_step(&sites, Some(&relay));
    sites.mirror("cutover").ends(0);
    until_source(&sites, is_offered);
    sites.source.take().expect("it runs").kill();
    let (mut ledger, _) = load.finish();
    ledger.crashed();
    {
        let _away = third.away();
        let refused = sites
            .run(&["serve", "a.vhdx", "--listen", "unix:u"])
            .ends(5);
        assert!(refused.stderr.contains("arbiter"), "{}", refused.stderr);
        let refused = sites.run(&["convert", "a.vhdx", "b.img"]);
        assert_ne!(refused.code, 0, "{}", refused.stdout);
    }
    // Also by force it is asked first, if it can be: the other host has nothing to claim then.
    let mut forced = Running::start(
        sites.here(),
        &["serve", "a.vhdx", "--listen", "unix:u", "--take-over"],
    );
    forced.says("serving");
    assert_eq!(decided(&sites), ["source"]);
    forced.end();
    sites.serve();
    verify(&sites.at_source(), &ledger, Promise::Flushed);
    assert!(writable(&sites.at_source(), GIB - MIB));
    assert!(!writable(&sites.at_target(), GIB - MIB), "two serve it");
    sites.end();
    program(sites.here(), "qemu-img", &["check", "a.vhdx"]).ends(0);
}

#[test]
fn a_target_that_took_what_it_was_offered_is_forwarded_to_once_it_is_heard_of() {
    let third = Third::new();
    let (sites, load) = busy(&third.name());
    let relay = Relay::start_until(sites.to_port(), |said| {
        matches!(said, Message::Running { .. })
    });
    in_step(&sites, Some(&relay));
    sites.mirror("cutover").ends(0);
    // The word that it runs is lost; the source asks, and hears that the disk is gone.
    until_source(&sites, |state| {
        matches!(state, Some(State::Released { .. }))
    });
    assert_eq!(decided(&sites), ["target"]);
    assert!(writable(&sites.at_target(), GIB - MIB));
    relay.open();
    sites.moved();
    all_is_there(sites, load);
}

#[test]
fn a_source_that_dies_after_its_offer_was_taken_forwards_when_it_is_back() {
    let third = Third::new();
    let (mut sites, load) = busy(&third.name());
    let relay = Relay::start_until(sites.to_port(), |said| {
        matches!(said, Message::Running { .. })
    });
    in_step(&sites, Some(&relay));
    sites.mirror("cutover").ends(0);
    until_source(&sites, is_offered);
    let since = Instant::now();
    while !matches!(sites.records().1, Some(State::Owner { .. })) {
        assert!(since.elapsed() < STUCK, "{:?}", sites.records());
    }
    sites.source.take().expect("it runs").kill();
    let (mut ledger, _) = load.finish();
    ledger.crashed();
    sites.serve();
    relay.open();
    let since = Instant::now();
    while !writable(&sites.at_source(), GIB - MIB) {
        assert!(since.elapsed() < STUCK, "it is never forwarded");
    }
    verify(&sites.at_source(), &ledger, Promise::Flushed);
    verify(&sites.at_target(), &ledger, Promise::Flushed);
    let record = sites.records().0;
    assert!(matches!(record, Some(State::Released { .. })), "{record:?}");
    sites.end();
    program(sites.here(), "qemu-img", &["check", "in/a.vhdx"]).ends(0);
}

#[test]
fn two_hosts_that_mean_different_arbiters_do_not_switch_over() {
    let (third, other) = (Third::new(), Third::new());
    let (mut sites, load) = busy(&third.name());
    sites.run(&["arbiter", "new", &other.name()]).ends(0);
    let refused = |words: &[&str]| {
        let ran = sites.start(&[&["--manual"], words].concat());
        assert_ne!(ran.code, 0, "{words:?}: {}", ran.stdout);
        ran.stderr
    };
    let nowhere = refused(&["--switchover", "fast"]);
    assert!(nowhere.contains("needs an arbiter"), "{nowhere}");
    let nobody = Third::new();
    let nobody = refused(&["--switchover", "fast", "--arbiter", &nobody.name()]);
    assert!(nobody.contains("arbiter new"), "{nobody}");
    sites.arbiter = Some(other.name());
    in_step(&sites, None);
    sites.mirror("cutover").ends(0);
    let status = sites.until("given up", |status| status["given_up"] == 1);
    let trouble = status["trouble"].as_str().expect("a reason");
    assert!(trouble.contains("the same one"), "{status}");
    assert_eq!(status["error"], Value::Null);
    for arbiter in [third.name(), other.name()] {
        sites.arbiter = Some(arbiter);
        assert!(decided(&sites).is_empty());
    }
    load.goes_on(100);
    load.well();
}
