//! Every kept input of every target, and a few thousand inputs from a seed, without libFuzzer.
//!
//! `DISKFERRY_SEED=n` runs one seed of each target; `DISKFERRY_SEEDS=n` sets how many are run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use diskferry_fuzz::{TARGETS, Target, wire};

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
}

fn target(name: &str) -> Target {
    let found = TARGETS.iter().find(|target| target.name == name);
    *found.unwrap_or_else(|| panic!("no target {name}"))
}

/// Bytes from a seed (splitmix64): runs of small numbers among them, which choose, and of any.
fn bytes(seed: u64, most: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x2545_F491_4F6C_DD1D);
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = state;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    };
    let len = next() as usize % most;
    let mut made = Vec::with_capacity(len);
    while made.len() < len {
        let word = next();
        match word % 4 {
            0 => made.push((word >> 8) as u8 % 8),
            1 => made.push(0),
            2 => made.push((word >> 8) as u8),
            _ => made.extend_from_slice(&word.to_le_bytes()[..4]),
        }
    }
    made
}

fn replay(name: &str) {
    let target = target(name);
    let one = number("DISKFERRY_SEED");
    if one.is_none() {
        kept(&target);
    }
    let seeds = match one {
        Some(seed) => seed..seed + 1,
        None => 0..number("DISKFERRY_SEEDS").unwrap_or(2000),
    };
    for seed in seeds {
        println!("DISKFERRY_SEED={seed} {name}");
        (target.run)(&bytes(seed, target.most));
    }
}

/// Where a corpus is.
fn folder(name: &str) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.join("corpus").join(name)
}

/// Runs the corpus, which must be there.
fn kept(target: &Target) {
    let folder = folder(target.name);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    for file in files {
        println!("{}", file.display());
        (target.run)(&fs::read(&file).expect("it can be read"));
    }
}

#[test]
fn harmed_images_are_refused_or_serve() {
    replay("open");
}

#[test]
fn a_log_is_replayed_as_the_text_says() {
    replay("log_replay");
}

#[test]
fn a_disk_holds_what_a_flat_model_holds() {
    replay("operations");
}

#[test]
fn locators_are_read_and_written_alike() {
    replay("parent_locator");
}

#[test]
fn metadata_keeps_what_nobody_changed() {
    replay("metadata");
}

#[test]
fn a_hostile_guest_is_refused_or_served_by_the_rules() {
    replay("virtqueue");
}

#[test]
fn descriptions_of_machines_are_refused_or_keep_their_promises() {
    replay("description");
}

#[test]
fn installed_disks_are_read_to_an_end_whatever_they_say() {
    replay("boot_from_disk");
}

#[test]
fn states_of_machines_are_refused_or_written_again_alike() {
    replay("machine_state");
}

#[test]
fn configuration_space_is_the_same_by_both_ways_and_moves_nothing_out_of_its_window() {
    replay("pci");
}

#[test]
fn devices_get_sound_queues_whatever_is_written_to_registers() {
    replay("registers");
}

#[test]
fn a_journal_is_read_as_it_was_written_or_not_at_all() {
    replay("journal");
}

#[test]
fn what_comes_over_a_lane_is_refused_or_written_again_alike() {
    replay("wire");
}

/// With `DISKFERRY_KEEP=1` they are written, as after a change of the protocol.
#[test]
fn kept_inputs_of_the_wire_are_messages_of_every_kind_of_this_version() {
    let mut kinds = BTreeMap::new();
    for message in wire::examples() {
        let name = wire::name(&message);
        let nth = kinds.entry(name).and_modify(|nth| *nth += 1).or_insert(1);
        let file = folder("wire").join(format!("{name}-{nth}"));
        let input = wire::input(&message);
        assert_eq!(wire::read(&input), [message]);
        if number("DISKFERRY_KEEP").is_some() {
            fs::write(&file, &input).expect("it can be written");
        }
        let kept = fs::read(&file).expect("it is kept");
        let how = "is of another version; DISKFERRY_KEEP=1 writes it anew";
        assert!(kept == input, "{} {how}", file.display());
    }
    assert_eq!(kinds.len(), wire::KINDS, "{kinds:?}");
}

#[test]
fn files_of_a_package_are_refused_or_read_in_order_and_as_they_were_written() {
    replay("volumes");
}
