//! A device's registers, as the state of a machine has them.
//!
//! A state is taken back by writing what a driver would have written, through the checks that a driver meets; what
//! does not come out as it was saved is refused. So no state brings about what no driver can.

use blockserver::virtio::QueueState;

use super::{Fault, ISR_CONFIG, Transport, status};
use crate::snapshot;

/// Bits of the status that a driver writes, in the order in which it may.
const STEPS: [u8; 5] = [
    1 | 2,
    status::FEATURES_OK,
    status::DRIVER_OK,
    status::FAILED,
    !status::NEEDS_RESET,
];

impl Transport {
    /// What the registers hold. Of each queue that is at work `position` says how far it is, of each vector
    /// `signalled` whether a signal waits.
    pub(crate) fn save(
        &self,
        position: impl Fn(u16) -> Option<snapshot::Position>,
        signalled: impl Fn(Option<u16>) -> bool,
    ) -> snapshot::Transport {
        let queues = (0_u16..).zip(&self.queues);
        let queues = queues.map(|(number, queue)| snapshot::Queue {
            most: queue.max,
            size: queue.size,
            vector: queue.vector,
            enabled: queue.enabled,
            areas: queue.areas,
            position: position(number),
            signalled: signalled(Some(number)),
        });
        snapshot::Transport {
            offered: self.offered,
            accepted: self.accepted,
            halves: self.halves,
            status: self.status,
            generation: self.generation,
            isr: self.isr,
            config_vector: self.config_vector,
            config_signalled: signalled(None),
            selected: self.selected,
            queues: queues.collect(),
        }
    }

    /// Hold what was saved, of registers that are as at first. The text says why that cannot be.
    pub(crate) fn restore(&mut self, saved: &snapshot::Transport) -> Result<(), String> {
        let lacking = saved.offered & !self.offered;
        if lacking != 0 {
            return Err(format!(
                "it does not offer the features {lacking:#x} any more"
            ));
        }
        let here: Vec<u16> = self.queues.iter().map(|queue| queue.max).collect();
        let there: Vec<u16> = saved.queues.iter().map(|queue| queue.most).collect();
        if here != there {
            return Err(format!(
                "its queues have at most {here:?} entries, and had {there:?}"
            ));
        }
        self.replay(saved);
        self.status |= saved.status & status::NEEDS_RESET;
        self.generation = saved.generation;
        self.isr = saved.isr & ISR_CONFIG;
        self.halves = saved.halves;
        self.selected = saved.selected;
        let same = snapshot::Transport {
            offered: saved.offered,
            ..self.save(
                |number| saved.queues.get(usize::from(number))?.position.clone(),
                |queue| match queue {
                    Some(number) => saved
                        .queues
                        .get(usize::from(number))
                        .is_some_and(|queue| queue.signalled),
                    None => saved.config_signalled,
                },
            )
        };
        if same == *saved {
            return Ok(());
        }
        Err("its registers are not as any driver can leave them".to_owned())
    }

    /// Write what a driver would have written. What its writes lead to is not done here.
    fn replay(&mut self, saved: &snapshot::Transport) {
        for half in [0_u32, 1] {
            self.write(0x08, &u32::to_le_bytes(half));
            self.write(0x0C, &Self::half(saved.accepted, half).to_le_bytes());
        }
        self.write(0x10, &saved.config_vector.to_le_bytes());
        for (number, queue) in (0_u16..).zip(&saved.queues) {
            self.write(0x16, &number.to_le_bytes());
            self.write(0x18, &queue.size.to_le_bytes());
            self.write(0x1A, &queue.vector.to_le_bytes());
            for (area, at) in queue.areas.iter().zip([0x20, 0x28, 0x30]) {
                self.write(at, &area.to_le_bytes());
            }
            self.write(0x1C, &u16::from(queue.enabled).to_le_bytes());
        }
        for step in STEPS {
            let value = saved.status & (step | self.status);
            if value != 0 {
                self.write(0x14, &[value]);
            }
        }
    }

    /// The queues of a device that was at work, at the positions that were saved; `in_memory` says whether
    /// all of a range is memory.
    pub(crate) fn saved_queues(
        &self,
        saved: &snapshot::Transport,
        in_memory: impl Fn(u64, u64) -> bool,
    ) -> Result<Vec<(u16, QueueState)>, String> {
        let states = self.queue_states(in_memory);
        let states = states.map_err(|Fault::Placement { queue }| {
            format!("its queue {queue} is not aligned, or not in memory")
        })?;
        let placed = states.into_iter().map(|(number, state)| {
            let queue = saved.queues.get(usize::from(number));
            let position = queue.and_then(|queue| queue.position.as_ref());
            let position = position.ok_or_else(|| format!("its queue {number} has no position"))?;
            let state = QueueState {
                next_available: position.next_available,
                next_used: position.next_used,
                ..state
            };
            Ok((number, state))
        });
        placed.collect()
    }
}
