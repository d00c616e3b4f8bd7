//! Running qemu-img, qemu-io and vhdiinfo as Debian ships them. A missing program fails the test and
//! says which package has it, unless `DISKFERRY_NO_INTEROP=1` is set.

use std::process::{Command, Output};

/// Whether tests with other programs are switched off.
pub(crate) fn switched_off() -> bool {
    std::env::var_os("DISKFERRY_NO_INTEROP").is_some_and(|value| value == "1")
}

/// A run of `program` with a time limit: some versions loop for ever on some legal images.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Output {
    let package = match program {
        "vhdiinfo" => "libvhdi-utils",
        _ => "qemu-utils",
    };
    let output = Command::new("timeout")
        .args(["--signal=KILL", "60", program])
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("timeout (package coreutils) cannot be run: {error}"));
    assert_ne!(
        output.status.code(),
        Some(127),
        "{program} is missing: install the package {package}, or set DISKFERRY_NO_INTEROP=1"
    );
    output
}

/// A run that must succeed; its standard output.
pub(crate) fn succeed(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {:?}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
