//! Interrupt controllers, interval timer and clock of a machine.

use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_PIT_FLAGS_HPET_LEGACY, KVM_PIT_FLAGS_SPEAKER_DATA_ON, kvm_clock_data, kvm_irqchip,
    kvm_pic_state, kvm_pit_channel_state, kvm_pit_state2,
};

use super::failed;
use crate::Result;
use crate::kvm::Vm;
use crate::snapshot::{Chips, Clock, IoApic, Pic, PicMode, Pit, PitChannel};

fn pic(it: &kvm_pic_state) -> Pic {
    Pic {
        levels: it.last_irr,
        requested: it.irr,
        masked: it.imr,
        in_service: it.isr,
        level_triggered: it.elcr,
        may_be_level: it.elcr_mask,
        mode: PicMode {
            first: it.priority_add,
            base: it.irq_base,
            reads_service: it.read_reg_select,
            poll: it.poll,
            special_mask: it.special_mask,
            initializing: it.init_state,
            auto_end: it.auto_eoi,
            rotates: it.rotate_on_auto_eoi,
            nested: it.special_fully_nested_mode,
            fourth_word: it.init4,
        },
    }
}

fn of_pic(saved: &Pic) -> kvm_pic_state {
    let mode = &saved.mode;
    kvm_pic_state {
        last_irr: saved.levels,
        irr: saved.requested,
        imr: saved.masked,
        isr: saved.in_service,
        priority_add: mode.first,
        irq_base: mode.base,
        read_reg_select: mode.reads_service,
        poll: mode.poll,
        special_mask: mode.special_mask,
        init_state: mode.initializing,
        auto_eoi: mode.auto_end,
        rotate_on_auto_eoi: mode.rotates,
        special_fully_nested_mode: mode.nested,
        init4: mode.fourth_word,
        elcr: saved.level_triggered,
        elcr_mask: saved.may_be_level,
    }
}

fn channel(it: &kvm_pit_channel_state) -> PitChannel {
    PitChannel {
        count: it.count,
        latched_count: it.latched_count,
        count_latched: it.count_latched,
        status_latched: it.status_latched,
        status: it.status,
        read_state: it.read_state,
        write_state: it.write_state,
        write_latch: it.write_latch,
        access: it.rw_mode,
        mode: it.mode,
        decimal: it.bcd,
        gate: it.gate,
    }
}

fn of_channel(saved: &PitChannel) -> kvm_pit_channel_state {
    kvm_pit_channel_state {
        count: saved.count,
        latched_count: saved.latched_count,
        count_latched: saved.count_latched,
        status_latched: saved.status_latched,
        status: saved.status,
        read_state: saved.read_state,
        write_state: saved.write_state,
        write_latch: saved.write_latch,
        rw_mode: saved.access,
        mode: saved.mode,
        bcd: saved.decimal,
        gate: saved.gate,
        // KVM begins a period anew, whatever stands here.
        count_load_time: 0,
    }
}

impl Vm {
    fn chip(&self, chip_id: u32) -> Result<kvm_irqchip> {
        let mut chip = kvm_irqchip {
            chip_id,
            ..kvm_irqchip::default()
        };
        self.fd()
            .get_irqchip(&mut chip)
            .map_err(failed("an interrupt controller cannot be read"))?;
        Ok(chip)
    }

    /// Its interrupt controllers.
    pub(crate) fn chips(&self) -> Result<Chips> {
        let read_pic = |number| -> Result<_> {
            let chip = self.chip(number)?;
            // SAFETY: by its number the chip is a PIC, so this is the member that KVM has filled.
            Ok(pic(unsafe { &chip.chip.pic }))
        };
        let chip = self.chip(KVM_IRQCHIP_IOAPIC)?;
        // SAFETY: by its number the chip is the I/O APIC, so this is the member that KVM has filled.
        let io = unsafe { chip.chip.ioapic };
        Ok(Chips {
            first: read_pic(KVM_IRQCHIP_PIC_MASTER)?,
            second: read_pic(KVM_IRQCHIP_PIC_SLAVE)?,
            io_apic: IoApic {
                address: io.base_address,
                selected: io.ioregsel,
                id: io.id,
                requested: io.irr,
                // SAFETY: both members of the union are eight bytes of plain numbers.
                redirection: io.redirtbl.map(|entry| unsafe { entry.bits }),
            },
        })
    }

    /// Set them. What they request goes to the local APICs, so these are set before.
    pub(crate) fn set_chips(&self, saved: &Chips) -> Result<()> {
        let refused = failed("an interrupt controller was refused");
        let pics = [
            (KVM_IRQCHIP_PIC_MASTER, &saved.first),
            (KVM_IRQCHIP_PIC_SLAVE, &saved.second),
        ];
        for (chip_id, pic) in pics {
            let mut chip = kvm_irqchip {
                chip_id,
                ..kvm_irqchip::default()
            };
            chip.chip.pic = of_pic(pic);
            self.fd().set_irqchip(&chip).map_err(&refused)?;
        }
        let mut chip = kvm_irqchip {
            chip_id: KVM_IRQCHIP_IOAPIC,
            ..kvm_irqchip::default()
        };
        let mut io = kvm_bindings::kvm_ioapic_state {
            base_address: saved.io_apic.address,
            ioregsel: saved.io_apic.selected,
            id: saved.io_apic.id,
            irr: saved.io_apic.requested,
            ..kvm_bindings::kvm_ioapic_state::default()
        };
        for (entry, bits) in io.redirtbl.iter_mut().zip(saved.io_apic.redirection) {
            entry.bits = bits;
        }
        chip.chip.ioapic = io;
        self.fd().set_irqchip(&chip).map_err(refused)
    }

    /// Its interval timer.
    pub(crate) fn pit(&self) -> Result<Pit> {
        let it = self
            .fd()
            .get_pit2()
            .map_err(failed("the interval timer cannot be read"))?;
        Ok(Pit {
            channels: it.channels.each_ref().map(channel),
            replaced: it.flags & KVM_PIT_FLAGS_HPET_LEGACY != 0,
            speaker: it.flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON != 0,
        })
    }

    /// Set it. It begins to count.
    pub(crate) fn set_pit(&self, saved: &Pit) -> Result<()> {
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        let state = kvm_pit_state2 {
            channels: saved.channels.each_ref().map(of_channel),
            flags: flag(saved.replaced, KVM_PIT_FLAGS_HPET_LEGACY)
                | flag(saved.speaker, KVM_PIT_FLAGS_SPEAKER_DATA_ON),
            ..kvm_pit_state2::default()
        };
        self.fd()
            .set_pit2(&state)
            .map_err(failed("the interval timer was refused"))
    }

    /// Its clock.
    pub(crate) fn clock(&self) -> Result<Clock> {
        let it = self
            .fd()
            .get_clock()
            .map_err(failed("the clock cannot be read"))?;
        let realtime = if it.flags & KVM_CLOCK_REALTIME != 0 {
            it.realtime
        } else {
            now()
        };
        Ok(Clock {
            nanoseconds: it.clock,
            realtime: Some(realtime),
        })
    }

    /// Set it; says how many nanoseconds it is ahead of what was saved.
    pub(crate) fn set_clock(&self, saved: &Clock) -> Result<u64> {
        let mut clock = kvm_clock_data {
            clock: saved.nanoseconds,
            ..kvm_clock_data::default()
        };
        match saved.realtime {
            Some(realtime) if self.abilities().clock_flags & KVM_CLOCK_REALTIME != 0 => {
                clock.realtime = realtime;
                clock.flags = KVM_CLOCK_REALTIME;
            }
            Some(realtime) => {
                let passed = now().saturating_sub(realtime);
                clock.clock = clock.clock.wrapping_add(passed);
            }
            None => {}
        }
        self.fd()
            .set_clock(&clock)
            .map_err(failed("the clock was refused"))?;
        let after = self
            .fd()
            .get_clock()
            .map_err(failed("the clock cannot be read"))?;
        // The counters follow the clock by what it says itself.
        Ok(after.clock.wrapping_sub(saved.nanoseconds))
    }
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}
