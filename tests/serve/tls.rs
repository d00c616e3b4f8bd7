//! Encrypted NBD as other programs speak it, and who is let in.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, DnType, Issuer, KeyPair};

use crate::run::{Ran, command, diskferry, folder, program, ran};
use crate::serving::Serving;

const BYTES: usize = 8 << 20;

/// Identities of `names` in folders of their names, an image `a.raw` of random bytes, and `a.vhdx` made of it.
fn sites(here: &Path, names: &[&str]) {
    for name in names {
        // Programs that look at names want that of the host.
        diskferry(
            here,
            &["pair", "new", "--identity", name, "--name", "localhost"],
        )
        .ok();
    }
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()
    })
    .take(BYTES / 8)
    .flatten()
    .collect();
    std::fs::write(here.join("a.raw"), bytes).expect("it can be written");
    diskferry(here, &["convert", "a.raw", "a.vhdx"]).ok();
}

fn trust(here: &Path, who: &str, whom: &str) {
    let certificate = format!("{whom}/cert.pem");
    diskferry(
        here,
        &[
            "pair",
            "trust",
            &certificate,
            "--as",
            whom,
            "--identity",
            who,
        ],
    )
    .ok();
}

fn forget(here: &Path, who: &str, whom: &str) {
    diskferry(here, &["pair", "forget", whom, "--identity", who]).ok();
}

/// Serves `a.vhdx` encrypted as `who`.
fn serve_as(here: &Path, who: &str) -> Serving {
    let words = ["a.vhdx", "--listen", "tls:127.0.0.1:0", "--identity", who];
    Serving::start(here, &words)
}

/// Copies an export to `out.raw` as `who`.
fn copy_as(here: &Path, who: &str, uri: &str) -> Ran {
    let words = ["convert", "--force", uri, "out.raw"];
    ran(command(here, "diskferry", &words).env("DISKFERRY_IDENTITY", who))
}

fn free_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = listener.local_addr().expect("it has one");
    at.port().to_string()
}

/// A folder as `GnuTLS` has it: whom it trusts, who is an authority there, and who it is itself, in that role.
fn gnutls(here: &Path, trusted: &str, (who, role): (&str, &str)) -> PathBuf {
    let pki = here.join(format!("{who}-pki"));
    std::fs::create_dir(&pki).expect("a folder");
    for (from, to) in [
        (format!("{trusted}/cert.pem"), "ca-cert.pem".to_owned()),
        (format!("{who}/cert.pem"), format!("{role}-cert.pem")),
        (format!("{who}/key.pem"), format!("{role}-key.pem")),
    ] {
        std::fs::copy(here.join(from), pki.join(to)).expect("a copy");
    }
    pki
}

/// Has nbdkit serve `a.raw` encrypted, at a port that is free.
fn nbdkit(here: &Path, pki: &Path) -> (Child, String) {
    let certificates = format!("--tls-certificates={}", pki.display());
    // Somebody else may take it before.
    for _ in 0..5 {
        let port = free_port();
        let words = [
            "--foreground",
            "--ipaddr=127.0.0.1",
            "--port",
            &port,
            "--tls=require",
            &certificates,
            "--tls-verify-peer",
            "file",
            "a.raw",
        ];
        let mut server = command(here, "nbdkit", &words)
            .stderr(Stdio::null())
            .spawn()
            .expect("scripts/setup.sh installs nbdkit");
        while server.try_wait().expect("it is a child").is_none() {
            if TcpStream::connect(format!("127.0.0.1:{port}")).is_ok() {
                return (server, port);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    panic!("nbdkit does not listen");
}

#[track_caller]
fn is_the_same(here: &Path) {
    let read = |name: &str| std::fs::read(here.join(name)).expect("it is there");
    assert!(read("a.raw") == read("out.raw"), "other bytes");
}

#[test]
fn who_is_trusted_at_the_moment_is_let_in_and_nobody_else() {
    let here = folder();
    let here = here.path();
    sites(here, &["server", "friend", "stranger"]);
    trust(here, "server", "friend");
    trust(here, "friend", "server");
    trust(here, "stranger", "server");
    let serving = serve_as(here, "server");
    let uri = serving.uri();
    assert!(uri.starts_with("nbds://"), "{uri}");
    copy_as(here, "friend", &uri).ok();
    is_the_same(here);
    let refused = copy_as(here, "stranger", &uri);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("pair trust"), "{}", refused.stderr);
    // Nobody starts the server again.
    forget(here, "server", "friend");
    assert_ne!(copy_as(here, "friend", &uri).code, 0);
    trust(here, "server", "stranger");
    copy_as(here, "stranger", &uri).ok();
    is_the_same(here);
    // Nor does anybody read from a server that it does not know.
    forget(here, "stranger", "server");
    let refused = copy_as(here, "stranger", &uri);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("pair trust"), "{}", refused.stderr);
    let nobody = copy_as(here, "nobody", &uri);
    assert_ne!(nobody.code, 0);
    assert!(nobody.stderr.contains("pair new"), "{}", nobody.stderr);
    serving.end();
}

#[test]
fn a_client_that_does_not_encrypt_is_told_so_and_harms_nobody() {
    let here = folder();
    let here = here.path();
    sites(here, &["server", "friend"]);
    trust(here, "server", "friend");
    trust(here, "friend", "server");
    let serving = serve_as(here, "server");
    let plain = serving.uri().replace("nbds:", "nbd:");
    let told = diskferry(here, &["convert", &plain, "out.raw"]);
    assert_ne!(told.code, 0);
    assert!(told.stderr.contains("say nbds:"), "{}", told.stderr);
    let told = program(here, "nbdinfo", &[&plain]);
    assert_ne!(told.code, 0);
    // Some say nothing at all.
    let at = plain.trim_start_matches("nbd://").trim_end_matches("/a");
    let silent: Vec<_> = (0..40).map(|_| TcpStream::connect(at)).collect();
    copy_as(here, "friend", &serving.uri()).ok();
    is_the_same(here);
    drop(silent);
    serving.end();
}

#[test]
fn a_server_that_nobody_knows_does_not_listen_for_encrypted_connections() {
    let here = folder();
    let here = here.path();
    sites(here, &[]);
    let words = ["serve", "a.vhdx", "--listen", "tls:127.0.0.1:0"];
    let mut serve = command(here, "diskferry", &words);
    let told = ran(serve.env("DISKFERRY_IDENTITY", "none")).fails(1);
    assert!(told.stderr.contains("pair new"), "{}", told.stderr);
}

#[test]
fn other_programs_read_from_us_encrypted() {
    let here = folder();
    let here = here.path();
    sites(here, &["server", "friend"]);
    trust(here, "server", "friend");
    let serving = serve_as(here, "server");
    let port = serving.uri();
    let port = port.trim_start_matches("nbds://127.0.0.1:");
    let port = port.trim_end_matches("/a");
    let pki = gnutls(here, "server", ("friend", "client"));
    let uri = format!(
        "nbds://localhost:{port}/a?tls-certificates={}",
        pki.display()
    );
    program(here, "nbdcopy", &[&uri, "out.raw"]).ok();
    is_the_same(here);
    // QEMU wants a certificate of a client that is no authority's, and that it knows the authority of.
    let read = |path: &str| std::fs::read_to_string(here.join(path)).expect("it is there");
    let issuer = KeyPair::from_pem(&read("server/key.pem")).expect("a key");
    let mut named = CertificateParams::new(Vec::new()).expect("parameters");
    named.distinguished_name = DistinguishedName::new();
    named
        .distinguished_name
        .push(DnType::CommonName, "localhost");
    let issuer = Issuer::new(named, issuer);
    let key = KeyPair::generate().expect("a key");
    let made = CertificateParams::new(vec!["qemu".to_owned()])
        .and_then(|params| params.signed_by(&key, &issuer));
    std::fs::create_dir(here.join("qemu")).expect("a folder");
    let write = |path: &str, text: String| std::fs::write(here.join(path), text).expect("written");
    write("qemu/cert.pem", made.expect("a certificate").pem());
    write("qemu/key.pem", key.serialize_pem());
    trust(here, "server", "qemu");
    let pki = gnutls(here, "server", ("qemu", "client"));
    let credentials = format!("tls-creds-x509,id=t,endpoint=client,dir={}", pki.display());
    let source = format!("driver=nbd,host=localhost,port={port},export=a,tls-creds=t");
    let words = [
        "convert",
        "--object",
        &credentials,
        "--image-opts",
        &source,
        "-O",
        "raw",
        "out.raw",
    ];
    program(here, "qemu-img", &words).ok();
    is_the_same(here);
    serving.end();
}

#[test]
fn we_read_encrypted_from_another_server_that_is_trusted() {
    let here = folder();
    let here = here.path();
    sites(here, &["server", "friend"]);
    let (mut server, port) = nbdkit(here, &gnutls(here, "friend", ("server", "server")));
    let uri = format!("nbds://127.0.0.1:{port}/");
    let refused = copy_as(here, "friend", &uri);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("pair trust"), "{}", refused.stderr);
    trust(here, "friend", "server");
    copy_as(here, "friend", &uri).ok();
    is_the_same(here);
    server.kill().expect("it runs");
    server.wait().expect("it ends");
}
