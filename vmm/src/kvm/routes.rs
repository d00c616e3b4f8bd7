//! Which numbered interrupt of a machine reaches which processor, and how.
//!
//! Numbers below [`LINES`] are lines of the interrupt controllers, as KVM has them at first (PIC and I/O
//! APIC); those from there on are messages, lent out one by one. KVM is told all of them at once.

use std::collections::BTreeMap;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, kvm_irq_routing_entry,
};

use crate::layout::LINES;
use crate::pci::Message;

/// KVM's own limit of numbers (`KVM_MAX_IRQ_ROUTES`).
const NUMBERS: u32 = 4096;

/// Messages by number: none for one that is lent out and has not been set.
#[derive(Debug, Default)]
pub(super) struct Routes {
    messages: BTreeMap<u32, Option<Message>>,
}

impl Routes {
    /// Lend a number; `None` when all are.
    pub(super) fn lend(&mut self) -> Option<u32> {
        // KVM's limit counts entries, and each of the sixteen lines of the PIC has two.
        let number = (LINES..NUMBERS - 16).find(|number| !self.messages.contains_key(number))?;
        self.messages.insert(number, None);
        Some(number)
    }

    /// Take a number back.
    pub(super) fn give_back(&mut self, number: u32) {
        self.messages.remove(&number);
    }

    /// Set what a lent number stands for; `false` when it stands for that already.
    pub(super) fn set(&mut self, number: u32, message: Message) -> bool {
        self.messages.insert(number, Some(message)) != Some(Some(message))
    }

    /// Everything, as KVM wants it.
    pub(super) fn entries(&self) -> Vec<kvm_irq_routing_entry> {
        let mut entries: Vec<_> = (0..LINES)
            .map(|pin| line(pin, KVM_IRQCHIP_IOAPIC, pin))
            .collect();
        entries.extend((0..8).map(|pin| line(pin, KVM_IRQCHIP_PIC_MASTER, pin)));
        entries.extend((0..8).map(|pin| line(pin + 8, KVM_IRQCHIP_PIC_SLAVE, pin)));
        let messages = self.messages.iter();
        entries.extend(messages.filter_map(|(number, message)| Some(route(*number, (*message)?))));
        entries
    }
}

fn line(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..kvm_irq_routing_entry::default()
    };
    entry.u.irqchip.irqchip = irqchip;
    entry.u.irqchip.pin = pin;
    entry
}

fn route(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..kvm_irq_routing_entry::default()
    };
    entry.u.msi.address_lo = message.address as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_lent_once_until_it_is_given_back() {
        let mut routes = Routes::default();
        let (one, two) = (routes.lend().unwrap(), routes.lend().unwrap());
        assert_ne!(one, two);
        assert!(one >= LINES && two >= LINES);
        routes.give_back(one);
        assert_eq!(routes.lend(), Some(one));
        while routes.lend().is_some() {}
        assert!(routes.messages.len() + routes.entries().len() <= NUMBERS as usize);
    }

    #[test]
    fn lines_stay_when_a_message_is_set() {
        let mut routes = Routes::default();
        let before = routes.entries().len();
        let number = routes.lend().unwrap();
        let message = Message {
            address: 0xFEE0_0000,
            data: 0x41,
        };
        assert!(routes.set(number, message));
        assert!(!routes.set(number, message));
        assert_eq!(routes.entries().len(), before + 1);
    }
}
