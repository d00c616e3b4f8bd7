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
use std::sync::atomic::{AtomicBool, Ordering};

use crate::kvm::{Event, Vm};
use crate::pci::Message;
use crate::virtio::{Alarm, Source, Wires};

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

    fn settle(&mut self) -> io::Result<()> {
        // KVM delivers on a thread of its own, and waits for it when an interrupt is taken back.
        for call in self.calls.values_mut() {
            let number = call.connected;
            call.deliver(&self.vm, None)?;
            call.deliver(&self.vm, number)?;
        }
        Ok(())
    }

    fn is_signalled(&self, source: Source) -> bool {
        let call = self.calls.get(&source);
        call.is_some_and(|call| call.event.is_rung())
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

    fn alarm(&self, raised: Arc<AtomicBool>) -> io::Result<Alarm> {
        let config = self.calls.get(&Source::Config);
        let config = config.ok_or_else(|| io::Error::other("there is no such source"))?;
        let config = config.event.share()?;
        Ok(Alarm::new(move || {
            raised.store(true, Ordering::SeqCst);
            if let Err(error) = rustix::io::write(&config, &1_u64.to_ne_bytes()) {
                tracing::error!(%error, "a driver is not told that its device needs a reset");
            }
        }))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Memory;
    use crate::kvm::{Host, Vcpu};
    use crate::layout::PCI_WINDOW;

    /// Wires of two queues to a machine of one processor; none where there is no KVM and that is known.
    fn wired() -> Option<(KvmWires, Vcpu)> {
        if std::env::var_os("DISKFERRY_NO_KVM").is_some_and(|value| value == "1") {
            return None;
        }
        let memory = Memory::new(4 << 20, false).unwrap();
        let vm = Arc::new(Host::open().unwrap().vm(&memory).unwrap());
        let vcpu = vm.vcpu(0).unwrap();
        assert!(!vcpu.interrupt_waits(0x41));
        Some((KvmWires::new(vm, 2, PCI_WINDOW).unwrap(), vcpu))
    }

    fn message(vector: u8) -> Message {
        Message {
            address: 0xFEE0_0000,
            data: u32::from(vector),
        }
    }

    /// KVM may deliver on a thread of its own.
    fn arrives(vcpu: &Vcpu, vector: u8) -> bool {
        (0..1000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            vcpu.interrupt_waits(vector)
        })
    }

    #[test]
    fn a_signal_arrives_as_the_message_of_its_vector() {
        let Some((mut wires, vcpu)) = wired() else {
            return;
        };
        wires.set_vector(1, Some(message(0x41))).unwrap();
        wires.connect(Source::Queue(1), Some(1)).unwrap();
        let (_, call) = wires.queue_fds(1).unwrap();
        rustix::io::write(&call, &1_u64.to_ne_bytes()).unwrap();
        assert!(arrives(&vcpu, 0x41));
        wires.set_vector(1, Some(message(0x42))).unwrap();
        wires.signal(Source::Queue(1));
        assert!(arrives(&vcpu, 0x42));
        assert!(!wires.is_pending(1));
    }

    #[test]
    fn what_is_signalled_while_masked_arrives_once_unmasked() {
        let Some((mut wires, vcpu)) = wired() else {
            return;
        };
        wires.connect(Source::Queue(0), Some(0)).unwrap();
        wires.signal(Source::Queue(0));
        assert!(wires.is_pending(0));
        wires.set_vector(0, Some(message(0x41))).unwrap();
        assert!(arrives(&vcpu, 0x41));
        wires.set_vector(0, None).unwrap();
        wires.signal(Source::Queue(0));
        assert!(wires.is_pending(0));
        wires.set_vector(0, Some(message(0x42))).unwrap();
        assert!(arrives(&vcpu, 0x42));
    }

    #[test]
    fn sources_without_a_vector_are_never_delivered() {
        let Some((mut wires, vcpu)) = wired() else {
            return;
        };
        wires.set_vector(0, Some(message(0x41))).unwrap();
        wires.signal(Source::Config);
        wires.connect(Source::Config, Some(0)).unwrap();
        assert!(!wires.is_pending(0));
        assert!(!vcpu.interrupt_waits(0x41));
    }

    #[test]
    fn what_is_signalled_has_arrived_once_the_wires_are_settled() {
        let Some((mut wires, vcpu)) = wired() else {
            return;
        };
        wires.set_vector(0, Some(message(0x41))).unwrap();
        wires.connect(Source::Queue(0), Some(0)).unwrap();
        wires.connect(Source::Queue(1), Some(1)).unwrap();
        for _ in 0..50 {
            wires.signal(Source::Queue(0));
            wires.signal(Source::Queue(1));
            wires.settle().unwrap();
            assert!(vcpu.take_interrupt(0x41));
            assert!(!wires.is_signalled(Source::Queue(0)), "it was delivered");
            assert!(wires.is_signalled(Source::Queue(1)), "its vector is masked");
        }
    }

    #[test]
    fn wires_give_back_what_they_were_lent() {
        let Some((mut wires, _vcpu)) = wired() else {
            return;
        };
        wires.set_vector(0, Some(message(0x41))).unwrap();
        wires.connect(Source::Queue(0), Some(0)).unwrap();
        let start = PCI_WINDOW.start;
        wires.place_doorbells(Some(start), 4).unwrap();
        wires.place_doorbells(Some(start + 4), 4).unwrap();
        assert_eq!(wires.doorbells, [start + 4, start + 8]);
        wires.place_doorbells(Some(PCI_WINDOW.end), 4).unwrap();
        assert!(wires.doorbells.is_empty());
        let vm = Arc::clone(&wires.vm);
        drop(wires);
        let number = vm.lend_number();
        assert_eq!(number, Some(crate::layout::LINES));
    }
}
