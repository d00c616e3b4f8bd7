//! A machine that runs is kept in a folder: while that happens nobody else has it pause, run or change its disks.

use std::sync::Arc;

use super::guest::{Guest, Now};
use super::network::Networked;
use crate::control::machine::Life;
use crate::failure::{Exit, Failure, Result};
use crate::saved::take::{Subject, Taken, Wanted, take};

impl Guest {
    /// Why something else has to wait.
    pub(super) fn saving(&self) -> Failure {
        let what = format!(
            "{}: stands still for a snapshot or a move",
            self.described.display()
        );
        Failure::new(Exit::InUse, what)
    }

    /// Take a snapshot. Whatever fails is undone.
    pub(super) fn keep(&self, wanted: &Wanted) -> Result<Taken> {
        let (machine, before) = self.begin_to_save()?;
        let subject = Subject {
            described: &self.described,
            vm: &self.vm,
            site: &self.site,
            machine: &machine,
            networks: self.networks.iter().map(Networked::saved).collect(),
            runs: before == Life::Running,
        };
        let taken = take(&subject, wanted);
        let stopped = taken.as_ref().is_ok_and(|taken| taken.stopped);
        let mut now = self.now();
        if now.life == Life::Saving {
            now.life = if stopped { Life::Ended } else { before };
        }
        drop(now);
        if stopped {
            machine.stop();
        }
        taken
    }

    /// From now on nobody else has it pause or run; the machine, and how it was.
    pub(super) fn begin_to_save(&self) -> Result<(Arc<vmm::Machine>, Life)> {
        let mut now = self.now();
        match now.life {
            Life::Saving => Err(self.saving()),
            Life::Ended => Err(self.over()),
            before => {
                self.as_described(&now)?;
                now.life = Life::Saving;
                Ok((Arc::clone(&now.machine), before))
            }
        }
    }

    /// Only a machine with the disks that its file describes can be gone back to by that file.
    pub(super) fn as_described(&self, now: &Now) -> Result<()> {
        let described = (1..).zip(self.vm.disks.iter().map(|disk| disk.name.as_str()));
        let here = now.disks.iter();
        if here
            .map(|disk| (disk.slot, disk.export.name()))
            .eq(described)
        {
            return Ok(());
        }
        let what = format!(
            "{}: disks were added or taken out since the machine started",
            self.described.display()
        );
        Err(Failure::usage(what)
            .hint("describe them in the file and start the machine anew, or undo that"))
    }
}
