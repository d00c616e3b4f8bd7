//! Disks come to a machine that runs, and go.
//!
//! A disk is opened, made an export and found by its control socket before the guest hears of it; it goes the other
//! way round, so that the guest has let go of what is closed. What fails half way is taken back. The file that
//! describes the machine stays as it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blockserver::export::ExportHandle;
use vmm::DeviceLeaving;
use vmm::description::Disk;
use vmm::virtio::block::Block;

use super::{Attached, Guest, cannot};
use crate::control::machine::Life;
use crate::control::machine::disks::{AddDisk, MachineDisk, RemoveDisk};
use crate::control::place;
use crate::failure::{Exit, Failure, Result};
use crate::site::source::Withdrawn;

impl Guest {
    /// Every disk that the machine has now.
    pub(super) fn machine_disks(&self) -> Vec<MachineDisk> {
        self.now().disks.iter().map(Attached::state).collect()
    }

    pub(super) fn plug(&self, wanted: &AddDisk) -> Result<MachineDisk> {
        let disk = described(wanted, self.booting().config().vcpus)?;
        let mut attached = super::add(&self.site, &disk, (&self.search, false))?;
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
        if !attached.export.read_only() {
            let socket = place::socket_of(&attached.path)?;
            if let Some(sockets) = self.sockets() {
                sockets.listen(socket.clone())?;
                attached.socket = Some(socket);
            }
        }
        let mut now = self.now();
        if now.life == Life::Ended {
            return Err(self.over());
        }
        let device = Block::new(attached.export.clone(), attached.queues);
        let slot = now.machine.add_device(Box::new(device));
        attached.slot = slot.map_err(|error| cannot(&error))?;
        now.disks.push(attached.clone());
        Ok(attached.state())
    }

    pub(super) fn unplug(&self, name: &str, how: RemoveDisk) -> Result<MachineDisk> {
        let (machine, disk) = {
            let now = self.now();
            if now.life == Life::Ended {
                return Err(self.over());
            }
            if now.life == Life::Paused && !how.force {
                let what = "the guest is paused and cannot let go of it";
                return Err(Failure::usage(what).hint("resume it first, or pull the disk: --force"));
            }
            let disk = now.disks.iter().find(|disk| disk.export.name() == name);
            let none = || Failure::usage(format!("the machine has no disk called `{name}`"));
            (Arc::clone(&now.machine), disk.ok_or_else(none)?.clone())
        };
        let withdrawn = self.site.withdraw(name)?;
        let patience = Duration::from_millis(how.timeout_ms);
        let leaving = if how.force {
            machine.pull_device(disk.slot)
        } else {
            machine.remove_device(disk.slot, patience)
        };
        let leaving = leaving.map_err(|error| kept(&error, name, patience))?;
        self.forget(&machine, name)?;
        let state = disk.state();
        if how.force {
            // What it was still asked fails, which ends its queues also where requests are held.
            let closed = withdrawn.close();
            leaving.wait();
            closed?;
        } else {
            DeviceLeaving::wait(leaving);
            withdrawn.close()?;
        }
        self.forget_socket(&disk);
        Ok(state)
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

/// What was asked for, as `vm.toml` would say it.
fn described(wanted: &AddDisk, vcpus: u8) -> Result<Disk> {
    let path = PathBuf::from(&wanted.path);
    if !path.is_absolute() {
        let what = format!("`{}` is not an absolute path", path.display());
        return Err(Failure::usage(what));
    }
    let stem = || {
        let stem = Path::file_stem(&path)?;
        Some(stem.to_string_lossy().into_owned())
    };
    let name = wanted.name.clone().or_else(stem);
    let name = name.filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| Failure::usage(format!("`{}` names no file", path.display())))?;
    let queues = wanted.queues.unwrap_or(vcpus);
    if queues == 0 {
        return Err(Failure::usage("queues: 1 to 255"));
    }
    Ok(Disk {
        name,
        path,
        format: wanted.format.map(Into::into),
        read_only: wanted.read_only,
        queues,
    })
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

impl Attached {
    fn state(&self) -> MachineDisk {
        let export: &ExportHandle = &self.export;
        MachineDisk {
            name: export.name().to_owned(),
            path: self.path.display().to_string(),
            slot: self.slot,
            read_only: export.read_only(),
            virtual_size: export.size(),
        }
    }
}
