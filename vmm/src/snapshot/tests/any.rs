//! A state with something in every part, and any state that is sound.

use proptest::prelude::*;

use crate::layout;
use crate::snapshot::bytes::{Encoded, Reader};
use crate::snapshot::*;

fn leaf(function: u32, indexed: bool, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidLeaf {
    CpuidLeaf {
        function,
        index: 0,
        indexed,
        eax,
        ebx,
        ecx,
        edx,
    }
}

/// A value whose bytes are all 0, which is a no where there is a choice, or all 1, which is a yes.
fn filled<T: Encoded>(byte: u8) -> T {
    let bytes = vec![byte; 1 << 16];
    T::take(&mut Reader::new(&bytes, 0)).unwrap()
}

fn cpuid() -> Vec<CpuidLeaf> {
    vec![
        leaf(0, false, [7, 0, 0, 0]),
        leaf(1, false, [0x0006_06A6, 0x800, 0x0300_0001, 0x0700_0200]),
        leaf(7, true, [0, 0x20, 0, 0]),
        leaf(0x8000_0008, false, [0x302E, 0, 0, 0]),
    ]
}

fn processor() -> Processor {
    let msr = |index, value| Msr { index, value };
    Processor {
        cpuid: cpuid(),
        activity: Activity::Halted,
        general: filled(1),
        segments: Segments {
            code_and_data: std::array::from_fn(|_| Segment {
                rights: 0xA09B,
                ..filled(1)
            }),
            task: Segment {
                rights: 0x8B,
                ..filled(1)
            },
            local: Segment {
                rights: 0x1_0000,
                ..filled(1)
            },
            gdt: filled(1),
            idt: filled(1),
        },
        controls: filled(1),
        debug: filled(1),
        pending: filled(1),
        apic: std::array::from_fn(|register| register as u32),
        tsc: Tsc {
            khz: 2_400_000,
            value: 7,
            offset: Some(u64::MAX),
        },
        msrs: vec![msr(0x10A, 1), msr(0x6E0, 2), msr(0xC000_0102, 3)],
        xsave: vec![3; 4096],
    }
}

fn queue(position: Option<Position>) -> Queue {
    Queue {
        most: 256,
        size: 64,
        vector: 1,
        enabled: true,
        areas: [0x1000, 0x2000, 0x3000],
        position,
        signalled: true,
    }
}

fn function(slot: u8, device: DeviceState) -> Function {
    let position = Position {
        next_available: 40_000,
        next_used: 39_999,
    };
    Function {
        slot,
        config: [slot; 256],
        vectors: vec![[0xFEE0_0000, 0, 0x41, 1]; 2],
        transport: Transport {
            offered: 1 << 32 | 1,
            accepted: 1 << 32,
            halves: [1, 0],
            status: 15,
            generation: 3,
            isr: 2,
            config_vector: 0xFFFF,
            config_signalled: false,
            selected: 0,
            queues: vec![queue(Some(position))],
        },
        device,
    }
}

/// A state with something in every part.
pub(super) fn sample() -> MachineState {
    let disk = Disk {
        sectors: 1 << 31,
        logical_sector: 512,
        serial: *b"a disk\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    };
    let network = Network {
        mac: [2, 0, 0, 0, 0, 7],
        mtu: 1500,
    };
    MachineState {
        host: HostFacts {
            software: "diskferry".to_owned(),
            vendor: *b"GenuineIntel",
            signature: 0x0006_06A6,
            tsc_khz: 2_400_000,
            tsc_scaling: false,
            cpuid: cpuid(),
        },
        shape: Shape::of(2, 4 * layout::GIB),
        clock: Clock {
            nanoseconds: 5,
            realtime: Some(6),
        },
        chips: filled(0),
        pit: filled(0),
        processors: vec![processor(), processor()],
        serial: Serial {
            input: b"typed".to_vec(),
            ..filled(0)
        },
        events: Events {
            happened: 2,
            changed: 1 << 31,
            wanted: 4,
        },
        pci: Pci {
            address: 0x8000_0800,
            host_bridge: [0; 256],
        },
        functions: vec![
            function(1, DeviceState::Disk(disk)),
            function(2, DeviceState::Network(network)),
            function(31, DeviceState::Plain(4)),
        ],
    }
}

/// Any value whose bytes may be any.
fn plain<T: Encoded + std::fmt::Debug>(bytes: usize) -> impl Strategy<Value = T> {
    prop::collection::vec(any::<u8>(), bytes).prop_map(|bytes| {
        let mut reader = Reader::new(&bytes, 0);
        let value = T::take(&mut reader).unwrap();
        reader.end().unwrap();
        value
    })
}

prop_compose! {
    fn pending()(
        vector in 3_u8..32,
        error_code in any::<Option<u32>>(),
        exception in any::<bool>(),
        interrupt in any::<Option<(u8, bool)>>(),
        shadow in 0_u8..4,
        (nmi, smm, init) in any::<([bool; 3], [bool; 3], bool)>(),
    ) -> Pending {
        Pending {
            exception: exception.then_some(Exception { vector, error_code }),
            interrupt: interrupt.map(|(vector, soft)| Interrupt { vector, soft }),
            shadow,
            nmi,
            smm,
            init,
        }
    }
}

prop_compose! {
    fn processors()(
        general in plain(144),
        debug in plain(48),
        apic in any::<[[u8; 32]; 8]>(),
        pending in pending(),
        activity in prop::sample::select(vec![
            Activity::Running,
            Activity::Uninitialized,
            Activity::Initialized,
            Activity::Halted,
        ]),
        msrs in prop::collection::btree_map(any::<u32>(), any::<u64>(), 0..20),
        xsave in prop::collection::vec(any::<u8>(), 1024).prop_map(|part| part.repeat(4)),
        (khz, value, offset, xcr0) in any::<(u32, u64, Option<u64>, Option<u64>)>(),
        pdptrs in any::<Option<[u64; 4]>>(),
    ) -> Processor {
        let usual = processor();
        Processor {
            general,
            debug,
            apic: std::array::from_fn(|at| u32::from(apic[at / 8][at % 8])),
            pending,
            activity,
            msrs: msrs.into_iter().map(|(index, value)| Msr { index, value }).collect(),
            xsave,
            tsc: Tsc { khz, value, offset },
            controls: Controls { pdptrs, xcr0, ..usual.controls.clone() },
            ..usual
        }
    }
}

prop_compose! {
    fn functions(slot: u8)(
        config in any::<[[u8; 32]; 8]>(),
        vectors in prop::collection::vec(any::<[u32; 4]>(), 2..40),
        queues in prop::collection::vec(
            (0_u32..16, any::<[u64; 3]>(), any::<Option<(u16, u16)>>(), any::<bool>()),
            0..6,
        ),
        (offered, accepted, halves, status) in any::<(u64, u64, [u32; 2], u8)>(),
        disk in any::<Option<(u64, u32, [u8; 20])>>(),
    ) -> Function {
        let queue = |(power, areas, position, signalled): (u32, _, Option<(u16, u16)>, _)| Queue {
            most: 1 << power,
            size: 1 << (power / 2),
            vector: if signalled { 1 } else { 0xFFFF },
            enabled: position.is_some(),
            areas,
            position: position.map(|(next_available, next_used)| Position { next_available, next_used }),
            signalled,
        };
        let usual = function(slot, DeviceState::Plain(u16::from(status)));
        Function {
            config: std::array::from_fn(|at| config[at / 32][at % 32]),
            vectors,
            transport: Transport {
                offered,
                accepted,
                halves,
                status,
                queues: queues.into_iter().map(queue).collect(),
                ..usual.transport
            },
            device: match disk {
                None => usual.device,
                Some((sectors, logical_sector, serial)) if sectors % 4 > 0 => {
                    DeviceState::Disk(Disk { sectors, logical_sector, serial })
                }
                Some((_, mtu, serial)) => DeviceState::Network(Network {
                    mac: std::array::from_fn(|at| serial[at]),
                    mtu: u16::try_from(mtu >> 16).unwrap_or(0),
                }),
            },
            ..usual
        }
    }
}

prop_compose! {
    /// Any state that is sound.
    pub(super) fn states()(
        software in "[a-z]{0,20}",
        leaves in prop::collection::vec(any::<(u32, bool, [u32; 4])>(), 0..20),
        memory in (512_u64..1 << 28).prop_map(|pages| pages * layout::PAGE),
        clock in any::<(u64, Option<u64>)>(),
        processors in prop::collection::vec(processors(), 1..4),
        input in prop::collection::vec(any::<u8>(), 0..=64),
        slots in prop::collection::btree_set(1_u8..32, 0..4),
        made in prop::collection::vec(functions(1), 4),
    ) -> MachineState {
        let usual = sample();
        let leaves = leaves.into_iter();
        MachineState {
            host: HostFacts {
                software,
                cpuid: leaves.map(|(function, indexed, answer)| leaf(function, indexed, answer)).collect(),
                ..usual.host
            },
            shape: Shape::of(processors.len() as u16, memory),
            clock: Clock { nanoseconds: clock.0, realtime: clock.1 },
            processors,
            serial: Serial { input, ..usual.serial },
            functions: slots.into_iter().zip(made).map(|(slot, it)| Function { slot, ..it }).collect(),
            ..usual
        }
    }
}
