//! A large machine: many processors, much memory, and a queue of a disk for each processor, all at once.

use std::fs;

use serde_json::Value;

use super::guest::{events, without_kvm};
use crate::run::{diskferry, folder, program};

const GIB: u64 = 1 << 30;
const PROCESSORS: u64 = 32;

/// What each processor said of an event, by its number.
#[track_caller]
fn of_each(said: &[Value], field: &str) -> Vec<u64> {
    let number =
        |event: &Value, name: &str| event[name].as_u64().unwrap_or_else(|| panic!("{event}"));
    let mut all: Vec<_> = said
        .iter()
        .map(|event| (number(event, "vcpu"), number(event, field)))
        .collect();
    all.sort_unstable();
    let vcpus: Vec<u64> = all.iter().map(|(vcpu, _)| *vcpu).collect();
    assert_eq!(vcpus, (0..PROCESSORS).collect::<Vec<u64>>(), "{field}");
    all.into_iter().map(|(_, value)| value).collect()
}

#[test]
fn all_of_32_processors_run_touch_512_gib_and_use_a_queue_each_of_one_disk() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "16T", "--block-size", "1M"]).ok();
    // 8 MiB are 64 blocks of 4 KiB for each processor, far up on the disk.
    let line = "do=hello do=touch do=disk do=verify from=12T length=8M do=load from=12T length=8M ops=64 write=50";
    let text = format!(
        "vcpus = {PROCESSORS}\nmemory = \"512G\"\nboot.kernel = \"built-in\"\n\
         boot.command_line = \"{line}\"\nconsole.to = \"file:vm.toml.console\"\n\
         [[disk]]\npath = \"a.vhdx\"\n"
    );
    fs::write(here.join("vm.toml"), text).unwrap();
    // Fewer files than it needs, unless it raises that limit by itself.
    let program_path = env!("CARGO_BIN_EXE_diskferry");
    let words = ["--nofile=64:4096", program_path, "run", "vm.toml", "--json"];
    let ran = program(here, "prlimit", &words);
    let console = fs::read_to_string(here.join("vm.toml.console")).unwrap_or_default();
    assert_eq!(ran.code, 0, "{}{console}", ran.stderr);
    let said = |event: &str| events(here, "vm.toml", event);

    assert_eq!(said("hello").len(), PROCESSORS as usize);
    let touched = said("touch");
    assert!(of_each(&touched, "touched").iter().all(|count| *count > 0));
    assert_eq!(of_each(&touched, "wrong"), [0; PROCESSORS as usize]);
    let highest = of_each(&touched, "highest").into_iter().max();
    // The hole below 4 GiB moves the end up.
    assert!(highest >= Some(512 * GIB), "{highest:?}");

    assert_eq!(said("disk")[0]["queues"], PROCESSORS);
    for event in ["written", "verified"] {
        let moved = said(event);
        assert_eq!(of_each(&moved, "requests"), [64; PROCESSORS as usize]);
        for bad in ["errors", "wrong"] {
            assert_eq!(of_each(&moved, bad), [0; PROCESSORS as usize], "{event}");
        }
    }
    let loaded = said("load");
    let reads = of_each(&loaded, "reads");
    let writes = of_each(&loaded, "writes");
    assert_eq!(of_each(&loaded, "errors"), [0; PROCESSORS as usize]);
    for (reads, writes) in reads.into_iter().zip(writes) {
        assert!(reads > 0 && writes > 0 && reads + writes == 64);
    }
    diskferry(here, &["check", "a.vhdx"]).ok();
}
