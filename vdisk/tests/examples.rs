//! Every example runs to its end: what a stranger copies works.

#[path = "../examples/check.rs"]
mod check;
#[path = "../examples/compact.rs"]
mod compact;
#[path = "../examples/convert.rs"]
mod convert;
#[path = "../examples/crash.rs"]
mod crash;
#[path = "../examples/create.rs"]
mod create;
#[path = "../examples/extents.rs"]
mod extents;
#[path = "../examples/flatten.rs"]
mod flatten;
#[path = "../examples/machine.rs"]
mod machine;
#[path = "../examples/metadata.rs"]
mod metadata;
#[path = "../examples/resize.rs"]
mod resize;
#[path = "../examples/snapshot.rs"]
mod snapshot;

type Main = fn() -> Result<(), Box<dyn std::error::Error>>;

#[test]
fn every_example_runs() {
    let mains: [(&str, Main); 11] = [
        ("check", check::main),
        ("compact", compact::main),
        ("convert", convert::main),
        ("crash", crash::main),
        ("create", create::main),
        ("extents", extents::main),
        ("flatten", flatten::main),
        ("machine", machine::main),
        ("metadata", metadata::main),
        ("resize", resize::main),
        ("snapshot", snapshot::main),
    ];
    for (name, main) in mains {
        main().unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
    let files = std::fs::read_dir(folder).expect("the folder is there");
    assert_eq!(files.count(), mains.len(), "an example that is not run");
}
