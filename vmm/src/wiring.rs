//! How a PCI function's doorbells and interrupts reach KVM.
//!
//! Driver of [`Wires`]. Each queue has an eventfd that its doorbell rings and one that its device rings; the
//! latter raises an interrupt of KVM while its vector delivers, and else keeps what was rung, which is what
//! a masked vector has to do (PCI 3.0, 6.8.2.2). KVM raises it at once when it is connected again.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::kvm::{Event, Vm};
use crate::pci::Message;
use crate::virtio::{Source, Wires};

/// What a source rings, by which vector it signals, and the interrupt it is connected to now.
#[derive(Debug)]
struct Call {
    event: Event,
    vector: Option<u16>,
    connected: Option<u32>,
}

/// The interrupt that a vector has been lent, and whether it delivers.
#[derive(Clone, Copy, Debug)]
struct Vector {
    number: u32,
    delivers: bool,
}

/// Wires of one function to a machine of KVM.
#[derive(Debug)]
pub(crate) struct KvmWires {
    vm: Arc<Vm>,
    kicks: Vec<Event>,
    calls: BTreeMap<Source, Call>,
    vectors: BTreeMap<u16, Vector>,
    /// Addresses of the doorbells that KVM knows.
    doorbells: Vec<u64>,
    window: Range<u64>,
}

fn of_kvm(error: crate::Error) -> io::Error {
    io::Error::other(error)
}

impl Call {
    fn new() -> io::Result<Self> {
        Ok(Self {
            event: Event::new()?,
            vector: None,
            connected: None,
        })
    }

    /// Deliver by interrupt `number`, or keep what is rung.
    fn deliver(&mut self, vm: &Vm, number: Option<u32>) -> io::Result<()> {
        if self.connected == number {
            return Ok(());
        }
        if let Some(before) = self.connected.take() {
            vm.disconnect(&self.event, before).map_err(of_kvm)?;
        }
        if let Some(number) = number {
            vm.connect(&self.event, number).map_err(of_kvm)?;
            self.connected = Some(number);
        }
        Ok(())
    }
}

impl KvmWires {
    /// Wires for a function with so many queues, decoded in `window` only.
    pub(crate) fn new(vm: Arc<Vm>, queues: usize, window: Range<u64>) -> io::Result<Self> {
        let kicks = (0..queues)
            .map(|_| Event::new())
            .collect::<io::Result<_>>()?;
        let sources = (0..queues as u16)
            .map(Source::Queue)
            .chain([Source::Config]);
        let calls = sources.map(|source| Ok((source, Call::new()?)));
        Ok(Self {
            kicks,
            calls: calls.collect::<io::Result<_>>()?,
            vectors: BTreeMap::new(),
            doorbells: Vec::new(),
            vm,
            window,
        })
    }

    fn remove_doorbells(&mut self) -> io::Result<()> {
        let placed = std::mem::take(&mut self.doorbells);
        for (event, address) in self.kicks.iter().zip(placed) {
            self.vm.remove_doorbell(event, address).map_err(of_kvm)?;
        }
        Ok(())
    }

    /// The interrupt of a vector, if it delivers.
    fn number(&self, vector: Option<u16>) -> Option<u32> {
        let vector = self.vectors.get(&vector?)?;
        vector.delivers.then_some(vector.number)
    }

    /// The interrupt that is lent to a vector, lent now if none was.
    fn lend(&mut self, vector: u16) -> io::Result<u32> {
        if let Some(known) = self.vectors.get(&vector) {
            return Ok(known.number);
        }
        let number = self.vm.lend_number();
        number.ok_or_else(|| io::Error::other("this machine has no interrupts left"))
    }
}

impl Wires for KvmWires {
    fn set_vector(&mut self, vector: u16, message: Option<Message>) -> io::Result<()> {
        match message {
            Some(message) => {
                let number = self.lend(vector)?;
                self.vectors.insert(
                    vector,
                    Vector {
                        number,
                        delivers: true,
                    },
                );
                self.vm.route(number, message).map_err(of_kvm)?;
            }
            None => {
                if let Some(known) = self.vectors.get_mut(&vector) {
                    known.delivers = false;
                }
            }
        }
        let number = self.number(Some(vector));
        let sources = self
            .calls
            .values_mut()
            .filter(|call| call.vector == Some(vector));
        for call in sources {
            call.deliver(&self.vm, number)?;
        }
        Ok(())
    }

    fn connect(&mut self, source: Source, vector: Option<u16>) -> io::Result<()> {
        let number = self.number(vector);
        let Some(call) = self.calls.get_mut(&source) else {
            return Ok(());
        };
        if call.vector.is_none() {
            // Rung without a vector: such a signal is not delivered later.
            call.event.quiet()?;
        }
        call.vector = vector;
        call.deliver(&self.vm, number)
    }

    fn is_pending(&self, vector: u16) -> bool {
        let mut sources = self
            .calls
            .values()
            .filter(|call| call.vector == Some(vector));
        sources.any(|call| call.event.is_rung())
    }

    fn signal(&self, source: Source) {
        if let Some(Err(error)) = self.calls.get(&source).map(|call| call.event.ring()) {
            tracing::error!(?source, %error, "a signal to the guest is lost");
        }
    }

    fn ring(&self, queue: u16) {
        if let Some(Err(error)) = self.kicks.get(usize::from(queue)).map(Event::ring) {
            tracing::error!(queue, %error, "a doorbell is lost");
        }
    }

    fn queue_fds(&self, queue: u16) -> io::Result<(OwnedFd, OwnedFd)> {
        let none = || io::Error::other("there is no such queue");
        let kick = self.kicks.get(usize::from(queue)).ok_or_else(none)?;
        let call = self.calls.get(&Source::Queue(queue)).ok_or_else(none)?;
        Ok((kick.share()?, call.event.share()?))
    }

    fn place_doorbells(&mut self, address: Option<u64>, stride: u64) -> io::Result<()> {
        self.remove_doorbells()?;
        let Some(start) = address.filter(|start| self.window.contains(start)) else {
            return Ok(());
        };
        for (queue, event) in (0..).zip(&self.kicks) {
            let at = start + queue * stride;
            self.vm.place_doorbell(event, at).map_err(of_kvm)?;
            self.doorbells.push(at);
        }
        Ok(())
    }
}

impl Drop for KvmWires {
    fn drop(&mut self) {
        let doorbells = self.remove_doorbells();
        let mut calls = self.calls.values_mut();
        let calls = calls.try_for_each(|call| call.deliver(&self.vm, None));
        if let Err(error) = doorbells.and(calls) {
            tracing::debug!(%error, "wires of a device could not be taken out");
        }
        for vector in self.vectors.values() {
            self.vm.give_back_number(vector.number);
        }
    }
}
