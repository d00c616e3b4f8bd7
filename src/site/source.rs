//! The disks of a `serve`, their migrations, and what its control socket can ask.

mod adopting;
mod control;
pub(crate) mod freezing;
mod homeward;
pub(crate) mod joining;
mod returning;
mod starting;
mod switching;
mod waiting;
mod way;
mod withdrawing;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use blockserver::export::{ExportHandle, ExportOptions, LocalReply, LocalRequest};
use blockserver::server::Server;
use mirror::Micros;
use mirror::net::{ServedDisk, SourceDriver, SourceHandle, WatchedTarget};
use mirror::record::{Ownership, State};
use mirror::session::SourceConfig;
use mirror::wire::DiskFormat;
use uuid::Uuid;
use vdisk::format::track::CheckpointName;

use self::waiting::Harbour;
use self::way::Way;
use super::beside::Beside;
use super::disk::{Opened, Standing};
use super::foreign;
use super::kept;
use super::port::ExportPort;
use super::snapshot;
use super::together::Groups;
use super::way_back;
use crate::control::place;
use crate::control::{
    Checkpoint, Compact, CompactState, Cutover, DiskState, Limited, Resize, StartMirror,
    TakeSnapshot,
};
use crate::failure::{Exit, Failure, Result};
use crate::metrics::Ends;

pub(crate) use self::withdrawing::Withdrawn;

/// The disks that one process serves.
pub(crate) struct Site {
    server: Arc<Server>,
    disks: RwLock<Vec<Arc<SiteDisk>>>,
    /// Is told the name of a disk that got another size.
    resized: OnceLock<Resized>,
    /// Tells of the disks that are received here.
    received: OnceLock<Received>,
    /// What its disks have in common.
    harbour: Arc<Harbour>,
}

/// See [`Site::receives`].
type Received = Box<dyn Fn() -> Vec<WatchedTarget> + Send + Sync>;

/// See [`Site::when_resized`].
type Resized = Box<dyn Fn(&str) + Send + Sync>;

/// A disk and its newest migration.
struct SiteDisk {
    /// What is served now; another one after a snapshot.
    opened: Mutex<Arc<Opened>>,
    export: ExportHandle,
    /// Held by what works on the file past a hold of the export; taken before `moving`.
    changing: Mutex<()>,
    moving: Mutex<Option<Moving>>,
    /// Whether it is about to go: nothing long is begun any more. Set while `moving` is held.
    leaving: AtomicBool,
    /// Whether it came here through a session: a restart finds it by the name it came under.
    arrived: bool,
    /// Whether and where it may go back, or come back; taken after `moving`.
    way: Mutex<Way>,
    /// How its moves ended before the newest one.
    ends: Mutex<Ends>,
}

impl SiteDisk {
    fn new(opened: Arc<Opened>, export: ExportHandle, moving: Option<Moving>) -> Self {
        Self {
            opened: Mutex::new(opened),
            export,
            changing: Mutex::new(()),
            moving: Mutex::new(moving),
            leaving: AtomicBool::new(false),
            arrived: false,
            way: Mutex::default(),
            ends: Mutex::default(),
        }
    }
}

struct Moving {
    session: SourceHandle,
    /// The receiving side, when the disk moves to another path of this host.
    beside: Option<Beside>,
    /// It keeps a copy in step where the disk came from.
    back: bool,
    /// That it failed is taken account of.
    counted: bool,
}

impl Moving {
    /// A move to another host.
    fn to(session: SourceHandle) -> Self {
        Self {
            session,
            beside: None,
            back: false,
            counted: false,
        }
    }
}

impl Site {
    /// A site without disks.
    pub(crate) fn new(server: &Arc<Server>) -> Self {
        Self {
            server: Arc::clone(server),
            disks: RwLock::default(),
            resized: OnceLock::new(),
            received: OnceLock::new(),
            harbour: Arc::default(),
        }
    }

    /// Call this with the name of each disk that gets another size; to be said once.
    pub(crate) fn when_resized(&self, call: Resized) {
        let _ = self.resized.set(call);
    }

    /// Ask this for the disks that are received here; to be said once.
    pub(crate) fn receives(&self, ask: Received) {
        let _ = self.received.set(ask);
    }

    /// Serve a disk, or, if it was handed over, forward to its new owner.
    pub(crate) fn add(
        &self,
        name: &str,
        mut opened: Opened,
        (options, take_over): (ExportOptions, bool),
    ) -> Result<ExportHandle> {
        let failed = |e| {
            let what = format!("{}: cannot be served", opened.path.display());
            Failure::io(what, &e).hint("give each disk a name of its own: NAME=DISK")
        };
        let disk = Arc::clone(&opened.disk);
        let mut way = way_back::found(&opened, take_over);
        let standing = match opened.away(way.as_ref()) {
            Some(standing) if !take_over => standing,
            _ => opened.standing(take_over)?,
        };
        let (export, moving) = match standing {
            Standing::Away => {
                if let Some(lineage) = opened.lineage() {
                    self.harbour.groups.is_alone(lineage);
                }
                let export = self
                    .server
                    .add_held_export(name, disk, options, None)
                    .map_err(failed)?;
                // Who has it now has clients of its own.
                export.write_through();
                (export, None)
            }
            Standing::Ours { remove_mark } => {
                let export = self
                    .server
                    .add_held_export(name, disk, options, None)
                    .map_err(failed)?;
                if remove_mark && !opened.read_only {
                    let unmarked = unmark(&export);
                    unmarked.inspect_err(|_| self.take_back(&export, &opened))?;
                }
                let port = ExportPort(export.clone());
                let how = (way_back::told(way.as_ref()), &self.harbour.groups);
                let session = kept::resume(port, &mut opened, how);
                way = way_back::of_owner(&opened.path, way, session.is_some());
                export.release();
                (export, session.map(Moving::to))
            }
            Standing::HandedOver(record) => {
                self.harbour.groups.is_gone(&record);
                kept::forget(&opened.path);
                way = way_back::of_gone(&opened.path, way);
                let export = self
                    .server
                    .add_held_export(name, disk, options, None)
                    .map_err(failed)?;
                if record.epoch() > 2 {
                    // It moved before: where it is now, others' requests may come to it that pass here or did.
                    export.write_through();
                }
                let moving = self.follow(&export, &opened, &record);
                let moving = moving.inspect_err(|_| self.take_back(&export, &opened))?;
                (export, Some(moving))
            }
        };
        let disk = self.push(SiteDisk::new(Arc::new(opened), export.clone(), moving));
        if let Some(way) = way {
            disk.go_on_with(&way, &self.harbour);
        }
        Ok(export)
    }

    fn all(&self) -> Vec<Arc<SiteDisk>> {
        self.disks
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Go on with a disk that was handed over, for the clients that still come here.
    fn follow(&self, export: &ExportHandle, opened: &Opened, record: &Ownership) -> Result<Moving> {
        joining::refuse_gone(opened, record)?;
        let mut config = SourceConfig::new(Uuid::nil(), String::new(), opened.description.clone());
        let export = export.clone();
        let moved_to = match &record.state {
            State::Released { to, .. } if to.starts_with('/') => Path::new(to),
            State::Released { to, .. } if foreign::is_written(to) => {
                export.others_have_left_overs();
                let port = ExportPort(export);
                let moved = SourceDriver::moved_to_foreign(record, config, |at| port.forward(at));
                return Ok(Moving::to(moved.map_err(|e| refused(&e))?));
            }
            _ => {
                let port = ExportPort(export);
                let session = SourceDriver::resume_released(record, config, move |address| {
                    port.forward(address);
                });
                let session = session.map_err(|e| refused(&e))?;
                return Ok(Moving::to(session));
            }
        };
        let beside = Beside::start(&self.server, moved_to)?;
        let arriving = beside.arriving().clone();
        config.to = beside.address();
        config.recorded = Some(moved_to.display().to_string());
        arriving.name().clone_into(&mut config.description.name);
        let session = SourceDriver::resume_released(record, config, move |_| {
            arriving.take_place(&export);
        });
        Ok(Moving {
            session: session.map_err(|e| refused(&e))?,
            beside: Some(beside),
            back: false,
            counted: false,
        })
    }

    /// The groups of disks that go on here.
    pub(super) fn groups(&self) -> &Groups {
        &self.harbour.groups
    }

    /// The images.
    pub(crate) fn paths(&self) -> impl Iterator<Item = PathBuf> {
        let disks = self.all().into_iter();
        disks.map(|disk| disk.opened().path.clone())
    }

    /// End the sessions as they stand; the server may then be stopped.
    pub(crate) fn stop(&self) {
        for disk in self.all() {
            // First: who looks after the way back begins nothing any more.
            disk.wait_no_more();
            if let Some(moving) = disk.lock().take() {
                moving.session.stop();
                if let Some(beside) = moving.beside {
                    beside.stop();
                }
            }
        }
    }

    /// Lets others have the files; the server must have been stopped.
    pub(crate) fn unlock(&self) {
        self.all().iter().for_each(|disk| disk.opened().unlock());
    }

    /// A disk that could not be served after all is closed, and others may have it.
    fn take_back(&self, export: &ExportHandle, opened: &Opened) {
        if let Err(error) = self.server.remove_export(export) {
            tracing::error!(disk = export.name(), %error, "could not be closed cleanly");
        }
        opened.unlock();
    }

    /// Whether there is a disk of that name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.disk(name).is_ok()
    }

    /// The file that is served by that name now.
    pub(crate) fn path_of(&self, name: &str) -> Option<PathBuf> {
        Some(self.disk(name).ok()?.opened().path.clone())
    }

    fn disk(&self, name: &str) -> Result<Arc<SiteDisk>> {
        let mut disks = self.all().into_iter();
        let found = disks.find(|disk| disk.export.name() == name);
        found.ok_or_else(|| Failure::usage(format!("no disk here is called `{name}`")))
    }
}

fn unmark(export: &ExportHandle) -> Result<()> {
    let parked = export.call(LocalRequest::Park { mark: None });
    parked
        .map(drop)
        .map_err(|e| Failure::io("the mark of a migration cannot be removed", &e))
}

fn refused(error: &mirror::Error) -> Failure {
    let exit = match error.kind() {
        mirror::ErrorKind::NotOwned => Exit::InUse,
        mirror::ErrorKind::InvalidArgument => Exit::Usage,
        _ => Exit::Failed,
    };
    Failure::new(exit, error.to_string())
}

impl SiteDisk {
    /// What is served now.
    fn opened(&self) -> Arc<Opened> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&opened)
    }

    /// Keep a snapshot and other work of this process on the file apart: that goes past a hold of the export,
    /// and would change a file that has become a parent.
    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuse what needs a file here, of a disk that is an export of another server.
    fn is_here(&self, what: &str) -> Result<()> {
        if self.opened().disk.is_elsewhere() {
            let name = self.export.name();
            let what = format!("`{name}` is an export of another NBD server, which has no {what}");
            return Err(Failure::new(Exit::Unsupported, what));
        }
        Ok(())
    }

    /// Keep what the disk holds, and go on in a new one. No move begins meanwhile.
    fn snapshot(&self, wanted: &TakeSnapshot) -> Result<()> {
        let _alone = self.changing();
        let moving = self.lock();
        self.stays(moving.as_ref())?;
        self.is_here("snapshots")?;
        let from = self.opened();
        if self.arrived {
            let what = format!("`{}` came here through a move", self.export.name());
            return Err(
                Failure::usage(what).hint("serve it with `diskferry serve` to take a snapshot")
            );
        }
        if from.read_only {
            let what = format!("`{}` is served read-only", self.export.name());
            return Err(Failure::usage(what));
        }
        if from.description.format != DiskFormat::Vhdx {
            let what = format!("{}: only a VHDX can have a parent", from.path.display());
            return Err(Failure::usage(what));
        }
        let child = PathBuf::from(&wanted.child);
        if !child.is_absolute() {
            let what = format!("`{}` is not an absolute path", child.display());
            return Err(Failure::usage(what));
        }
        let block_size = wanted.block_size;
        let taken = snapshot::take(&self.export, &from, &snapshot::Wanted { child, block_size })?;
        place::also_for(&from.path, &taken.path);
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        *opened = Arc::new(taken);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Moving>> {
        self.moving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuse what can only be done to a disk that is not being moved and has not moved.
    fn stays(&self, moving: Option<&Moving>) -> Result<()> {
        if self.leaving.load(Ordering::SeqCst) {
            let what = format!("`{}` is being removed", self.export.name());
            return Err(Failure::new(Exit::InUse, what));
        }
        if self.way().away {
            return Err(self.has_moved());
        }
        let status = moving.map(|moving| moving.session.status());
        if status.is_none_or(|status| status.ended && status.error.is_some()) {
            return Ok(());
        }
        Err(self.has_moved())
    }

    fn has_moved(&self) -> Failure {
        let what = format!(
            "`{}` is being moved, or has moved, already",
            self.export.name()
        );
        Failure::new(Exit::InUse, what).hint("see `diskferry mirror status`")
    }

    /// Give the disk another size. No move begins meanwhile.
    fn resize(&self, resize: Resize) -> Result<()> {
        let moving = self.lock();
        self.stays(moving.as_ref())?;
        if self.opened().read_only {
            let what = format!("`{}` is served read-only", self.export.name());
            return Err(Failure::usage(what).hint("serve it without --read-only to resize it"));
        }
        let request = LocalRequest::Resize {
            size: resize.size,
            discard_data: resize.discard_data,
        };
        self.call(request).map(drop)
    }

    /// One step of making the file shorter.
    fn compact(&self, compact: Compact) -> Result<CompactState> {
        let _alone = self.changing();
        let moving = self.lock();
        self.stays(moving.as_ref())?;
        drop(moving);
        if self.opened().read_only {
            let what = format!("`{}` is served read-only", self.export.name());
            return Err(Failure::usage(what).hint("serve it without --read-only to compact it"));
        }
        let Compact { defragment, budget } = compact;
        let reply = self.call(LocalRequest::Compact { defragment, budget })?;
        let LocalReply::Compacted(how_far) = reply else {
            let what = format!("`{}`: no word of how far it is", self.export.name());
            return Err(Failure::new(Exit::Failed, what));
        };
        Ok(CompactState {
            moved_bytes: how_far.moved,
            dropped_bytes: how_far.dropped,
            file_len: how_far.end,
            done: how_far.done,
        })
    }

    /// Take a checkpoint.
    fn checkpoint(&self, checkpoint: &Checkpoint) -> Result<()> {
        let _alone = self.changing();
        if self.way().away {
            return Err(self.has_moved());
        }
        if self.opened().read_only {
            let what = format!("`{}` is served read-only", self.export.name());
            return Err(Failure::usage(what));
        }
        let request = LocalRequest::Checkpoint {
            name: CheckpointName::new(&checkpoint.name)?,
            time: checkpoint.time,
        };
        self.call(request).map(drop)
    }

    /// Have a worker do something to the disk.
    fn call(&self, request: LocalRequest) -> Result<LocalReply> {
        self.export.call(request).map_err(|error| {
            let exit = match error.kind() {
                io::ErrorKind::InvalidInput => Exit::Usage,
                io::ErrorKind::PermissionDenied => Exit::InUse,
                io::ErrorKind::Unsupported => Exit::Unsupported,
                _ => Exit::Failed,
            };
            Failure::new(exit, format!("{}: {error}", self.opened().path.display()))
        })
    }

    fn state(&self) -> DiskState {
        let moving = self.lock();
        DiskState {
            name: self.export.name().to_owned(),
            path: self.opened().path.display().to_string(),
            virtual_size: self.export.size(),
            limited: Limited {
                limits: self.export.limits(),
                throttled: self.export.throttled(),
            },
            mirror: moving
                .as_ref()
                .and_then(|moving| self.state_of(moving).ok()),
        }
    }

    fn name_here(&self) -> String {
        self.opened().description.name.clone()
    }

    fn config(&self, to: &str, name: &str, start: &StartMirror) -> SourceConfig {
        let mut description = self.opened().description.clone();
        // It may have been resized since it was opened.
        description.size = self.export.size();
        name.clone_into(&mut description.name);
        let mut config = SourceConfig::new(Uuid::new_v4(), to.to_owned(), description);
        config.handover.automatic = start.cutover == Cutover::Automatic;
        config.replica.compare = !start.fresh;
        config.rates.clone_from(&start.rate);
        config.handover.how = start.switchover;
        config.terms = kept::terms(start.deadline_s.map(kept::in_seconds), start.max_slowdown);
        if let Some(most) = start.max_pause_ms {
            config.handover.max_pause = Micros::from_millis(most);
        }
        config
    }

    fn session(&self, port: Arc<dyn ServedDisk>, config: SourceConfig) -> Result<SourceHandle> {
        SourceDriver::start(port, self.opened().record(), config).map_err(|e| refused(&e))
    }
}
