//! Running other programs.

use std::process::Command;

/// The Debian package of each program.
const PACKAGES: [(&str, &str); 5] = [
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("fio", "fio"),
];

/// Whether tests with real programs are switched off.
pub(crate) fn switched_off() -> bool {
    std::env::var_os("DISKFERRY_NO_INTEROP").is_some_and(|value| value == "1")
}

/// Run a program; whether it succeeded, and what it printed.
pub(crate) fn run(program: &str, args: &[&str]) -> (bool, String) {
    // fio leaves files where it runs.
    let directory = tempfile::tempdir().expect("a directory");
    let output = Command::new(program)
        .args(args)
        .current_dir(directory.path())
        .output()
        .unwrap_or_else(|error| {
            let package = PACKAGES.iter().find(|(name, _)| *name == program);
            let package = package.map_or(program, |(_, package)| package);
            panic!(
                "cannot run {program}: {error}. Install the Debian package {package}, or set \
                 DISKFERRY_NO_INTEROP=1 to leave these tests out"
            )
        });
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

/// Run a program that must succeed; what it printed.
pub(crate) fn must(program: &str, args: &[&str]) -> String {
    let (success, text) = run(program, args);
    assert!(success, "{program} {args:?} failed:\n{text}");
    text
}
