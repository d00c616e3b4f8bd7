//! Machines that were saved: the folder that `machine snapshot` writes and `run --restore` reads.
//!
//! | module | what |
//! |---|---|
//! | [`manifest`] | what the folder says of itself |
//! | [`take`] | from a running machine to a folder |
//! | [`folder`] | a folder that is made, and one that is opened and believed |
//! | [`disks`] | the disks of a machine are put where it wants them, and taken back if it does not start |
//! | [`restore`] | from a folder to a machine that runs |
//!
//! The folder and the order of things are described in `docs/vmm.md`, "Snapshots".

pub(crate) mod disks;
pub(crate) mod folder;
pub(crate) mod manifest;
pub(crate) mod restore;
pub(crate) mod take;
