//! Two sites that know each other, and those that do not.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use super::ledger::{Ledger, Promise};
use super::load::{Area, Load, verify};
use super::process::{Running, last_json};
use super::relay::Relay;
use super::site::Sites;

/// A disk, and three identities: `here` and `there` know each other, `stranger` knows both and is known by nobody.
pub(crate) fn acquainted() -> Sites {
    let sites = Sites::new("a.vhdx", &["1G", "--block-size", "1M"]);
    for name in ["here", "there", "stranger"] {
        let new = ["pair", "new", "--identity", name, "--name", name];
        sites.run(&new).ends(0);
    }
    for (who, whom) in [
        ("here", "there"),
        ("there", "here"),
        ("stranger", "there"),
        ("stranger", "here"),
    ] {
        let certificate = format!("{whom}/cert.pem");
        let trust = ["pair", "trust", &certificate, "--as", whom];
        sites
            .run(&[&trust[..], &["--identity", who]].concat())
            .ends(0);
    }
    sites
}

/// `serve` as one of them.
pub(crate) fn serve_as(sites: &Sites, who: &str) -> Running {
    let words = ["serve", "a.vhdx", "--listen", "unix:s", "--identity", who];
    let mut serve = Running::start(sites.here(), &words);
    serve.says("serving");
    serve
}

/// `receive` as one of them; where it listens.
pub(crate) fn receive_as(sites: &Sites, who: &str, listen: &str) -> (Running, String) {
    let words = [
        "receive", "--listen", listen, "--into", "in", "--serve", "unix:t",
    ];
    let words = [&words[..], &["--identity", who]].concat();
    let mut receive = Running::start(sites.here(), &words);
    let at = receive.says("receiving")["listen"].clone();
    (receive, at.as_str().expect("an address").to_owned())
}

/// The address of a relay to a site that listens at `at`, spoken to in the same way.
fn through(relay: &Relay, at: &str) -> String {
    let scheme = &at[..3];
    format!("{scheme}:{}", relay.address)
}

fn relay_to(at: &str) -> Relay {
    Relay::start(at[4..].to_owned())
}

#[test]
fn sites_that_know_each_other_move_a_disk_that_nobody_else_can_read() {
    let mut sites = acquainted();
    let area = Area {
        seed: 3,
        disk: 1 << 30,
        regions: 4,
        length: 4 << 20,
        rate: 2000,
    };
    sites.source = Some(serve_as(&sites, "here"));
    let load = Load::start(&sites.at_source(), area, Ledger::default());
    load.goes_on(500);
    let (receive, at) = receive_as(&sites, "there", "tls:127.0.0.1:0");
    assert!(at.starts_with("tls:"), "{at}");
    let relay = relay_to(&at);
    let to = through(&relay, &at);
    sites
        .run(&["mirror", "start", "a.vhdx", "--to", &to, "--manual"])
        .ends(0);
    sites.until("in step", |status| status["stage"] == "synced");
    load.goes_on(200);
    // Who comes back is known again, and so is who is told where the disk is after the word.
    sites.source.take().expect("it runs").kill();
    let (mut ledger, _) = load.finish();
    ledger.crashed();
    sites.source = Some(serve_as(&sites, "here"));
    let load = Load::start(&sites.at_source(), area, ledger);
    sites.mirror("cutover").ends(0);
    sites.moved();
    load.goes_on(200);
    let ledger = load.well();
    assert!(!relay.was_greeted(), "a greeting could be read on the way");
    verify(&sites.at_target(), &ledger, Promise::Flushed);
    sites.source.take().expect("it runs").end();
    receive.end();
}

#[test]
fn what_is_not_encrypted_can_be_read_on_the_way() {
    let sites = acquainted();
    let serve = serve_as(&sites, "here");
    let (receive, at) = receive_as(&sites, "there", "tcp:127.0.0.1:0");
    let relay = relay_to(&at);
    let to = through(&relay, &at);
    sites
        .run(&["mirror", "start", "a.vhdx", "--to", &to, "--wait"])
        .ends(0);
    assert!(relay.was_greeted());
    serve.end();
    receive.end();
}

/// Where the target's record would be.
fn nothing_came(sites: &Sites) {
    let (_, target) = sites.records();
    assert_eq!(target, None);
    assert!(!sites.here().join("in/a.vhdx").exists());
}

/// What a move says that cannot be made.
fn trouble(status: &Value) -> String {
    status["trouble"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn who_is_not_known_gets_nowhere_from_either_side() {
    // A stranger sends, and a stranger receives.
    for (source, target) in [("stranger", "there"), ("here", "stranger")] {
        let mut sites = acquainted();
        sites.source = Some(serve_as(&sites, source));
        let (receive, at) = receive_as(&sites, target, "tls:127.0.0.1:0");
        sites
            .run(&["mirror", "start", "a.vhdx", "--to", &at])
            .ends(0);
        let status = sites.until("refused", |status| !trouble(status).is_empty());
        assert_eq!(status["stage"], "connecting", "{status}");
        assert!(trouble(&status).contains("pair trust"), "{status}");
        nothing_came(&sites);
        sites.source.take().expect("it runs").end();
        receive.end();
    }
}

#[test]
fn a_site_that_encrypts_says_so_to_one_that_does_not() {
    let sites = acquainted();
    let serve = serve_as(&sites, "here");
    let (receive, at) = receive_as(&sites, "there", "tls:127.0.0.1:0");
    let plainly = at.replace("tls:", "tcp:");
    let start = ["mirror", "start", "a.vhdx", "--to", &plainly, "--wait"];
    let ran = sites.run(&start).ends(8);
    assert!(ran.stderr.contains("say tls:"), "{}", ran.stderr);
    nothing_came(&sites);
    serve.end();
    receive.end();
}

#[test]
fn nothing_crosses_a_network_unencrypted_unless_that_is_asked_for() {
    let sites = acquainted();
    let serve = serve_as(&sites, "here");
    let start = ["mirror", "start", "a.vhdx", "--to", "tcp:192.0.2.1:9000"];
    let ran = sites.run(&start).ends(2);
    assert!(ran.stderr.contains("--plain"), "{}", ran.stderr);
    sites.run(&[&start[..], &["--plain"]].concat()).ends(0);
    serve.end();
    let listen = ["receive", "--listen", "tcp:0.0.0.0:0", "--into", "in"];
    let listen = [&listen[..], &["--serve", "unix:t"]].concat();
    let ran = sites.run(&listen).ends(2);
    assert!(ran.stderr.contains("--plain"), "{}", ran.stderr);
    let mut receive = Running::start(sites.here(), &[&listen[..], &["--plain"]].concat());
    receive.says("receiving");
    receive.end();
}

#[test]
fn an_identity_is_made_once_and_its_key_is_for_nobody_else() {
    let sites = acquainted();
    let mode = |path: &str| {
        let about = std::fs::metadata(sites.here().join(path)).expect("it is there");
        about.permissions().mode() & 0o777
    };
    assert_eq!((mode("here"), mode("here/key.pem")), (0o700, 0o600));
    let ran = sites.run(&["pair", "new", "--identity", "here"]).ends(2);
    assert!(ran.stderr.contains("exists already"), "{}", ran.stderr);
    let show = ["pair", "show", "--identity", "here", "--json"];
    let own = last_json(&sites.run(&show).ends(0));
    let list = ["pair", "list", "--identity", "there", "--json"];
    let known = last_json(&sites.run(&list).ends(0));
    assert_eq!(own["fingerprint"], known["fingerprint"]);
    assert_eq!(known["name"], "here");
    // Whatever it is called: what lies there is trusted, and told of.
    let odd = sites.here().join("there/peers/zoo (old).pem");
    std::fs::copy(sites.here().join("stranger/cert.pem"), odd).expect("a copy");
    let odd = last_json(&sites.run(&list).ends(0));
    assert_eq!(odd["name"], "zoo (old)");
    let forget = ["pair", "forget", "here", "--identity", "there"];
    sites.run(&forget).ends(0);
    assert!(!sites.here().join("there/peers/here.pem").exists());
    // Neither a path nor something that is no certificate.
    for (file, name) in [("here/cert.pem", "../x"), ("here/key.pem", "x")] {
        let trust = ["pair", "trust", file, "--as", name, "--identity", "there"];
        assert_ne!(sites.run(&trust).code, 0, "{file} as {name}");
    }
}

#[test]
fn an_identity_that_is_broken_and_was_not_asked_for_keeps_no_disk_from_its_clients() {
    let sites = acquainted();
    let key = sites.here().join("here/key.pem");
    std::fs::write(key, "no key").expect("it can be written");
    let words = ["serve", "a.vhdx", "--listen", "unix:s"];
    let asked = [&words[..], &["--identity", "here"]].concat();
    let ran = sites.run(&asked).ends(1);
    assert!(ran.stderr.contains("no private key"), "{}", ran.stderr);
    let by_default = Some(("DISKFERRY_IDENTITY", "here"));
    let mut serve = Running::start_with(sites.here(), &words, by_default);
    serve.says("serving");
    assert!(serve.log().contains("no private key"), "{}", serve.log());
    let start = ["mirror", "start", "a.vhdx", "--to", "tls:127.0.0.1:9"];
    let ran = sites.run(&start).ends(2);
    assert!(ran.stderr.contains("--identity"), "{}", ran.stderr);
    serve.end();
}
