//! A virtio disk (5.2), each vCPU on a queue of its own.
//!
//! A channel is one vCPU's way to the disk: a queue and as many slots as requests may be under way.
//! Each slot has a header, a status byte, a buffer and descriptors of its own, written anew for each request.

use crate::command::Step;
use crate::machine::boot::Boot;
use crate::machine::lock::Lock;
use crate::machine::memory::{self, PAGE, Window};
use crate::vcpu::Vcpu;

use super::device::{self, Device};
use super::queue::{DESCRIPTOR, Descriptor, Doorbell, INDIRECT, NEXT, Queue, WRITE};

/// Bytes of a sector, the unit of the protocol.
pub(crate) const SECTOR: u64 = 512;
/// Most requests under way on one channel.
pub(crate) const MOST: usize = 128;

/// Feature bits of a disk (5.2.3).
pub(crate) const READ_ONLY: u64 = 1 << 5;
pub(crate) const BLOCK_SIZE: u64 = 1 << 6;
pub(crate) const FLUSH: u64 = 1 << 9;
pub(crate) const QUEUES: u64 = 1 << 12;
pub(crate) const DISCARD: u64 = 1 << 13;
pub(crate) const ZEROES: u64 = 1 << 14;
/// All of these the guest makes use of.
const WANTED: u64 = READ_ONLY | BLOCK_SIZE | FLUSH | QUEUES | DISCARD | ZEROES;

/// Where the number of queues is in the configuration (5.2.4).
const NUM_QUEUES: u64 = 32;

/// Bytes of a slot for header, status and the indirect table.
const CONTROL: u64 = 512;
/// Where the status is in them.
const STATUS: u64 = 16;
/// Where the table is in them.
const TABLE: u64 = 32;
/// Most pieces that a buffer is cut into: the table has room for them, header and status.
const MOST_PIECES: u16 = ((CONTROL - TABLE) / DESCRIPTOR) as u16 - 2;

/// What a request asks for (5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verb(pub(crate) u32);

impl Verb {
    pub(crate) const READ: Self = Self(0);
    pub(crate) const WRITE: Self = Self(1);
    pub(crate) const FLUSH: Self = Self(4);
    pub(crate) const IDENTIFY: Self = Self(8);
    pub(crate) const DISCARD: Self = Self(11);
    pub(crate) const ZEROES: Self = Self(13);

    /// Whether the device fills the buffer.
    fn fills(self) -> bool {
        self == Self::READ || self == Self::IDENTIFY
    }
}

/// A request's answers (5.2.6).
pub(crate) const OK: u8 = 0;
pub(crate) const FAILED: u8 = 1;
pub(crate) const UNSUPPORTED: u8 = 2;
/// What stands in the status byte before there is an answer.
const UNANSWERED: u8 = 0xee;

/// A request: its data is in the buffer of its slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) verb: Verb,
    /// The sector it begins at.
    pub(crate) sector: u64,
    /// Bytes of the buffer; none for a flush.
    pub(crate) len: u32,
}

impl Request {
    /// A read or write of `len` bytes at a byte offset.
    pub(crate) fn at(verb: Verb, offset: u64, len: u32) -> Self {
        let sector = offset / SECTOR;
        Self { verb, sector, len }
    }

    /// A flush.
    pub(crate) fn flush() -> Self {
        Self::at(Verb::FLUSH, 0, 0)
    }

    /// The byte that it begins at.
    pub(crate) fn offset(&self) -> u64 {
        self.sector.wrapping_mul(SECTOR)
    }
}

/// A request that the device answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finished {
    pub(crate) request: Request,
    pub(crate) status: u8,
    /// When it was put into the ring, in ticks.
    pub(crate) since: u64,
}

/// How the disk is driven in one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Requests under way on each channel.
    pub(crate) depth: u16,
    /// Bytes of a slot's buffer.
    pub(crate) size: u32,
    /// How many descriptors the buffer is spread over.
    pieces: u16,
    indirect: bool,
    events: bool,
}

impl Shape {
    /// By the words `depth`, `size`, `pieces`, `indirect` and `events`.
    pub(crate) fn new(step: &Step) -> Self {
        let depth = step.number_or("depth", 32);
        let size = step.number_or("size", 4096);
        let pieces = step.number_or("pieces", 1);
        assert!((1..=MOST as u64).contains(&depth), "depth={depth}");
        assert!(
            size.is_multiple_of(SECTOR) && (SECTOR..=64 << 20).contains(&size),
            "size={size}"
        );
        assert!(
            (1..=u64::from(MOST_PIECES)).contains(&pieces) && size.is_multiple_of(pieces),
            "pieces={pieces}"
        );
        Self {
            depth: depth as u16,
            size: size as u32,
            pieces: pieces as u16,
            indirect: step.is_set("indirect"),
            events: step.is_set("events"),
        }
    }

    /// Descriptors of one slot's chain in the ring's own table.
    fn chain(&self) -> u16 {
        if self.indirect { 1 } else { self.pieces + 2 }
    }
}

/// A disk that is open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disk {
    pub(crate) device: Device,
    /// What was agreed on.
    pub(crate) features: u64,
    pub(crate) shape: Shape,
    /// How many channels there are: queues, but not more than vCPUs.
    pub(crate) channels: u16,
    /// How many descriptors its first queue may have.
    pub(crate) longest: u16,
    ring: u16,
    memory: Window,
}

static OPEN: Lock<Option<Disk>> = Lock::new(None);

impl Disk {
    /// Opens the disk that `disk=` says, for all vCPUs at once, and gives each its channel, if there is one.
    pub(crate) fn open(vcpu: &Vcpu, boot: &Boot, step: &Step) -> (Self, Option<Channel>) {
        Self::open_as(vcpu, boot, step, Shape::new(step))
    }

    /// The same, driven in another way than the words say.
    pub(crate) fn open_as(
        vcpu: &Vcpu,
        boot: &Boot,
        step: &Step,
        shape: Shape,
    ) -> (Self, Option<Channel>) {
        if vcpu.leads() {
            let device = Device::find(boot, device::BLOCK, step.number_or("disk", 0) as usize);
            let disk = Self::prepare(vcpu, boot, step, (device, shape));
            OPEN.with(|| (), |open| *open = Some(disk));
        }
        vcpu.meet();
        // One at a time, for it writes to a register to read another one.
        let wait = || {
            vcpu.beat();
        };
        let opened = OPEN.with(wait, |open| {
            let disk = open.expect("an open disk");
            let has = vcpu.index < u32::from(disk.channels);
            let channel = has.then(|| Channel::new(&disk, vcpu.index as u16));
            (disk, channel)
        });
        vcpu.meet();
        opened
    }

    /// Closes it, for all at once.
    pub(crate) fn close(self, vcpu: &Vcpu) {
        vcpu.meet();
        if vcpu.leads() {
            self.device.expect_health();
            self.device.reset(vcpu);
            memory::give_back();
        }
        vcpu.meet();
    }

    /// Its capacity in bytes, now.
    pub(crate) fn capacity(&self) -> u64 {
        let [low, high] = self.device.config(0);
        (u64::from(high) << 32 | u64::from(low)) * SECTOR
    }

    /// Whether a feature was agreed on.
    pub(crate) fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Sets a disk up, with a channel for each vCPU at most; one vCPU does this.
    pub(crate) fn prepare(
        vcpu: &Vcpu,
        boot: &Boot,
        step: &Step,
        (device, mut shape): (Device, Shape),
    ) -> Self {
        let mut wanted = WANTED;
        if shape.indirect {
            wanted |= device::INDIRECT;
        }
        if shape.events {
            wanted |= device::EVENT_IDX;
        }
        let features = device.negotiate(vcpu, wanted);
        shape.indirect &= features & device::INDIRECT != 0;
        shape.events &= features & device::EVENT_IDX != 0;
        let many = features & QUEUES != 0;
        let queues = if many {
            (device.config::<1>(NUM_QUEUES)[0] >> 16) as u16
        } else {
            1
        };
        assert!(queues > 0 && queues <= device.queues(), "{queues} queues");
        let channels = u64::from(queues).min(u64::from(vcpu.count));
        let channels = channels.min(step.number_or("queues", channels)) as u16;
        let longest = device.longest_queue(0);
        shape.depth = shape.depth.min(longest / shape.chain());
        assert!(
            shape.depth > 0,
            "a queue of {longest} descriptors is too short"
        );
        let ring = (shape.depth * shape.chain()).next_power_of_two();
        let bytes = channel_bytes(&shape, ring);
        let memory = memory::take(boot, bytes * u64::from(channels));
        let disk = Self {
            device,
            features,
            shape,
            channels,
            longest,
            ring,
            memory,
        };
        for index in 0..channels {
            disk.ring_memory(index).clear();
            device.set_queue(index, &disk.queue(index));
        }
        device.start();
        disk
    }

    fn channel_memory(&self, index: u16) -> Window {
        let bytes = channel_bytes(&self.shape, self.ring);
        self.memory.part(u64::from(index) * bytes, bytes)
    }

    fn ring_memory(&self, index: u16) -> Window {
        self.channel_memory(index).part(0, ring_bytes(self.ring))
    }

    fn queue(&self, index: u16) -> Queue {
        Queue::new(self.ring_memory(index), self.ring, self.shape.events)
    }
}

fn ring_bytes(ring: u16) -> u64 {
    Queue::bytes(ring).next_multiple_of(PAGE)
}

fn channel_bytes(shape: &Shape, ring: u16) -> u64 {
    let slot = CONTROL + u64::from(shape.size);
    ring_bytes(ring) + (u64::from(shape.depth) * slot).next_multiple_of(PAGE)
}

/// One vCPU's way to the disk.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) shape: Shape,
    queue: Queue,
    doorbell: Doorbell,
    control: Window,
    buffers: Window,
    free: [u16; MOST],
    free_len: usize,
    under_way: [Option<(Request, u64)>; MOST],
}

impl Channel {
    /// Channel `index` of a disk.
    pub(crate) fn new(disk: &Disk, index: u16) -> Self {
        let depth = u64::from(disk.shape.depth);
        let memory = disk.channel_memory(index);
        let buffers_at = ring_bytes(disk.ring);
        let buffers_len = depth * u64::from(disk.shape.size);
        Self {
            shape: disk.shape,
            queue: disk.queue(index),
            doorbell: disk.device.doorbell(index),
            control: memory.part(buffers_at + buffers_len, depth * CONTROL),
            buffers: memory.part(buffers_at, buffers_len),
            free: core::array::from_fn(|slot| slot as u16),
            free_len: usize::from(disk.shape.depth),
            under_way: [None; MOST],
        }
    }

    /// A slot that a request can be started in, with its buffer.
    pub(crate) fn free_slot(&self) -> Option<(u16, Window)> {
        let last = self.free_len.checked_sub(1)?;
        let slot = self.free[last];
        Some((slot, self.buffer(slot)))
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.free_len == usize::from(self.shape.depth)
    }

    /// The buffer of a slot.
    pub(crate) fn buffer(&self, slot: u16) -> Window {
        let size = u64::from(self.shape.size);
        self.buffers.part(u64::from(slot) * size, size)
    }

    /// Puts a request into the free slot `slot` and offers it; the device sees it after [`Self::publish`].
    pub(crate) fn start(&mut self, slot: u16, request: Request, now: u64) {
        self.free_len -= 1;
        assert!(
            self.free[self.free_len] == slot,
            "slot {slot} is not the free one"
        );
        let control = self.control.part(u64::from(slot) * CONTROL, CONTROL);
        control.write(0, request.verb.0);
        control.write(4, 0u32);
        control.write(8, request.sector);
        control.write(STATUS, UNANSWERED);
        let first = slot * self.shape.chain();
        let table = control.part(TABLE, CONTROL - TABLE);
        if self.shape.indirect {
            let entries = self.write_chain(&table, 0, slot, &request);
            let pointer = Descriptor {
                address: table.address(),
                len: u32::from(entries) * DESCRIPTOR as u32,
                flags: INDIRECT,
                next: 0,
            };
            pointer.put(self.queue.table(), first);
        } else {
            self.write_chain(self.queue.table(), first, slot, &request);
        }
        self.under_way[usize::from(slot)] = Some((request, now));
        self.queue.offer(first);
    }

    /// Shows the device what was started.
    pub(crate) fn publish(&mut self) {
        self.queue.publish(&self.doorbell);
    }

    /// The next request that the device answered, and its slot, which is free again.
    pub(crate) fn finished(&mut self) -> Option<(u16, Finished)> {
        let used = self.queue.take()?;
        let chain = u32::from(self.shape.chain());
        let slot = used.head / chain;
        let whole = used.head.is_multiple_of(chain) && slot < u32::from(self.shape.depth);
        let under_way = whole
            .then(|| self.under_way[slot as usize].take())
            .flatten();
        let Some((request, since)) = under_way else {
            panic!("the device answered {used:?}, which it was not asked");
        };
        assert!(used.len > 0, "the device did not write a status");
        let slot = slot as u16;
        self.free[self.free_len] = slot;
        self.free_len += 1;
        let status = self.control.read(u64::from(slot) * CONTROL + STATUS);
        assert!(status != UNANSWERED, "the device left the status alone");
        let whole = used.len == request.len + 1 || !request.verb.fills() || status != OK;
        assert!(whole, "{request:?}: the device wrote {} bytes", used.len);
        let finished = Finished {
            request,
            status,
            since,
        };
        Some((slot, finished))
    }

    /// Does one request while nothing else is under way, with the buffer of the slot that `fill` is
    /// given: its status, and the buffer.
    pub(crate) fn call(
        &mut self,
        vcpu: &Vcpu,
        request: Request,
        fill: impl Fn(&Window),
    ) -> (u8, Window) {
        assert!(self.is_idle());
        let (slot, buffer) = self.free_slot().expect("a free slot");
        fill(&buffer);
        self.start(slot, request, vcpu.beat());
        self.publish();
        loop {
            if let Some((_, finished)) = self.finished() {
                return (finished.status, buffer);
            }
            vcpu.beat();
            core::hint::spin_loop();
        }
    }

    /// Writes header, buffer and status of a request as a chain from entry `first` of a table on: how many entries.
    fn write_chain(&self, table: &Window, first: u16, slot: u16, request: &Request) -> u16 {
        let control = self.control.address() + u64::from(slot) * CONTROL;
        let mut index = first;
        let mut put = |address, len, flags| {
            let next = index + 1;
            let descriptor = Descriptor {
                address,
                len,
                flags,
                next,
            };
            descriptor.put(table, index);
            index = next;
        };
        put(control, STATUS as u32, NEXT);
        let filled = if request.verb.fills() { WRITE } else { 0 };
        let piece = self.shape.size / u32::from(self.shape.pieces);
        let (mut address, mut left) = (self.buffer(slot).address(), request.len);
        while left > 0 {
            let len = left.min(piece);
            put(address, len, NEXT | filled);
            address += u64::from(len);
            left -= len;
        }
        put(control + STATUS, 1, WRITE);
        index - first
    }
}

/// What keeps a channel busy.
pub(crate) trait Work {
    /// What to ask for next, its data in the buffer; `None` when nothing is left for now.
    fn next(&mut self, now: u64, buffer: &Window) -> Option<Request>;

    /// A request was answered.
    fn done(&mut self, now: u64, finished: &Finished, buffer: &Window);
}

/// Keeps as many requests under way as the channel has slots, until nothing is left.
pub(crate) fn pump(vcpu: &Vcpu, channel: &mut Channel, work: &mut impl Work) {
    loop {
        let now = vcpu.beat();
        while let Some((slot, buffer)) = channel.free_slot()
            && let Some(request) = work.next(now, &buffer)
        {
            channel.start(slot, request, now);
        }
        channel.publish();
        let mut any = false;
        while let Some((slot, finished)) = channel.finished() {
            any = true;
            work.done(vcpu.beat(), &finished, &channel.buffer(slot));
        }
        if !any {
            if channel.is_idle() {
                return;
            }
            core::hint::spin_loop();
        }
    }
}
