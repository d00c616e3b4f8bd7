//! A function and its device, as the state of a machine has them.
//!
//! Taking a state changes nothing. Restoring one asks the same registers that a guest writes; what they do not
//! take is refused, with the reason.

use blockserver::virtio::QueueState;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{NO_VECTOR, VirtioFunction};
use crate::snapshot::{self, Position};
use crate::virtio::Source;

impl VirtioFunction {
    /// Whether nothing of it is at work: it is stopped, or has never been ready.
    pub(crate) fn stands_still(&self) -> bool {
        !self.active && !self.resetting
    }

    /// The number of the device's kind.
    pub(crate) fn kind(&self) -> u16 {
        self.device.kind()
    }

    /// Its state, in `slot`. It must stand still.
    pub(crate) fn save(&mut self, slot: u8) -> Result<snapshot::Function, String> {
        self.heed_alarm();
        let settled = self.wires.settle();
        settled.map_err(|error| format!("its interrupts cannot be waited for: {error}"))?;
        let live = self.transport.is_live();
        // A device that cannot go on without a reset has no queues any more, wherever they are.
        let stopped = self.stopped.as_deref().filter(|_| live).unwrap_or_default();
        let (config_vector, vectors) = self.transport.vectors();
        let signalled = |queue: Option<u16>| {
            let (source, vector) = match queue {
                Some(number) => (Source::Queue(number), vectors.get(usize::from(number))),
                None => (Source::Config, Some(&config_vector)),
            };
            // What is signalled by no vector is never delivered.
            vector.is_some_and(|vector| *vector != NO_VECTOR) && self.wires.is_signalled(source)
        };
        let transport = self
            .transport
            .save(|number| position(stopped, number), signalled);
        let lost = |queue: &snapshot::Queue| queue.enabled && live && queue.position.is_none();
        if transport.queues.iter().any(lost) {
            return Err("a queue of it does not say how far it is".to_owned());
        }
        Ok(snapshot::Function {
            slot,
            config: self.config.bytes(),
            vectors: self.msix.entries(),
            transport,
            device: self.device.state(),
        })
    }

    /// Be as it was saved, before it was ever used. It goes on by [`Self::go_on`].
    pub(crate) fn restore(&mut self, saved: &snapshot::Function) -> Result<(), String> {
        let (here, there) = (self.device.kind(), saved.device.kind());
        if here != there {
            return Err(format!("it is of kind {here}, and was of kind {there}"));
        }
        self.device.restore(&saved.device)?;
        self.transport.restore(&saved.transport)?;
        if saved.vectors.len() != usize::from(self.msix.vectors()) {
            return Err(format!(
                "it has {} vectors, and had {}",
                self.msix.vectors(),
                saved.vectors.len()
            ));
        }
        self.config
            .restore(&saved.config)
            .map_err(|at| format!("its configuration space is another one at {at:#x}"))?;
        if self.transport.is_live() {
            let memory = &self.memory;
            let in_memory = |at, bytes| memory.check_range(GuestAddress(at), bytes as usize);
            let queues = self.transport.saved_queues(&saved.transport, in_memory)?;
            self.stopped = Some(queues);
        } else if saved
            .transport
            .queues
            .iter()
            .any(|queue| queue.position.is_some())
        {
            return Err("it is not at work, and a queue of it has a position".to_owned());
        }
        self.wire(saved)
            .map_err(|error| format!("the host cannot connect it: {error}"))
    }

    /// Have the host do what the registers say.
    fn wire(&mut self, saved: &snapshot::Function) -> std::io::Result<()> {
        let decoded = self.config.decoded().into_iter().next();
        let doorbells = decoded.map(|(_, range)| range.start + super::DOORBELLS);
        self.wires
            .place_doorbells(doorbells, u64::from(super::STRIDE))?;
        self.msix.fill(&saved.vectors);
        let control = self.config.word(self.capabilities.0 + 2);
        for change in self.msix.set_control(control) {
            self.wires.set_vector(change.vector, change.message)?;
        }
        let (config, queues) = self.transport.vectors();
        self.connect(Source::Config, config)?;
        for (number, vector) in (0..).zip(queues) {
            self.connect(Source::Queue(number), vector)?;
        }
        Ok(())
    }

    /// Signal what was signalled and not delivered when it was saved. Once the interrupt controllers are as they
    /// were.
    pub(crate) fn signal_again(&self, saved: &snapshot::Transport) {
        if saved.config_signalled {
            self.wires.signal(Source::Config);
        }
        for (number, queue) in (0..).zip(&saved.queues) {
            if queue.signalled {
                self.wires.signal(Source::Queue(number));
            }
        }
    }
}

fn position(queues: &[(u16, QueueState)], number: u16) -> Option<Position> {
    let mut queues = queues.iter();
    let (_, state) = queues.find(|(of, _)| *of == number)?;
    Some(Position {
        next_available: state.next_available,
        next_used: state.next_used,
    })
}
