//! Network devices: frames between a guest and its host, on our machine and on QEMU with the same guest.
//!
//! Each test runs in a network namespace of its own. Where there are none, or no taps, the tests fail, unless
//! `DISKFERRY_NO_TAP=1` says so; those of our machine also want `/dev/kvm`, as others do.

#[path = "net/echoes.rs"]
mod echoes;
#[path = "net/goes_on.rs"]
mod goes_on;
#[path = "net/host.rs"]
mod host;
#[path = "snapshot/kept.rs"]
#[expect(dead_code, reason = "these tests use a part of it")]
mod kept;
#[path = "net/links.rs"]
mod links;
#[path = "net/on_qemu.rs"]
mod on_qemu;
#[path = "guest/qemu.rs"]
#[expect(dead_code, reason = "these tests use a part of it")]
mod qemu;
#[path = "machine/ran.rs"]
#[expect(dead_code, reason = "these tests use a part of it")]
mod ran;
