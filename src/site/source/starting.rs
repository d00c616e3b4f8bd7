//! Moves are begun: of one disk, or of several that belong together.
//!
//! Must never leave one disk of a group moving when another one of it could not be begun with.

use std::path::Path;
use std::sync::Arc;

use blockserver::server::Server;
use mirror::arbiter::ArbiterName;
use mirror::net::{SiteAddress, SourceDriver, SourceHandle};
use mirror::saved::Kin;
use mirror::sequence::Place;
use mirror::wire::MAX_DISKS;
use uuid::Uuid;

use super::{Moving, Site, SiteDisk, refused, switching};
use crate::control::{Cutover, StartMirror};
use crate::failure::{Failure, Result};
use crate::identity;
use crate::site::beside::{self, Beside, MovingBeside};
use crate::site::foreign::{self, NbdServer};
use crate::site::kept;
use crate::site::port::ExportPort;

impl Site {
    /// Begin to move a disk, with those that are to be moved together with it.
    pub(super) fn begin(&self, disk: &str, start: &StartMirror) -> Result<serde_json::Value> {
        let first = self.disk(disk)?;
        if start.together_with.is_empty() {
            return first.start(self, start, None);
        }
        let mut disks = vec![first];
        for name in &start.together_with {
            let other = self.disk(name)?;
            if disks.iter().any(|known| Arc::ptr_eq(known, &other)) {
                return Err(Failure::usage(format!("`{name}` is named twice")));
            }
            disks.push(other);
        }
        let may = SiteAddress::is_written(&start.to) && start.cutover == Cutover::Manual;
        if !may || disks.len() > usize::from(MAX_DISKS) {
            let what = format!(
                "only disks that follow, at most {MAX_DISKS}, are mirrored together: with --manual, to another host"
            );
            return Err(Failure::usage(what));
        }
        if start.way_back.is_some() {
            lie_in_one_folder(&disks)?;
        }
        let kin = disks.iter().map(|disk| disk.kin());
        let places = Place::all(kin.collect::<Result<_>>()?, Uuid::new_v4());
        let mut states = Vec::new();
        let mut start = start.clone();
        for (number, (disk, place)) in disks.iter().zip(places).enumerate() {
            match disk.start(self, &start, Some(place)) {
                Ok(state) => {
                    states.push(state);
                    // All come back to one place, also if any would do.
                    start.way_back = start.way_back.and_then(|_| disk.waits_at());
                }
                Err(error) => {
                    for begun in disks.iter().take(number) {
                        // It has ended itself if it is not there any more.
                        let _ = begun.with_session(SourceHandle::cancel);
                    }
                    return Err(error);
                }
            }
        }
        states
            .into_iter()
            .next()
            .ok_or_else(|| Failure::usage("no disk is named"))
    }
}

/// Disks that come back together have their record in the folder where they all lie.
fn lie_in_one_folder(disks: &[Arc<SiteDisk>]) -> Result<()> {
    let mut folders = disks.iter().map(|disk| {
        let path = disk.opened().path.clone();
        let real = path.canonicalize().unwrap_or(path);
        real.parent().map(Path::to_owned)
    });
    let first = folders.next();
    if folders.all(|folder| Some(folder) == first) {
        return Ok(());
    }
    let what = "disks that are mirrored together have a way back only if they lie in one folder";
    Err(Failure::usage(what).hint("begin each by itself, or without --way-back"))
}

impl SiteDisk {
    /// What the others of its group know of it.
    fn kin(&self) -> Result<Kin> {
        let opened = self.opened();
        let record = SourceDriver::record(&opened.record());
        Ok(Kin {
            disk: record.map_err(|e| refused(&e))?.disk,
            name: self.name_here(),
            path: opened.path.display().to_string(),
        })
    }

    /// Begin to move the disk, as one of a group if it has a place in one.
    fn start(
        self: &Arc<Self>,
        site: &Site,
        start: &StartMirror,
        place: Option<Place>,
    ) -> Result<serde_json::Value> {
        let arbiter = switching::arbiter(start)?;
        let mut moving = self.lock();
        self.stays(moving.as_ref())?;
        if self.opened().read_only {
            let what = format!("`{}` is served read-only", self.export.name());
            return Err(Failure::usage(what).hint("serve it without --read-only to move it"));
        }
        let old = moving.take().inspect(|old| self.over(old));
        if let Some(beside) = old.and_then(|old| old.beside) {
            let failed = |e| Failure::io("what an earlier move left cannot be closed", &e);
            beside.abandon().map_err(failed)?;
        }
        let way_back = self.new_way(start, &site.harbour)?;
        let started = if foreign::is_written(&start.to) {
            self.start_foreign(&site.server, start)
        } else if SiteAddress::is_written(&start.to) {
            self.start_to(start, (arbiter, way_back), place)
        } else {
            self.start_beside(&site.server, start)
        };
        let started = started.inspect_err(|_| self.close_way())?;
        let status = self.state_of(&started);
        *moving = Some(started);
        status
    }

    /// Move the disk to another host.
    fn start_to(
        &self,
        start: &StartMirror,
        (arbiter, way_back): (Option<ArbiterName>, Option<(String, u64)>),
        place: Option<Place>,
    ) -> Result<Moving> {
        identity::allowed(&start.to, start.plain)?;
        let port = Arc::new(ExportPort(self.export.clone()));
        let mut config = self.config(&start.to, &self.name_here(), start);
        config.replica.way_back = way_back;
        // What is at another path of this host would be lost with it.
        config.replica.follow = !config.handover.automatic;
        let opened = self.opened();
        let (keep, kept) = kept::keep(&opened);
        config.keep = keep;
        config.replica.group = place;
        config.handover.arbiter = arbiter;
        let session = SourceDriver::start_kept(port, opened.record(), (config, kept));
        Ok(Moving::to(session.map_err(|e| refused(&e))?))
    }

    /// Move the disk to an export of a server that is not ours.
    fn start_foreign(&self, server: &Arc<Server>, start: &StartMirror) -> Result<Moving> {
        if start.deadline_s.is_some() {
            return Err(Failure::usage("a move to an NBD server keeps no deadline"));
        }
        let address = foreign::address(&start.to, start.plain)?;
        identity::needed_at(&address)?;
        if foreign::is_one_of(&address.endpoint, &server.local_addresses()) {
            let what = format!("{address}: that is this server itself");
            return Err(
                Failure::usage(what).hint("name a path to move the disk to another one here")
            );
        }
        if let Some(behind) = self.opened().disk.behind()
            && foreign::may_be_same(&address, behind)
        {
            let what = format!("{address}: that is where the disk is already");
            return Err(Failure::usage(what));
        }
        let config = self.config(&address.to_string(), &self.name_here(), start);
        self.export.others_are_late();
        let port = Arc::new(ExportPort(self.export.clone()));
        let server = Arc::new(NbdServer(address));
        let store = self.opened().record();
        let session =
            SourceDriver::start_foreign(port, server, store, (config, start.without_flush));
        Ok(Moving::to(session.map_err(|e| refused(&e))?))
    }

    /// Move the disk to another path of this host: both ends of the session are here.
    fn start_beside(&self, server: &Arc<Server>, start: &StartMirror) -> Result<Moving> {
        let to = Path::new(&start.to);
        if !to.is_absolute() {
            let what = format!(
                "`{}` is neither tls:HOST:PORT, tcp:HOST:PORT, an NBD address nor an absolute path",
                to.display()
            );
            return Err(Failure::usage(what));
        }
        if !beside::is_free(to)? {
            let what = format!("{}: exists already", to.display());
            return Err(Failure::usage(what).hint("name a file that does not exist yet"));
        }
        let beside = Beside::start(server, to)?;
        let arriving = beside.arriving().clone();
        let mut config = self.config(&beside.address(), arriving.name(), start);
        // The port is another after a restart, the path is not.
        config.recorded = Some(start.to.clone());
        let port = MovingBeside {
            port: ExportPort(self.export.clone()),
            arriving,
        };
        let session = self.session(Arc::new(port), config)?;
        Ok(Moving {
            session,
            beside: Some(beside),
            back: false,
            counted: false,
        })
    }
}
