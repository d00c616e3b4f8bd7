//! Packages that are encrypted: who has the key reads them, and nobody else changes them.

use std::fs;
use std::path::Path;

use age::secrecy::ExposeSecret as _;

use super::packages::noise;
use super::run::{diskferry, folder, program};

const MIB: u64 = 1 << 20;

/// An identity in `file`; its recipient.
pub(crate) fn identity(here: &Path, file: &str) -> String {
    let identity = age::x25519::Identity::generate();
    let text = format!("# a key\n{}\n", identity.to_string().expose_secret());
    fs::write(here.join(file), text).unwrap();
    identity.to_public().to_string()
}

fn same(here: &Path) {
    let words = ["compare", "-f", "raw", "-F", "vhdx", "a.img", "b.vhdx"];
    program(here, "qemu-img", &words).ok();
}

#[test]
fn a_package_for_a_recipient_is_read_with_its_key_alone() {
    let here = folder();
    let here = here.path();
    let recipient = identity(here, "key.txt");
    fs::write(
        here.join("recipients"),
        format!("# at the other site\n{recipient}\n"),
    )
    .unwrap();
    identity(here, "other.txt");
    let mut disk = noise(8 * MIB, 11);
    disk[..20].copy_from_slice(b"words that none sees");
    fs::write(here.join("a.img"), &disk).unwrap();
    let words = [
        "export",
        "a.img",
        "--to",
        "p",
        "--volume-size",
        "2M",
        "--verify",
    ];
    diskferry(
        here,
        &[&words[..], &["--recipients-file", "recipients"]].concat(),
    )
    .ok();
    for file in fs::read_dir(here.join("p")).unwrap() {
        let file = file.unwrap().path();
        assert_eq!(file.extension().unwrap(), "age", "{file:?}");
        let bytes = fs::read(&file).unwrap();
        assert!(bytes.len() as u64 <= 2 * MIB);
        assert!(
            !bytes
                .windows(20)
                .any(|part| part == b"words that none sees"),
            "{file:?}"
        );
    }
    let import = ["import", "b.vhdx", "--from", "p"];
    diskferry(here, &import).fails(2);
    diskferry(here, &[&import[..], &["--identity", "other.txt"]].concat()).fails(1);
    assert!(!here.join("b.vhdx").exists());
    diskferry(here, &[&import[..], &["--identity", "key.txt"]].concat()).ok();
    same(here);
    let both = [
        "--encrypt-to",
        &recipient,
        "--passphrase-file",
        "recipients",
    ];
    diskferry(
        here,
        &[&["export", "a.img", "--to", "q"], &both[..]].concat(),
    )
    .fails(2);
    diskferry(
        here,
        &["export", "a.img", "--to", "q", "--encrypt-to", "age1me"],
    )
    .fails(2);
}

#[test]
fn whoever_changes_an_encrypted_package_is_noticed() {
    let here = folder();
    let here = here.path();
    let recipient = identity(here, "key.txt");
    let export = |to: &str| {
        let words = [
            "export",
            "a.img",
            "--to",
            to,
            "--volume-size",
            "2M",
            "--encrypt-to",
            &recipient,
        ];
        let lines = diskferry(here, &[&words[..], &["--json"]].concat())
            .ok()
            .json_lines();
        lines.last().unwrap()["fingerprint"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    fs::write(here.join("a.img"), noise(8 * MIB, 12)).unwrap();
    let old = export("old");
    fs::write(here.join("a.img"), noise(8 * MIB, 13)).unwrap();
    let new = export("new");
    let import = ["import", "b.vhdx", "--from", "new", "--identity", "key.txt"];
    let refused = |words: &[&str], code| {
        let ran = diskferry(here, &[&import[..], words].concat()).fails(code);
        assert!(!here.join("b.vhdx").exists());
        ran.stderr
    };
    // A volume of the older package, for the same recipient.
    let sound = fs::read(here.join("new/a.002.age")).unwrap();
    fs::copy(here.join("old/a.002.age"), here.join("new/a.002.age")).unwrap();
    let said = refused(&[], 3);
    assert!(said.contains("a.002.age"), "{said}");
    for at in [100, 5000, sound.len() - 1] {
        let mut harmed = sound.clone();
        harmed[at] ^= 1;
        fs::write(here.join("new/a.002.age"), harmed).unwrap();
        let said = refused(&[], 3);
        assert!(said.contains("a.002.age"), "{said}");
    }
    fs::write(here.join("new/a.002.age"), &sound).unwrap();
    // The whole of the older package, or one that anybody made, is another one.
    let rolled_back = [
        "import",
        "b.vhdx",
        "--from",
        "old",
        "--identity",
        "key.txt",
        "--expect",
        &new,
    ];
    diskferry(here, &rolled_back).fails(6);
    refused(&["--expect", &old], 6);
    diskferry(here, &[&import[..], &["--expect", &new]].concat()).ok();
    same(here);
}

#[test]
fn a_package_that_is_not_encrypted_is_not_taken_for_one_that_is() {
    let here = folder();
    let here = here.path();
    identity(here, "key.txt");
    fs::write(here.join("a.img"), noise(MIB, 15)).unwrap();
    diskferry(here, &["export", "a.img", "--to", "plain"]).ok();
    let import = ["import", "b.vhdx", "--from", "plain"];
    diskferry(here, &[&import[..], &["--identity", "key.txt"]].concat()).fails(3);
    assert!(!here.join("b.vhdx").exists());
    diskferry(here, &import).ok();
    same(here);
}

#[test]
fn a_passphrase_opens_what_it_closed() {
    let here = folder();
    let here = here.path();
    fs::write(here.join("secret"), "correct horse\n").unwrap();
    fs::write(here.join("wrong"), "battery staple\n").unwrap();
    fs::write(here.join("empty"), "\n").unwrap();
    fs::write(here.join("a.img"), noise(MIB, 14)).unwrap();
    let export = |file| ["export", "a.img", "--to", "p", "--passphrase-file", file];
    diskferry(here, &export("empty")).fails(2);
    diskferry(here, &export("secret")).ok();
    let import = |file| ["import", "b.vhdx", "--from", "p", "--passphrase-file", file];
    diskferry(here, &import("wrong")).fails(1);
    diskferry(here, &import("secret")).ok();
    same(here);
}
