//! Machines with the real program: a guest drives its disks, and what it was promised is looked for
//! afterwards. Fails where there is no /dev/kvm, unless `DISKFERRY_NO_KVM=1` says that there is none.

#[path = "cli/run.rs"]
#[expect(dead_code, reason = "these tests use a part of it")]
mod run;

mod machine {
    mod boot;
    mod confinement;
    mod console;
    mod control;
    mod disks;
    mod guest;
    mod large;
    mod limits;
    mod moves;
    mod moves_whole;
    mod network;
    mod plug;
    #[path = "../mirror/process.rs"]
    #[expect(dead_code, reason = "these tests use a part of it")]
    mod process;
    mod refusals;
    mod snapshot;
    mod verbs;
}
