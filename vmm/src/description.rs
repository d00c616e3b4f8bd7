//! What `vm.toml` says of a machine.
//!
//! Codec: a text, which may be anybody's, into a description whose numbers and names are checked. It opens
//! nothing: paths are seen from a folder that the caller names. `docs/vmm.md` lists the keys.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use blockserver::throttle::Limits;
use serde::{Deserialize, Serialize};
use vdisk::size;

use crate::{Error, Result};

/// Bytes of a text that describes a machine, at most.
pub const LONGEST: u64 = 1 << 20;
/// A kernel of this name is the guest that the program has with it.
const BUILT_IN: &str = "built-in";
const MIB: u64 = 1 << 20;
const LEAST_MEMORY: u64 = 16 * MIB;
const MOST_MEMORY: u64 = 1 << 40;
const MOST_DISKS: usize = 24;
const MOST_ALLOWED: usize = 64;
const MOST_NETWORKS: usize = 4;
/// Most bytes of the name of an interface of the host.
const INTERFACE_NAME: usize = 15;
/// MTUs that a guest can be told (VIRTIO 1.2, 5.1.4.1).
const MTUS: RangeInclusive<u16> = 68..=65535;

/// A machine as its owner has described it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Processors, at least one.
    pub vcpus: u8,
    /// Bytes of memory, 16 MiB to 1 TiB, whole mebibytes.
    pub memory: u64,
    /// Whether memory is of huge pages that the host has set aside.
    pub huge_pages: bool,
    /// What runs first.
    pub boot: Boot,
    /// Where the serial port goes.
    pub console: Console,
    /// Its disks in their order, with names that differ.
    pub disks: Vec<Disk>,
    /// Its network devices in their order, on taps that differ.
    pub networks: Vec<Network>,
    /// What the process may open besides the disks' folders: see `docs/vmm.md`, "Confinement".
    pub allowed: Vec<PathBuf>,
}

/// What runs first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// The kernel.
    pub kernel: Kernel,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The command line, without a NUL; where a disk has its own, it goes behind that.
    pub command_line: String,
}

/// A kernel, or what stands in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// A Linux kernel or a program in a file.
    File(PathBuf),
    /// The guest that this program has with it, for measurements and demonstrations.
    BuiltIn,
    /// What is installed on the disk of this number, from 0.
    Disk(usize),
}

/// Where the first serial port goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Console {
    /// To stdout, and from stdin.
    Stdio,
    /// To a file, which is begun anew.
    File(PathBuf),
    /// Nowhere.
    Nowhere,
    /// To a pseudoterminal, whose name is said at the start.
    Pty,
    /// To whoever connects to a unix socket here.
    Socket(PathBuf),
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// What it is called, not empty.
    pub name: String,
    /// The image.
    pub path: PathBuf,
    /// Its format if it was given; else its suffix says.
    pub format: Option<DiskFormat>,
    /// Whether the guest may not write it.
    pub read_only: bool,
    /// How many queues, at least one; as many as there are processors if nothing was said.
    pub queues: u8,
    /// How much the guest may ask of it.
    pub limits: Limits,
}

/// A disk as somebody writes it down: in `vm.toml`, or for a machine that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskEntry {
    /// The image.
    pub path: PathBuf,
    /// What it is called; see [`DiskEntry::name_of`] if nothing is said.
    #[serde(default)]
    pub name: Option<String>,
    /// Its format; by the suffix if nothing is said.
    #[serde(default)]
    pub format: Option<DiskFormat>,
    /// Whether the guest may not write it.
    #[serde(default)]
    pub read_only: bool,
    /// Queues; as many as there are processors if nothing is said.
    #[serde(default)]
    pub queues: Option<u8>,
    /// How much may be asked of it; nothing is limited that is not said.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
}

impl DiskEntry {
    /// The image in this file, with nothing else said.
    #[must_use]
    pub fn of(path: PathBuf) -> Self {
        Self {
            path,
            name: None,
            format: None,
            read_only: false,
            queues: None,
            limits: Limits::default(),
        }
    }

    /// What the disk in this file is called if nothing is said: as the file, without its suffix.
    #[must_use]
    pub fn name_of(path: &Path) -> Option<String> {
        let stem = path.file_stem()?;
        Some(stem.to_string_lossy().into_owned())
    }

    /// The disk that is meant, of a machine with so many processors; its path is seen from `folder`.
    pub fn checked(&self, folder: &Path, vcpus: u8) -> Result<Disk> {
        let path = folder.join(&self.path);
        let named = self.name.clone().or_else(|| Self::name_of(&path));
        let name = named
            .filter(|name| !name.is_empty())
            .ok_or_else(|| Error::invalid(format!("disk: `{}` names no file", path.display())))?;
        let queues = self.queues.unwrap_or(vcpus);
        if queues == 0 {
            return Err(Error::invalid(format!("disk `{name}`: queues: 1 to 255")));
        }
        Ok(Disk {
            name,
            path,
            format: self.format,
            read_only: self.read_only,
            queues,
            limits: self.limits,
        })
    }
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The tap of the host that it is on; see [`is_interface_name`].
    pub tap: String,
    /// Its address, of a single station, if it was given.
    pub mac: Option<[u8; 6]>,
    /// Its MTU in bytes, 68 to 65535, if it was given; else the tap's.
    pub mtu: Option<u16>,
}

/// A format of images that a machine can run from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// VHDX.
    Vhdx,
    /// The bytes of the disk and nothing else.
    Raw,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Typed {
    #[serde(default = "one")]
    vcpus: u8,
    memory: String,
    #[serde(default)]
    huge_pages: bool,
    #[serde(default)]
    boot: TypedBoot,
    #[serde(default)]
    console: TypedConsole,
    #[serde(default)]
    confine: TypedConfine,
    #[serde(default, rename = "disk")]
    disks: Vec<DiskEntry>,
    #[serde(default, rename = "network")]
    networks: Vec<TypedNetwork>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TypedBoot {
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    #[serde(default)]
    command_line: String,
    from_disk: Option<TypedSource>,
}

/// Whether a disk is started from, or the name of that which is.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "from_disk is true, false or the name of a disk")]
enum TypedSource {
    Any(bool),
    Named(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TypedConsole {
    to: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TypedConfine {
    #[serde(default)]
    paths: Vec<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TypedNetwork {
    tap: String,
    mac: Option<String>,
    mtu: Option<u16>,
}

fn one() -> u8 {
    1
}

impl Description {
    /// What `text` says; paths in it are seen from `folder`.
    ///
    /// ```
    /// let text = "memory = '4G'\nboot.kernel = 'vmlinuz'\n[[disk]]\npath = 'root.vhdx'";
    /// let described = vmm::description::Description::parse(text, "/machines".as_ref())?;
    /// assert_eq!(described.disks[0].path.to_str(), Some("/machines/root.vhdx"));
    /// # Ok::<(), vmm::Error>(())
    /// ```
    pub fn parse(text: &str, folder: &Path) -> Result<Self> {
        Self::read(text, folder, false)
    }

    /// The same, but what runs first is what is installed on the first disk, unless another disk is named for
    /// that; `boot.kernel` and `boot.initrd` are not heeded.
    pub fn parse_for_disk(text: &str, folder: &Path) -> Result<Self> {
        Self::read(text, folder, true)
    }

    /// A machine that runs what is installed on one disk, without a text.
    pub fn of_disk(path: PathBuf, vcpus: u8, memory: u64) -> Result<Self> {
        Ok(Self {
            vcpus,
            memory: in_bounds(memory)?,
            huge_pages: false,
            boot: Boot {
                kernel: Kernel::Disk(0),
                initrd: None,
                command_line: String::new(),
            },
            console: Console::Stdio,
            disks: disks(&[DiskEntry::of(path)], Path::new(""), vcpus)?,
            networks: Vec::new(),
            allowed: Vec::new(),
        })
    }

    fn read(text: &str, folder: &Path, from_disk: bool) -> Result<Self> {
        if text.len() as u64 > LONGEST {
            return Err(Error::invalid("too long to describe a machine"));
        }
        let typed: Typed = toml::from_str(text)
            .map_err(|error| Error::invalid(error.to_string().trim_end().to_owned()))?;
        if typed.vcpus == 0 {
            return Err(Error::invalid("vcpus: a machine has 1 to 255"));
        }
        let disks = disks(&typed.disks, folder, typed.vcpus)?;
        Ok(Self {
            vcpus: typed.vcpus,
            memory: memory(&typed.memory)?,
            huge_pages: typed.huge_pages,
            boot: boot(typed.boot, folder, (&disks, from_disk))?,
            console: console(typed.console.to.as_deref(), folder)?,
            disks,
            networks: networks(&typed.networks)?,
            allowed: allowed(&typed.confine.paths, folder)?,
        })
    }
}

fn memory(typed: &str) -> Result<u64> {
    let bytes = size::parse(typed).map_err(|why| {
        let what = format!("memory `{typed}`: {why}; sizes look like 4G or 512M");
        Error::invalid(what)
    })?;
    in_bounds(bytes)
}

fn in_bounds(memory: u64) -> Result<u64> {
    if !(LEAST_MEMORY..=MOST_MEMORY).contains(&memory) || !memory.is_multiple_of(MIB) {
        return Err(Error::invalid("memory: 16M to 1T in whole mebibytes"));
    }
    Ok(memory)
}

fn boot(typed: TypedBoot, folder: &Path, (disks, asked): (&[Disk], bool)) -> Result<Boot> {
    if typed.command_line.contains('\0') {
        return Err(Error::invalid("boot.command_line: has a NUL in it"));
    }
    let disk = boot_disk(typed.from_disk.as_ref(), (disks, asked))?;
    if disk.is_some() && !asked && (typed.kernel.is_some() || typed.initrd.is_some()) {
        let what = "boot: either kernel and initrd, or from_disk; the disk has both";
        return Err(Error::invalid(what));
    }
    let kernel = match (disk, typed.kernel) {
        (Some(place), _) => Kernel::Disk(place),
        (None, Some(named)) if named == Path::new(BUILT_IN) => Kernel::BuiltIn,
        (None, Some(named)) => Kernel::File(folder.join(named)),
        (None, None) => {
            let what = "boot: nothing says what to start: name a kernel, or say from_disk = true";
            return Err(Error::invalid(what));
        }
    };
    let initrd = typed.initrd.filter(|_| disk.is_none());
    Ok(Boot {
        kernel,
        initrd: initrd.map(|initrd| folder.join(initrd)),
        command_line: typed.command_line,
    })
}

/// The place of the disk that is started from, if one is.
fn boot_disk(
    typed: Option<&TypedSource>,
    (disks, asked): (&[Disk], bool),
) -> Result<Option<usize>> {
    let place = match typed {
        None | Some(TypedSource::Any(false)) if !asked => return Ok(None),
        Some(TypedSource::Named(name)) => {
            let what = format!("boot.from_disk: there is no disk `{name}`");
            let place = disks.iter().position(|disk| disk.name == *name);
            place.ok_or_else(|| Error::invalid(what))?
        }
        _ if disks.is_empty() => {
            return Err(Error::invalid("boot.from_disk: the machine has no disk"));
        }
        _ => 0,
    };
    Ok(Some(place))
}

fn console(to: Option<&str>, folder: &Path) -> Result<Console> {
    match to {
        None | Some("stdio") => Ok(Console::Stdio),
        Some("none") => Ok(Console::Nowhere),
        Some("pty") => Ok(Console::Pty),
        Some(to) => {
            let what =
                format!("console.to: `{to}` is none of stdio, none, pty, file:PATH, socket:PATH");
            let named = to.split_once(':').filter(|(_, path)| !path.is_empty());
            match named {
                Some(("file", path)) => Ok(Console::File(folder.join(path))),
                Some(("socket", path)) => Ok(Console::Socket(folder.join(path))),
                _ => Err(Error::invalid(what)),
            }
        }
    }
}

fn allowed(typed: &[PathBuf], folder: &Path) -> Result<Vec<PathBuf>> {
    if typed.len() > MOST_ALLOWED {
        let what = format!("confine.paths: at most {MOST_ALLOWED}");
        return Err(Error::invalid(what));
    }
    Ok(typed.iter().map(|path| folder.join(path)).collect())
}

fn disks(typed: &[DiskEntry], folder: &Path, vcpus: u8) -> Result<Vec<Disk>> {
    if typed.len() > MOST_DISKS {
        let what = format!("disk: a machine has at most {MOST_DISKS}");
        return Err(Error::invalid(what));
    }
    let mut disks: Vec<Disk> = Vec::new();
    for one in typed {
        let disk = one.checked(folder, vcpus)?;
        if disks.iter().any(|other| other.name == disk.name) {
            let what = format!("disk: two are called `{}`; give one a `name`", disk.name);
            return Err(Error::invalid(what));
        }
        disks.push(disk);
    }
    Ok(disks)
}

/// Whether an interface of a Linux host can be called so, without a meaning for `%` or for paths.
#[must_use]
pub fn is_interface_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let good = (1..=INTERFACE_NAME).contains(&name.len()) && name.chars().all(plain);
    good && name != "." && name != ".."
}

fn networks(typed: &[TypedNetwork]) -> Result<Vec<Network>> {
    if typed.len() > MOST_NETWORKS {
        let what = format!("network: a machine has at most {MOST_NETWORKS}");
        return Err(Error::invalid(what));
    }
    let mut networks: Vec<Network> = Vec::new();
    for one in typed {
        let tap = &one.tap;
        if !is_interface_name(tap) {
            let what = format!(
                "network: tap `{tap}`: a name has 1 to {INTERFACE_NAME} letters, digits, `-`, `_` and `.`"
            );
            return Err(Error::invalid(what));
        }
        if networks.iter().any(|other| other.tap == *tap) {
            let what = format!("network: two are on tap `{tap}`");
            return Err(Error::invalid(what));
        }
        if one.mtu.is_some_and(|mtu| !MTUS.contains(&mtu)) {
            let (least, most) = (MTUS.start(), MTUS.end());
            let what = format!("network `{tap}`: mtu: {least} to {most}");
            return Err(Error::invalid(what));
        }
        networks.push(Network {
            tap: tap.clone(),
            mac: one.mac.as_deref().map(|text| mac(tap, text)).transpose()?,
            mtu: one.mtu,
        });
    }
    Ok(networks)
}

fn mac(tap: &str, typed: &str) -> Result<[u8; 6]> {
    let pairs: Option<Vec<u8>> = typed.split(':').map(pair).collect();
    let mac = pairs.and_then(|pairs| <[u8; 6]>::try_from(pairs).ok());
    // The lowest bit of the first byte stands for a group of stations.
    let single = mac.filter(|[first, ..]| first & 1 == 0);
    single.filter(|mac| *mac != [0; 6]).ok_or_else(|| {
        Error::invalid(format!(
            "network `{tap}`: mac `{typed}` is no address of a single station, as 02:00:00:12:34:56 is"
        ))
    })
}

fn pair(text: &str) -> Option<u8> {
    let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u8::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
#[path = "description_tests.rs"]
mod tests;
