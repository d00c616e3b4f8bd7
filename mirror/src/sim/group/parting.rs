//! The disks are handed over one after the other, once a moment of all of them has everything, while links break and
//! either process ends.
//!
//! Nobody writes any more, so whatever is promoted or served from then on has to be that.

use super::super::host::{Front, Machine};
use super::super::ledger::Promise;
use super::super::world::{SOURCE, TARGET};
use super::{World, is_joined, name_of};
use crate::clock::Micros;
use crate::record::State;
use crate::session::{Command, Source, SourceEvent, Upto};

/// The rest of a run.
#[derive(Debug)]
pub(super) struct Parting {
    /// What every disk holds, one after the other.
    content: Vec<u8>,
    /// How much may still break.
    faults: u64,
    /// When it has to be over.
    until: Micros,
}

impl Parting {
    /// Whether it takes too long.
    pub(super) fn is_late(&self, now: Micros) -> bool {
        now > self.until
    }
}

impl World {
    /// Whether the run is over: all is in a moment of the group, and of some seeds all disks are handed over besides.
    pub(super) fn is_done(&mut self) -> bool {
        if self.history.parting.is_some() {
            return (0..self.disks.len()).all(|disk| self.has_parted(disk));
        }
        if !self.is_all_recorded() {
            return false;
        }
        self.check_promotion(false);
        self.check_end();
        if self.failed.is_some() || self.plan.sabotage.is_some() || !self.rng.percent(50) {
            return true;
        }
        self.history.parting = Some(Parting {
            content: self.at_source(),
            faults: self.rng.below(5),
            until: self.now + Micros::from_secs(60),
        });
        self.stats.parted += 1;
        false
    }

    /// What all disks hold at the source.
    pub(super) fn at_source(&self) -> Vec<u8> {
        let disks = self.disks.iter();
        disks
            .flat_map(|disk| disk.hosts[SOURCE].disk.now.iter().copied())
            .collect()
    }

    /// Whether the source has said durably that it does not have that disk any more.
    pub(super) fn is_released(&self, disk: usize) -> bool {
        let record = self.disks[disk].hosts[SOURCE].record.as_ref();
        record.is_some_and(|record| matches!(record.state, State::Released { .. }))
    }

    fn has_parted(&self, disk: usize) -> bool {
        let hosts = &self.disks[disk].hosts;
        let over = matches!(&hosts[SOURCE].machine, Machine::Source(source) if source.is_over());
        let forwards = hosts[SOURCE].front == Front::Forwarding;
        over && forwards && hosts[TARGET].front == Front::Serving
    }

    /// Whether something breaks now, at a step that a fault likes to fall into.
    pub(super) fn breaks(&mut self) -> bool {
        let calm = self.calm();
        match &mut self.history.parting {
            Some(parting) => {
                let breaks = parting.faults > 0 && self.rng.percent(20);
                parting.faults -= u64::from(breaks);
                breaks
            }
            None => !calm && self.rng.percent(4),
        }
    }

    /// Whether a host may crash now.
    pub(super) fn may_crash(&self) -> bool {
        self.history.parting.is_some() || !self.calm()
    }

    /// The user has one of the disks that are left handed over.
    pub(super) fn part(&mut self) {
        let disk = self.rng.below(self.disks.len() as u64) as usize;
        let max_pause = Some(Micros::from_secs(3600));
        let command = Command::Cutover {
            max_pause,
            how: None,
        };
        self.source_event(disk, SourceEvent::Command(command));
    }

    /// A disk that was handed over is served again: its clients are sent on once the target runs.
    pub(super) fn send_on(&mut self, disk: usize) {
        let Some(record) = self.disks[disk].hosts[SOURCE].record.clone() else {
            return;
        };
        let mut config = self.plan.config.clone();
        config.description.name = name_of(disk);
        match Source::released(config, &record) {
            Ok(source) => {
                self.disks[disk].sources += 1;
                self.disks[disk].hosts[SOURCE].machine = Machine::Source(Box::new(source));
                self.source_event(disk, SourceEvent::Tick);
                self.arm(disk, SOURCE);
            }
            Err(e) => self.failure(&format!("cannot go on with a handover: {e}")),
        }
    }

    /// A disk goes into service at the target.
    pub(super) fn check_service(&mut self, disk: usize) {
        self.disks[disk].hosts[TARGET].front = Front::Serving;
        let Some(parting) = &self.history.parting else {
            return self.failure("a disk that was never granted is served");
        };
        let size = self.plan.size;
        let wanted = &parting.content[disk * size..][..size];
        let hosts = &self.disks[disk].hosts;
        if hosts[TARGET].disk.now != wanted {
            self.failure("a disk is served that is not what was handed over");
        } else if hosts[SOURCE].accepts() || !self.is_released(disk) {
            self.failure("a disk is served by both");
        }
    }

    /// Hold what would be promoted now of the disks that are left against what they hold.
    pub(super) fn check_rest(&mut self, power: bool) {
        let (Some(record), Some(parting)) = (self.record.clone(), &self.history.parting) else {
            return;
        };
        let size = self.plan.size;
        let mut wrong = None;
        for (disk, state) in self.disks.iter().enumerate() {
            let host = &state.hosts[TARGET];
            let Some((of, cut)) = record.cut_of(&name_of(disk)).filter(|_| is_joined(host)) else {
                continue;
            };
            let session = host.record.as_ref().map(|record| &record.state);
            let upto = match session {
                Some(State::Following { session, .. }) if *session == of => Upto::Cut(cut),
                _ => Upto::Nothing,
            };
            let (mut content, mut journal) = (host.disk.clone(), host.journal.clone());
            if power && host.up {
                content.power_cut(&mut self.rng);
                journal.power_cut(&mut self.rng);
            }
            let (promoted, _) = journal.promoted(&content.now, upto);
            if promoted != parting.content[disk * size..][..size] {
                wrong = Some(disk);
            }
            self.stats.rest += 1;
        }
        if let Some(disk) = wrong {
            self.failure(&format!(
                "of disk {disk} a promotion is not what the disks that are left hold"
            ));
        }
    }

    /// At the end of the faults: the source has what was promised, and so has a promotion.
    fn check_end(&mut self) {
        let content = self.at_source();
        if let Err(e) = self.history.ledger.check(0, &content, Promise::Acked) {
            self.failure(&format!("in the end, at the source: {e}"));
        }
        match self.promoted(false) {
            Some((promoted, ..)) if promoted == content => {}
            Some(_) => self.failure("in the end the moment is not all that was written"),
            None => self.failure("in the end a promotion is refused"),
        }
    }
}
