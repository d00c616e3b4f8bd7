//! VMDK: a descriptor that names extents, and extents that hold grains. Numbers are little-endian.
//!
//! ```text
//!   descriptor (text)  ->  RW 4192256 SPARSE "disk-s001.vmdk"
//!   sparse extent: | header | descriptor | grain directory -> grain tables -> grains ... |
//!   stream:        | header | descriptor | grains, tables, directory with markers ... | footer | end |
//! ```
//!
//! A sparse extent may hold its own descriptor, which then names that very file. Grains of a stream are
//! compressed, each behind its number and length. **No name in a descriptor is opened here**: who opens
//! files decides which.

use super::array;
use crate::error::{Error, ErrorKind, Result};

/// Bytes of the header of a sparse extent, and of the footer of a stream.
pub const HEADER: usize = 512;
/// Bytes of a sector; places in an extent are counted in these.
pub const SECTOR: u64 = 512;
/// The first four bytes of a sparse extent.
pub const MAGIC: [u8; 4] = *b"KDMV";
/// How a file begins that is a descriptor and nothing else.
pub const DESCRIPTOR_START: &[u8] = b"# Disk DescriptorFile";
/// Descriptors longer than this are not read; real ones have some hundred bytes.
pub const MAX_DESCRIPTOR: u64 = 1 << 20;
/// Bytes of a marker in front of a compressed grain: its first sector and the length of what follows.
pub const GRAIN_MARKER: usize = 12;

/// Where a directory is that is told of by the footer.
const AT_END: u64 = u64::MAX;
const ZEROED_GRAINS: u32 = 1 << 2;
const COMPRESSED: u32 = 1 << 16;
const DEFLATE: u16 = 1;
/// An entry that stands for a grain of zeros, where there are such.
const ZEROED: u32 = 1;
/// A directory longer than this many tables would be one of a disk beyond 64 TB.
const MAX_EXTENT: u64 = 64 << 40;
const MAX_EXTENTS: usize = 1 << 16;

/// What a sparse extent says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparseHeader {
    /// Bytes of the extent.
    pub size: u64,
    /// Bytes of a grain, a power of two from 4 KiB to 1 MiB.
    pub grain: u64,
    /// Entries of a grain table.
    pub entries: u64,
    /// First byte of the grain directory, `None` if the footer says.
    pub directory: Option<u64>,
    /// First byte and length of the descriptor inside.
    pub descriptor: Option<(u64, u64)>,
    /// Whether grains are compressed by DEFLATE, each with a marker.
    pub compressed: bool,
    zeroed: bool,
}

/// What a table says of a grain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grain {
    /// Never written, or zero.
    Zero,
    /// At this byte of the file.
    At(u64),
}

impl SparseHeader {
    /// Reads the header, or the footer, of a sparse extent.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        if array::<4>(bytes, 0)? != MAGIC {
            return Err(Error::corrupt("there is no header of a sparse VMDK extent"));
        }
        let u32_at = |at| array(bytes, at).map(u32::from_le_bytes);
        let u64_at = |at| array(bytes, at).map(u64::from_le_bytes);
        let (version, flags) = (u32_at(4)?, u32_at(8)?);
        if !(1..=3).contains(&version) {
            let what = format!("is a VMDK extent of version {version}");
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        let compressed = flags & COMPRESSED != 0;
        let how = u16::from_le_bytes(array(bytes, 77)?);
        if compressed && how != DEFLATE {
            let what = format!("has grains compressed by the unknown method {how}");
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        let (size, grain) = (in_bytes(u64_at(12)?)?, in_bytes(u64_at(20)?)?);
        if !grain.is_power_of_two() || !(4096..=1 << 20).contains(&grain) {
            return Err(Error::corrupt(format!("grains of {grain} bytes cannot be")));
        }
        let entries = u64::from(u32_at(44)?);
        if !(1..=4096).contains(&entries) {
            let what = format!("grain tables of {entries} entries cannot be");
            return Err(Error::corrupt(what));
        }
        let directory = match u64_at(56)? {
            AT_END => None,
            sector => Some(in_bytes(sector)?),
        };
        let descriptor = match (u64_at(28)?, u64_at(36)?) {
            (0, _) | (_, 0) => None,
            (at, len) => Some((in_bytes(at)?, in_bytes(len)?)),
        };
        Ok(Self {
            size,
            grain,
            entries,
            directory,
            descriptor,
            compressed,
            zeroed: flags & ZEROED_GRAINS != 0,
        })
    }

    /// Bytes of the disk that one grain table tells of.
    #[must_use]
    pub fn table_covers(&self) -> u64 {
        self.grain * self.entries
    }

    /// What an entry of a grain table means.
    #[must_use]
    pub fn grain_at(&self, entry: u32) -> Grain {
        match entry {
            0 => Grain::Zero,
            ZEROED if self.zeroed => Grain::Zero,
            sector => Grain::At(u64::from(sector) * SECTOR),
        }
    }

    /// Bytes of the compressed grain behind the marker `marker`, which must be that of the grain at
    /// byte `offset` of the extent.
    pub fn compressed_len(&self, marker: &[u8], offset: u64) -> Result<usize> {
        let first = u64::from_le_bytes(array(marker, 0)?);
        let len = u32::from_le_bytes(array(marker, 8)?);
        if first.checked_mul(SECTOR) != Some(offset) {
            let what =
                format!("the grain of sector {first} is where that of byte {offset} should be");
            return Err(Error::corrupt(what));
        }
        // What cannot be made smaller grows by a few bytes in a thousand.
        if len == 0 || u64::from(len) > 2 * self.grain {
            let what = format!(
                "a grain of {} bytes cannot be packed into {len}",
                self.grain
            );
            return Err(Error::corrupt(what));
        }
        Ok(len as usize)
    }
}

fn in_bytes(sectors: u64) -> Result<u64> {
    let bytes = sectors.checked_mul(SECTOR);
    bytes
        .filter(|bytes| *bytes <= MAX_EXTENT)
        .ok_or_else(|| Error::corrupt(format!("{sectors} sectors are more than any disk has")))
}

/// How the bytes of an extent are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// As grains, in the file of this name.
    Sparse(String),
    /// One after the other, in the file of this name from this byte on.
    Flat(String, u64),
    /// Nowhere: they are zero.
    Zero,
}

/// A part of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How many bytes.
    pub size: u64,
    /// How they are kept.
    pub kind: ExtentKind,
}

/// What a descriptor says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The parts of the disk, in order.
    pub extents: Vec<Extent>,
}

impl Descriptor {
    /// Reads a descriptor. `Unsupported` if the disk is built on another one, or has extents that are
    /// devices or of `VMware`'s ESX.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let end = text.iter().position(|byte| *byte == 0);
        let text =
            String::from_utf8_lossy(text.get(..end.unwrap_or(text.len())).unwrap_or_default());
        let mut extents = Vec::new();
        let mut known = false;
        for line in text.lines().map(str::trim) {
            known |= line.as_bytes() == DESCRIPTOR_START;
            let first = line.split_whitespace().next().unwrap_or_default();
            if matches!(first, "RW" | "RDONLY" | "NOACCESS") {
                extents.push(extent(line)?);
            } else if let Some((key, value)) = line.split_once('=') {
                refuse_parent(key.trim(), value.trim().trim_matches('"'))?;
            }
            if extents.len() > MAX_EXTENTS {
                return Err(Error::corrupt(
                    "the descriptor names more extents than any disk has",
                ));
            }
        }
        if !known || extents.is_empty() {
            return Err(Error::corrupt(
                "there is no VMDK descriptor that names extents",
            ));
        }
        let total = extents
            .iter()
            .try_fold(0_u64, |sum, one| sum.checked_add(one.size));
        if total.is_none_or(|total| total > MAX_EXTENT) {
            return Err(Error::corrupt("the extents are larger than any disk"));
        }
        Ok(Self { extents })
    }
}

fn refuse_parent(key: &str, value: &str) -> Result<()> {
    let none = value.eq_ignore_ascii_case("ffffffff");
    if key == "parentFileNameHint" || (key == "parentCID" && !none) {
        let what = "is a VMDK that holds only what differs from another disk";
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    Ok(())
}

/// `RW 4192256 SPARSE "disk-s001.vmdk"`, `RW 100 FLAT "disk-flat.vmdk" 0` or `RW 100 ZERO`.
fn extent(line: &str) -> Result<Extent> {
    let broken = || Error::corrupt(format!("the descriptor's line `{line}` makes no sense"));
    let mut words = line.split_whitespace().skip(1);
    let sectors: u64 = words
        .next()
        .and_then(|word| word.parse().ok())
        .ok_or_else(broken)?;
    let size = in_bytes(sectors)?;
    let how = words.next().ok_or_else(broken)?;
    let mut quoted = line.splitn(3, '"').skip(1);
    let name = quoted.next().map(str::to_owned).ok_or_else(broken);
    let rest = quoted.next().unwrap_or_default().trim();
    let kind = match how {
        "ZERO" => ExtentKind::Zero,
        "SPARSE" => ExtentKind::Sparse(name?),
        "FLAT" => {
            let first = if rest.is_empty() { Ok(0) } else { rest.parse() };
            ExtentKind::Flat(name?, in_bytes(first.map_err(|_| broken())?)?)
        }
        other => {
            let what = format!("has an extent of the kind {other}");
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
    };
    Ok(Extent { size, kind })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(change: impl FnOnce(&mut [u8; HEADER])) -> Result<SparseHeader> {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&1_u32.to_le_bytes());
        bytes[12..20].copy_from_slice(&1000_u64.to_le_bytes());
        bytes[20..28].copy_from_slice(&128_u64.to_le_bytes());
        bytes[44..48].copy_from_slice(&512_u32.to_le_bytes());
        bytes[56..64].copy_from_slice(&26_u64.to_le_bytes());
        change(&mut bytes);
        SparseHeader::decode(&bytes)
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let sound = header(|_| {}).unwrap();
        assert_eq!((sound.size, sound.grain), (512_000, 65536));
        assert_eq!(sound.directory, Some(26 * 512));
        assert_eq!(sound.grain_at(1), Grain::At(512));
        assert_eq!(header(|b| b[8] = 4).unwrap().grain_at(1), Grain::Zero);
        assert_eq!(header(|b| b[56..64].fill(0xff)).unwrap().directory, None);
        assert!(header(|b| b[4] = 9).is_err());
        assert!(header(|b| b[20] = 0).is_err());
        assert!(header(|b| b[20] = 3).is_err());
        assert!(header(|b| b[44..48].fill(0xff)).is_err());
        assert!(header(|b| b[12..20].fill(0xff)).is_err());
        assert!(header(|b| b[10] = 1).is_err());
        let mut marker = [0; GRAIN_MARKER];
        marker[..8].copy_from_slice(&128_u64.to_le_bytes());
        marker[8] = 77;
        assert_eq!(sound.compressed_len(&marker, 65536).unwrap(), 77);
        assert!(sound.compressed_len(&marker, 0).is_err());
        marker[11] = 1;
        assert!(sound.compressed_len(&marker, 65536).is_err());
    }

    #[test]
    fn a_descriptor_names_extents_and_nothing_else_is_taken_from_it() {
        let parse =
            |lines: &str| Descriptor::parse(format!("# Disk DescriptorFile\n{lines}").as_bytes());
        let found = parse(
            "version=1\nparentCID=ffffffff\nRW 8 SPARSE \"a b.vmdk\"\nRW 16 FLAT \"f\" 3\nRW 4 ZERO\n\0RW x",
        );
        let kinds: Vec<_> = found
            .unwrap()
            .extents
            .into_iter()
            .map(|e| (e.size, e.kind))
            .collect();
        assert_eq!(
            kinds,
            [
                (4096, ExtentKind::Sparse("a b.vmdk".into())),
                (8192, ExtentKind::Flat("f".into(), 1536)),
                (2048, ExtentKind::Zero)
            ]
        );
        for (lines, kind) in [
            ("parentCID=1234abcd\nRW 8 ZERO", ErrorKind::Unsupported),
            (
                "parentFileNameHint=\"x\"\nRW 8 ZERO",
                ErrorKind::Unsupported,
            ),
            ("RW 8 VMFS \"x\"", ErrorKind::Unsupported),
            ("RW 8 SPARSE", ErrorKind::Corrupt),
            ("RW x ZERO", ErrorKind::Corrupt),
            ("RW 99999999999999999 ZERO", ErrorKind::Corrupt),
            ("", ErrorKind::Corrupt),
        ] {
            assert_eq!(parse(lines).unwrap_err().kind(), kind, "{lines}");
        }
        assert!(Descriptor::parse(b"RW 8 ZERO").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), text: String) {
            let mut signed = MAGIC.to_vec();
            signed.extend(&bytes);
            if let Ok(header) = SparseHeader::decode(&signed) {
                let _ = header.compressed_len(&bytes, 0);
                let _ = header.table_covers();
            }
            let _ = Descriptor::parse(format!("# Disk DescriptorFile\nRW {text}\nRW 5 FLAT \"{text}").as_bytes());
            let _ = Descriptor::parse(&bytes);
        }
    }
}
