//! The disks of a `serve`, their migrations, and what its control socket can ask.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blockserver::export::{ExportHandle, ExportOptions};
use blockserver::server::Server;
use mirror::Micros;
use mirror::net::{ServedDisk, SourceDriver, SourceHandle, TargetDriver, TargetHandle};
use mirror::session::SourceConfig;
use uuid::Uuid;

use super::Reachable;
use super::beside::{MovingBeside, OneDisk};
use super::disk::{Opened, Standing};
use super::port::ExportPort;
use super::target::Folder;
use crate::control::{Control, Cutover, DiskState, StartMirror};
use crate::failure::{Exit, Failure, Result};

/// The disks that one process serves.
pub(crate) struct Site {
    server: Arc<Server>,
    disks: Vec<SiteDisk>,
}

/// A disk and its newest migration.
struct SiteDisk {
    opened: Opened,
    export: ExportHandle,
    moving: Mutex<Option<Moving>>,
}

struct Moving {
    session: SourceHandle,
    /// The receiving side, when the disk moves to another path of this host.
    beside: Option<TargetHandle>,
}

impl Site {
    /// A site without disks.
    pub(crate) fn new(server: &Arc<Server>) -> Self {
        Self {
            server: Arc::clone(server),
            disks: Vec::new(),
        }
    }

    /// Serve a disk, or, if it was handed over, forward to its new owner.
    pub(crate) fn add(
        &mut self,
        name: &str,
        opened: Opened,
        (options, take_over): (ExportOptions, bool),
    ) -> Result<ExportHandle> {
        let failed = |e| {
            let what = format!("{}: cannot be served", opened.path.display());
            Failure::io(what, &e).hint("give each disk a name of its own: NAME=DISK")
        };
        let disk = Arc::clone(&opened.disk);
        let (export, moving) = match opened.standing(take_over)? {
            Standing::Ours { remove_mark } => {
                let export = self
                    .server
                    .add_held_export(name, disk, options, None)
                    .map_err(failed)?;
                if remove_mark {
                    unmark(&export)?;
                }
                export.release();
                (export, None)
            }
            Standing::HandedOver(record) => {
                let export = self
                    .server
                    .add_held_export(name, disk, options, None)
                    .map_err(failed)?;
                let port = ExportPort(export.clone());
                let config =
                    SourceConfig::new(Uuid::nil(), String::new(), opened.description.clone());
                let session = SourceDriver::resume_released(&record, config, move |address| {
                    port.forward(address);
                });
                let session = session.map_err(|e| refused(&e))?;
                (
                    export,
                    Some(Moving {
                        session,
                        beside: None,
                    }),
                )
            }
        };
        let moving = Mutex::new(moving);
        self.disks.push(SiteDisk {
            opened,
            export: export.clone(),
            moving,
        });
        Ok(export)
    }

    /// The images.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.disks.iter().map(|disk| disk.opened.path.as_path())
    }

    /// End the sessions as they stand; the server may then be stopped.
    pub(crate) fn stop(&self) {
        for disk in &self.disks {
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
        self.disks.iter().for_each(|disk| disk.opened.unlock());
    }

    fn disk(&self, name: &str) -> Result<&SiteDisk> {
        let found = self.disks.iter().find(|disk| disk.export.name() == name);
        found.ok_or_else(|| Failure::usage(format!("no disk here is called `{name}`")))
    }
}

fn unmark(export: &ExportHandle) -> Result<()> {
    let parked = export.call(blockserver::export::LocalRequest::Park { mark: None });
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
    fn lock(&self) -> MutexGuard<'_, Option<Moving>> {
        self.moving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, server: &Arc<Server>, start: &StartMirror) -> Result<serde_json::Value> {
        let mut moving = self.lock();
        if let Some(old) = &*moving
            && !(old.session.status().ended && old.session.status().error.is_some())
        {
            let what = format!(
                "`{}` is being moved, or has moved, already",
                self.export.name()
            );
            return Err(Failure::new(Exit::InUse, what).hint("see `diskferry mirror status`"));
        }
        *moving = None;
        let started = if start.to.starts_with("tcp:") {
            let port = Arc::new(ExportPort(self.export.clone()));
            let session = self.session(port, &start.to, &self.name_there(None), start)?;
            Moving {
                session,
                beside: None,
            }
        } else {
            self.start_beside(server, start)?
        };
        let status = state_of(&started);
        *moving = Some(started);
        status
    }

    fn name_there(&self, path: Option<&Path>) -> String {
        let path = path.unwrap_or(&self.opened.path);
        path.file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
            .to_owned()
    }

    fn session(
        &self,
        port: Arc<dyn ServedDisk>,
        to: &str,
        name: &str,
        start: &StartMirror,
    ) -> Result<SourceHandle> {
        let mut description = self.opened.description.clone();
        name.clone_into(&mut description.name);
        let mut config = SourceConfig::new(Uuid::new_v4(), to.to_owned(), description);
        config.automatic = start.cutover == Cutover::Automatic;
        if let Some(most) = start.max_pause_ms {
            config.max_pause = Micros::from_millis(most);
        }
        SourceDriver::start(port, self.opened.record(), config).map_err(|e| refused(&e))
    }

    /// Move the disk to another path of this host: both ends of the session are here.
    fn start_beside(&self, server: &Arc<Server>, start: &StartMirror) -> Result<Moving> {
        let to = Path::new(&start.to);
        if !to.is_absolute() {
            let what = format!(
                "`{}` is neither tcp:HOST:PORT nor an absolute path",
                to.display()
            );
            return Err(Failure::usage(what));
        }
        if to.exists() {
            let what = format!("{}: exists already", to.display());
            return Err(Failure::usage(what).hint("name a file that does not exist yet"));
        }
        let (Some(parent), name) = (to.parent(), self.name_there(Some(to))) else {
            return Err(Failure::usage(format!("`{}` names no file", to.display())));
        };
        let endpoint = server.local_addresses().into_iter().next();
        let endpoint = endpoint.ok_or_else(|| Failure::usage("the server listens nowhere"))?;
        let folder = Arc::new(Folder::new(parent, server, Reachable(endpoint)).hidden());
        let host = OneDisk {
            folder: Arc::clone(&folder),
            name: name.clone(),
        };
        let target = TargetDriver::start("127.0.0.1:0", Arc::new(host)).map_err(|e| refused(&e))?;
        let address = format!("tcp:{}", target.address());
        let port = MovingBeside {
            port: ExportPort(self.export.clone()),
            folder,
            name: name.clone(),
        };
        let session = self.session(Arc::new(port), &address, &name, start)?;
        Ok(Moving {
            session,
            beside: Some(target),
        })
    }
}

fn state_of(moving: &Moving) -> Result<serde_json::Value> {
    let state = serde_json::to_value(moving.session.status());
    state.map_err(|e| Failure::new(Exit::Failed, format!("the state has no form: {e}")))
}

impl Control for Site {
    fn disks(&self) -> Vec<DiskState> {
        let state = |disk: &SiteDisk| DiskState {
            name: disk.export.name().to_owned(),
            path: disk.opened.path.display().to_string(),
            virtual_size: disk.export.size(),
            mirror: disk
                .lock()
                .as_ref()
                .and_then(|moving| state_of(moving).ok()),
        };
        self.disks.iter().map(state).collect()
    }

    fn start_mirror(&self, disk: &str, start: &StartMirror) -> Result<serde_json::Value> {
        self.disk(disk)?.start(&self.server, start)
    }

    fn mirror(&self, disk: &str) -> Result<serde_json::Value> {
        self.disk(disk)?.with_session(|_| {})
    }

    fn cutover(&self, disk: &str) -> Result<serde_json::Value> {
        self.disk(disk)?
            .with_session(|session| session.cutover(None))
    }

    fn cancel(&self, disk: &str) -> Result<serde_json::Value> {
        self.disk(disk)?.with_session(SourceHandle::cancel)
    }
}

impl SiteDisk {
    fn with_session(&self, order: impl FnOnce(&SourceHandle)) -> Result<serde_json::Value> {
        let moving = self.lock();
        let none = || Failure::usage(format!("`{}` is not being moved", self.export.name()));
        let moving = moving.as_ref().ok_or_else(none)?;
        order(&moving.session);
        state_of(moving)
    }
}
