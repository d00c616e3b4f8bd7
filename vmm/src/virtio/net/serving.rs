//! The thread that moves frames between a tap and a guest's queues.
//!
//! Driver. It sleeps in `poll`: five descriptors of which each turn waits for others. A turn moves at most
//! [`TURN`] frames each way, so that neither way, nor the order to stop, waits for the other. A frame that
//! there are no buffers for stays in the tap, whose own queue is bounded; one that was read and found too
//! long for the buffers there are is kept until there are more. A driver that breaks a queue ends all of it until
//! a reset.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use blockserver::virtio::block::Fault;
use blockserver::virtio::ring::SplitQueue;
use blockserver::virtio::{GuestMemory, QueueSetup, QueueState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::frames::{Outgoing, Receive, Room, Transmit};
use super::header::{self, HEADER, Header, LONGEST};
use super::tap::Tap;
use super::traffic::Traffic;
use super::vectors;
use crate::virtio::Alarm;

/// Most frames that a turn moves each way.
const TURN: usize = 64;

/// A frame that was read and has not been delivered.
#[derive(Debug)]
pub(super) struct Parked {
    header: Header,
    bytes: Vec<u8>,
}

/// What the thread is given.
pub(super) struct Work {
    pub(super) features: u64,
    pub(super) memory: GuestMemory,
    /// The receive queue and the transmit queue.
    pub(super) setups: [QueueSetup; 2],
    pub(super) alarm: Alarm,
    pub(super) changed: Alarm,
    /// Readable when it has to end.
    pub(super) stop: OwnedFd,
    pub(super) tap: Arc<Tap>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) parked: Option<Parked>,
}

/// What it gives back.
#[derive(Debug)]
pub(super) struct Ended {
    /// How far the receive queue and the transmit queue are.
    pub(super) states: [QueueState; 2],
    pub(super) parked: Option<Parked>,
}

/// Serve until told to stop.
pub(super) fn serve(work: Work) -> Ended {
    let tap = Arc::clone(&work.tap);
    if let Err(error) = tap.set_offloads(header::offloads(work.features)) {
        // It was removed, perhaps just now: the device is there without it.
        lose(&tap, &work.changed, &error);
    }
    let ended = run(work);
    // What comes until the next driver is ready must be whole, since that one may take less.
    if let Err(error) = tap.set_offloads(0) {
        let tap = tap.name();
        tracing::debug!(tap, %error, "the tap keeps its offloads");
    }
    ended
}

/// The tap is of no use any more: the driver is told that its link is down.
fn lose(tap: &Tap, changed: &Alarm, error: &io::Error) {
    let name = tap.name();
    tracing::error!(tap = name, %error, "the tap is gone; the machine's link is down for good");
    if tap.lose() {
        changed.raise();
    }
}

fn unserved(work: Work) -> Ended {
    Ended {
        states: work.setups.map(|setup| setup.state),
        parked: work.parked,
    }
}

/// The same, of a tap that knows what to leave to the driver.
pub(super) fn run(work: Work) -> Ended {
    let open = |setup: &QueueSetup| {
        SplitQueue::open(Arc::clone(&work.memory), &setup.state, work.features)
    };
    let [receive, transmit] = &work.setups;
    match open(receive).and_then(|receive| Ok((receive, open(transmit)?))) {
        Ok((receive, transmit)) => Server::new(work, receive, transmit).run(),
        Err(why) => {
            // Checked by the transport, on memory that does not change.
            tracing::error!(why, "a queue of a network device cannot be served");
            work.alarm.raise();
            wait_for(&work.stop);
            unserved(work)
        }
    }
}

fn wait_for(stop: &OwnedFd) {
    let mut fds = [PollFd::new(stop, PollFlags::IN)];
    while poll(&mut fds, None).is_err() {}
}

/// How it stands with frames that come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    /// There may be more.
    More,
    /// There are none, until the tap says so.
    Dry,
    /// There are no buffers for them.
    Starved,
    /// There will be none.
    Ended,
}

/// How it stands with frames that go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Went {
    /// There may be more.
    More,
    /// There are none.
    Empty,
    /// The tap takes none for now.
    Blocked,
}

/// What is waited for beside the doorbells and the order to stop.
#[derive(Clone, Copy, Debug)]
struct Wants {
    /// Nothing: there is more to do.
    at_once: bool,
    /// Something of the tap.
    tap: PollFlags,
}

/// The doorbells of the two queues, what the driver is called by, and the order to stop.
struct Bells {
    kicks: [OwnedFd; 2],
    calls: [OwnedFd; 2],
    stop: OwnedFd,
}

struct Server {
    receive: Receive,
    transmit: Transmit,
    memory: GuestMemory,
    bells: Bells,
    tap: Arc<Tap>,
    traffic: Arc<Traffic>,
    alarm: Alarm,
    changed: Alarm,
    /// How much room a frame may need.
    wanted: usize,
    /// Where a frame goes that is longer than its buffers.
    spill: Vec<u8>,
    parked: Option<Parked>,
}

impl Server {
    fn new(work: Work, receive: SplitQueue, transmit: SplitQueue) -> Self {
        let [first, second] = work.setups;
        Self {
            receive: Receive::new(receive, work.features),
            transmit: Transmit::new(transmit, work.features),
            memory: work.memory,
            bells: Bells {
                kicks: [first.kick, second.kick],
                calls: [first.call, second.call],
                stop: work.stop,
            },
            wanted: header::longest(work.features, work.tap.mtu()),
            tap: work.tap,
            traffic: work.traffic,
            alarm: work.alarm,
            changed: work.changed,
            spill: vec![0; LONGEST],
            parked: work.parked,
        }
    }

    fn run(mut self) -> Ended {
        // Nobody has looked while nobody served.
        let changed = self.tap.heed_changes();
        self.heed_link(changed);
        loop {
            match self.turn() {
                Ok(wants) => {
                    if !self.wait(wants) {
                        break;
                    }
                }
                Err(fault) => {
                    let tap = self.tap.name();
                    tracing::warn!(
                        tap,
                        ?fault,
                        "the driver broke a queue of its network device"
                    );
                    self.alarm.raise();
                    wait_for(&self.bells.stop);
                    break;
                }
            }
        }
        Ended {
            states: [self.receive.stop(), self.transmit.stop()],
            parked: self.parked,
        }
    }

    fn turn(&mut self) -> Result<Wants, Fault> {
        self.receive.queue().disarm()?;
        self.transmit.queue().disarm()?;
        let came = self.bring_in()?;
        let went = self.send_out()?;
        self.call_driver()?;
        let mut at_once = came == Came::More || went == Went::More;
        let mut tap = PollFlags::empty();
        match came {
            Came::Starved => at_once |= self.receive.queue().arm()?,
            Came::Dry => tap |= PollFlags::IN,
            Came::More | Came::Ended => {}
        }
        match went {
            Went::Empty => at_once |= self.transmit.queue().arm()?,
            Went::Blocked => tap |= PollFlags::OUT,
            Went::More => {}
        }
        Ok(Wants { at_once, tap })
    }

    fn bring_in(&mut self) -> Result<Came, Fault> {
        for _ in 0..TURN {
            if self.parked.is_some() {
                if self.bring_parked()? == Room::Less {
                    return Ok(Came::Starved);
                }
                continue;
            }
            if self.tap.is_gone() {
                return Ok(Came::Ended);
            }
            let room = self.receive.gather(self.wanted)?;
            if room == Room::Less && self.receive.room() == 0 {
                return Ok(Came::Starved);
            }
            let mut header = [0; HEADER];
            let own = (&mut header[..], &mut self.spill[..]);
            let places = self.receive.places();
            match vectors::read(self.tap.frames(), own, &self.memory, places) {
                Ok(bytes) if bytes >= HEADER => {
                    self.take_frame(Header::decode(header), bytes - HEADER)?;
                }
                // Not even a header: that is the end.
                Ok(_) => {
                    self.lose_tap(&io::ErrorKind::UnexpectedEof.into());
                    return Ok(Came::Ended);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Came::Dry),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.lose_tap(&error);
                    return Ok(Came::Ended);
                }
            }
        }
        Ok(Came::More)
    }

    /// A frame of `len` bytes has come, to the places and, what had no room there, to the spill.
    fn take_frame(&mut self, header: Header, len: usize) -> Result<(), Fault> {
        let room = self.receive.room();
        if len <= room {
            let delivered = self.receive.deliver(header, len)?;
            self.traffic.came(len, delivered);
            return Ok(());
        }
        let mut frame = vec![0; len];
        let (first, rest) = frame.split_at_mut(room);
        self.receive.written(first)?;
        rest.iter_mut()
            .zip(&self.spill)
            .for_each(|(to, from)| *to = *from);
        self.parked = Some(Parked {
            header,
            bytes: frame,
        });
        Ok(())
    }

    /// Deliver the frame that waits, if there is room by now; one that there can never be room for is dropped.
    fn bring_parked(&mut self) -> Result<Room, Fault> {
        let len = self.parked.as_ref().map_or(0, |frame| frame.bytes.len());
        let room = self.receive.gather(len)?;
        if room == Room::Less {
            return Ok(room);
        }
        if let Some(frame) = self.parked.take() {
            let fits = room == Room::Enough;
            let delivered = fits && self.receive.copy(frame.header, &frame.bytes)?;
            self.traffic.came(len, delivered);
        }
        Ok(room)
    }

    fn send_out(&mut self) -> Result<Went, Fault> {
        for _ in 0..TURN {
            let Some(frame) = self.transmit.next()? else {
                return Ok(Went::Empty);
            };
            let sent = match frame {
                Outgoing::Drop => Err(io::ErrorKind::InvalidData.into()),
                Outgoing::Send(header) => {
                    let (fd, places) = (self.tap.frames(), self.transmit.places());
                    vectors::write(fd, &mut header.encode(), &self.memory, places)
                }
            };
            match &sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Went::Blocked);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => tracing::debug!(%error, "a frame of the guest is dropped"),
                Ok(_) => {}
            }
            self.traffic.went(sent.ok());
            self.transmit.done()?;
        }
        Ok(Went::More)
    }

    fn call_driver(&mut self) -> Result<(), Fault> {
        let queues = [self.receive.queue(), self.transmit.queue()];
        for (queue, call) in queues.into_iter().zip(&self.bells.calls) {
            if queue.wants_call()?
                && let Err(error) = rustix::io::write(call, &1_u64.to_ne_bytes())
            {
                tracing::error!(%error, "a call of a network device is lost");
            }
        }
        Ok(())
    }

    /// Sleep until there is something to do; `false` when told to stop.
    fn wait(&mut self, wants: Wants) -> bool {
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let Bells { kicks, stop, .. } = &self.bells;
        let frames = self.tap.frames();
        let mut fds = [
            PollFd::new(stop, PollFlags::IN),
            PollFd::new(&kicks[0], PollFlags::IN),
            PollFd::new(&kicks[1], PollFlags::IN),
            PollFd::from_borrowed_fd(self.tap.changes(), PollFlags::IN),
            PollFd::from_borrowed_fd(frames, wants.tap),
        ];
        // A tap that is gone always has something to say.
        let all = if self.tap.is_gone() { 4 } else { 5 };
        if poll(&mut fds[..all], wants.at_once.then_some(&at_once)).is_err() {
            return true;
        }
        let [stopped, first, second, links, tap] = fds.map(|fd| fd.revents());
        if !stopped.is_empty() {
            return false;
        }
        for (kick, kicked) in kicks.iter().zip([first, second]) {
            if kicked.contains(PollFlags::IN) && rustix::io::read(kick, &mut [0; 8]).is_err() {
                tracing::debug!("a doorbell could not be taken");
            }
        }
        if !links.is_empty() {
            let changed = self.tap.heed_changes();
            self.heed_link(changed);
        }
        if tap.intersects(PollFlags::ERR | PollFlags::HUP) {
            self.lose_tap(&io::ErrorKind::NotFound.into());
        }
        true
    }

    fn lose_tap(&self, error: &io::Error) {
        lose(&self.tap, &self.changed, error);
    }

    fn heed_link(&self, changed: bool) {
        if changed {
            let (tap, up) = (self.tap.name(), self.tap.is_up());
            tracing::info!(tap, up, "the link of a network device has changed");
            self.changed.raise();
        }
    }
}

#[cfg(test)]
#[path = "serving_tests.rs"]
mod tests;
