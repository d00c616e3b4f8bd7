//! Disks come to a machine that runs, and go.
//!
//! A disk is opened, made an export and found by its control socket before the guest hears of it; it goes the other
//! way round, so that the guest has let go of what is closed. What fails half way is taken back. The file that
//! describes the machine stays as it is.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blockserver::export::ExportHandle;
use vmm::description::{Disk, DiskEntry};
use vmm::virtio::block::Block;

use super::guest::Guest;
use super::{Attached, cannot};
use crate::control::machine::Life;
use crate::control::machine::disks::{MachineDisk, RemoveDisk};
use crate::control::place;
use crate::failure::{Exit, Failure, Result};
use crate::site::source::Withdrawn;

impl Guest {
    /// Every disk that the machine has now.
    pub(super) fn machine_disks(&self) -> Vec<MachineDisk> {
        let disks = self.now().disks.clone();
        disks.iter().map(|disk| self.state_of(disk)).collect()
    }

    pub(super) fn plug(&self, wanted: &DiskEntry) -> Result<MachineDisk> {
        let disk = described(wanted, self.vm.vcpus)?;
        if self.site.has(&disk.name) {
            let what = format!("the machine has a disk called `{}` already", disk.name);
            return Err(Failure::usage(what).hint("--name gives this one another name"));
        }
        let opened = super::open(&disk, &self.search)?;
        let mut attached = super::add(&self.site, &disk, (opened, false))?;
        let plugged = self.plug_export(&mut attached);
        if plugged.is_err() {
            self.forget_socket(&attached);
            let closed = self.site.withdraw(&disk.name).and_then(Withdrawn::close);
            if let Err(failure) = closed {
                tracing::error!(disk = disk.name, failure.what, "stays open");
            }
        }
        plugged
    }

    /// Give the guest a disk that is served already.
    fn plug_export(&self, attached: &mut Attached) -> Result<MachineDisk> {
        self.listen_for(attached)?;
        let mut now = self.now();
        match now.life {
            Life::Ended => return Err(self.over()),
            Life::Saving => return Err(self.saving()),
            Life::Running | Life::Paused => {}
        }
        let device = Block::new(attached.export.clone(), attached.queues);
        let slot = now.machine.add_device(Box::new(device));
        attached.slot = slot.map_err(|error| cannot(&error))?;
        now.disks.push(attached.clone());
        drop(now);
        Ok(self.state_of(attached))
    }

    pub(super) fn unplug(&self, name: &str, how: RemoveDisk) -> Result<MachineDisk> {
        let (machine, disk) = {
            let now = self.now();
            if now.life == Life::Ended {
                return Err(self.over());
            }
            if now.life == Life::Saving {
                return Err(self.saving());
            }
            if now.life == Life::Paused && !how.force {
                let what = "the guest is paused and cannot let go of it";
                return Err(Failure::usage(what).hint("resume it first, or pull the disk: --force"));
            }
            let disk = now.disks.iter().find(|disk| disk.export.name() == name);
            let none = || Failure::usage(format!("the machine has no disk called `{name}`"));
            (Arc::clone(&now.machine), disk.ok_or_else(none)?.clone())
        };
        let state = self.state_of(&disk);
        let withdrawn = self.site.withdraw(name)?;
        let patience = Duration::from_millis(how.timeout_ms);
        let leaving = if how.force {
            machine.pull_device(disk.slot)
        } else {
            machine.remove_device(disk.slot, patience)
        };
        let leaving = leaving.map_err(|error| kept(&error, name, patience))?;
        self.forget(&machine, name)?;
        self.forget_socket(&disk);
        // What it was still asked fails, which ends its queues also where requests are held: the guest hears of
        // nothing any more.
        let closed = withdrawn.close();
        leaving.wait();
        closed.map(|()| state)
    }

    /// Be found by a disk's file too, unless the machine is found there already: it may be described by nothing
    /// but its disk.
    pub(super) fn listen_for(&self, disk: &mut Attached) -> Result<()> {
        let Some(sockets) = self.sockets() else {
            return Ok(());
        };
        if !disk.export.read_only() {
            let socket = place::socket_of(&disk.path)?;
            if !sockets.has(&socket) {
                sockets.listen(socket.clone())?;
                disk.socket = Some(socket);
            }
        }
        Ok(())
    }

    /// The machine has this disk no more, unless it has begun anew meanwhile, and with the disk.
    fn forget(&self, machine: &Arc<vmm::Machine>, name: &str) -> Result<()> {
        let mut now = self.now();
        if !Arc::ptr_eq(&now.machine, machine) {
            let what = format!("the machine was reset meanwhile, and has `{name}` again");
            return Err(Failure::new(Exit::Failed, what));
        }
        now.disks.retain(|disk| disk.export.name() != name);
        Ok(())
    }

    fn forget_socket(&self, disk: &Attached) {
        if let (Some(socket), Some(sockets)) = (&disk.socket, self.sockets()) {
            sockets.forget(socket);
        }
    }
}

/// The disk that is meant. Who asks may be in another folder than this process.
fn described(wanted: &DiskEntry, vcpus: u8) -> Result<Disk> {
    if !wanted.path.is_absolute() {
        let what = format!("`{}` is not an absolute path", wanted.path.display());
        return Err(Failure::usage(what));
    }
    let disk = wanted.checked(Path::new(""), vcpus);
    disk.map_err(|error| cannot(&error))
}

/// Why a disk stays.
fn kept(error: &vmm::Error, name: &str, patience: Duration) -> Failure {
    if error.kind() != vmm::ErrorKind::Guest {
        return cannot(error);
    }
    let what = format!("`{name}`: {error} (waited {} s)", patience.as_secs());
    Failure::new(Exit::Failed, what)
        .hint("a guest without hot plug never does; --force pulls the disk")
}

impl Guest {
    /// A disk as it is served now: after a snapshot that is another file.
    fn state_of(&self, disk: &Attached) -> MachineDisk {
        let export: &ExportHandle = &disk.export;
        let path = self.site.path_of(export.name());
        MachineDisk {
            name: export.name().to_owned(),
            path: path.as_ref().unwrap_or(&disk.path).display().to_string(),
            slot: disk.slot,
            read_only: export.read_only(),
            virtual_size: export.size(),
        }
    }
}
