//! The floors and the arrows between them: who may touch what, import whom, and be unsafe.

use crate::rust::{has_word, is_test_file};
use crate::{File, accepted, refused};

/// Codecs and machines: they decide or translate, and touch nothing.
const PURE: [&str; 46] = [
    "vdisk/src/format",
    "vdisk/src/foreign",
    "vdisk/src/engine",
    "vdisk/src/size",
    "blockserver/src/nbd",
    "blockserver/src/throttle",
    "blockserver/src/virtio",
    "mirror/src/wire",
    "mirror/src/session",
    "mirror/src/arbiter",
    "mirror/src/evacuation",
    "mirror/src/switchover",
    "mirror/src/journal",
    "mirror/src/joint",
    "mirror/src/group",
    "mirror/src/sequence",
    "mirror/src/saved",
    "mirror/src/way_back",
    "package/src",
    "src/moving/volume",
    "mirror/src/pacing",
    "mirror/src/timetable",
    "mirror/src/tracker",
    "mirror/src/ownership",
    "vmm/src/acpi",
    "vmm/src/bus",
    "vmm/src/description",
    "vmm/src/devices",
    "vmm/src/pci",
    "vmm/src/virtio/mod",
    "vmm/src/virtio/net/frames",
    "vmm/src/virtio/net/header",
    "vmm/src/virtio/pci",
    "vmm/src/virtio/transport",
    "vmm/src/boot/elf",
    "vmm/src/boot/start_info",
    "vmm/src/installed/choose",
    "vmm/src/installed/entries",
    "vmm/src/installed/grub",
    "vmm/src/installed/journal",
    "vmm/src/installed/mbr",
    "vmm/src/installed/release",
    "vmm/src/installed/superblock",
    "vmm/src/memory/image",
    "vmm/src/memory/pending",
    "vmm/src/snapshot",
];
/// Parts of the pure folders that are drivers, named so.
const PURE_EXCEPT: [&str; 1] = ["blocking_client"];
/// What a machine or codec may not name.
const IMPURE: [&str; 4] = ["std::fs", "std::net", "std::time", "std::thread"];
/// Codecs: they parse what another wrote, so nothing in them may panic on it.
const CODECS: [&str; 27] = [
    "vdisk/src/format",
    "vdisk/src/foreign",
    "vdisk/src/size",
    "blockserver/src/nbd/wire",
    "blockserver/src/throttle",
    "blockserver/src/virtio",
    "mirror/src/evacuation/check",
    "mirror/src/evacuation/input",
    "mirror/src/evacuation/moment",
    "mirror/src/group",
    "mirror/src/journal",
    "mirror/src/saved",
    "mirror/src/way_back",
    "mirror/src/wire",
    "package/src",
    "src/moving/volume",
    "vmm/src/description",
    "vmm/src/virtio/net/header",
    "vmm/src/boot/elf",
    "vmm/src/boot/start_info",
    "vmm/src/installed/entries",
    "vmm/src/installed/grub",
    "vmm/src/installed/mbr",
    "vmm/src/installed/release",
    "vmm/src/installed/superblock",
    "vmm/src/memory/image",
    "vmm/src/snapshot",
];
/// Where unsafe code may stand.
const UNSAFE_PLACES: [&str; 10] = [
    "blockserver/src/uring",
    "vmm/src/confine/violation.rs",
    "vmm/src/memory.rs",
    "vmm/src/kvm/",
    "vmm/src/text.rs",
    "vmm/src/virtio/net/ioctl.rs",
    "vmm/src/virtio/net/vectors.rs",
    "vmm/guest/src/machine/",
    "vmm/src/memory/userfault.rs",
    "tests/link/src/kernel.rs",
];
/// Crate roots that must forbid unsafe code.
const FORBID_UNSAFE: [&str; 4] = [
    "vdisk/src/lib.rs",
    "mirror/src/lib.rs",
    "package/src/lib.rs",
    "src/main.rs",
];
/// What each crate may not import: the arrows of the architecture point down only.
const UPWARDS: [(&str, &[&str]); 5] = [
    ("vdisk/", &["blockserver", "mirror", "vmm", "diskferry"]),
    ("blockserver/", &["mirror", "vmm", "diskferry"]),
    ("mirror/", &["blockserver", "vmm", "diskferry"]),
    (
        "package/",
        &["vdisk", "blockserver", "mirror", "vmm", "diskferry"],
    ),
    ("vmm/", &["diskferry"]),
];
/// Codecs that may not index a slice either. Clippy holds that, where it is told to.
const UNINDEXED: [&str; 6] = [
    "blockserver/src/nbd/wire.rs",
    "blockserver/src/virtio/block.rs",
    "mirror/src/wire/mod.rs",
    "vmm/src/memory/image.rs",
    "vmm/src/virtio/net/header.rs",
    "vmm/src/snapshot/mod.rs",
];
/// How clippy is told.
const NO_INDEXING: &str = "#![deny(clippy::indexing_slicing)]";

/// Complaints about a file of Rust whose shipped part is `shipped`.
pub(crate) fn complaints(file: &File, code: &str, shipped: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    if !is_test_file(&file.path) {
        complaints.extend(purity(&file.path, shipped));
    }
    complaints.extend(arrows(&file.path, code));
    let place = UNSAFE_PLACES.iter().any(|p| file.path.starts_with(p));
    if !place && code.lines().any(|line| has_word(line, "unsafe")) {
        complaints.push("unsafe code may stand only in the places ARCHITECTURE.md names".into());
    }
    let must_forbid = FORBID_UNSAFE.contains(&file.path.as_str()) && !code.trim().is_empty();
    if must_forbid && !code.contains("#![forbid(unsafe_code)]") {
        complaints.push("must have #![forbid(unsafe_code)]".to_owned());
    }
    if UNINDEXED.contains(&file.path.as_str()) && !code.lines().any(|line| line == NO_INDEXING) {
        complaints.push(format!("a codec must have {NO_INDEXING}"));
    }
    complaints
}

fn is_pure(path: &str) -> bool {
    PURE.iter().any(|p| path.starts_with(p)) && !PURE_EXCEPT.iter().any(|p| path.contains(p))
}

/// Machines and codecs do nothing but decide and translate.
fn purity(path: &str, shipped: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    if is_pure(path) {
        for name in IMPURE {
            if shipped.contains(name) {
                complaints.push(format!("a machine or codec names {name}"));
            }
        }
        for part in ["fs", "net", "time", "thread"] {
            if shipped.contains(&format!("use std::{{{part}")) {
                complaints.push(format!("a machine or codec imports std's {part}"));
            }
        }
    }
    if CODECS.iter().any(|p| path.starts_with(p)) {
        for call in [".unwrap()", ".expect(", "panic!(", "unreachable!("] {
            if shipped.contains(call) {
                complaints.push(format!("a codec must not panic, and has `{call}`"));
            }
        }
    }
    complaints
}

/// Imports against the arrows.
fn arrows(path: &str, code: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for (place, above) in UPWARDS {
        if !path.starts_with(place) {
            continue;
        }
        for name in above {
            let uses = |line: &str| {
                let line = line.trim_start();
                let imported = line
                    .strip_prefix("use ")
                    .is_some_and(|rest| has_word(rest, name) && rest.starts_with(name));
                imported
                    || line.contains(&format!(" {name}::"))
                    || line.starts_with(&format!("{name}::"))
            };
            if code.lines().any(uses) {
                complaints.push(format!("imports {name}, which stands above it"));
            }
        }
    }
    complaints
}

/// The same arrows, as a crate's manifest draws them.
pub(crate) fn manifest_arrows(file: &File) -> Vec<String> {
    UPWARDS
        .iter()
        .filter(|(place, _)| file.path.starts_with(place))
        .flat_map(|(_, above)| above.iter())
        .filter(|name| {
            file.text
                .lines()
                .any(|line| line.starts_with(**name) && has_word(line, name))
        })
        .map(|name| format!("depends on {name}, which stands above it"))
        .collect()
}

#[test]
fn each_rule_about_floors_can_fail() {
    for name in IMPURE {
        let text = format!("//! x\nuse {name}::X;\n");
        refused("vdisk/src/engine/map.rs", &text, name);
        refused("blockserver/src/nbd/handshake.rs", &text, name);
        refused("mirror/src/switchover.rs", &text, name);
        accepted("blockserver/src/nbd/blocking_client.rs", &text);
        accepted("vdisk/src/storage/file.rs", &text);
        let comment = format!("//! x\n// {name}\nconst A: &str = \"{name}\";\n");
        accepted("vdisk/src/engine/map.rs", &comment);
        let tested = format!("//! x\n#[cfg(test)]\nmod tests {{\n    use {name};\n}}\n");
        accepted("vdisk/src/engine/map.rs", &tested);
    }
    refused(
        "vdisk/src/engine/a.rs",
        "//! x\nuse std::{fs, io};\n",
        "imports std's fs",
    );
    refused(
        "vdisk/src/format/a.rs",
        "//! x\nfn f() { g().unwrap() }\n",
        "must not panic",
    );
    refused(
        "mirror/src/wire.rs",
        "//! x\nfn f() { g().expect(\"a\") }\n",
        "must not panic",
    );
    refused(
        "vdisk/src/units.rs",
        "//! x\nuse mirror::Session;\n",
        "imports mirror",
    );
    refused(
        "mirror/src/lib.rs",
        "//! x\n#![forbid(unsafe_code)]\nfn f() { blockserver::f() }\n",
        "imports blockserver",
    );
    accepted(
        "blockserver/src/a.rs",
        "//! x\nuse vdisk::Error;\nuse crate::mirror::X;\n",
    );
    refused(
        "vdisk/Cargo.toml",
        "[dependencies]\nmirror.workspace = true\n",
        "depends on mirror",
    );
    accepted(
        "mirror/Cargo.toml",
        "[package]\nname = \"mirror\"\n[dependencies]\nvdisk = {}\n",
    );
}

#[test]
fn each_rule_about_unsafe_can_fail() {
    let text = "//! x\nfn f() { unsafe { g() } }\n";
    refused("vdisk/src/raw.rs", text, "unsafe code may stand only");
    refused("src/plan.rs", text, "unsafe code may stand only");
    accepted("blockserver/src/uring/ring.rs", text);
    accepted(
        "vdisk/src/raw.rs",
        "//! x\n// unsafe\nconst A: &str = \"unsafe\";\n",
    );
    refused("vdisk/src/lib.rs", "//! x\nmod a;\n", "forbid(unsafe_code)");
    accepted("vdisk/src/lib.rs", "//! x\n#![forbid(unsafe_code)]\n");
}

#[test]
fn each_rule_about_indexing_can_fail() {
    for path in UNINDEXED {
        refused(path, "//! x\n", "indexing_slicing");
        refused(
            path,
            &format!("//! x\n// {NO_INDEXING}\n"),
            "indexing_slicing",
        );
        accepted(path, &format!("//! x\n\n{NO_INDEXING}\n"));
    }
}

#[test]
fn every_codec_that_is_told_not_to_index_is_there() {
    let tree = crate::tree();
    for path in UNINDEXED {
        assert!(tree.iter().any(|file| file.path == path), "{path}");
    }
}
