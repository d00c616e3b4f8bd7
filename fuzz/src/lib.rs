//! The bodies of the fuzz targets, each a plain function of some bytes.
//!
//! libFuzzer calls them with what it makes up (`fuzz_targets/`), an ordinary test with the kept
//! corpora and with bytes from a seed (`tests/replay.rs`). A body panics when a promise is broken and
//! only then; it touches no file of the host, takes no more than a few megabytes, and does the same
//! for the same bytes.
//!
//! | target | what the bytes are | what must hold |
//! |---|---|---|
//! | [`open`] | harm done to a sound image | no panic, bounded work, both ways of opening agree |
//! | [`log_replay`] | a log, whole or damaged | the replay is the one that the specification describes |
//! | [`operations`] | requests, and power cuts | the disk holds what a flat model of it holds |
//! | [`parent_locator`] | a locator | what is read is written again alike, or refused |
//! | [`metadata`] | a metadata region | items are apart and inside, changes touch nothing else |
//! | [`boot_from_disk`] | an installed disk with bytes changed | reading it ends, and keeps the limits |
//! | [`description`] | a `vm.toml` | what is read keeps the promises of its fields |
//! | [`machine_state`] | the state of a machine, whole or harmed | what is read is written again alike, or refused |
//! | [`journal`] | bytes of a mirror's journal, whole or harmed | what is read was written so |
//! | [`pci`] | what a guest does to configuration space and base addresses | both ways agree, identities stay, nothing is decoded outside of the window |
//! | [`registers`] | what a guest does to every register | devices get queues that keep the rules, and give them back |
//! | [`wire`] | what comes over a lane of the mirror | what is read is written again alike, or refused |
//! | [`volumes`] | files of a package, forged or harmed | reading is bounded and in order; harm makes no other bytes |
//! | [`virtqueue`] | what a guest and its device do to a virtqueue | what is taken keeps the rules, the rest is refused |

pub mod boot_from_disk;
pub mod description;
pub mod journal;
pub mod log_replay;
pub mod machine_state;
pub mod metadata;
pub mod open;
pub mod operations;
pub mod parent_locator;
pub mod pci;
pub mod registers;
pub mod virtqueue;
pub mod volumes;
pub mod wire;

mod device;
mod file;
mod images;

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, which is also that of its corpus.
    pub name: &'static str,
    /// Its body.
    pub run: fn(&[u8]),
    /// How many bytes an input has at most.
    pub most: usize,
}

/// Every target.
pub const TARGETS: [Target; 14] = [
    Target {
        name: "open",
        run: open::run,
        most: 512,
    },
    Target {
        name: "log_replay",
        run: log_replay::run,
        most: 512,
    },
    Target {
        name: "operations",
        run: operations::run,
        most: 512,
    },
    Target {
        name: "parent_locator",
        run: parent_locator::run,
        most: 1024,
    },
    Target {
        name: "metadata",
        run: metadata::run,
        most: 1024,
    },
    Target {
        name: "virtqueue",
        run: virtqueue::run,
        most: 512,
    },
    Target {
        name: "boot_from_disk",
        run: boot_from_disk::run,
        most: 256,
    },
    Target {
        name: "description",
        run: description::run,
        most: 512,
    },
    Target {
        name: "machine_state",
        run: machine_state::run,
        most: 512,
    },
    Target {
        name: "pci",
        run: pci::run,
        most: 512,
    },
    Target {
        name: "registers",
        run: registers::run,
        most: 512,
    },
    Target {
        name: "journal",
        run: journal::run,
        most: 512,
    },
    Target {
        name: "wire",
        run: wire::run,
        most: 2048,
    },
    Target {
        name: "volumes",
        run: volumes::run,
        most: 1024,
    },
];
