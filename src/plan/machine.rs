//! What `vm.toml` says of a machine, and what that means.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use vdisk::chain::ParentSearch;

use super::{Served, bytes, control_path};
use crate::args::{FormatName, RunArgs};
use crate::failure::{Failure, Result};

/// Bytes of a file that describes a machine, at most.
const LONGEST: u64 = 1 << 20;
const MIB: u64 = 1 << 20;
const LEAST_MEMORY: u64 = 16 * MIB;
const MOST_MEMORY: u64 = 1 << 40;
const MOST_DISKS: usize = 24;

/// What `run` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) vcpus: u8,
    /// Bytes, whole mebibytes.
    pub(crate) memory: u64,
    pub(crate) huge_pages: bool,
    pub(crate) boot: Boot,
    pub(crate) console: Console,
    pub(crate) disks: Vec<MachineDisk>,
    pub(crate) control: Vec<PathBuf>,
    pub(crate) take_over: bool,
    pub(crate) search: ParentSearch,
}

/// What runs first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Boot {
    pub(crate) kernel: Kernel,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) command_line: String,
}

/// A kernel, or what stands in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// A Linux kernel or a program in a file.
    File(PathBuf),
    /// The guest that this program has with it, for measurements and demonstrations.
    BuiltIn,
}

/// Where the first serial port goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Console {
    /// To stdout, and from stdin.
    Stdio,
    /// To a file, which is begun anew.
    File(PathBuf),
    /// Nowhere.
    Nowhere,
}

/// A disk of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MachineDisk {
    pub(crate) served: Served,
    pub(crate) read_only: bool,
    /// How many queues; as many as there are processors if nothing was said.
    pub(crate) queues: u8,
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

impl Machine {
    /// Reads the file that describes it; paths in it are seen from its folder.
    pub(crate) fn new(args: &RunArgs) -> Result<Self> {
        let path = &args.machine;
        let text = read(path)?;
        let said = Self::parse(&text, path.parent().unwrap_or(Path::new("")))
            .map_err(|why| Failure::usage(format!("{}: {}", path.display(), why.what)))?;
        let control = args.control.iter().map(|text| control_path(text));
        Ok(Self {
            control: control.collect::<Result<_>>()?,
            take_over: args.take_over,
            search: super::search(&args.chain),
            ..said
        })
    }

    fn parse(text: &str, folder: &Path) -> Result<Self> {
        let typed: Typed = toml::from_str(text)
            .map_err(|error| Failure::usage(error.to_string().trim_end().to_owned()))?;
        if typed.vcpus == 0 {
            return Err(Failure::usage("vcpus: a machine has 1 to 255"));
        }
        let memory = bytes("memory", &typed.memory)?;
        if !(LEAST_MEMORY..=MOST_MEMORY).contains(&memory) || !memory.is_multiple_of(MIB) {
            let what = "memory: 16M to 1T in whole mebibytes";
            return Err(Failure::usage(what));
        }
        if typed.disks.len() > MOST_DISKS {
            let what = format!("disk: a machine has at most {MOST_DISKS}");
            return Err(Failure::usage(what));
        }
        if typed.boot.command_line.contains('\0') {
            return Err(Failure::usage("boot.command_line: has a NUL in it"));
        }
        let mut disks: Vec<MachineDisk> = Vec::new();
        for typed_disk in &typed.disks {
            let disk = disk(typed_disk, folder, typed.vcpus)?;
            if disks
                .iter()
                .any(|other| other.served.name == disk.served.name)
            {
                let what = format!(
                    "disk: two are called `{}`; give one a `name`",
                    disk.served.name
                );
                return Err(Failure::usage(what));
            }
            disks.push(disk);
        }
        Ok(Self {
            vcpus: typed.vcpus,
            memory,
            huge_pages: typed.huge_pages,
            boot: Boot {
                kernel: kernel(&typed.boot.kernel, folder),
                initrd: typed.boot.initrd.map(|initrd| folder.join(initrd)),
                command_line: typed.boot.command_line,
            },
            console: console(typed.console.to.as_deref(), folder)?,
            disks,
            control: Vec::new(),
            take_over: false,
            search: ParentSearch::default(),
        })
    }
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

fn kernel(typed: &Path, folder: &Path) -> Kernel {
    if typed == Path::new("built-in") {
        return Kernel::BuiltIn;
    }
    Kernel::File(folder.join(typed))
}

fn console(to: Option<&str>, folder: &Path) -> Result<Console> {
    match to {
        None | Some("stdio") => Ok(Console::Stdio),
        Some("none") => Ok(Console::Nowhere),
        Some(to) => {
            let path = to.strip_prefix("file:").filter(|path| !path.is_empty());
            let what = format!("console.to: `{to}` is none of stdio, none, file:PATH");
            path.map(|path| Console::File(folder.join(path)))
                .ok_or_else(|| Failure::usage(what))
        }
    }
}

fn disk(typed: &TypedDisk, folder: &Path, vcpus: u8) -> Result<MachineDisk> {
    let path = folder.join(&typed.path);
    let named = typed.name.clone().or_else(|| {
        let stem = path.file_stem()?;
        Some(stem.to_string_lossy().into_owned())
    });
    let name = named.filter(|name| !name.is_empty());
    let name =
        name.ok_or_else(|| Failure::usage(format!("disk: `{}` names no file", path.display())))?;
    let format = match typed.format.as_deref() {
        None => None,
        Some("vhdx") => Some(FormatName::Vhdx),
        Some("raw") => Some(FormatName::Raw),
        Some(other) => {
            let what = format!("disk `{name}`: format `{other}` is neither vhdx nor raw");
            return Err(Failure::usage(what));
        }
    };
    let queues = typed.queues.unwrap_or(vcpus);
    if queues == 0 {
        return Err(Failure::usage(format!("disk `{name}`: queues: 1 to 255")));
    }
    Ok(MachineDisk {
        served: Served { name, path, format },
        read_only: typed.read_only,
        queues,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
vcpus = 4
memory = "512G"
huge_pages = true

[boot]
kernel = "vmlinuz"
initrd = "/boot/initrd"
command_line = "console=ttyS0"

[console]
to = "file:console.log"

[[disk]]
path = "root.vhdx"

[[disk]]
path = "data.img"
name = "data"
format = "raw"
read_only = true
queues = 1
"#;

    fn refused(text: &str) -> String {
        Machine::parse(text, Path::new("/vm")).unwrap_err().what
    }

    #[test]
    fn paths_are_seen_from_the_file_and_queues_are_as_many_as_processors() {
        let machine = Machine::parse(WHOLE, Path::new("/vm")).unwrap();
        assert_eq!((machine.vcpus, machine.memory), (4, 512 << 30));
        let kernel = Kernel::File("/vm/vmlinuz".into());
        assert_eq!(machine.boot.kernel, kernel);
        assert_eq!(
            machine.boot.initrd.as_deref(),
            Some(Path::new("/boot/initrd"))
        );
        assert_eq!(machine.console, Console::File("/vm/console.log".into()));
        let [root, data] = &machine.disks[..] else {
            panic!("{:?}", machine.disks)
        };
        assert_eq!((root.served.name.as_str(), root.queues), ("root", 4));
        assert_eq!((data.served.name.as_str(), data.queues), ("data", 1));
        assert!(data.read_only && !root.read_only);
    }

    #[test]
    fn the_least_that_describes_a_machine() {
        let machine = Machine::parse("memory='16M'\nboot.kernel='k'", Path::new("")).unwrap();
        assert_eq!((machine.vcpus, machine.console), (1, Console::Stdio));
        assert!(machine.disks.is_empty());
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_name() {
        let with = |line: &str| format!("memory='64M'\n{line}\n[boot]\nkernel='k'");
        for (text, named) in [
            ("memory='64M'".to_owned(), "boot"),
            (with("vcpus = 0"), "vcpus"),
            (with("vcpus = 256"), "vcpus"),
            (with("cpus = 2"), "cpus"),
            ("memory='1M'\nboot.kernel='k'".to_owned(), "memory"),
            ("memory='2T'\nboot.kernel='k'".to_owned(), "memory"),
            ("memory='much'\nboot.kernel='k'".to_owned(), "much"),
            (with("console.to = 'tty'"), "console.to"),
            (with("disk = [{path='a.vhdx'}, {path='b/a.vhdx'}]"), "`a`"),
            (with("disk = [{path='a.vhdx', queues=0}]"), "queues"),
            (with("disk = [{path='a.vhdx', format='vmdk'}]"), "vmdk"),
            (with("disk = [{path='..'}]"), ".."),
        ] {
            let what = refused(&text);
            assert!(what.contains(named), "{named} in: {what}");
        }
    }
}
