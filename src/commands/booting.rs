//! What a machine starts with: a kernel in a file, the guest that is built in, or what is installed on a disk.
//!
//! A disk's own kernel is read through the disk's export, before the machine is made and again whenever it
//! begins anew, so that a guest that has put in another kernel and reboots gets that one.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use blockserver::export::{ExportHandle, LocalReply, LocalRequest};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;
use vdisk::disk::{Disk, ImageFormat, OpenOptions};
use vdisk::storage::FileStorage;
use vmm::MachineConfig;
use vmm::description::{self, Kernel};
use vmm::installed::{self, BootDisk, Files, Installed};

use super::image;
use super::run::cannot;
use crate::failure::{Failure, Result};
use crate::plan::{Machine, disk_format};
use crate::report::Report;
use crate::{site, size};

/// What a disk starts, for programs.
#[derive(Serialize)]
struct BootEvent {
    /// Name of the disk.
    disk: String,
    /// As a person calls it.
    partition: String,
    /// `grub`, `loader_entry`, `links` or `newest`.
    source: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    kernel: String,
    kernel_bytes: u64,
    initrds: Vec<String>,
    initrd_bytes: u64,
    command_line: String,
    /// Whether a serial console was put into it.
    console_added: bool,
    remarks: Vec<String>,
}

/// What the machine is made of, and what keeps its kernel.
pub(super) struct Booting {
    config: MachineConfig,
    /// Files in memory that `config` names by their descriptors.
    held: Vec<OwnedFd>,
    from: Option<FromDisk>,
    /// The kernel and the initrd, where they are files that have names.
    named: Option<Named>,
}

/// Files that a machine starts with, as they were when it started first; none that cannot be opened, of which the
/// start tells.
struct Named {
    kernel: Option<File>,
    initrd: Option<File>,
    report: Report,
}

impl Named {
    fn open(boot: &description::Boot, kernel: &Path, report: Report) -> Self {
        let initrd = boot.initrd.as_deref();
        Self {
            kernel: File::open(kernel).ok(),
            initrd: initrd.and_then(|path| File::open(path).ok()),
            report,
        }
    }

    /// Where a file has another in its place that this process may not open, the one from before is started.
    fn again(&self, config: &mut MachineConfig) {
        let kernel = Some(&mut config.kernel).zip(self.kernel.as_ref());
        let initrd = config.initrd.as_mut().zip(self.initrd.as_ref());
        for (path, before) in kernel.into_iter().chain(initrd) {
            if let Err(error) = File::open(&*path) {
                let shown = path.display();
                let what = format!("{shown}: {error}; the one from before is started");
                self.report.warn(&what);
                *path = path_of(before);
            }
        }
    }
}

/// The disk that is started from.
struct FromDisk {
    name: String,
    path: PathBuf,
    export: ExportHandle,
    command_line: String,
    report: Report,
}

impl Booting {
    /// Finds what `plan` starts; its disks are open.
    pub(super) fn new(
        plan: &Machine,
        export: impl Fn(usize) -> Option<ExportHandle>,
        report: Report,
    ) -> Result<Self> {
        let vm = &plan.vm;
        let mut booting = Self {
            config: MachineConfig {
                vcpus: vm.vcpus,
                memory: vm.memory,
                huge_pages: vm.huge_pages,
                kernel: PathBuf::new(),
                cmdline: vm.boot.command_line.clone(),
                initrd: vm.boot.initrd.clone(),
            },
            held: Vec::new(),
            from: None,
            named: None,
        };
        match &vm.boot.kernel {
            Kernel::File(path) => {
                booting.named = Some(Named::open(&vm.boot, path, report));
                booting.config.kernel.clone_from(path);
            }
            Kernel::BuiltIn => {
                let held = built_in().map_err(|e| Failure::io("no memory for the guest", &e))?;
                booting.config.kernel = path_of(&held);
                booting.held.push(held);
            }
            Kernel::Disk(place) => {
                let disk = vm.disks.get(*place).zip(export(*place));
                let (disk, export) =
                    disk.ok_or_else(|| Failure::usage("the disk to start from is not there"))?;
                if !plan.take_over {
                    site::disk::refuse_moved(&disk.path)?;
                }
                booting.from = Some(FromDisk {
                    name: disk.name.clone(),
                    path: disk.path.clone(),
                    export,
                    command_line: vm.boot.command_line.clone(),
                    report,
                });
                booting.load()?;
            }
        }
        Ok(booting)
    }

    /// What a machine is to be made of now.
    pub(super) fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// The machine begins anew: look again at what its disk starts. A disk that has moved meanwhile is not read
    /// from here, and what it started before is started again.
    pub(super) fn again(&mut self) -> Result<()> {
        if let Some(named) = &self.named {
            named.again(&mut self.config);
        }
        let Some(from) = &self.from else {
            return Ok(());
        };
        if site::disk::refuse_moved(&from.path).is_err() {
            let what = format!(
                "{} has moved: the kernel it had before is started",
                from.name
            );
            from.report.warn(&what);
            return Ok(());
        }
        self.load()
    }

    fn load(&mut self) -> Result<()> {
        let Some(from) = &self.from else {
            return Ok(());
        };
        let disk = Arc::new(ExportDisk(from.export.clone()));
        let kernel = memory("kernel")?;
        let initrd = memory("initrd")?;
        let files = Files {
            kernel: Box::new(another(&kernel)?),
            initrd: Box::new(another(&initrd)?),
        };
        let installed = read(disk, files, &from.path)?;
        let line = announce(&installed, (&from.name, &from.command_line), from.report)?;
        let has_initrd = !installed.initrds.is_empty();
        self.config.kernel = path_of(&kernel);
        self.config.initrd = has_initrd.then(|| path_of(&initrd));
        self.config.cmdline = line;
        self.held = vec![kernel, initrd];
        Ok(())
    }
}

/// Only says what the disk would start. It is opened for reading, and nothing else is done with it.
pub(super) fn dry_run(plan: &Machine, report: Report) -> Result<()> {
    let boot = &plan.vm.boot;
    let disk = match &boot.kernel {
        Kernel::Disk(place) => plan.vm.disks.get(*place),
        _ => None,
    };
    let disk = disk.ok_or_else(|| Failure::usage("no disk is started from"))?;
    if !plan.take_over {
        site::disk::refuse_moved(&disk.path)?;
    }
    let image = Arc::new(ImageDisk::open(disk, plan)?);
    let files = Files {
        kernel: Box::new(io::sink()),
        initrd: Box::new(io::sink()),
    };
    let installed = read(image, files, &disk.path)?;
    announce(&installed, (&disk.name, &boot.command_line), report).map(drop)
}

fn read(disk: Arc<dyn BootDisk>, files: Files, path: &Path) -> Result<Installed> {
    installed::load(disk, files).map_err(|error| {
        let failure = cannot(&error);
        Failure {
            what: format!("{}: {}", path.display(), failure.what),
            ..failure
        }
    })
}

/// Tells what is started, and returns its command line. People are told on stderr: the console may be on stdout.
fn announce(installed: &Installed, (disk, more): (&str, &str), report: Report) -> Result<String> {
    let (line, added) = installed.command_line(more);
    for remark in &installed.remarks {
        report.warn(remark);
    }
    if !report.is_json() {
        if !report.is_quiet() {
            let said = people(installed, disk, (&line, added));
            // Nowhere is left to complain if stderr is closed.
            let _ = io::stderr().lock().write_all(said.as_bytes());
        }
        return Ok(line);
    }
    let event = BootEvent {
        disk: disk.to_owned(),
        partition: installed.partition.clone(),
        source: installed.source.name(),
        title: installed.title.clone(),
        kernel: installed.kernel.clone(),
        kernel_bytes: installed.kernel_bytes,
        initrds: installed.initrds.clone(),
        initrd_bytes: installed.initrd_bytes,
        command_line: line.clone(),
        console_added: added,
        remarks: installed.remarks.clone(),
    };
    Report::line("boot", &event)?;
    Ok(line)
}

fn people(installed: &Installed, disk: &str, (line, added): (&str, bool)) -> String {
    let title = installed.title.as_deref().unwrap_or("what is installed");
    let initrds = installed
        .initrds
        .iter()
        .map(|initrd| format!(" with {initrd}"));
    format!(
        "starting {title} from {disk}, {}\n  {}{}, {}\n  {line}\n{}",
        installed.partition,
        installed.kernel,
        initrds.collect::<String>(),
        size::show(
            installed
                .kernel_bytes
                .saturating_add(installed.initrd_bytes)
        ),
        if added {
            "  (console=ttyS0 was added: the disk's command line has no serial console)\n"
        } else {
            ""
        }
    )
}

/// A disk that is served, read as by a client.
struct ExportDisk(ExportHandle);

impl BootDisk for ExportDisk {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn sector(&self) -> u32 {
        self.0.disk().logical_sector()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let len = into.len() as u64;
        match self.0.call(LocalRequest::Read { offset, len })? {
            LocalReply::Data(data) if data.len() == into.len() => {
                into.copy_from_slice(&data);
                Ok(())
            }
            _ => Err(io::Error::other(
                "the server answered something else than was asked",
            )),
        }
    }
}

/// An image that nobody serves.
struct ImageDisk {
    disk: Mutex<Disk>,
    size: u64,
    sector: u32,
}

impl ImageDisk {
    fn open(disk: &description::Disk, plan: &Machine) -> Result<Self> {
        let path = &disk.path;
        let format = disk.format.map(disk_format);
        let options = OpenOptions {
            read_only: true,
            allow_marked: plan.take_over,
            format,
            ..OpenOptions::default()
        };
        let opened = image::open_chain(path, &options, &plan.search)?;
        let format = format.unwrap_or_else(|| ImageFormat::of_path(path));
        let sector = if format == ImageFormat::Vhdx {
            let mut storage = image::patiently(|| FileStorage::open(path, false))?;
            let info = vdisk::info::info(&mut storage).map_err(|error| error.in_file(path))?;
            info.logical_sector
        } else {
            512
        };
        Ok(Self {
            size: opened.size(),
            disk: Mutex::new(opened),
            sector,
        })
    }
}

impl BootDisk for ImageDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector(&self) -> u32 {
        self.sector
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        disk.read_at(offset, into).map_err(io::Error::other)
    }
}

/// The guest that is built in, as a file.
fn built_in() -> io::Result<OwnedFd> {
    let memory = memfd_create("guest", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(memory);
    file.write_all(vmm::guest::IMAGE)?;
    Ok(file.into())
}

fn memory(name: &str) -> Result<OwnedFd> {
    memfd_create(name, MemfdFlags::CLOEXEC)
        .map_err(|e| Failure::io(format!("no memory for the {name}"), &e.into()))
}

/// The same file once more, to be written.
fn another(file: &OwnedFd) -> Result<File> {
    let file = file.try_clone();
    let file = file.map_err(|e| Failure::io("no memory for what is started", &e))?;
    Ok(file.into())
}

/// How this process opens it by a path.
fn path_of(file: &impl AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}
