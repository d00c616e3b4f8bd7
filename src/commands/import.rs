//! `diskferry import`: a package of volumes becomes a disk, or brings one up to date.

mod increment;
mod whole;

use std::path::Path;

use package::Item;
use serde::Serialize;
use uuid::Uuid;

use crate::args::{GlobalArgs, ImportArgs};
use crate::failure::{Exit, Failure, Result};
use crate::interrupt;
use crate::packages::cipher::Keys;
use crate::packages::found::Package;
use crate::packages::place;
use crate::plan::{Import, Shape};
use crate::progress::Progress;
use crate::report::Report;
use crate::size;

/// One run of the command.
struct Job<'a> {
    plan: Import,
    package: Package,
    report: Report,
    global: &'a GlobalArgs,
}

/// What became of a package.
#[derive(Serialize)]
struct Imported {
    disk: String,
    package: Uuid,
    fingerprint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    builds_on: Option<Uuid>,
    disk_size: u64,
    written_bytes: u64,
    /// Where an import went on that an earlier run had begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    resumed_at: Option<u64>,
    /// Whether there was nothing to do: the disk had it already.
    already: bool,
}

/// What a check found of a volume.
#[derive(Serialize)]
struct VolumeFound {
    file: String,
    first: u64,
    end: u64,
    sound: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// What a check found.
#[derive(Serialize)]
struct Checked {
    name: String,
    package: Uuid,
    fingerprint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    builds_on: Option<Uuid>,
    encrypted: bool,
    disk_size: u64,
    stored_bytes: u64,
    volumes: usize,
    sound: bool,
}

pub(crate) fn run(args: &ImportArgs, global: &GlobalArgs, report: Report) -> Result<()> {
    let plan = Import::new(args)?;
    let keys = Keys::read(&args.keys)?;
    interrupt::listen();
    let package = Package::find(place::read(&plan.place)?, plan.name.as_deref(), keys)?;
    package.refuse_other(plan.expect)?;
    let mut job = Job {
        plan,
        package,
        report,
        global,
    };
    let Some((disk, shape)) = job.plan.disk.take() else {
        return job.check();
    };
    let imported = job.import(&disk, shape)?;
    report.event("summary", &imported, &imported.sentence())
}

impl Job<'_> {
    fn import(&self, disk: &Path, shape: Shape) -> Result<Imported> {
        match self.package.manifest.builds_on {
            None => self.make(disk, shape),
            Some(base) => self.apply(disk, base),
        }
    }

    /// Reads all of the package, and says what is wrong with it.
    fn check(&self) -> Result<()> {
        let manifest = &self.package.manifest;
        let mut progress = self.progress("check", self.stored());
        let mut unsound = Vec::new();
        for (number, entry) in manifest.numbered() {
            let read = self.package.read(number, &mut |_| Ok(()));
            interrupt::check("nothing was changed")?;
            progress.advance(entry.length, entry.length);
            let found = VolumeFound {
                file: self.package.name_of(number),
                first: entry.first,
                end: entry.end,
                sound: read.is_ok(),
                message: read.err().map(|failure| failure.what),
            };
            unsound.extend(found.message.clone());
            let line = format!("{}: sound", found.file);
            let people = found.message.as_ref().unwrap_or(&line);
            self.report.event("volume", &found, people)?;
        }
        progress.finish();
        let checked = Checked {
            name: manifest.name.clone(),
            package: manifest.package,
            fingerprint: self.package.root.to_string(),
            builds_on: manifest.builds_on,
            encrypted: manifest.encrypted,
            disk_size: manifest.disk.size,
            stored_bytes: self.stored(),
            volumes: manifest.volumes.len(),
            sound: unsound.is_empty(),
        };
        self.report
            .event("summary", &checked, &checked.sentence())?;
        if unsound.is_empty() {
            return Ok(());
        }
        Err(Failure::new(Exit::Corrupt, unsound.join("\n")).hint("bring these files again"))
    }

    fn stored(&self) -> u64 {
        let volumes = self.package.manifest.volumes.iter();
        volumes.fold(0, |sum, entry| entry.length.saturating_add(sum))
    }

    fn progress(&self, phase: &'static str, total: u64) -> Progress {
        Progress::new(self.report, self.global.progress, phase, total)
    }

    /// Gives all that stands in the volumes that tell of the disk from `from` on.
    fn each_item(&self, from: u64, each: &mut dyn FnMut(Item) -> Result<()>) -> Result<()> {
        for (number, entry) in self.package.manifest.numbered() {
            if entry.end > from {
                self.package.read(number, each)?;
            }
        }
        Ok(())
    }

    fn imported(&self, disk: &Path, written: u64) -> Imported {
        let manifest = &self.package.manifest;
        Imported {
            disk: disk.display().to_string(),
            package: manifest.package,
            fingerprint: self.package.root.to_string(),
            builds_on: manifest.builds_on,
            disk_size: manifest.disk.size,
            written_bytes: written,
            resumed_at: None,
            already: false,
        }
    }
}

impl Imported {
    fn sentence(&self) -> String {
        if self.already {
            return format!("{}: has all of package {} already", self.disk, self.package);
        }
        let how = if self.builds_on.is_some() {
            "brought up to date"
        } else {
            "imported"
        };
        let mut text = format!(
            "{}: {how} with package {}, {}, {} written",
            self.disk,
            self.package,
            size::show(self.disk_size),
            size::show(self.written_bytes)
        );
        if let Some(at) = self.resumed_at {
            text = format!("{text}, gone on from {}", size::show(at));
        }
        text
    }
}

impl Checked {
    fn sentence(&self) -> String {
        format!(
            "{}: package {} of {} volumes, {}{}\n    fingerprint {}",
            self.name,
            self.package,
            self.volumes,
            size::show(self.stored_bytes),
            if self.sound { ", sound" } else { "" },
            self.fingerprint
        )
    }
}
