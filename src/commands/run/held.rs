//! What a machine has of its host besides its disks: opened before its process is confined, which opens nothing else
//! afterwards.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::network::Networked;
use crate::args::RunArgs;
use crate::console::Place;
use crate::failure::Result;
use crate::plan::Machine;
use crate::saved::restore::Restore;

/// See the file's head.
pub(super) struct Held {
    pub(super) networks: Vec<Networked>,
    pub(super) console: Place,
    pub(super) status: Status,
}

impl Held {
    /// Open all of it.
    pub(super) fn open(args: &RunArgs, plan: &Machine) -> Result<Self> {
        Ok(Self {
            networks: Networked::open(&args.machine, &plan.vm.networks)?,
            console: Place::open(&plan.vm.console)?,
            status: Status(File::open("/proc/self/status").ok()),
        })
    }

    /// The machine goes on from this, if from anything.
    pub(super) fn go_on(&mut self, plan: &Machine, restore: Option<&Restore>) {
        let saved = restore.map_or(&[][..], Restore::networks);
        let described = self.networks.iter_mut().zip(&plan.vm.networks);
        for ((network, described), saved) in described.zip(saved) {
            network.go_on(described, saved);
        }
    }
}

/// What the kernel says of this process.
pub(super) struct Status(Option<File>);

impl Status {
    /// As it is now.
    pub(super) fn read(&self) -> io::Result<String> {
        let none = || io::Error::other("/proc was not there when the machine started");
        let file = self.0.as_ref().ok_or_else(none)?;
        let mut text = Vec::new();
        let mut piece = [0; 4096];
        loop {
            match file.read_at(&mut piece, text.len() as u64)? {
                0 => return String::from_utf8(text).map_err(io::Error::other),
                len => text.extend(piece.iter().take(len)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read_anew_each_time() {
        let status = Status(Some(File::open("/proc/self/status").unwrap()));
        for _ in 0..2 {
            let text = status.read().unwrap();
            assert!(
                text.starts_with("Name:") && text.contains("VmRSS:"),
                "{text}"
            );
        }
        assert!(Status(None).read().is_err());
    }
}
