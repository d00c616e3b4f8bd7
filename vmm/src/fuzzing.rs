//! The registers of a machine without KVM, for the fuzz targets alone.
//!
//! Machine: the bus with all its devices, and wires that remember. The wires hold what the transport promises
//! them and panic where it is broken; nothing else here may be relied on by anybody.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blockserver::virtio::GuestMemory;
use rustix::event::{EventfdFlags, eventfd};

use crate::bus::{Bus, Ports as _};
use crate::devices::{PowerOffPort, ResetPort, SerialPort};
use crate::layout::{ECAM, PCI_PORTS, PCI_WINDOW, POWER_OFF, RESET, SERIAL};
use crate::pci::{ConfigPorts, Ecam, HostBridge, Message, PciBus, Window};
use crate::virtio::pci::{BAR_BYTES, VirtioFunction};
use crate::virtio::{Alarm, Source, VirtioDevice, Wires};

/// What a function has asked of the host.
#[derive(Debug, Default)]
pub struct Asked {
    queues: u16,
    vectors: BTreeMap<u16, Message>,
    connected: BTreeMap<Source, u16>,
    /// Where its doorbells are.
    pub doorbells: Option<u64>,
    /// How often its queues were rung.
    pub rung: u64,
}

type Shared = Arc<Mutex<Asked>>;

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Remembering(Shared);

impl Remembering {
    fn checked(&self, vector: Option<u16>) -> MutexGuard<'_, Asked> {
        let asked = lock(&self.0);
        let vectors = asked.queues + 1;
        assert!(vector.is_none_or(|vector| vector < vectors), "{vector:?}");
        asked
    }
}

impl Wires for Remembering {
    fn set_vector(&mut self, vector: u16, message: Option<Message>) -> io::Result<()> {
        let mut asked = self.checked(Some(vector));
        match message {
            Some(message) => asked.vectors.insert(vector, message),
            None => asked.vectors.remove(&vector),
        };
        Ok(())
    }

    fn connect(&mut self, source: Source, vector: Option<u16>) -> io::Result<()> {
        let mut asked = self.checked(vector);
        if let Source::Queue(queue) = source {
            assert!(queue < asked.queues, "{queue}");
        }
        match vector {
            Some(vector) => asked.connected.insert(source, vector),
            None => asked.connected.remove(&source),
        };
        Ok(())
    }

    fn is_pending(&self, vector: u16) -> bool {
        let asked = self.checked(Some(vector));
        assert!(!asked.vectors.contains_key(&vector), "it delivers");
        asked.connected.values().any(|own| *own == vector)
    }

    fn settle(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn is_signalled(&self, _: Source) -> bool {
        false
    }

    fn signal(&self, source: Source) {
        assert_eq!(source, Source::Config, "queues are their device's");
    }

    fn ring(&self, queue: u16) {
        let mut asked = lock(&self.0);
        assert!(queue < asked.queues, "{queue}");
        asked.rung += 1;
    }

    fn queue_fds(&self, queue: u16) -> io::Result<(OwnedFd, OwnedFd)> {
        assert!(queue < lock(&self.0).queues, "{queue}");
        let event = || eventfd(0, EventfdFlags::CLOEXEC);
        Ok((event()?, event()?))
    }

    fn alarm(&self, raised: Arc<AtomicBool>) -> io::Result<Alarm> {
        Ok(Alarm::new(move || raised.store(true, Ordering::SeqCst)))
    }

    fn place_doorbells(&mut self, address: Option<u64>, stride: u64) -> io::Result<()> {
        assert_eq!(stride, 4);
        lock(&self.0).doorbells = address;
        Ok(())
    }
}

/// Ports and addresses of a machine.
#[derive(Debug)]
pub struct Front {
    bus: Bus,
    serial: Arc<SerialPort>,
    functions: Vec<(Arc<Mutex<VirtioFunction>>, Shared)>,
    ended: Arc<AtomicBool>,
}

impl Front {
    /// A machine with these virtio devices, from slot 1 on.
    #[must_use]
    pub fn new(memory: &GuestMemory, devices: Vec<Box<dyn VirtioDevice>>) -> Self {
        let mut bus = Bus::default();
        let serial = Arc::new(SerialPort::new(Box::new(io::sink()), Box::new(|| {})));
        bus.ports.add(SERIAL, serial.clone());
        let ended = Arc::new(AtomicBool::new(false));
        let ending = || {
            let ended = Arc::clone(&ended);
            Box::new(move |_| ended.store(true, Ordering::SeqCst))
        };
        bus.ports.add(RESET, Arc::new(ResetPort(ending())));
        bus.ports.add(POWER_OFF, Arc::new(PowerOffPort(ending())));
        let pci = Arc::new(PciBus::new(PCI_WINDOW));
        pci.insert(0, &(Arc::new(Mutex::new(HostBridge::new())) as _));
        let mut functions = Vec::new();
        for (slot, device) in (1..).zip(devices) {
            let queues = device.queues().len() as u16;
            let asked: Shared = Arc::new(Mutex::new(Asked {
                queues,
                ..Asked::default()
            }));
            let wires = Box::new(Remembering(Arc::clone(&asked)));
            let address = PCI_WINDOW.start + slot as u64 * BAR_BYTES;
            let function = VirtioFunction::new(device, wires, memory.clone(), address);
            let function = Arc::new(Mutex::new(function));
            pci.insert(slot, &(function.clone() as _));
            functions.push((function, asked));
        }
        let ports = ConfigPorts::new(Arc::clone(&pci));
        bus.ports.add(PCI_PORTS, Arc::new(ports));
        bus.memory.add(ECAM, Arc::new(Ecam(Arc::clone(&pci))));
        bus.memory.add(PCI_WINDOW, Arc::new(Window(pci)));
        Self {
            bus,
            serial,
            functions,
            ended,
        }
    }

    /// `in`, or `out` where `data` says what.
    pub fn port(&self, port: u16, bytes: &mut [u8], write: bool) {
        if write {
            self.bus.port_write(port, bytes);
        } else {
            self.bus.port_read(port, bytes);
        }
    }

    /// A read or write where no memory is.
    pub fn memory(&self, address: u64, bytes: &mut [u8], write: bool) {
        if write {
            self.bus.memory_write(address, bytes);
        } else {
            self.bus.memory_read(address, bytes);
        }
    }

    /// What the function of a device has asked for.
    #[must_use]
    pub fn asked(&self, device: usize) -> Option<MutexGuard<'_, Asked>> {
        let (_, asked) = self.functions.get(device)?;
        Some(lock(asked))
    }

    /// The host does something: stops a device, lets it go on, changes its configuration, types.
    pub fn host(&self, device: usize, what: u8) {
        let Some((function, _)) = self.functions.get(device) else {
            return;
        };
        let mut function = lock(function);
        match what % 4 {
            0 => drop(function.try_stop()),
            1 => function.go_on(),
            2 => function.config_changed(),
            _ => {
                let taken = self.serial.input(&[what; 100]);
                assert!(taken <= 64, "{taken}");
            }
        }
    }

    /// Whether the guest has ended the machine.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }
}
