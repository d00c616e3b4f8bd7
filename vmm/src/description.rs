//! What `vm.toml` says of a machine.
//!
//! Codec: a text, which may be anybody's, into a description whose numbers and names are checked. It opens
//! nothing: paths are seen from a folder that the caller names. `docs/vmm.md` lists the keys.

use std::path::{Path, PathBuf};

use serde::Deserialize;
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
    /// The command line, without a NUL.
    pub command_line: String,
}

/// A kernel, or what stands in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// A Linux kernel or a program in a file.
    File(PathBuf),
    /// The guest that this program has with it, for measurements and demonstrations.
    BuiltIn,
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
}

/// A format of images that a machine can run from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    boot: TypedBoot,
    #[serde(default)]
    console: TypedConsole,
    #[serde(default)]
    confine: TypedConfine,
    #[serde(default, rename = "disk")]
    disks: Vec<TypedDisk>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TypedBoot {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    #[serde(default)]
    command_line: String,
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
struct TypedDisk {
    path: PathBuf,
    name: Option<String>,
    format: Option<String>,
    #[serde(default)]
    read_only: bool,
    queues: Option<u8>,
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
        if text.len() as u64 > LONGEST {
            return Err(Error::invalid("too long to describe a machine"));
        }
        let typed: Typed = toml::from_str(text)
            .map_err(|error| Error::invalid(error.to_string().trim_end().to_owned()))?;
        if typed.vcpus == 0 {
            return Err(Error::invalid("vcpus: a machine has 1 to 255"));
        }
        Ok(Self {
            vcpus: typed.vcpus,
            memory: memory(&typed.memory)?,
            huge_pages: typed.huge_pages,
            boot: boot(typed.boot, folder)?,
            console: console(typed.console.to.as_deref(), folder)?,
            disks: disks(&typed.disks, folder, typed.vcpus)?,
            allowed: allowed(&typed.confine.paths, folder)?,
        })
    }
}

fn memory(typed: &str) -> Result<u64> {
    let bytes = size::parse(typed).map_err(|why| {
        let what = format!("memory `{typed}`: {why}; sizes look like 4G or 512M");
        Error::invalid(what)
    })?;
    if !(LEAST_MEMORY..=MOST_MEMORY).contains(&bytes) || !bytes.is_multiple_of(MIB) {
        return Err(Error::invalid("memory: 16M to 1T in whole mebibytes"));
    }
    Ok(bytes)
}

fn boot(typed: TypedBoot, folder: &Path) -> Result<Boot> {
    if typed.command_line.contains('\0') {
        return Err(Error::invalid("boot.command_line: has a NUL in it"));
    }
    let kernel = match typed.kernel {
        named if named == Path::new(BUILT_IN) => Kernel::BuiltIn,
        named => Kernel::File(folder.join(named)),
    };
    Ok(Boot {
        kernel,
        initrd: typed.initrd.map(|initrd| folder.join(initrd)),
        command_line: typed.command_line,
    })
}

fn console(to: Option<&str>, folder: &Path) -> Result<Console> {
    match to {
        None | Some("stdio") => Ok(Console::Stdio),
        Some("none") => Ok(Console::Nowhere),
        Some(to) => {
            let path = to.strip_prefix("file:").filter(|path| !path.is_empty());
            let what = format!("console.to: `{to}` is none of stdio, none, file:PATH");
            path.map(|path| Console::File(folder.join(path)))
                .ok_or_else(|| Error::invalid(what))
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

fn disks(typed: &[TypedDisk], folder: &Path, vcpus: u8) -> Result<Vec<Disk>> {
    if typed.len() > MOST_DISKS {
        let what = format!("disk: a machine has at most {MOST_DISKS}");
        return Err(Error::invalid(what));
    }
    let mut disks: Vec<Disk> = Vec::new();
    for one in typed {
        let disk = disk(one, folder, vcpus)?;
        if disks.iter().any(|other| other.name == disk.name) {
            let what = format!("disk: two are called `{}`; give one a `name`", disk.name);
            return Err(Error::invalid(what));
        }
        disks.push(disk);
    }
    Ok(disks)
}

fn disk(typed: &TypedDisk, folder: &Path, vcpus: u8) -> Result<Disk> {
    let path = folder.join(&typed.path);
    let named = typed.name.clone().or_else(|| {
        let stem = path.file_stem()?;
        Some(stem.to_string_lossy().into_owned())
    });
    let name = named.filter(|name| !name.is_empty());
    let name =
        name.ok_or_else(|| Error::invalid(format!("disk: `{}` names no file", path.display())))?;
    let format = match typed.format.as_deref() {
        None => None,
        Some("vhdx") => Some(DiskFormat::Vhdx),
        Some("raw") => Some(DiskFormat::Raw),
        Some(other) => {
            let what = format!("disk `{name}`: format `{other}` is neither vhdx nor raw");
            return Err(Error::invalid(what));
        }
    };
    let queues = typed.queues.unwrap_or(vcpus);
    if queues == 0 {
        return Err(Error::invalid(format!("disk `{name}`: queues: 1 to 255")));
    }
    Ok(Disk {
        name,
        path,
        format,
        read_only: typed.read_only,
        queues,
    })
}

#[cfg(test)]
#[path = "description_tests.rs"]
mod tests;
