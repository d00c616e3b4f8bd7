//! Parent locators: bytes of another, and pairs laid out in any way.
//!
//! What must hold: decoding is total; what is read is written again and read alike; a locator that we
//! change stays one that we read, and says what was asked for; pairs laid out within the rules are read.

use arbitrary::{Arbitrary, Unstructured};
use vdisk::format::{Guid, ParentLocator};

/// The GUID of the only type of locator there is, as it stands in a file.
const TYPE: [u8; 16] = [
    0xB7, 0xEF, 0x4A, 0xB0, 0x9E, 0xD1, 0x81, 0x4A, 0xB7, 0x89, 0x25, 0xB8, 0xE9, 0x44, 0x59, 0x13,
];

const KEYS: [&str; 6] = [
    "parent_linkage",
    "parent_linkage2",
    "relative_path",
    "volume_path",
    "absolute_win32_path",
    "Relative_Path",
];

#[derive(Arbitrary, Debug)]
enum Plan {
    Bytes { typed: bool, bytes: Vec<u8> },
    Pairs { pairs: Vec<Pair>, gap: u8 },
    Many { more: u8, linkage: u128 },
}

#[derive(Arbitrary, Debug)]
struct Pair {
    key: Key,
    value: Value,
}

#[derive(Arbitrary, Debug)]
enum Key {
    Known(u8),
    Any(Vec<u16>),
}

#[derive(Arbitrary, Debug)]
enum Value {
    Guid(u128, bool),
    Text(String),
    Any(Vec<u16>),
}

fn units(text: &str) -> Vec<u16> {
    text.encode_utf16().collect()
}

impl Pair {
    fn encode(&self) -> (Vec<u16>, Vec<u16>) {
        let key = match &self.key {
            Key::Known(number) => units(KEYS[usize::from(*number) % KEYS.len()]),
            Key::Any(any) => any.clone(),
        };
        let value = match &self.value {
            Value::Guid(bits, upper) => {
                let text = format!("{{{}}}", Guid::from_random(*bits));
                units(&if *upper { text.to_uppercase() } else { text })
            }
            Value::Text(text) => units(text),
            Value::Any(any) => any.clone(),
        };
        (key, value)
    }
}

/// The item with these pairs, `gap` bytes between all strings.
fn lay_out(pairs: &[(Vec<u16>, Vec<u16>)], gap: u8) -> Vec<u8> {
    let mut item = TYPE.to_vec();
    item.extend([0; 2]);
    item.extend((pairs.len() as u16).to_le_bytes());
    let mut strings = Vec::new();
    let first = item.len() + pairs.len() * 12;
    for (key, value) in pairs {
        let mut place = |text: &[u16]| {
            strings.extend(vec![0; gap.into()]);
            let at = (first + strings.len()) as u32;
            strings.extend(text.iter().copied().flat_map(u16::to_le_bytes));
            at
        };
        let (key_at, value_at) = (place(key), place(value));
        item.extend(key_at.to_le_bytes());
        item.extend(value_at.to_le_bytes());
        item.extend(((key.len() * 2) as u16).to_le_bytes());
        item.extend(((value.len() * 2) as u16).to_le_bytes());
    }
    item.extend(strings);
    item
}

/// Whether the text of the specification accepts these pairs; `None` where it does not say.
fn acceptable(pairs: &[(Vec<u16>, Vec<u16>)]) -> bool {
    let text = |units: &[u16]| {
        let whole = !units.is_empty() && units.len() < 0x8000 && !units.contains(&0);
        whole.then(|| String::from_utf16(units).ok()).flatten()
    };
    let read: Option<Vec<_>> = pairs
        .iter()
        .map(|(key, value)| Some((text(key)?, text(value)?)))
        .collect();
    let Some(read) = read else {
        return false;
    };
    let get = |key: &str| {
        read.iter()
            .find(|(of, _)| of == key)
            .map(|(_, value)| value)
    };
    let twice = (1..read.len()).any(|n| read[..n].iter().any(|(key, _)| *key == read[n].0));
    let is_guid = |value: &String| value.parse::<Guid>().is_ok();
    !twice
        && read.len() <= 256
        && get(KEYS[0]).is_some_and(is_guid)
        && get(KEYS[1]).is_none_or(is_guid)
        && KEYS[2..5].iter().any(|key| get(key).is_some())
}

/// What is written of a locator is read alike, if the locator says that it can be.
fn survives(locator: &ParentLocator) -> bool {
    if locator.check().is_err() {
        return false;
    }
    let read = ParentLocator::decode(&locator.encode());
    assert_eq!(&read.expect("what is written is read"), locator);
    true
}

/// Every change that is made to locators.
fn change(mut locator: ParentLocator, linkage: u128) {
    assert!(survives(&locator), "it was read");
    let (first, second) = (Guid::from_random(linkage), Guid::from_random(!linkage));
    let before = locator.linkages().expect("checked when it was read");
    locator.add_linkage(first);
    let room = locator.pairs().count() <= 256;
    assert_eq!(survives(&locator), room, "one pair more");
    assert_eq!(locator.linkages().expect("ours"), [before[0], first]);
    locator.set_linkage(second);
    assert!(survives(&locator), "a pair less");
    assert_eq!(locator.linkages().expect("ours"), [second]);
    locator.set_relative_path("../a/b.vhdx");
    assert_eq!(survives(&locator), locator.pairs().count() <= 256);
    assert_eq!(locator.relative_path().as_deref(), Some("../a/b.vhdx"));
    locator.set_relative_path(&"x/".repeat(1 << 14));
    assert!(!survives(&locator), "a path of 65536 bytes");
}

fn decode(item: &[u8], linkage: u128) -> bool {
    match ParentLocator::decode(item) {
        Ok(locator) => {
            change(locator, linkage);
            true
        }
        Err(error) => {
            assert!(error.offset().is_none_or(|at| at <= item.len() as u64));
            false
        }
    }
}

/// One input.
pub fn run(data: &[u8]) {
    let Ok(plan) = Plan::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    match plan {
        Plan::Bytes { typed, bytes } => {
            let mut item = if typed { TYPE.to_vec() } else { Vec::new() };
            item.extend(bytes);
            decode(&item, 1);
        }
        Plan::Pairs { pairs, gap } => {
            let pairs: Vec<_> = pairs.iter().map(Pair::encode).collect();
            let read = decode(&lay_out(&pairs, gap), 2);
            assert_eq!(read, acceptable(&pairs), "{pairs:?}");
        }
        Plan::Many { more, linkage } => {
            let guid = format!("{{{}}}", Guid::from_random(linkage));
            let mut pairs = vec![
                (units(KEYS[0]), units(&guid)),
                (units(KEYS[3]), units("path")),
            ];
            pairs.extend((0..more).map(|number| (units(&format!("key {number}")), units("value"))));
            let read = decode(&lay_out(&pairs, 0), linkage);
            assert_eq!(read, pairs.len() <= 256);
        }
    }
}
