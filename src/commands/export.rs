//! `diskferry export`: a disk, or what changed of it, as a package of volumes.

use std::time::{SystemTime, UNIX_EPOCH};

use package::{DiskShape, Manifest};
use serde::Serialize;
use uuid::Uuid;
use vdisk::disk::random_bits;
use vdisk::format::track::CheckpointName;
use vdisk::storage::FileStorage;
use vdisk::track::{self, TrackStatus};

use super::image;
use crate::args::{ExportArgs, GlobalArgs, SourceFormat};
use crate::failure::{Exit, Failure, Result};
use crate::interrupt;
use crate::packages::changes::Part;
use crate::packages::cipher::Lock;
use crate::packages::journal::{Journal, Work};
use crate::packages::parcels;
use crate::packages::place::{self, Place};
use crate::packages::sealed::SealedWriter;
use crate::packages::volumes::{Begun, Volumes};
use crate::plan::Export;
use crate::progress::Progress;
use crate::report::Report;
use crate::source::{self, Opened};
use crate::{site, size};

/// What the checkpoint of an export is called, before the package's number.
const CHECKPOINT: &str = "export-";

/// One run of the command.
struct Job<'a> {
    plan: Export,
    lock: Lock,
    place: Box<dyn Place>,
    report: Report,
    global: &'a GlobalArgs,
}

/// What was exported.
#[derive(Serialize)]
struct Exported {
    disk: String,
    name: String,
    package: Uuid,
    manifest: String,
    /// Stands for all of the package: what `import --expect` wants.
    fingerprint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    builds_on: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<String>,
    encrypted: bool,
    verified: bool,
    disk_size: u64,
    stored_bytes: u64,
    volumes: usize,
    /// How many of them an earlier run had made.
    resumed_volumes: usize,
}

pub(crate) fn run(args: &ExportArgs, global: &GlobalArgs, report: Report) -> Result<()> {
    let plan = Export::new(args)?;
    let lock = Lock::read(&args.lock)?;
    interrupt::listen();
    let place = place::hold(&plan.place)?;
    let job = Job {
        plan,
        lock,
        place,
        report,
        global,
    };
    job.refuse_finished()?;
    let (journal, disk) = job.begin().map_err(|failure| job.of_busy(failure))?;
    let exported = job.write(journal, disk)?;
    report.event("summary", &exported, &sentence(&exported))
}

impl Job<'_> {
    fn manifest_name(&self) -> String {
        Manifest::file_name(&self.plan.name, self.lock.is_on())
    }

    fn refuse_finished(&self) -> Result<()> {
        for encrypted in [false, true] {
            let name = Manifest::file_name(&self.plan.name, encrypted);
            if self.place.length(&name)?.is_some() {
                let what = format!("{}: is of a whole package", self.place.shown(&name));
                return Err(Failure::new(Exit::Failed, what)
                    .hint("give another place (--to), or another --name"));
            }
        }
        Ok(())
    }

    /// Begins, or finds what an earlier run has begun.
    fn begin(&self) -> Result<(Journal, Opened)> {
        let found = Journal::load(&*self.place, &self.plan.name)?;
        if let (Some(found), true) = (&found, self.plan.restart) {
            self.throw_away(found.clone())?;
        } else if let Some(mut found) = found {
            let disk = self.open()?;
            let since = found.work.since.clone();
            let wanted = match (&self.plan.since, &since) {
                // The checkpoint of this export is the youngest by now.
                (Some(word), Some(_)) if word == "last" => since.clone(),
                (wanted, _) => wanted.clone(),
            };
            // What lies in a store may have been written by others: what it builds upon is said by the name alone.
            let builds_on = wanted.as_deref().and_then(package_of);
            let now = self.work(&disk, wanted, builds_on)?;
            let notes = self.place.shown(&Journal::file_name(&self.plan.name));
            found.refuse_other(&now, &notes)?;
            self.take_over(&mut found)?;
            return Ok((found, disk));
        }
        let since = self.plan.since.as_deref();
        let since = since.map(|name| self.base(name)).transpose()?;
        let package = Uuid::new_v4();
        let checkpoint = self.checkpoint(package)?;
        let disk = self.open()?;
        let (since, builds_on) = since.unzip();
        let work = self.work(&disk, since, builds_on)?;
        let journal = Journal::new(package, checkpoint, work);
        self.warn_of_room(&journal)?;
        journal.store(&*self.place, &self.plan.name)?;
        Ok((journal, disk))
    }

    fn open(&self) -> Result<Opened> {
        source::open(&self.plan.source, self.plan.jobs + 1)
    }

    /// What tells this export from another.
    fn work(&self, disk: &Opened, since: Option<String>, builds_on: Option<Uuid>) -> Result<Work> {
        let source = disk.identity.clone().ok_or_else(|| {
            let what = format!(
                "{}: nothing tells that it stays the same while it is exported",
                self.plan.disk.display()
            );
            Failure::new(Exit::Unsupported, what)
                .hint("`diskferry convert` makes a file of it, which can be exported")
        })?;
        let is_vhdx = self.plan.source.name.format() == SourceFormat::Vhdx;
        Ok(Work {
            source,
            disk: DiskShape {
                size: disk.size,
                sector: disk.sector.unwrap_or(512),
                id: if is_vhdx {
                    disk_id(&self.plan.disk)?
                } else {
                    None
                },
            },
            limit: self.plan.limit,
            since,
            builds_on,
            lock: self.lock.in_words(),
        })
    }

    fn status(&self) -> Result<Option<TrackStatus>> {
        if self.plan.source.name.format() != SourceFormat::Vhdx {
            return Ok(None);
        }
        let mut storage = image::open_storage(&self.plan.disk)?;
        let status = track::status(&mut storage);
        Ok(status.map_err(|error| error.in_file(&self.plan.disk))?)
    }

    /// The checkpoint that `name` means, and the package that it is the moment of.
    fn base(&self, name: &str) -> Result<(String, Uuid)> {
        let shown = self.plan.disk.display();
        let status = self.status()?.ok_or_else(|| {
            let what = format!("{shown}: changes are not tracked");
            Failure::new(Exit::Unsupported, what)
                .hint("`diskferry track on`, and export all of it once more")
        })?;
        let mut ours = status.checkpoints.iter().rev();
        let found = ours
            .find(|one| (name == "last" && package_of(&one.name).is_some()) || one.name == name);
        let found = found.ok_or_else(|| {
            let what = format!("{shown}: there is no checkpoint `{name}` that an export took");
            Failure::usage(what).hint("`diskferry checkpoint list` shows all")
        })?;
        let package = package_of(&found.name).ok_or_else(|| {
            let what = format!("{shown}: no export took the checkpoint `{name}`");
            Failure::usage(what).hint(
                "changes are for a site that has what an earlier package left: those are called `export-`",
            )
        })?;
        if !found.known {
            self.report.warn(&format!(
                "{shown}: what changed since {} is not known, so all of the disk is exported",
                found.name
            ));
        }
        Ok((found.name.clone(), package))
    }

    /// Takes the checkpoint of this export. It comes before the disk is read: what changes in between is in this
    /// package and in the next one.
    fn checkpoint(&self, package: Uuid) -> Result<Option<String>> {
        if !self.plan.checkpoint || self.status()?.is_none() {
            return Ok(None);
        }
        let path = &self.plan.disk;
        site::disk::refuse_moved(path)?;
        let name = format!("{CHECKPOINT}{package}");
        let time = now();
        let mut options = image::options(None, false);
        options.format = Some(vdisk::disk::ImageFormat::Vhdx);
        options.same_content = true;
        let mut disk = image::open_chain(path, &options, &self.plan.source.search)?;
        let taken = disk.checkpoint(CheckpointName::new(&name)?, time);
        let closed = disk.close();
        taken.map_err(|error| {
            let failure = Failure::from(error.in_file(path));
            failure.hint(
                "`diskferry checkpoint remove` makes room; --no-checkpoint exports without one",
            )
        })?;
        closed?;
        Ok(Some(name))
    }

    /// Another process has the disk: says what can be exported instead.
    fn of_busy(&self, failure: Failure) -> Failure {
        if failure.exit != Exit::InUse || !failure.what.contains("is in use") {
            return failure;
        }
        let disk = self.plan.disk.display();
        failure.hint(format!(
            "a disk is exported that nobody writes: end its server, or `diskferry snapshot {disk} NEW` lets it go \
             on in NEW, and {disk}, which keeps this moment, can be exported with --no-checkpoint"
        ))
    }

    fn warn_of_room(&self, journal: &Journal) -> Result<()> {
        let mut disk = source::open(&self.plan.source, 1)?;
        let Some(planner) = disk.handles.first_mut() else {
            return Ok(());
        };
        let data = self.part(journal).amount(&mut **planner, 0)?.data;
        if let Some(free) = self.place.free()
            && data > free
        {
            self.report.warn(&format!(
                "{} of data for {} of free space: where it does not fit, packed as it is, give one more \
                 folder (--to) and go on",
                size::show(data),
                size::show(free)
            ));
        }
        Ok(())
    }

    fn part(&self, journal: &Journal) -> Part {
        match &journal.work.since {
            Some(since) => Part::Since(self.plan.disk.clone(), since.clone()),
            None => Part::Whole,
        }
    }

    /// Makes an interrupted export that of this run, and puts away what was half. Refuses where a volume that was
    /// whole is not there any more.
    fn take_over(&self, journal: &mut Journal) -> Result<()> {
        for (number, entry) in (1..).zip(&journal.volumes) {
            let name = Manifest::volume_name(&self.plan.name, number, self.lock.is_on());
            if self.place.length(&name)? != Some(entry.length) {
                let what = format!(
                    "{}: was whole when this export was interrupted, and is not there now",
                    self.place.shown(&name)
                );
                return Err(Failure::new(Exit::Failed, what)
                    .hint("give all folders (--to) as before; --restart starts over"));
            }
        }
        journal.take_over();
        journal.store(&*self.place, &self.plan.name)?;
        // One that got its name just before the end is not in the journal yet, and is made again.
        let next = journal.volumes.len() as u32 + 1;
        let name = Manifest::volume_name(&self.plan.name, next, self.lock.is_on());
        let upload = journal.upload.take();
        self.place.clear(&name, upload.as_deref())
    }

    fn throw_away(&self, mut journal: Journal) -> Result<()> {
        journal.take_over();
        journal.store(&*self.place, &self.plan.name)?;
        // The run that was overtaken may have ended just before.
        self.refuse_finished()?;
        let encrypted = !journal.work.lock.is_empty();
        let next = journal.volumes.len() as u32 + 1;
        for number in 1..=next {
            let upload = journal.upload.as_deref().filter(|_| number == next);
            let name = Manifest::volume_name(&self.plan.name, number, encrypted);
            self.place.clear(&name, upload)?;
        }
        self.forget(&journal);
        self.place.remove(&Journal::file_name(&self.plan.name))
    }

    /// The checkpoint of an export that will never end is none to build upon.
    fn forget(&self, journal: &Journal) {
        // None but its own: the journal may have been written by others.
        let own = |name: &&String| package_of(name) == Some(journal.package);
        let Some(checkpoint) = journal.checkpoint.as_ref().filter(own) else {
            return;
        };
        let disk = &self.plan.disk;
        let storage = image::patiently(|| FileStorage::open(disk, true));
        let removed = storage.and_then(|mut storage| {
            let removed = track::remove_checkpoint(&mut storage, checkpoint, &mut random_bits);
            Ok(removed.map_err(|error| error.in_file(disk))?)
        });
        if let Err(failure) = removed {
            let what = format!("the checkpoint {checkpoint} stays: {}", failure.what);
            self.report.warn(&what);
        }
    }

    fn write(&self, journal: Journal, mut disk: Opened) -> Result<Exported> {
        let part = self.part(&journal);
        let from = journal.done();
        let resumed = journal.volumes.len();
        let amount = match disk.handles.first_mut() {
            Some(planner) => part.amount(&mut **planner, from)?,
            None => return Err(Failure::new(Exit::Failed, "no disk was opened")),
        };
        let mut progress = Progress::new(self.report, self.global.progress, "export", amount.total);
        let begun = Begun {
            place: &*self.place,
            name: &self.plan.name,
            lock: &self.lock,
            journal,
        };
        let mut volumes = Volumes::new(begun, amount.data, &mut progress);
        let read = parcels::each(&part, disk.handles, from, |parcel| volumes.take(parcel));
        let read = read.and_then(|()| {
            interrupt::check("whole volumes are kept, and the same command goes on")
        });
        let written = read.and_then(|()| volumes.finish());
        progress.finish();
        let begun = written?;
        begun.journal.work.source.still()?;
        if self.plan.verify {
            self.verify(&begun)?;
        }
        self.finish(&begun, resumed)
    }

    /// Reads all files as the medium has them.
    fn verify(&self, begun: &Begun<'_>) -> Result<()> {
        let total = begun.journal.volumes.iter().map(|entry| entry.length).sum();
        let mut progress = Progress::new(self.report, self.global.progress, "verify", total);
        let mut checked = Ok(());
        for (number, entry) in (1..).zip(&begun.journal.volumes) {
            let name = begun.volume_name(number);
            checked = place::hash_of(&*self.place, &name, entry.length).and_then(|found| {
                if found == Some(entry.hash) {
                    return Ok(());
                }
                let what = format!("{}: is not what was written", self.place.shown(&name));
                Err(Failure::new(Exit::Mismatch, what)
                    .hint("the medium or memory may be bad; --restart starts over"))
            });
            if checked.is_err() {
                break;
            }
            progress.advance(entry.length, entry.length);
        }
        progress.finish();
        checked
    }

    /// The package is whole: its manifest gets its name, and the journal goes.
    fn finish(&self, begun: &Begun<'_>, resumed: usize) -> Result<Exported> {
        let journal = &begun.journal;
        // One that was overtaken by another run ends here.
        begun.note()?;
        let manifest = Manifest {
            package: journal.package,
            name: self.plan.name.clone(),
            created: now(),
            disk: journal.work.disk.clone(),
            builds_on: journal.work.builds_on,
            encrypted: self.lock.is_on(),
            volumes: journal.volumes.clone(),
        };
        let (bytes, root) = manifest.encode();
        let name = self.manifest_name();
        self.place.put(&name, &self.sealed(&name, &bytes)?)?;
        // Or one that was overtaken in between, and whose volumes are being removed.
        if let Err(overtaken) = begun.note() {
            self.place.remove(&name)?;
            return Err(overtaken);
        }
        self.place.remove(&Journal::file_name(&self.plan.name))?;
        Ok(Exported {
            disk: self.plan.disk.display().to_string(),
            name: self.plan.name.clone(),
            package: journal.package,
            manifest: self.place.shown(&name),
            fingerprint: root.to_string(),
            builds_on: journal.work.builds_on,
            checkpoint: journal.checkpoint.clone(),
            encrypted: self.lock.is_on(),
            verified: self.plan.verify,
            disk_size: journal.work.disk.size,
            stored_bytes: journal.volumes.iter().map(|entry| entry.length).sum(),
            volumes: journal.volumes.len(),
            resumed_volumes: resumed,
        })
    }

    /// A file of these bytes, encrypted if it is to be.
    fn sealed(&self, name: &str, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut output = SealedWriter::new(Vec::new(), &self.lock)?;
        let written = output.write(bytes).and_then(|()| output.finish());
        let failed = |e| self.place.failed(name, "cannot be written", &e);
        written.map(|(file, _)| file).map_err(failed)
    }
}

/// The package of which a checkpoint is the moment.
fn package_of(checkpoint: &str) -> Option<Uuid> {
    checkpoint.strip_prefix(CHECKPOINT)?.parse().ok()
}

fn disk_id(disk: &std::path::Path) -> Result<Option<Uuid>> {
    let mut storage = image::open_storage(disk)?;
    let info = vdisk::info::info(&mut storage).map_err(|error| error.in_file(disk))?;
    Ok(info.ids.disk.to_string().parse().ok())
}

/// Seconds since 1970.
fn now() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    time.map_or(0, |since| since.as_secs())
}

fn sentence(exported: &Exported) -> String {
    let mut text = format!(
        "{}: {} of {} volumes, {}",
        exported.manifest,
        if exported.builds_on.is_some() {
            "changes, in a package"
        } else {
            "the whole disk, in a package"
        },
        exported.volumes,
        size::show(exported.stored_bytes),
    );
    if exported.resumed_volumes > 0 {
        let count = exported.resumed_volumes;
        text = format!("{text}, {count} of them made earlier");
    }
    text = format!("{text}\n    fingerprint {}", exported.fingerprint);
    if let Some(checkpoint) = &exported.checkpoint {
        text = format!("{text}\n    what changes from now on: --since {checkpoint}");
    }
    text
}
