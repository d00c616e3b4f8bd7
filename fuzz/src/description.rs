//! Descriptions of machines: any text, and texts put together of keys and values that are known.
//!
//! What must hold: reading is total and keeps every promise that [`Description`] makes of its fields.

use std::collections::BTreeSet;
use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use vmm::description::{Description, Kernel, is_interface_name};

const LINES: [&str; 31] = [
    "vcpus = ",
    "memory = ",
    "huge_pages = ",
    "[boot]",
    "kernel = ",
    "initrd = ",
    "command_line = ",
    "boot.kernel = ",
    "from_disk = ",
    "boot.from_disk = ",
    "[console]",
    "to = ",
    "console.to = ",
    "[[disk]]",
    "path = ",
    "name = ",
    "format = ",
    "read_only = ",
    "queues = ",
    "limits.iops = ",
    "limits.bandwidth = ",
    "limits = {iops = 1, iops_burst = 2}",
    "disk = [{path='a'}]",
    "[[network]]",
    "tap = ",
    "mac = ",
    "mtu = ",
    "network = [{tap='a'}]",
    "[disk.",
    "disk = ",
    "\"\\u0000\" = ",
];

#[derive(Arbitrary, Debug)]
enum Plan {
    Text(String),
    Lines(Vec<(u8, Value)>),
}

#[derive(Arbitrary, Debug)]
enum Value {
    Nothing,
    Number(i64),
    Size(u16, u8),
    Flag(bool),
    Text(String),
    Name(u8),
    Deep(u8),
}

impl Value {
    fn write(&self) -> String {
        match self {
            Self::Nothing => String::new(),
            Self::Number(number) => number.to_string(),
            Self::Size(number, unit) => {
                format!(
                    "\"{number}{}\"",
                    ["", "K", "M", "G", "T", "E"][usize::from(unit % 6)]
                )
            }
            Self::Flag(flag) => flag.to_string(),
            Self::Text(text) => format!("'''{text}'''"),
            Self::Name(number) => {
                let names = [
                    "'a.vhdx'",
                    "'..'",
                    "'/'",
                    "''",
                    "'raw'",
                    "'file:x'",
                    "'stdio'",
                    "'02:00:00:12:34:56'",
                ];
                names[usize::from(*number) % names.len()].to_owned()
            }
            Self::Deep(depth) => "[".repeat(usize::from(*depth) * 16),
        }
    }
}

fn text(plan: &Plan) -> String {
    match plan {
        Plan::Text(text) => text.clone(),
        Plan::Lines(lines) => {
            let written = lines.iter().flat_map(|(line, value)| {
                let line = LINES[usize::from(*line) % LINES.len()];
                [line.to_owned(), value.write(), "\n".to_owned()]
            });
            written.collect()
        }
    }
}

/// The body.
pub fn run(data: &[u8]) {
    let Ok(plan) = Plan::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let Ok(read) = Description::parse(&text(&plan), Path::new("/vm")) else {
        return;
    };
    assert!(read.vcpus > 0);
    assert!((16 << 20..=1 << 40).contains(&read.memory) && read.memory.is_multiple_of(1 << 20));
    assert!(!read.boot.command_line.contains('\0'));
    let names: BTreeSet<_> = read.disks.iter().map(|disk| &disk.name).collect();
    assert_eq!(names.len(), read.disks.len(), "names differ");
    assert!(read.disks.len() <= 24 && names.iter().all(|name| !name.is_empty()));
    assert!(read.disks.iter().all(|disk| disk.queues > 0));
    let taps: BTreeSet<_> = read.networks.iter().map(|network| &network.tap).collect();
    assert_eq!(taps.len(), read.networks.len(), "taps differ");
    assert!(taps.len() <= 4 && taps.iter().all(|tap| is_interface_name(tap)));
    for network in &read.networks {
        assert!(network.mtu.is_none_or(|mtu| mtu >= 68));
        assert!(network.mac.is_none_or(|mac| mac[0] & 1 == 0));
    }
    if let Kernel::Disk(place) = read.boot.kernel {
        assert!(place < read.disks.len() && read.boot.initrd.is_none());
    }
}
