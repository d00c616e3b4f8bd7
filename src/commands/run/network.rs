//! The network devices of a machine: taps that are opened once and stay through its resets.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use vmm::description;
use vmm::virtio::VirtioDevice;
use vmm::virtio::net::{Net, Tap};

use super::cannot;
use crate::failure::{Failure, Result};
use crate::plan::mac_of;
use crate::saved::manifest::{SavedNetwork, mac_in_words};

/// A network device and its tap.
pub(super) struct Networked {
    tap: Arc<Tap>,
    mac: [u8; 6],
}

/// What is said of it.
#[derive(Serialize)]
pub(super) struct Shown {
    tap: String,
    mac: String,
    mtu: u16,
}

impl Networked {
    /// Opens the taps of the machine that the file `machine` describes, or makes them.
    pub(super) fn open(machine: &Path, networks: &[description::Network]) -> Result<Vec<Self>> {
        let machine = std::path::absolute(machine);
        let machine = machine.map_err(|e| Failure::io("the working folder is not known", &e))?;
        let opened = networks.iter().map(|network| {
            let tap = Tap::open(&network.tap, network.mtu).map_err(|error| cannot(&error))?;
            let mac = network
                .mac
                .unwrap_or_else(|| mac_of(&machine, &network.tap));
            let tap = Arc::new(tap);
            Ok(Self { tap, mac })
        });
        opened.collect()
    }

    /// A machine that goes on keeps the address that was saved, unless it is described with one.
    pub(super) fn go_on(&mut self, described: &description::Network, saved: &SavedNetwork) {
        self.mac = described.mac.unwrap_or(saved.mac);
    }

    /// The device, for a machine that takes the place of the one before.
    pub(super) fn device(&self) -> Box<dyn VirtioDevice> {
        Box::new(Net::new(Arc::clone(&self.tap), self.mac))
    }

    pub(super) fn saved(&self) -> SavedNetwork {
        SavedNetwork {
            tap: self.tap.name().to_owned(),
            mac: self.mac,
        }
    }

    pub(super) fn shown(&self) -> Shown {
        Shown {
            tap: self.tap.name().to_owned(),
            mac: mac_in_words(self.mac),
            mtu: self.tap.mtu(),
        }
    }
}
