//! A device behind the virtio transport that holds it to its promises.

use std::io;
use std::sync::{Arc, Mutex};

use blockserver::virtio::block::{Chain, Rules};
use blockserver::virtio::ring::SplitQueue;
use blockserver::virtio::{GuestMemory, QueueState};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm::virtio::{Activation, VERSION_1, VirtioDevice};

/// Bytes of the guest's memory.
pub(crate) const MEMORY: usize = 0x1_0000;

/// Memory of a small guest.
pub(crate) fn memory() -> GuestMemory {
    let ranges = [(GuestAddress(0), MEMORY)];
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("64 KiB"))
}

/// How a device is, as its test sees it.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) live: bool,
    pub(crate) activations: u64,
    pub(crate) taken: u64,
}

/// A device of a kind, with queues of these sizes.
#[derive(Debug)]
pub(crate) struct Strict {
    pub(crate) kind: u16,
    pub(crate) sizes: Vec<u16>,
    pub(crate) offered: u64,
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) queues: Vec<(u16, QueueState)>,
}

impl Strict {
    pub(crate) fn new(kind: u16, sizes: &[u16], offered: u64) -> (Box<Self>, Arc<Mutex<State>>) {
        let state = Arc::new(Mutex::new(State::default()));
        let device = Self {
            kind,
            sizes: sizes.to_vec(),
            offered,
            state: Arc::clone(&state),
            queues: Vec::new(),
        };
        (Box::new(device), state)
    }

    /// What the transport has promised of a queue.
    fn check(&self, memory: &GuestMemory, number: u16, queue: &QueueState) {
        let most = self.sizes[usize::from(number)];
        assert!(queue.size.is_power_of_two() && queue.size <= most);
        let size = u64::from(queue.size);
        for (at, align, bytes) in [
            (queue.descriptors, 16, 16 * size),
            (queue.available, 2, 6 + 2 * size),
            (queue.used, 4, 6 + 8 * size),
        ] {
            assert!(at.is_multiple_of(align), "{queue:?}");
            assert!(
                memory.check_range(GuestAddress(at), bytes as usize),
                "{queue:?}"
            );
        }
    }
}

impl VirtioDevice for Strict {
    fn kind(&self) -> u16 {
        self.kind
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn queues(&self) -> Vec<u16> {
        self.sizes.clone()
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let mut state = self.state.lock().expect("one thread");
        assert!(!state.live, "it has its queues already");
        assert_eq!(activation.features & !(self.offered | VERSION_1), 0);
        assert_ne!(activation.features & VERSION_1, 0);
        let mut before = None;
        let rules = Rules {
            size: 1 << 20,
            read_only: false,
            features: activation.features,
        };
        let mut queues = Vec::new();
        for (number, setup) in activation.queues {
            assert!(before < Some(number), "each queue once, in their order");
            before = Some(number);
            self.check(&activation.memory, number, &setup.state);
            let queue =
                SplitQueue::open(activation.memory.clone(), &setup.state, activation.features);
            let mut queue = queue.map_err(io::Error::other)?;
            // What is there already is taken, up to what a queue can hold.
            for _ in 0..setup.state.size {
                match queue.pop(&mut Chain::default(), &rules) {
                    Ok(Some(_)) => state.taken += 1,
                    Ok(None) => break,
                    Err(_) => {
                        activation.alarm.raise();
                        break;
                    }
                }
            }
            queues.push((number, queue.state()));
        }
        self.queues = queues;
        state.live = true;
        state.activations += 1;
        Ok(())
    }

    fn reset(&mut self) -> Vec<(u16, QueueState)> {
        self.state.lock().expect("one thread").live = false;
        std::mem::take(&mut self.queues)
    }
}
