//! What a machine has one of on its board: interrupt controllers, the interval timer, the clock.

use super::bytes::layout;

layout! {
    /// How an interrupt controller (8259A) has been set up.
    pub struct PicMode {
        /// Where priorities begin.
        pub first: u8,
        /// The vector of its first line.
        pub base: u8,
        /// Which register is read: the one of requests, or (1) of those in service.
        pub reads_service: u8,
        /// The next read polls.
        pub poll: u8,
        /// Special mask mode.
        pub special_mask: u8,
        /// Which word of its initialization comes next.
        pub initializing: u8,
        /// It ends interrupts by itself.
        pub auto_end: u8,
        /// And rotates priorities as it does.
        pub rotates: u8,
        /// Special fully nested mode.
        pub nested: u8,
        /// Its initialization has a fourth word.
        pub fourth_word: u8,
    }

    /// An interrupt controller (8259A), one bit a line.
    pub struct Pic {
        /// Levels of the lines as they were last.
        pub levels: u8,
        /// Requested.
        pub requested: u8,
        /// Masked.
        pub masked: u8,
        /// In service.
        pub in_service: u8,
        /// Lines that are level triggered.
        pub level_triggered: u8,
        /// Lines that may be.
        pub may_be_level: u8,
        /// How it has been set up.
        pub mode: PicMode,
    }

    /// The I/O APIC (82093AA).
    pub struct IoApic {
        /// Where it is.
        pub address: u64,
        /// The register that is selected.
        pub selected: u32,
        /// Its number.
        pub id: u32,
        /// Lines that request, one bit each.
        pub requested: u32,
        /// The redirection table.
        pub redirection: [u64; 24],
    }

    /// Interrupt controllers.
    pub struct Chips {
        /// The first PIC.
        pub first: Pic,
        /// The second, behind line 2 of the first.
        pub second: Pic,
        /// The I/O APIC.
        pub io_apic: IoApic,
    }

    /// A channel of the interval timer (8254). Its phase is not kept: it begins a period anew.
    pub struct PitChannel {
        /// What it counts down from, at most 0x10000.
        pub count: u32,
        /// The count that was latched.
        pub latched_count: u16,
        /// Bytes of it that are still to be read.
        pub count_latched: u8,
        /// A status is latched.
        pub status_latched: u8,
        /// It.
        pub status: u8,
        /// Which byte is read next.
        pub read_state: u8,
        /// Which byte is written next.
        pub write_state: u8,
        /// The byte that was written first.
        pub write_latch: u8,
        /// Which bytes are read and written.
        pub access: u8,
        /// Its mode as it was set, in three bits; 0xFF before it was.
        pub mode: u8,
        /// It counts in decimal.
        pub decimal: u8,
        /// Its gate.
        pub gate: u8,
    }

    /// The interval timer.
    pub struct Pit {
        /// Its channels.
        pub channels: [PitChannel; 3],
        /// Its interrupt is taken by another timer.
        pub replaced: bool,
        /// The speaker's output is on.
        pub speaker: bool,
    }

    /// The clock that KVM shows the guest.
    pub struct Clock {
        /// Nanoseconds since the machine began.
        pub nanoseconds: u64,
        /// The host's time at which it said so, in nanoseconds since 1970. A machine that is restored sees the time
        /// that has passed since then, as it would after a pause; without it, its clocks go on where they were.
        pub realtime: Option<u64>,
    }
}
