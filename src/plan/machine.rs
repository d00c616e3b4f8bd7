//! What `run` was asked to do, with what the machine's file says.

use std::path::{Path, PathBuf};

use vdisk::chain::ParentSearch;
use vdisk::disk::ImageFormat;
use vmm::description::{Description, DiskFormat, Kernel, LONGEST};

use super::{bytes, control_path};
use crate::args::{FormatName, RunArgs};
use crate::failure::{Failure, Result};

/// What `run` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// The machine as its file describes it.
    pub(crate) vm: Description,
    /// Control sockets besides those that are found by the file and by the disks.
    pub(crate) control: Vec<PathBuf>,
    /// Run also from what another host may own.
    pub(crate) take_over: bool,
    /// Only say what would be started.
    pub(crate) dry_run: bool,
    /// No file describes it but a disk.
    pub(crate) is_disk: bool,
    pub(crate) search: ParentSearch,
}

/// Bytes of memory that a machine has if nothing was said.
const MEMORY: u64 = 2 << 30;
/// How the names of disks end.
const DISKS: [&str; 4] = ["vhdx", "avhdx", "raw", "img"];

impl Machine {
    /// Reads the file that describes it; paths in it are seen from its folder. A disk describes a machine that
    /// starts what is installed on it.
    pub(crate) fn new(args: &RunArgs) -> Result<Self> {
        let vm = if is_disk(&args.machine) {
            of_disk(args)?
        } else {
            described(args)?
        };
        if args.dry_run && !matches!(vm.boot.kernel, Kernel::Disk(_)) {
            let what = "--dry-run says what a disk would start, and this machine starts from none";
            return Err(Failure::usage(what).hint("--boot-from-disk"));
        }
        let control = args.control.iter().map(|text| control_path(text));
        Ok(Self {
            vm,
            control: control.collect::<Result<_>>()?,
            take_over: args.take_over,
            dry_run: args.dry_run,
            is_disk: is_disk(&args.machine),
            search: super::search(&args.chain),
        })
    }
}

/// Whether a machine is described by a disk alone.
pub(crate) fn is_disk(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| DISKS.contains(&&*ending.to_ascii_lowercase()))
}

fn of_disk(args: &RunArgs) -> Result<Description> {
    let memory = args.memory.as_deref();
    let memory = memory.map_or(Ok(MEMORY), |text| bytes("the memory", text))?;
    Description::of_disk(args.machine.clone(), args.vcpus.unwrap_or(1), memory)
        .map_err(|why| Failure::usage(why.to_string()))
}

fn described(args: &RunArgs) -> Result<Description> {
    let path = &args.machine;
    if args.memory.is_some() || args.vcpus.is_some() {
        let what = format!(
            "{}: its memory and processors are said in it, not by --memory and --vcpus",
            path.display()
        );
        return Err(Failure::usage(what));
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let parse = if args.boot_from_disk {
        Description::parse_for_disk
    } else {
        Description::parse
    };
    parse(&read(path)?, folder).map_err(|why| Failure::usage(format!("{}: {why}", path.display())))
}

fn read(path: &Path) -> Result<String> {
    let failed = |e| Failure::io(format!("{}: cannot be read", path.display()), &e);
    let len = std::fs::metadata(path).map_err(failed)?.len();
    if len > LONGEST {
        let what = format!("{}: too long to describe a machine", path.display());
        return Err(Failure::usage(what));
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// A format as it is typed.
pub(crate) fn format_name(format: DiskFormat) -> FormatName {
    match format {
        DiskFormat::Vhdx => FormatName::Vhdx,
        DiskFormat::Raw => FormatName::Raw,
    }
}

/// The address of a machine's network device on a tap, where none was given: always the same for the same file and
/// tap, of a single station and locally administered.
pub(crate) fn mac_of(machine: &Path, tap: &str) -> [u8; 6] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(machine.as_os_str().as_encoded_bytes());
    hasher.update(b"\0");
    hasher.update(tap.as_bytes());
    let mut mac = [0; 6];
    hasher.finalize_xof().fill(&mut mac);
    mac[0] = mac[0] & !1 | 2;
    mac
}

/// A format as the library calls it.
pub(crate) fn disk_format(format: DiskFormat) -> ImageFormat {
    match format {
        DiskFormat::Vhdx => ImageFormat::Vhdx,
        DiskFormat::Raw => ImageFormat::Raw,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_was_not_given_is_always_the_same_and_nobody_elses() {
        let of = |machine: &str, tap| mac_of(Path::new(machine), tap);
        let mac = of("/vm/a.toml", "tap0");
        assert_eq!(mac, of("/vm/a.toml", "tap0"));
        assert_ne!(mac, of("/vm/a.toml", "tap1"));
        assert_ne!(mac, of("/vm/b.toml", "tap0"));
        assert_eq!(mac[0] & 3, 2);
    }
}
