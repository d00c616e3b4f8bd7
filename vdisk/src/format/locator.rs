//! The parent locator (MS-VHDX 2.6.2.6): which disk a differencing disk is built on, and where it is.
//!
//! A header of 20 bytes, entries of 12 bytes, and the UTF-16 strings they name. Every key and value
//! is kept as it was read, so that paths which only Windows understands survive.

use crate::error::{Error, ErrorKind, Result};

use super::Guid;
use super::field::{array, guid_at, put, u16_at, u32_at};

/// The only kind of locator there is: the parent is a VHDX file.
const VHDX_LOCATOR: Guid = Guid::known(0xB04A_EFB7_D19E_4A81_B789_25B8_E944_5913);

/// `DataWriteGuid` that the parent must have.
pub const PARENT_LINKAGE: &str = "parent_linkage";
/// A second one that it may have instead, while a merge changes the parent.
pub const PARENT_LINKAGE2: &str = "parent_linkage2";
/// Path of the parent from the child's folder.
pub const RELATIVE_PATH: &str = "relative_path";
const VOLUME_PATH: &str = "volume_path";
const ABSOLUTE_PATH: &str = "absolute_win32_path";

const HEADER_BYTES: usize = 20;
const ENTRY_BYTES: usize = 12;
/// More entries than this are refused; programs write 2 to 5.
const MAX_ENTRIES: u16 = 256;

/// What the locator says, every pair kept in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentLocator {
    pairs: Vec<(String, String)>,
}

impl ParentLocator {
    /// A locator for a parent with this `DataWriteGuid` at this path from the child's folder, written
    /// with `/`.
    #[must_use]
    pub fn new(linkage: Guid, relative_path: &str) -> Self {
        let mut locator = Self { pairs: Vec::new() };
        locator.set_linkage(linkage);
        locator.set_relative_path(relative_path);
        locator
    }

    fn get(&self, key: &str) -> Option<&str> {
        let pair = self.pairs.iter().find(|(of, _)| of == key);
        pair.map(|(_, value)| value.as_str())
    }

    fn set(&mut self, key: &str, value: String) {
        match self.pairs.iter_mut().find(|(of, _)| of == key) {
            Some((_, old)) => *old = value,
            None => self.pairs.push((key.to_owned(), value)),
        }
    }

    /// The `DataWriteGuid`s that the parent may have: one, or two while a merge is under way.
    pub fn linkages(&self) -> Result<Vec<Guid>> {
        [PARENT_LINKAGE, PARENT_LINKAGE2]
            .into_iter()
            .filter_map(|key| self.get(key))
            .map(|value| {
                value.parse().map_err(|error| {
                    Error::corrupt(format!(
                        "the parent locator does not name a version of the parent: {error}"
                    ))
                })
            })
            .collect()
    }

    /// Name another version of the parent, and only that one.
    pub fn set_linkage(&mut self, linkage: Guid) {
        self.set(PARENT_LINKAGE, format!("{{{linkage}}}"));
        self.pairs.retain(|(key, _)| key != PARENT_LINKAGE2);
    }

    /// Accept a second version of the parent too: before a merge changes it.
    pub fn add_linkage(&mut self, linkage: Guid) {
        self.set(PARENT_LINKAGE2, format!("{{{linkage}}}"));
    }

    /// The path of the parent from the child's folder, with `/`, if there is one.
    #[must_use]
    pub fn relative_path(&self) -> Option<String> {
        self.get(RELATIVE_PATH).map(|path| path.replace('\\', "/"))
    }

    /// Set that path; the paths for Windows that led to the old parent go.
    pub fn set_relative_path(&mut self, path: &str) {
        let path = path.replace('/', "\\");
        self.set(RELATIVE_PATH, path);
        self.pairs
            .retain(|(key, _)| key != VOLUME_PATH && key != ABSOLUTE_PATH);
    }

    /// Every key with its value.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Reads the item. Offsets in errors count from its start.
    pub fn decode(item: &[u8]) -> Result<Self> {
        let kind = guid_at(item, 0)?;
        if kind != VHDX_LOCATOR {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the parent locator is of the type {kind}, which is not that of VHDX"),
            ));
        }
        let count = u16_at(item, 18)?;
        if count > MAX_ENTRIES {
            return Err(Error::corrupt(format!(
                "the parent locator has {count} entries, at most {MAX_ENTRIES} are read"
            ))
            .at(18));
        }
        let mut pairs: Vec<(String, String)> = Vec::with_capacity(usize::from(count));
        for at in (HEADER_BYTES..).step_by(ENTRY_BYTES).take(count.into()) {
            let pair = decode_entry(item, at).map_err(|error| error.at(at as u64))?;
            if pairs.iter().any(|(key, _)| *key == pair.0) {
                let what = format!("the parent locator has the key {:?} twice", pair.0);
                return Err(Error::corrupt(what).at(at as u64));
            }
            pairs.push(pair);
        }
        let locator = Self { pairs };
        if locator.get(PARENT_LINKAGE).is_none() {
            return Err(Error::corrupt("the parent locator has no parent_linkage"));
        }
        locator.linkages()?;
        let paths = [RELATIVE_PATH, VOLUME_PATH, ABSOLUTE_PATH];
        if paths.iter().all(|key| locator.get(key).is_none()) {
            return Err(Error::corrupt("the parent locator has no path"));
        }
        Ok(locator)
    }

    /// Whether what is written of it can be read again: at most 256 pairs, of at most 65534 bytes each
    /// in UTF-16 and without NUL, among them a version and a path. `Unsupported` if not.
    ///
    /// A change of a locator does not ask; whoever writes one does.
    pub fn check(&self) -> Result<()> {
        if Self::decode(&self.encode()).is_ok_and(|read| read == *self) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            "the parent locator has too many entries, or one that is too long or not a text",
        ))
    }

    /// The item as it is written; see [`ParentLocator::check`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let utf16 = |text: &str| -> Vec<u8> {
            text.encode_utf16()
                .flat_map(u16::to_le_bytes)
                .collect::<Vec<u8>>()
        };
        let mut item = vec![0; HEADER_BYTES + ENTRY_BYTES * self.pairs.len()];
        put(&mut item, 0, &VHDX_LOCATOR.0);
        put(&mut item, 18, &(self.pairs.len() as u16).to_le_bytes());
        for (number, (key, value)) in self.pairs.iter().enumerate() {
            let (key, value) = (utf16(key), utf16(value));
            let at = HEADER_BYTES + ENTRY_BYTES * number;
            let key_at = item.len();
            let value_at = key_at + key.len();
            put(&mut item, at, &(key_at as u32).to_le_bytes());
            put(&mut item, at + 4, &(value_at as u32).to_le_bytes());
            put(&mut item, at + 8, &(key.len() as u16).to_le_bytes());
            put(&mut item, at + 10, &(value.len() as u16).to_le_bytes());
            item.extend_from_slice(&key);
            item.extend_from_slice(&value);
        }
        item
    }
}

fn decode_entry(item: &[u8], at: usize) -> Result<(String, String)> {
    let key = text(item, u32_at(item, at)?, u16_at(item, at + 8)?, "key")?;
    let value = text(item, u32_at(item, at + 4)?, u16_at(item, at + 10)?, "value")?;
    Ok((key, value))
}

fn text(item: &[u8], at: u32, len: u16, what: &str) -> Result<String> {
    let wrong = |why: &str| {
        Error::corrupt(format!(
            "a {what} of the parent locator (at byte {at}, {len} bytes) {why}"
        ))
    };
    if at == 0 || len == 0 || !len.is_multiple_of(2) {
        return Err(wrong("is nowhere, empty, or not whole UTF-16"));
    }
    let bytes = item
        .get(at as usize..)
        .and_then(|rest| rest.get(..usize::from(len)))
        .ok_or_else(|| wrong("lies outside the item"))?;
    let mut units = Vec::with_capacity(bytes.len() / 2);
    for at in (0..bytes.len()).step_by(2) {
        units.push(u16::from_le_bytes(array(bytes, at)?));
    }
    if units.contains(&0) {
        return Err(wrong("has a NUL"));
    }
    String::from_utf16(&units).map_err(|_| wrong("is not UTF-16"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GUID: Guid = Guid::known(0x0102_0304_0506_0708_090A_0B0C_0D0E_0F10);

    #[test]
    fn what_is_written_is_read_and_windows_paths_survive() {
        let mut locator = ParentLocator::new(GUID, "../base/root.vhdx");
        locator.set(ABSOLUTE_PATH, r"\\?\C:\disks\root.vhdx".into());
        locator.add_linkage(Guid::ZERO);
        let read = ParentLocator::decode(&locator.encode()).unwrap();
        assert_eq!(read, locator);
        assert_eq!(read.linkages().unwrap(), [GUID, Guid::ZERO]);
        assert_eq!(read.relative_path().unwrap(), "../base/root.vhdx");
        assert_eq!(read.get(RELATIVE_PATH).unwrap(), r"..\base\root.vhdx");
        assert_eq!(read.pairs().count(), 4);
    }

    #[test]
    fn another_parent_drops_what_led_to_the_old_one() {
        let mut locator = ParentLocator::new(GUID, "a.vhdx");
        locator.set(VOLUME_PATH, r"\\?\Volume{1}\a.vhdx".into());
        locator.add_linkage(Guid::ZERO);
        locator.set_linkage(Guid::ZERO);
        locator.set_relative_path("b.vhdx");
        assert_eq!(locator, ParentLocator::new(Guid::ZERO, "b.vhdx"));
    }

    #[test]
    fn the_upper_case_of_the_sample_is_read() {
        let mut locator = ParentLocator::new(GUID, "a");
        locator.set(PARENT_LINKAGE, format!("{{{GUID}}}").to_uppercase());
        let read = ParentLocator::decode(&locator.encode()).unwrap();
        assert_eq!(read.linkages().unwrap(), [GUID]);
    }

    #[test]
    fn broken_locators_are_refused() {
        let good = ParentLocator::new(GUID, "parent.vhdx").encode();
        let entry = HEADER_BYTES;
        let breaks: [(usize, &[u8]); 8] = [
            (0, &[0]),                        // another type
            (18, &[0xFF, 0xFF]),              // absurd count
            (18, &[1, 0]),                    // no path
            (entry, &[0, 0, 0, 0]),           // a key nowhere
            (entry + 4, &[0xFF; 4]),          // a value outside
            (entry + 8, &[3, 0]),             // half a character
            (entry + 10, &[0, 0]),            // an empty value
            (HEADER_BYTES + 24 + 4, &[0; 2]), // a NUL inside a key
        ];
        for (at, bytes) in breaks {
            let mut bad = good.clone();
            put(&mut bad, at, bytes);
            assert!(ParentLocator::decode(&bad).is_err(), "at {at}");
        }
        for len in 0..good.len() {
            assert!(ParentLocator::decode(&good[..len]).is_err(), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut item = VHDX_LOCATOR.0.to_vec();
            item.extend_from_slice(&bytes);
            if let Ok(locator) = ParentLocator::decode(&item) {
                prop_assert_eq!(ParentLocator::decode(&locator.encode()).unwrap(), locator);
            }
        }
    }
}
