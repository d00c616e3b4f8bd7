//! The templates of the target's site: images that have some of what the source's disk had once.
//!
//! Must never let a machine know what of them is right.

use std::io::ErrorKind;

use bytes::Bytes;

use super::host::{Asked, Doing};
use super::plan::AT;
use super::world::{SOURCE, TARGET, World};
use crate::GRANULE;
use crate::clock::Micros;
use crate::session::{ConnId, OpId, TargetAction, TargetConfig, TargetEvent};

impl World {
    /// What the target's machine is told when it starts. Its templates are others each time.
    pub(super) fn target_config(&mut self) -> TargetConfig {
        let count = if self.turned { 0 } else { self.plan.templates };
        self.templates = (0..count).map(|_| self.template()).collect();
        TargetConfig {
            window: 2 << 20,
            address: Some("b".into()),
            arbiter: Some(AT.into()),
            in_use: self.turned,
            templates: self.templates.len(),
            sabotage: self.plan.sabotage,
            ..TargetConfig::default()
        }
    }

    /// What the source has now, but for some granules, and not always to its end.
    fn template(&mut self) -> Vec<u8> {
        let mut content = self.hosts[SOURCE].disk.now.clone();
        for granule in content.chunks_mut(GRANULE as usize) {
            if self.rng.percent(30) {
                granule.fill(0xee);
            }
        }
        if self.rng.percent(30) {
            content.truncate(self.rng.below(content.len() as u64) as usize);
        }
        content
    }

    /// For that action alone.
    pub(super) fn read_template(&mut self, action: &TargetAction) {
        #[rustfmt::skip]
        let TargetAction::ReadTemplate { op, number, offset, len } = *action else {
            return;
        };
        let template = self.templates.get(number).map_or(&[][..], Vec::as_slice);
        let from = (offset as usize).min(template.len());
        let to = (from + len as usize).min(template.len());
        let there = Bytes::copy_from_slice(&template[from..to]);
        // It may be on a slow medium: much comes and goes meanwhile.
        let late = self.rng.percent(30).then(|| self.rng.below(300));
        if late.is_some() && self.rng.percent(20) {
            self.cut_a_bulk_lane();
        }
        let before = self.now + Micros(self.plan.op_time.0 * late.unwrap_or(0));
        let doing = Doing::Template(there);
        self.begin_op_after(TARGET, Asked::Machine(op), doing, before);
    }

    /// The source sends again what went over it, while that is at work here.
    fn cut_a_bulk_lane(&mut self) {
        let lanes = self.net.conns.iter().filter(|(_, conn)| conn.lane > 0);
        let lanes: Vec<ConnId> = lanes.rev().take(3).map(|(id, _)| *id).collect();
        let at = self.rng.below(lanes.len().max(1) as u64) as usize;
        if let Some(conn) = lanes
            .get(at)
            .filter(|_| self.plan.cuts && !self.calm())
            .copied()
        {
            self.net.kill(conn);
            self.announce_both(conn, true);
        }
    }

    /// What came of it.
    pub(super) fn of_template(&mut self, op: OpId, there: Bytes) -> TargetEvent {
        let works = self.calm() || !self.rng.percent(3);
        TargetEvent::OfTemplate(op, works.then_some(there).ok_or(ErrorKind::Other.into()))
    }
}
