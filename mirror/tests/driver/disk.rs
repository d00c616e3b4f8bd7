//! A disk in memory that clients use, that can be mirrored, and that loses what was not flushed.
//!
//! Its calls are carried out on a thread of its own, so that answers come late and from elsewhere.

use std::io;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use mirror::net::{DiskPort, Done, ReadDone, ServedDisk, Signal, StatusDone};
use vdisk::engine::{Extent, Mark};
use vdisk::tap::{Change, WriteTap};
use vdisk::units::GuestOffset;

use crate::way::Way;

/// Unit of allocation in bytes.
pub(crate) const BLOCK: usize = 64 << 10;

/// Watches over who serves: never two.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    serving: Mutex<Vec<&'static str>>,
    wrong: Mutex<Vec<String>>,
}

impl Owners {
    pub(crate) fn serves(&self, who: &'static str) {
        let mut serving = self.serving.lock().unwrap();
        if !serving.contains(&who) {
            serving.push(who);
        }
        if serving.len() > 1 {
            self.wrong
                .lock()
                .unwrap()
                .push(format!("{serving:?} serve at once"));
        }
    }

    pub(crate) fn rests(&self, who: &'static str) {
        self.serving.lock().unwrap().retain(|other| *other != who);
    }

    pub(crate) fn now(&self) -> Vec<&'static str> {
        assert_eq!(*self.wrong.lock().unwrap(), Vec::<String>::new());
        self.serving.lock().unwrap().clone()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Front {
    /// Not for clients.
    Closed,
    Serving,
    Holding,
    Forwarding(String),
}

struct State {
    data: Vec<u8>,
    allocated: Vec<bool>,
    /// What unflushed changes wrote over, oldest first.
    undo: Vec<(usize, Vec<u8>)>,
    mark: Option<Mark>,
    front: Front,
    in_flight: u32,
    held: Option<Signal>,
    tap: Option<Arc<dyn WriteTap>>,
    flushes: u64,
}

impl State {
    fn change(&mut self, offset: usize, len: usize, data: Option<&[u8]>) {
        let range = offset..offset + len;
        self.undo.push((offset, self.data[range.clone()].to_vec()));
        match data {
            Some(data) => self.data[range].copy_from_slice(data),
            None => self.data[range].fill(0),
        }
        for block in offset / BLOCK..(offset + len).div_ceil(BLOCK) {
            self.allocated[block] = true;
        }
    }
}

type Job = Box<dyn FnOnce(&MemoryDisk) + Send>;

pub(crate) struct MemoryDisk {
    name: &'static str,
    owners: Arc<Owners>,
    state: Mutex<State>,
    changed: Condvar,
    jobs: Mutex<Sender<Job>>,
    pub(crate) way: Way,
}

impl MemoryDisk {
    /// An empty disk of `size` bytes.
    pub(crate) fn new(
        name: &'static str,
        size: usize,
        front: Front,
        owners: &Arc<Owners>,
    ) -> Arc<Self> {
        if front == Front::Serving {
            owners.serves(name);
        }
        let state = State {
            data: vec![0; size],
            allocated: vec![false; size.div_ceil(BLOCK)],
            undo: Vec::new(),
            mark: None,
            front,
            in_flight: 0,
            held: None,
            tap: None,
            flushes: 0,
        };
        let (jobs, waiting) = mpsc::channel::<Job>();
        let disk = Arc::new(Self {
            name,
            owners: Arc::clone(owners),
            state: Mutex::new(state),
            changed: Condvar::new(),
            jobs: Mutex::new(jobs),
            way: Way::default(),
        });
        let weak = Arc::downgrade(&disk);
        std::thread::spawn(move || {
            for job in waiting {
                let Some(disk) = weak.upgrade() else { return };
                job(&disk);
            }
        });
        disk
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn later(&self, job: impl FnOnce(&Self) + Send + 'static) {
        self.jobs.lock().unwrap().send(Box::new(job)).unwrap();
    }

    /// Put content in that no tap ever sees.
    pub(crate) fn fill(&self, offset: usize, data: &[u8]) {
        self.lock().change(offset, data.len(), Some(data));
        self.lock().undo.clear();
    }

    pub(crate) fn content(&self) -> Vec<u8> {
        self.lock().data.clone()
    }

    pub(crate) fn mark(&self) -> Option<Mark> {
        self.lock().mark
    }

    pub(crate) fn front(&self) -> Front {
        self.lock().front.clone()
    }

    pub(crate) fn flushes(&self) -> u64 {
        self.lock().flushes
    }

    pub(crate) fn tapped(&self) -> bool {
        self.lock().tap.is_some()
    }

    pub(crate) fn set_mark(&self, mark: Option<Mark>) {
        self.lock().mark = mark;
    }

    /// Clients may come from now on.
    pub(crate) fn open_for_clients(&self) {
        self.owners.serves(self.name);
        self.lock().front = Front::Serving;
        self.changed.notify_all();
    }

    /// Everything that was asked for has happened.
    pub(crate) fn settle(&self) {
        let (send, settled) = mpsc::channel();
        self.later(move |_| send.send(()).unwrap());
        settled.recv().unwrap();
    }

    /// The power fails: unflushed changes are gone, but for the first `kept` of them.
    pub(crate) fn lose_power(&self, kept: usize) {
        let mut state = self.lock();
        let mut undo = std::mem::take(&mut state.undo);
        for (offset, old) in undo.drain(kept.min(undo.len())..).rev() {
            state.data[offset..offset + old.len()].copy_from_slice(&old);
        }
    }

    /// A client's change (`None`: zeroes); `Err` with the new owner's address when it moved.
    pub(crate) fn client_change(
        &self,
        offset: usize,
        len: usize,
        data: Option<Bytes>,
    ) -> Result<(), String> {
        let mut state = self.lock();
        loop {
            match &state.front {
                Front::Serving => break,
                Front::Forwarding(to) => return Err(to.clone()),
                Front::Holding | Front::Closed => state = self.changed.wait(state).unwrap(),
            }
        }
        state.in_flight += 1;
        drop(state);
        std::thread::sleep(Duration::from_micros(20));
        let mut state = self.lock();
        state.change(offset, len, data.as_deref());
        if let Some(tap) = &state.tap {
            let change = data.map_or(Change::Zeroes(len as u64), Change::Data);
            tap.changed(GuestOffset(offset as u64), change);
        }
        state.in_flight -= 1;
        self.check_held(state);
        Ok(())
    }

    fn check_held(&self, mut state: MutexGuard<'_, State>) {
        if state.front == Front::Holding
            && state.in_flight == 0
            && let Some(held) = state.held.take()
        {
            drop(state);
            self.owners.rests(self.name);
            held();
        }
    }
}

impl DiskPort for MemoryDisk {
    fn size(&self) -> u64 {
        self.lock().data.len() as u64
    }

    fn read(&self, offset: u64, len: u32, done: ReadDone) {
        self.later(move |disk| {
            let range = offset as usize..offset as usize + len as usize;
            let data = Bytes::copy_from_slice(&disk.lock().data[range]);
            done(Ok(data));
        });
    }

    fn write(&self, offset: u64, data: Bytes, done: Done) {
        self.later(move |disk| {
            disk.lock().change(offset as usize, data.len(), Some(&data));
            done(Ok(()));
        });
    }

    fn zero(&self, offset: u64, len: u64, done: Done) {
        self.later(move |disk| {
            disk.lock().change(offset as usize, len as usize, None);
            done(Ok(()));
        });
    }

    fn flush(&self, done: Done) {
        self.later(move |disk| {
            let mut state = disk.lock();
            state.undo.clear();
            state.flushes += 1;
            drop(state);
            done(Ok(()));
        });
    }

    fn status(&self, offset: u64, len: u64, done: StatusDone) {
        self.later(move |disk| {
            let state = disk.lock();
            let end = (offset + len).min(state.data.len() as u64);
            let (mut at, mut extents) = (offset, Vec::<Extent>::new());
            while at < end && extents.len() < 100 {
                let block = at as usize / BLOCK;
                let next = ((block as u64 + 1) * BLOCK as u64).min(end);
                let allocated = state.allocated[block];
                match extents.last_mut() {
                    Some(last) if last.allocated == allocated => last.len += next - at,
                    _ => extents.push(Extent {
                        len: next - at,
                        allocated,
                        zero: !allocated,
                    }),
                }
                at = next;
            }
            drop(state);
            done(Ok(extents));
        });
    }

    fn park(&self, mark: Option<Mark>, done: Done) {
        self.later(move |disk| {
            let mut state = disk.lock();
            assert_eq!(state.in_flight, 0, "parked while a change was in flight");
            state.undo.clear();
            state.mark = mark;
            drop(state);
            done(Ok(()));
        });
    }
}

impl ServedDisk for MemoryDisk {
    fn attach_tap(&self, tap: Arc<dyn WriteTap>, attached: Signal) {
        // Whether a change is shown is decided when it happens, so there are none from before.
        self.lock().tap = Some(tap);
        self.later(move |_| attached());
    }

    fn detach_tap(&self, detached: Signal) {
        self.lock().tap = None;
        self.later(move |_| detached());
    }

    fn expect(&self, _address: &str) {
        self.way.begin();
    }

    fn is_expected_up(&self) -> bool {
        self.way.is_there()
    }

    fn hold(&self, held: Signal) {
        self.way.hold();
        let mut state = self.lock();
        state.front = Front::Holding;
        state.held = Some(held);
        self.check_held(state);
    }

    fn release(&self) {
        let mut state = self.lock();
        if state.front == Front::Holding {
            state.front = Front::Serving;
            state.held = None;
            drop(state);
            self.owners.serves(self.name);
            self.changed.notify_all();
        }
    }

    fn forward(&self, address: &str) {
        self.lock().front = Front::Forwarding(address.to_owned());
        self.changed.notify_all();
    }
}

/// An error that a test's site gives.
pub(crate) fn refuse(what: &str) -> io::Error {
    io::Error::other(what.to_owned())
}
