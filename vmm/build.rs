//! Builds the freestanding guest (`guest/`) with the compiler that builds this crate, and says where it is.
//!
//! It is compiled for the host's own target, since no other is needed for a program without a library:
//! linked statically at the address that its linker script says, without start files. It is not
//! cargo's to build: cargo would link it as a program of this host.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Flags of the compiler, beside those that name files.
const FLAGS: [&str; 12] = [
    "--edition=2024",
    "--crate-name=guest",
    "--crate-type=bin",
    "--cfg=freestanding",
    "-Cpanic=abort",
    "-Copt-level=2",
    "-Coverflow-checks=on",
    "-Ccodegen-units=1",
    "-Cstrip=debuginfo",
    "-Crelocation-model=static",
    "-Cforce-unwind-tables=no",
    "-Clink-args=-nostartfiles -nostdlib -static -no-pie -Wl,--build-id=none",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=guest");
    let target = variable("TARGET");
    assert!(
        target.starts_with("x86_64-") && target.contains("linux"),
        "the machine monitor is for x86-64 and Linux, not for {target}"
    );
    let sources = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("guest");
    let image = PathBuf::from(variable("OUT_DIR")).join("guest.elf");
    compile(&target, &sources, &image);
    println!("cargo::rustc-env=DISKFERRY_GUEST={}", image.display());
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

fn compile(target: &str, sources: &Path, image: &Path) {
    let script = sources.join("link.ld");
    let status = Command::new(variable("RUSTC"))
        .args(FLAGS)
        .arg(format!("--target={target}"))
        .arg(format!("-Clink-arg=-Wl,-T,{}", script.display()))
        .arg("-o")
        .arg(image)
        .arg(sources.join("src/lib.rs"))
        .status()
        .expect("the compiler can be run");
    assert!(status.success(), "the guest does not compile");
}
