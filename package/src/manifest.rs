//! The manifest of a package: a line with its hash, then JSON.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::{MAX_DISK, VERSION};

/// Most bytes of a manifest.
pub const MANIFEST_LIMIT: u64 = 32 << 20;
/// Most volumes of a package.
pub const MOST_VOLUMES: u32 = 99_999;
/// Most bytes of a package's name.
pub const NAME_LIMIT: usize = 64;
/// What a manifest begins with, before the version.
const MAGIC: &str = "diskferry-package";

/// What a package is. It is written last, so a package that has one is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Names the package, and the state of a disk that it leaves.
    pub package: Uuid,
    /// What its files are called: [`is_name`] holds.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// The disk.
    pub disk: DiskShape,
    /// The package whose state of the disk this one changes; `None` if it holds all of the disk.
    pub builds_on: Option<Uuid>,
    /// Whether its files are encrypted.
    pub encrypted: bool,
    /// Its volumes, in the order of the disk. They tell of all of it, without gaps.
    pub volumes: Vec<VolumeEntry>,
}

/// What the disk is like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskShape {
    /// Bytes.
    pub size: u64,
    /// Bytes of a logical sector, 512 or 4096.
    pub sector: u32,
    /// Its identity, if its format has one.
    pub id: Option<Uuid>,
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeEntry {
    /// Bytes of the file.
    pub length: u64,
    /// BLAKE3 of the file.
    pub hash: Hash,
    /// The first byte of the disk that it tells of.
    pub first: u64,
    /// The first byte of the disk that it does not tell of any more.
    pub end: u64,
    /// How many records it has, its end not counted.
    pub records: u64,
}

/// Whether a package may be called so: up to 64 letters, digits, `-`, `_` and `.`, the first no dot.
///
/// These are names on every file system, and no paths.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=NAME_LIMIT).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(allowed)
}

/// The version of a disk's data while the changes of `package` are applied to it: neither what it was, nor what it
/// will be.
#[must_use]
pub fn applying(package: Uuid) -> Uuid {
    let hash = Hash::of(format!("{MAGIC} applying {package}").as_bytes());
    let mut bytes = [0; 16];
    for (byte, part) in bytes.iter_mut().zip(hash.0) {
        *byte = part;
    }
    Uuid::from_bytes(bytes)
}

impl Manifest {
    /// Its bytes, and the hash that stands for the whole package.
    #[must_use]
    pub fn encode(&self) -> (Vec<u8>, Hash) {
        // Nothing in it can fail to be written as JSON.
        let mut json = serde_json::to_vec_pretty(self).unwrap_or_default();
        json.push(b'\n');
        let root = Hash::of(&json);
        let mut bytes = format!("{MAGIC} {VERSION} {root}\n").into_bytes();
        bytes.append(&mut json);
        (bytes, root)
    }

    /// Reads a manifest, and the hash that stands for the whole package.
    ///
    /// `Damaged` if it is none, `Unsupported` if it is one of a later version.
    pub fn decode(bytes: &[u8]) -> Result<(Self, Hash)> {
        let not_one = || Error::damaged("is damaged: it does not begin as a manifest");
        let end = bytes.iter().take(200).position(|byte| *byte == b'\n');
        let (line, json) = bytes
            .split_at_checked(end.ok_or_else(not_one)?)
            .ok_or_else(not_one)?;
        let json = json.get(1..).ok_or_else(not_one)?;
        let line = std::str::from_utf8(line).map_err(|_| not_one())?;
        let mut words = line.split(' ');
        let (Some(MAGIC), Some(version), root, None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(not_one());
        };
        if version != VERSION.to_string() {
            return Err(Error::unsupported(version.escape_default()));
        }
        let root = root.and_then(Hash::parse).ok_or_else(not_one)?;
        if bytes.len() as u64 > MANIFEST_LIMIT {
            return Err(Error::damaged(
                "is damaged: it is longer than a manifest can be",
            ));
        }
        if Hash::of(json) != root {
            return Err(Error::damaged(
                "is damaged: its hash is not that of its first line",
            ));
        }
        let read: Self = serde_json::from_slice(json)
            .map_err(|error| Error::damaged(format!("is not understood: {error}")))?;
        read.refuse_nonsense()?;
        Ok((read, root))
    }

    /// Volume `number`, counted from 1.
    #[must_use]
    pub fn volume(&self, number: u32) -> Option<&VolumeEntry> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        self.volumes.get(index)
    }

    /// Every volume's number and entry.
    pub fn numbered(&self) -> impl Iterator<Item = (u32, &VolumeEntry)> {
        (1..).zip(&self.volumes)
    }

    /// What the file of volume `number` is called.
    #[must_use]
    pub fn volume_name(name: &str, number: u32, encrypted: bool) -> String {
        let ending = if encrypted { ".age" } else { "" };
        format!("{name}.{number:03}{ending}")
    }

    /// What the file of the manifest is called.
    #[must_use]
    pub fn file_name(name: &str, encrypted: bool) -> String {
        let ending = if encrypted { ".age" } else { "" };
        format!("{name}.manifest{ending}")
    }

    fn refuse_nonsense(&self) -> Result<()> {
        let wrong = |what: &str| Err(Error::damaged(format!("makes no sense: {what}")));
        if !is_name(&self.name) {
            return wrong("the package's name could not be one of a file");
        }
        if self.package.is_nil()
            || self
                .builds_on
                .is_some_and(|id| id.is_nil() || id == self.package)
        {
            return wrong("a package names itself, or nothing, as what it builds upon");
        }
        if self.disk.size == 0 || self.disk.size > MAX_DISK {
            return wrong("there is no disk of that size");
        }
        if ![512, 4096].contains(&self.disk.sector) {
            return wrong("there is no disk with such sectors");
        }
        if self.volumes.len() > MOST_VOLUMES as usize {
            return wrong("there are more volumes than can be");
        }
        let mut at = 0;
        for entry in &self.volumes {
            if entry.first != at || entry.end < at {
                return wrong("the volumes do not follow each other");
            }
            at = entry.end;
        }
        if at != self.disk.size {
            return wrong("the volumes do not tell of all of the disk");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let entry = |first, end| VolumeEntry {
            length: 300,
            hash: Hash([7; 32]),
            first,
            end,
            records: 1,
        };
        Manifest {
            package: Uuid::from_u128(1),
            name: "disk".to_owned(),
            created: 5,
            disk: DiskShape {
                size: 4096,
                sector: 512,
                id: None,
            },
            builds_on: Some(Uuid::from_u128(2)),
            encrypted: false,
            volumes: vec![entry(0, 512), entry(512, 4096)],
        }
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written() {
        let (bytes, root) = manifest().encode();
        assert_eq!(Manifest::decode(&bytes), Ok((manifest(), root)));
        for at in 0..bytes.len() {
            let mut harmed = bytes.clone();
            harmed[at] ^= 1;
            assert!(Manifest::decode(&harmed).is_err(), "byte {at}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let harms: [fn(&mut Manifest); 8] = [
            |it| it.name = "../disk".to_owned(),
            |it| it.builds_on = Some(it.package),
            |it| it.disk.size = 0,
            |it| it.disk.size = u64::MAX,
            |it| it.disk.sector = 0,
            |it| it.volumes[1].first = 513,
            |it| it.volumes[0].end = u64::MAX,
            |it| it.volumes.truncate(1),
        ];
        for harm in harms {
            let mut harmed = manifest();
            harm(&mut harmed);
            let refused = Manifest::decode(&harmed.encode().0).unwrap_err();
            assert!(refused.to_string().contains("makes no sense"), "{refused}");
        }
    }

    #[test]
    fn a_later_version_is_told_apart_from_damage() {
        let (bytes, _) = manifest().encode();
        let text = String::from_utf8(bytes).unwrap().replacen(" 1 ", " 2 ", 1);
        let refused = Manifest::decode(text.as_bytes()).unwrap_err();
        assert_eq!(refused.kind(), crate::ErrorKind::Unsupported);
    }
}
