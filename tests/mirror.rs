//! Moving a served disk with the real program: both sites run as processes, clients write all the
//! time, and what they were promised is looked for afterwards.

#[path = "cli/run.rs"]
#[expect(dead_code, reason = "these tests use a part of it")]
mod run;

mod mirror {
    mod admission;
    mod arbiter;
    mod deadline;
    mod evacuation;
    mod faults;
    mod group;
    mod group_back;
    mod group_home;
    mod ledger;
    mod load;
    mod moves;
    mod nbd_source;
    mod nbd_target;
    mod pairing;
    mod process;
    mod promotion;
    mod refusals;
    mod relay;
    mod sealed;
    mod seeds;
    mod site;
    mod verify;
    mod wan;
    mod watching;
    mod way_back;
}
