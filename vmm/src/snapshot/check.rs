//! What has to hold within a message, and between the messages of one machine.

use super::bytes::Encoded;
use super::chips::{Chips, Clock, Pit};
use super::container::{Kind, Message};
use super::devices::{Events, Function, Pci, Queue, Serial};
use super::error::{DecodeError, Fault};
use super::host::{HostFacts, MOST_LEAVES, Shape};
use super::processor::{MOST_MSRS, Processor, RIGHTS, XSAVE_BYTES};
use super::{MachineState, Segment};
use crate::layout;
use crate::memory::MEMORY_BYTES;

/// Something whose values have to agree with each other.
pub(super) trait Checked: Encoded {
    /// What is wrong with it.
    fn check(&self) -> Result<(), &'static str>;
}

fn must(holds: bool, why: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(why) }
}

impl Checked for HostFacts {
    fn check(&self) -> Result<(), &'static str> {
        must(
            self.software.len() <= 256,
            "the program's name is longer than 256 bytes",
        )?;
        must(
            self.cpuid.len() <= MOST_LEAVES,
            "more than 256 leaves of CPUID",
        )
    }
}

impl Checked for Shape {
    fn check(&self) -> Result<(), &'static str> {
        must(
            (1..=255).contains(&self.vcpus),
            "a machine has 1 to 255 processors",
        )?;
        let sizes = MEMORY_BYTES.contains(&self.memory) && self.memory.is_multiple_of(layout::PAGE);
        must(sizes, "a machine has 2 MiB to 1 TiB of memory, in pages")?;
        must(
            *self == Self::of(self.vcpus, self.memory),
            "memory is laid out in another way than this version does",
        )
    }
}

impl Checked for Clock {
    fn check(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

impl Checked for Chips {
    fn check(&self) -> Result<(), &'static str> {
        must(
            self.io_apic.requested >> 24 == 0,
            "the I/O APIC has 24 lines",
        )
    }
}

impl Checked for Pit {
    fn check(&self) -> Result<(), &'static str> {
        for channel in &self.channels {
            must(
                channel.count <= 0x1_0000,
                "a channel counts down from more than 0x10000",
            )?;
            must(
                channel.mode <= 7 || channel.mode == 0xFF,
                "a channel has a mode above 7",
            )?;
        }
        Ok(())
    }
}

impl Checked for Processor {
    fn check(&self) -> Result<(), &'static str> {
        must(
            self.cpuid.len() <= MOST_LEAVES,
            "more than 256 leaves of CPUID",
        )?;
        must(
            self.msrs.len() <= MOST_MSRS,
            "more than 1024 model-specific registers",
        )?;
        let rising = self.msrs.is_sorted_by(|one, next| one.index < next.index);
        must(rising, "model-specific registers are not in order")?;
        let parts = self.xsave.len().is_multiple_of(4);
        must(
            parts && XSAVE_BYTES.contains(&self.xsave.len()),
            "an XSAVE area of such a size",
        )?;
        let segments = &self.segments;
        let rights = |segment: &Segment| segment.rights & !RIGHTS == 0;
        let known = segments.code_and_data.iter().all(rights)
            && rights(&segments.task)
            && rights(&segments.local);
        must(known, "access rights of a segment that do not exist")?;
        let pending = &self.pending;
        must(
            pending.shadow <= 3,
            "a shadow of interrupts that does not exist",
        )?;
        let exception = pending.exception.as_ref();
        must(
            exception.is_none_or(|it| it.vector < 32 && it.vector != 2),
            "an exception that does not exist",
        )
    }
}

impl Checked for Serial {
    fn check(&self) -> Result<(), &'static str> {
        must(self.input.len() <= 64, "more than 64 bytes of input")
    }
}

impl Checked for Events {
    fn check(&self) -> Result<(), &'static str> {
        must(self.happened & !3 == 0, "an event that does not exist")
    }
}

impl Checked for Pci {
    fn check(&self) -> Result<(), &'static str> {
        must(
            self.address & 0x7F00_0003 == 0,
            "bits of the address register that are zero",
        )
    }
}

impl Checked for Function {
    fn check(&self) -> Result<(), &'static str> {
        must((1..=31).contains(&self.slot), "a device is in slot 1 to 31")?;
        must(
            (1..=2048).contains(&self.vectors.len()),
            "a device has 1 to 2048 vectors",
        )?;
        let transport = &self.transport;
        must(
            transport.queues.len() <= 255,
            "a device has at most 255 queues",
        )?;
        let vector = |vector: u16| {
            let known = vector == 0xFFFF || usize::from(vector) < self.vectors.len();
            must(known, "a vector that the device does not have")
        };
        vector(transport.config_vector)?;
        for queue in &transport.queues {
            vector(queue.vector)?;
            check_queue(queue)?;
        }
        Ok(())
    }
}

fn check_queue(queue: &Queue) -> Result<(), &'static str> {
    let size = |size: u16| size.is_power_of_two() && size <= 0x8000;
    must(
        queue.most == 0 || size(queue.most),
        "a queue's greatest size is no power of two",
    )?;
    let fits = queue.size == queue.most || size(queue.size) && queue.size <= queue.most;
    must(fits, "a queue's size is not one that it may have")?;
    must(
        !queue.enabled || queue.most > 0,
        "a queue that does not exist is enabled",
    )?;
    must(
        queue.enabled || queue.position.is_none(),
        "a queue that is not enabled has a position",
    )
}

impl MachineState {
    /// What has to hold between messages.
    pub(super) fn check(&self) -> Result<(), DecodeError> {
        let wrong = |kind, why| {
            let fault = Fault::Value(why);
            Err(DecodeError::new(0, "", fault).within(kind))
        };
        if self.processors.len() != usize::from(self.shape.vcpus) {
            return wrong(
                Kind::Shape,
                "another number of processors follows than it says",
            );
        }
        if !self
            .functions
            .is_sorted_by(|one, next| one.slot < next.slot)
        {
            return wrong(Kind::Function, "slots are not in order");
        }
        Ok(())
    }
}

/// The messages of a machine, taken in the order in which they have to stand.
#[derive(Debug)]
pub(super) struct Order<'a> {
    rest: &'a [Message<'a>],
    end: u64,
}

impl<'a> Order<'a> {
    /// All of them; `end` is the offset behind the last.
    pub(super) fn new(messages: &'a [Message<'a>], end: u64) -> Self {
        Self {
            rest: messages,
            end,
        }
    }

    fn next<T: Checked>(&mut self, kind: Kind) -> Result<Option<T>, DecodeError> {
        let Some((message, rest)) = self.rest.split_first() else {
            return Ok(None);
        };
        if message.kind != kind {
            return Ok(None);
        }
        self.rest = rest;
        let value: T = message.value()?;
        let checked = value
            .check()
            .map_err(|why| DecodeError::new(message.at, "", Fault::Value(why)).within(kind));
        checked.map(|()| Some(value))
    }

    /// The message of this kind, which must be next.
    pub(super) fn one<T: Checked>(&mut self, kind: Kind) -> Result<T, DecodeError> {
        let at = self.rest.first().map_or(self.end, |next| next.at);
        let missing = || DecodeError::new(at, "", Fault::Missing).within(kind);
        self.next(kind)?.ok_or_else(missing)
    }

    /// All messages of this kind that are next.
    pub(super) fn all<T: Checked>(&mut self, kind: Kind) -> Result<Vec<T>, DecodeError> {
        std::iter::from_fn(|| self.next(kind).transpose()).collect()
    }

    /// None may be left.
    pub(super) fn end(&self) -> Result<(), DecodeError> {
        match self.rest.first() {
            Some(next) => Err(DecodeError::new(next.at, "", Fault::Order).within(next.kind)),
            None => Ok(()),
        }
    }
}
