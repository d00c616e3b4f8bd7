//! What the owner of a server does to an export while it is in use.

use std::fmt;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vdisk::engine::{Compacted, Extent, Mark};
use vdisk::format::track::CheckpointName;
use vdisk::tap::WriteTap;

use super::policy::Passed;
use super::{Disk, Export, Mode, QueueHandle, QueueShared, Statistics, Throttled};
use crate::forward::Forwarder;
use crate::nbd::uri::Address;
use crate::throttle::{Limits, Rate};
use crate::virtio::block::BlockDevice;
use crate::virtio::ring::SplitQueue;
use crate::virtio::{GuestMemory, QueueOptions, QueueSetup};
use crate::worker::{Attachment, Crew, Message};

/// A request from within this process, carried out by a worker like a client's.
///
/// It goes to the disk also while clients' requests are held or forwarded. Offsets and lengths are
/// in bytes and lie inside the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalRequest {
    /// Read.
    Read {
        /// First byte.
        offset: u64,
        /// How many bytes; at most 64 MiB.
        len: u64,
    },
    /// Write.
    Write {
        /// First byte.
        offset: u64,
        /// What; at most 64 MiB.
        data: Bytes,
    },
    /// Make a range read as zero, giving its space back.
    Zero {
        /// First byte.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Make every change that completed before durable.
    Flush,
    /// Say which parts of a range are allocated; the answer may be shorter than the range.
    Status {
        /// First byte.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Bring the image into the state of a cleanly closed one, with this mark in place. No change
    /// may be in flight: hold the export first.
    Park {
        /// The mark; `None` removes one.
        mark: Option<Mark>,
    },
    /// Give the disk another size, durably. Clients that attach afterwards see it. Those that are
    /// attached keep the size they learnt; what they ask for beyond the new end fails.
    Resize {
        /// The new size in bytes.
        size: u64,
        /// Whether data beyond the new end may be thrown away.
        discard_data: bool,
    },
    /// Remember this moment: what changes from now on can be told later. Only of an image whose
    /// changes are tracked.
    Checkpoint {
        /// What it is called.
        name: CheckpointName,
        /// Seconds since 1970; only kept.
        time: u64,
    },
    /// Go on making the image's file as short as it can be, while it is in use; to be asked again
    /// until [`LocalReply::Compacted`] says that it is done.
    Compact {
        /// Whether blocks shall also come to lie in the order of the disk.
        defragment: bool,
        /// About so many bytes are moved before this ends; at least one block.
        budget: u64,
    },
}

/// What a [`LocalRequest`] brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalReply {
    /// It was done.
    Done,
    /// The bytes read.
    Data(Bytes),
    /// Consecutive extents from the first byte asked about.
    Extents(Vec<Extent>),
    /// How far a compaction is.
    Compacted(Compacted),
}

/// Called with the result, on a worker; must not block.
pub(crate) type LocalDone = Box<dyn FnOnce(io::Result<LocalReply>) + Send>;

/// An export of a running server. Clones are the same export.
///
/// Callbacks run on a worker and must not block; they come also when there was nothing to wait for.
#[derive(Clone)]
pub struct ExportHandle {
    export: Arc<Export>,
    crew: Arc<Crew>,
}

impl fmt::Debug for ExportHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ExportHandle")
            .field(&self.export.name)
            .finish()
    }
}

impl ExportHandle {
    pub(crate) fn new(export: Arc<Export>, crew: Arc<Crew>) -> Self {
        Self { export, crew }
    }

    pub(crate) fn id(&self) -> u64 {
        self.export.id
    }

    /// The name clients know it by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.export.name
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.disk().size()
    }

    /// Whether clients may not change it.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.export.read_only()
    }

    /// The disk it serves now.
    #[must_use]
    pub fn disk(&self) -> Arc<Disk> {
        Arc::clone(&self.export.policy().disk)
    }

    /// What it has done since it began.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        Statistics::sum(&self.export.counters)
    }

    /// Let `tap` see every change from now on.
    ///
    /// `attached` is called when every request that began without the tap has ended: from then on
    /// whatever is read from the disk holds all changes that the tap has not seen.
    pub fn attach_tap(&self, tap: Arc<dyn WriteTap>, attached: impl FnOnce() + Send + 'static) {
        self.export.policy().tap = Some(tap);
        self.announce(Box::new(attached));
    }

    /// Take the tap off. `detached` is called when it will not be called any more.
    pub fn detach_tap(&self, detached: impl FnOnce() + Send + 'static) {
        self.export.policy().tap = None;
        self.announce(Box::new(detached));
    }

    /// Let new requests of clients wait. `drained` is called when those in flight have ended.
    pub fn hold(&self, drained: impl FnOnce() + Send + 'static) {
        self.export.policy().mode = Mode::Hold;
        self.announce(Box::new(drained));
    }

    /// Serve from the disk (again), what waited first.
    pub fn release(&self) {
        self.export.expect(None);
        self.export.policy().mode = Mode::Serve;
        self.announce(Box::new(|| {}));
    }

    /// Send what waits and what comes to an export of an NBD server elsewhere, for as long as this
    /// export exists or until [`Self::hold`]. What is in flight locally is not waited
    /// for: hold first.
    ///
    /// A lost connection is made again and what was not answered is sent again; clients see a pause.
    /// Said again of the same address it changes nothing.
    pub fn forward(&self, address: Address) {
        let expected = self.export.expect(None);
        let mut policy = self.export.policy();
        if let Mode::Forward(there) = &policy.mode
            && *there.address() == address
        {
            return;
        }
        let there = expected.filter(|expected| *expected.address() == address);
        let there = there.unwrap_or_else(|| {
            let left_over = self.export.left_over.load(Ordering::SeqCst);
            Arc::new(if left_over {
                Forwarder::start_rested(address)
            } else {
                Forwarder::start(address)
            })
        });
        if self.export.writes_through() {
            there.write_through();
        }
        if self.export.late.load(Ordering::SeqCst) {
            there.rest();
        }
        policy.mode = Mode::Forward(there);
        drop(policy);
        self.announce(Box::new(|| {}));
    }

    /// Whoever it is sent on to from now on is asked for each change to be durable before it is answered: nothing is
    /// done again there after a lost connection but what was not answered. For a disk that goes where other requests
    /// come to it than those that pass here: what was done again would take those back.
    pub fn write_through(&self) {
        self.export.write_through();
    }

    /// Whoever it is sent on to from now on may be no server of ours, and may still do what it was sent over a connection
    /// that was lost: it is given two seconds before anything is sent to it again.
    pub fn others_are_late(&self) {
        self.export.late.store(true, Ordering::SeqCst);
    }

    /// The same, and what a process before this one sent there may still be under way.
    pub fn others_have_left_overs(&self) {
        self.others_are_late();
        self.export.left_over.store(true, Ordering::SeqCst);
    }

    /// Where requests are sent on to, if they are.
    #[must_use]
    pub fn forwards_to(&self) -> Option<Address> {
        match &self.export.policy().mode {
            Mode::Forward(there) => Some(there.address().clone()),
            _ => None,
        }
    }

    /// The disk is about to come back from where requests are sent on to, which may lead to [`Self::come_back`] until
    /// [`Self::stay_away`]. Until then, or for `limit`, no lost connection is made again, since what was answered would be
    /// done again there. `false`, and nothing is changed, if just that is being done: try again later.
    #[must_use]
    pub fn may_come_back(&self, limit: Option<Duration>) -> bool {
        match &self.export.policy().mode {
            Mode::Forward(there) => there.pause(limit),
            _ => true,
        }
    }

    /// It does not come back now after all.
    pub fn stay_away(&self) {
        if let Mode::Forward(there) = &self.export.policy().mode {
            there.resume();
        }
    }

    /// The disk has come back, with all that was done elsewhere: serve from it again what was sent on or held until now.
    /// What is on its way there is answered from there, and not waited for. Returns when no worker sends anything on any
    /// more; not to be called on one.
    pub fn come_back(&self) -> io::Result<()> {
        let mut policy = self.export.policy();
        match &policy.mode {
            Mode::Forward(there) => there.settle(),
            Mode::Hold | Mode::Serve => {}
            Mode::Closed => return Err(stopped()),
        }
        policy.mode = Mode::Serve;
        drop(policy);
        self.export.expect(None);
        wait(|passed| self.crew.announce_at_once(&self.export, passed));
        Ok(())
    }

    /// Requests will probably be [sent on](Self::forward) there: begin to connect. [`Self::release`] ends that.
    pub fn expect(&self, address: Address) {
        self.export
            .expect(Some(Arc::new(Forwarder::start(address))));
    }

    /// Whether the connection that was begun by [`Self::expect`] is there; so it is where none is expected.
    #[must_use]
    pub fn is_expected_up(&self) -> bool {
        self.export.is_expected_up()
    }

    /// Put another disk of the same size in place of the one served. Hold the export first and wait
    /// until it is drained. `swapped` is called when no worker uses the old disk for this export.
    pub fn swap(&self, disk: Arc<Disk>, swapped: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut policy = self.export.policy();
        if !matches!(policy.mode, Mode::Hold) {
            let what = "an export must be held while its disk is replaced";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        if disk.size() != policy.disk.size() {
            let what = "a disk can be replaced only by one of the same size";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        policy.disk = disk;
        drop(policy);
        self.announce(Box::new(swapped));
        Ok(())
    }

    /// What a driver learns of a device on this export as it is now, with so many queues of so many
    /// entries each.
    #[must_use]
    pub fn block_device(&self, queues: u16, queue_size: u16) -> BlockDevice {
        let disk = self.disk();
        BlockDevice {
            size: disk.size(),
            logical_sector: disk.logical_sector(),
            read_only: self.read_only(),
            queues,
            queue_size,
        }
    }

    /// Serve a virtqueue in a guest's memory: its requests are treated as those of a client are. What
    /// is in it already is taken at once, so that no kick from before is missed.
    ///
    /// `kick` is made blocking, and read by the worker alone.
    ///
    /// # Errors
    /// `InvalidInput`: the queue is not a sound one, or not in the memory. `NotConnected`: the server
    /// has been stopped.
    pub fn attach_queue(
        &self,
        memory: GuestMemory,
        setup: QueueSetup,
        options: QueueOptions,
    ) -> io::Result<QueueHandle> {
        SplitQueue::open(Arc::clone(&memory), &setup.state, options.features)
            .map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        let flags = fcntl_getfl(&setup.kick)?;
        fcntl_setfl(&setup.kick, flags - OFlags::NONBLOCK)?;
        let worker = options.number % self.crew.workers() as u16;
        let shared = Arc::new(QueueShared::default());
        let attachment = Attachment {
            export: Arc::clone(&self.export),
            memory,
            setup,
            options,
            shared: Arc::clone(&shared),
        };
        let message = Message::Attach(Box::new(attachment));
        match self.crew.inbox(worker).post(message) {
            Ok(()) => Ok(QueueHandle::new(shared, Arc::clone(&self.crew), worker)),
            Err(_) => Err(stopped()),
        }
    }

    /// Carry out a request on a worker.
    pub fn submit(
        &self,
        request: LocalRequest,
        done: impl FnOnce(io::Result<LocalReply>) + Send + 'static,
    ) {
        let export = Arc::clone(&self.export);
        let message = Message::Local {
            export,
            request,
            done: Box::new(done),
        };
        if let Err(Message::Local { done, .. }) = self.crew.post_own(self.export.id, message) {
            done(Err(stopped()));
        }
    }

    /// Carry out a request and wait for it. Not to be called on a worker, callbacks included.
    pub fn call(&self, request: LocalRequest) -> io::Result<LocalReply> {
        self.asked(request)
            .recv()
            .unwrap_or_else(|_| Err(stopped()))
    }

    /// [`Self::call`], waiting no longer than `limit`; what was asked for may still be done afterwards.
    pub(crate) fn call_within(
        &self,
        request: LocalRequest,
        limit: Duration,
    ) -> io::Result<LocalReply> {
        let answer = self.asked(request).recv_timeout(limit);
        answer.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
    }

    /// Have a request carried out; where its answer comes.
    fn asked(&self, request: LocalRequest) -> mpsc::Receiver<io::Result<LocalReply>> {
        let (sender, receiver) = mpsc::channel();
        self.submit(request, move |result| {
            let _ = sender.send(result);
        });
        receiver
    }

    /// [`Self::hold`], and wait until it is drained. Not to be called on a worker.
    pub fn hold_and_wait(&self) {
        wait(|passed| self.hold(passed));
    }

    /// Refuse everything from now on, and wait until nothing is in flight.
    pub(crate) fn close_and_wait(&self) {
        wait(|passed| {
            self.export.policy().mode = Mode::Closed;
            self.announce(Box::new(passed));
        });
    }

    /// How much clients and guests may ask of it.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.export.throttle.limits()
    }

    /// Other limits from now on, also for what waits already. Flushes are free, and so is what is sent elsewhere
    /// (see [`Self::forward`]) and what this process asks for.
    pub fn set_limits(&self, limits: Limits) {
        let mut policy = self.export.policy();
        policy.limited = self.export.throttle.change(limits);
        drop(policy);
        self.announce(Box::new(|| {}));
    }

    /// Besides its limits, let clients and guests write at most so many bytes a second from now on; at least one. What
    /// they read does not wait for that. May be called often.
    pub fn brake(&self, bytes: Option<u64>) {
        let rate = bytes.and_then(|bytes| {
            let bytes = bytes.clamp(1, Rate::MOST);
            Rate::new(bytes, Rate::usual_burst(bytes))
        });
        let mut policy = self.export.policy();
        let limited = self.export.throttle.brake(rate);
        let was = std::mem::replace(&mut policy.limited, limited);
        drop(policy);
        // Those who wait already ask again by themselves.
        if was != limited {
            self.announce(Box::new(|| {}));
        }
    }

    /// What has waited under its limits.
    #[must_use]
    pub fn throttled(&self) -> Throttled {
        self.export.throttle.throttled()
    }

    /// Have every worker take the policy on; call back when all of them live by it.
    fn announce(&self, passed: Passed) {
        self.crew.announce(&self.export, passed);
    }
}

/// Wait until what `start` begins has called back.
fn wait(start: impl FnOnce(Box<dyn FnOnce() + Send>)) {
    let (sender, receiver) = mpsc::channel();
    start(Box::new(move || {
        let _ = sender.send(());
    }));
    // An error means that the callback was dropped: the workers are gone, nothing is in flight.
    let _ = receiver.recv();
}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the server has been stopped")
}
