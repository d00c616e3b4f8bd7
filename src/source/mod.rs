//! Disks that are only read: images of every format that is read, block devices, servers.
//!
//! Driver: opens files and reads them; what their bytes mean the codecs say (`vdisk::format`,
//! `vdisk::foreign`, the library imago). An image may name other files, and is not trusted: they are
//! opened by [`vdisk::chain::open_beside`] alone, inside the folders that the caller allows.

mod file;
mod identity;
mod image;
mod nbd;
#[cfg(feature = "qcow2")]
mod qcow2;
mod vhd;
mod vmdk;

use std::path::{Path, PathBuf};

use vdisk::ErrorKind;
use vdisk::storage::{FileStorage, Storage as _};

pub(crate) use self::identity::Identity;
use crate::args::SourceFormat;
use crate::failure::{Exit, Failure, Result};
use crate::plan::{Input, SourceName};

/// Bytes that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) len: u64,
    /// Whether they surely read as zero.
    pub(crate) zero: bool,
}

/// A disk that is only read.
pub(crate) trait Source: Send {
    /// Bytes of the disk.
    fn size(&self) -> u64;

    /// Which parts of `len` bytes from `offset`, all of the disk, hold data; covers at least one byte,
    /// may end before the range.
    fn runs(&mut self, offset: u64, len: u64) -> Result<Vec<Run>>;

    /// Fills `buffer` from `offset`; all of it lies in the disk.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()>;
}

/// A disk that was opened, several times, for as many threads.
pub(crate) struct Opened {
    /// All of the same disk.
    pub(crate) handles: Vec<Box<dyn Source>>,
    pub(crate) size: u64,
    /// Its format, as it is typed; "nbd" for an export.
    pub(crate) format: &'static str,
    /// Bytes of a sector, where the format says.
    pub(crate) sector: Option<u32>,
    /// Every file that is read, the disk's own first.
    pub(crate) files: Vec<PathBuf>,
    /// What tells whether it is still the same later; `None` if nothing can.
    pub(crate) identity: Option<Identity>,
}

/// What a driver makes of an image.
struct Parts {
    handles: Vec<Box<dyn Source>>,
    sector: Option<u32>,
    files: Vec<PathBuf>,
    /// Versions of the data, as far as the format has such.
    versions: Vec<String>,
}

/// Opens a disk `handles` times.
pub(crate) fn open(input: &Input, handles: usize) -> Result<Opened> {
    match &input.name {
        SourceName::Stdin => Err(Failure::usage("a stream cannot be opened again")),
        SourceName::Nbd(address) => {
            let handles = nbd::open(address, handles)?;
            Ok(Opened {
                size: size_of(&handles),
                handles,
                format: "nbd",
                sector: None,
                files: Vec::new(),
                identity: None,
            })
        }
        SourceName::Image(path, given) => open_image(input, path, *given, handles),
    }
}

fn open_image(
    input: &Input,
    path: &Path,
    given: Option<SourceFormat>,
    handles: usize,
) -> Result<Opened> {
    let format = input.name.format();
    if given.is_none() && format == SourceFormat::Raw {
        refuse_disguised(path)?;
    }
    let search = &input.search;
    let only_vhdx =
        search.parent.is_some() && !matches!(format, SourceFormat::Vhdx | SourceFormat::Qcow2);
    if only_vhdx {
        let what = format!(
            "{}: has no parent; none can be given for it",
            path.display()
        );
        return Err(Failure::usage(what));
    }
    let parts = match format {
        SourceFormat::Vhdx | SourceFormat::Raw => image::open(path, format, search, handles)?,
        SourceFormat::Vhd => vhd::open(path, handles)?,
        SourceFormat::Vmdk => vmdk::open(path, search, handles)?,
        SourceFormat::Qcow2 => open_qcow2(path, input, handles)?,
    };
    let identity = Identity::of(&parts.files, parts.versions)?;
    Ok(Opened {
        size: size_of(&parts.handles),
        handles: parts.handles,
        format: format.name(),
        sector: parts.sector,
        files: parts.files,
        identity,
    })
}

#[cfg(feature = "qcow2")]
fn open_qcow2(path: &Path, input: &Input, handles: usize) -> Result<Parts> {
    qcow2::open(path, &input.search, handles)
}

#[cfg(not(feature = "qcow2"))]
fn open_qcow2(path: &Path, _: &Input, _: usize) -> Result<Parts> {
    Err(unsupported(
        path,
        "is a qcow2, and this program was built without the feature `qcow2`",
    ))
}

fn size_of(handles: &[Box<dyn Source>]) -> u64 {
    handles.first().map_or(0, |source| source.size())
}

/// What is not read here another program can serve.
fn unsupported(path: &Path, what: &str) -> Failure {
    let name = path.display();
    Failure::new(Exit::Unsupported, format!("{name}: {what}")).hint(format!(
        "let QEMU read it: `qemu-nbd -r -k DIR/socket {name}`, and then take \
         nbd+unix:///?socket=DIR/socket as the source"
    ))
}

/// What is wrong with the image of another format at `path`; `diskferry check` knows none of those.
fn foreign(error: vdisk::Error, path: &Path) -> Failure {
    let kind = error.kind();
    let failure = Failure::from(error.in_file(path));
    match kind {
        ErrorKind::Corrupt | ErrorKind::NeedsRepair => Failure {
            hint: None,
            ..failure
        },
        _ => failure,
    }
}

/// A failure of a file that an image consists of.
fn failed(path: &Path, what: &str, error: std::io::Error) -> Failure {
    vdisk::Error::io(what, error).in_file(path).into()
}

/// A file whose content says that it is an image and whose name says raw: somebody must say which.
fn refuse_disguised(path: &Path) -> Result<()> {
    let mut storage = FileStorage::open(path, false)?;
    let unreadable = |error| failed(path, "cannot be read", error);
    let mut start = [0; 21];
    storage.read_at(0, &mut start).map_err(unreadable)?;
    let len = storage.len().map_err(unreadable)?;
    let mut end = [0; 8];
    if let Some(at) = len.checked_sub(512) {
        storage.read_at(at, &mut end).map_err(unreadable)?;
    }
    let says = match &start {
        start if start.starts_with(b"vhdxfile") => SourceFormat::Vhdx,
        start if start.starts_with(b"QFI\xfb") => SourceFormat::Qcow2,
        start if start.starts_with(&vdisk::foreign::vmdk::MAGIC) => SourceFormat::Vmdk,
        start if start == vdisk::foreign::vmdk::DESCRIPTOR_START => SourceFormat::Vmdk,
        start if start.starts_with(&vdisk::foreign::vhd::COOKIE) => SourceFormat::Vhd,
        _ if end == vdisk::foreign::vhd::COOKIE => SourceFormat::Vhd,
        _ => return Ok(()),
    };
    let name = says.name();
    let what = format!(
        "{}: its name says raw, its content {name}; say which it is",
        path.display()
    );
    Err(Failure::usage(what).hint(format!(
        "--from {name} or --from raw (`compare`: --format, --other-format)"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_can_read_it_is_named() {
        let failure = unsupported(Path::new("a.qcow2"), "is odd");
        assert_eq!(failure.exit, Exit::Unsupported);
        assert!(failure.hint.unwrap().contains("qemu-nbd"));
    }
}
