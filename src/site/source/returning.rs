//! Disks that come back: each into its own file, which this process has open, while its clients are sent to who has it.
//!
//! Must never serve it here again but when the session that brings it says so, and never let it come while the move away
//! is not over.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use mirror::files::sidecar_path;
use mirror::net::{DiskPort, TargetHost};
use mirror::wire::DiskDescription;

use super::waiting::Harbour;
use super::{ExportPort, Site, SiteDisk};
use crate::failure::{Failure, Result};
use crate::site::Reachable;

/// How long who has the disk now may be faster than its word that it runs.
const WORD: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(20);
/// How long after the first of a server's disks the last one may come into service.
const ALL_THERE: Duration = Duration::from_mins(2);

impl Site {
    /// Clients elsewhere reach what is served here so.
    pub(crate) fn is_reachable(&self, at: Reachable) {
        let _ = self.harbour.reachable.set(at);
    }

    /// The disk of that name for who brings it back, if it has left.
    pub(crate) fn returning(&self, name: &str) -> Option<Arc<dyn DiskPort>> {
        let disk = self.disk(name).ok()?;
        disk.has_gone()
            .then(|| Arc::new(ExportPort(disk.export.clone())) as Arc<dyn DiskPort>)
    }

    /// The disk of that name is this host's again: serve it, if it had left.
    pub(crate) fn comes_home(&self, name: &str) -> io::Result<bool> {
        let Ok(disk) = self.disk(name) else {
            return Ok(false);
        };
        if !disk.has_gone() {
            return Ok(false);
        }
        disk.come_home()?;
        let path = disk.opened().path.clone();
        let way = super::way_back::of_owner(&path, super::way_back::kept_of(&path), false);
        if let Some(way) = way {
            disk.go_on_with(&way, &self.harbour);
        }
        Ok(true)
    }
}

impl SiteDisk {
    /// It is this host's again, durably: its clients' requests stay here from now on.
    fn come_home(&self) -> io::Result<()> {
        // First: nothing that the other host sends from now on may be sent back to it.
        self.export.come_back()?;
        // What was on its way when it came passes the other host, also when this one hands it over again.
        self.export.write_through();
        let mut moving = self.lock();
        let left = moving.take().inspect(|left| self.over(left));
        self.way().away = false;
        drop(moving);
        drop(left);
        self.stays_open();
        tracing::info!(disk = self.export.name(), "is served here again");
        Ok(())
    }
}

/// A receiving site for disks that have left, or will leave.
pub(super) struct Returning {
    /// By the names of their files.
    disks: Mutex<Vec<(String, Weak<SiteDisk>)>>,
    harbour: Weak<Harbour>,
    /// Where it waits.
    listen: String,
    since: Instant,
}

fn gone() -> io::Error {
    io::Error::other("the disk is not served here any more")
}

impl Returning {
    pub(super) fn new(harbour: &Arc<Harbour>, listen: &str) -> Self {
        Self {
            disks: Mutex::default(),
            harbour: Arc::downgrade(harbour),
            listen: listen.to_owned(),
            since: Instant::now(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(String, Weak<SiteDisk>)>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That disk will be waited for, unless another one of its name is.
    pub(super) fn expect(&self, disk: &Arc<SiteDisk>) -> Result<()> {
        let name = disk.name_here();
        let mut disks = self.lock();
        if disks.iter().any(|(known, _)| *known == name) {
            let what = format!(
                "another disk called {name} is waited for at {}",
                self.listen
            );
            return Err(Failure::usage(what).hint("name another address"));
        }
        disks.push((name, Arc::downgrade(disk)));
        Ok(())
    }

    /// That disk is waited for no more.
    pub(super) fn expect_no_more(&self, name: &str) {
        self.lock().retain(|(known, _)| known != name);
    }

    fn disk(&self, name: &str) -> io::Result<Arc<SiteDisk>> {
        let disks = self.lock();
        let found = disks.iter().find(|(known, _)| known == name);
        found.and_then(|(_, disk)| disk.upgrade()).ok_or_else(gone)
    }

    fn is_away(&self, name: &str) -> bool {
        self.disk(name).is_ok_and(|disk| disk.way().away)
    }

    /// Where the other host finds it.
    fn at(&self, name: &str) -> io::Result<String> {
        let disk = self.disk(name)?;
        let harbour = self.harbour.upgrade().ok_or_else(gone)?;
        let reachable = harbour.reachable.get().ok_or(io::ErrorKind::NotConnected)?;
        let reachable = reachable.seen_from(&self.listen);
        let reachable = reachable.map_err(|failure| io::Error::other(failure.what))?;
        Ok(reachable.address(disk.export.name()))
    }
}

impl TargetHost for Returning {
    fn takes(&self, name: &str) -> bool {
        self.disk(name).is_ok()
    }

    fn takes_more_later(&self) -> bool {
        // Disks of a server come into service one by one.
        self.since.elapsed() < ALL_THERE
    }

    fn in_use(&self, _name: &str) -> bool {
        true
    }

    fn disks(&self) -> io::Result<Vec<String>> {
        let names: Vec<String> = self.lock().iter().map(|(name, _)| name.clone()).collect();
        // One that is here is served already.
        let away = names.into_iter().filter(|name| self.is_away(name));
        Ok(away.collect())
    }

    fn record_path(&self, name: &str) -> PathBuf {
        let path = self.disk(name).map(|disk| disk.opened().path.clone());
        sidecar_path(&path.unwrap_or_default())
    }

    fn image_exists(&self, _name: &str) -> bool {
        true
    }

    fn create(&self, _description: &DiskDescription) -> io::Result<Arc<dyn DiskPort>> {
        Err(io::Error::other("the disk is in use here"))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskPort>> {
        let since = Instant::now();
        while !self.disk(name)?.way().away {
            if since.elapsed() > WORD {
                let what = "the move away from here is not over yet";
                return Err(io::Error::other(what));
            }
            thread::sleep(LOOK);
        }
        Ok(Arc::new(ExportPort(self.disk(name)?.export.clone())))
    }

    fn serve(&self, name: &str) -> io::Result<String> {
        let at = self.at(name)?;
        self.disk(name)?.come_home()?;
        Ok(at)
    }

    fn let_go(&self, _name: &str) {}

    fn served(&self, name: &str) -> Option<String> {
        if self.is_away(name) {
            return None;
        }
        self.at(name).ok()
    }
}

impl Reachable {
    /// The same for a host that reaches this one at `site`; a server that listens everywhere is reached there.
    pub(super) fn seen_from(&self, site: &str) -> Result<Self> {
        use blockserver::nbd::uri::Endpoint;
        let host = site.split_once(':').map_or(site, |(_, rest)| rest);
        let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let everywhere = |here: &String| ["0.0.0.0", "::"].contains(&here.as_str());
        let host = host.to_owned();
        match &self.0 {
            &Endpoint::Tcp {
                host: ref here,
                port,
            } if everywhere(here) => Ok(Self(Endpoint::Tcp { host, port })),
            &Endpoint::Tls {
                host: ref here,
                port,
            } if everywhere(here) => Ok(Self(Endpoint::Tls { host, port })),
            Endpoint::Unix(path)
                if !mirror::net::SiteAddress::parse(site).is_ok_and(|site| site.is_loopback()) =>
            {
                let what = format!(
                    "{}: a socket of this host, which the other one cannot reach",
                    path.display()
                );
                Err(Failure::usage(what).hint("serve with --listen tls:HOST:PORT first"))
            }
            _ => Ok(self.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use blockserver::nbd::uri::Endpoint;

    use super::*;

    #[test]
    fn who_brings_a_disk_back_is_told_an_address_that_it_can_reach() {
        let tcp = |host: &str| {
            let host = host.to_owned();
            Reachable(Endpoint::Tcp { host, port: 10809 })
        };
        let seen = |at: &Reachable, site| at.seen_from(site).map(|at| at.address("a"));
        let far = "tls:10.0.0.1:9001";
        assert_eq!(
            seen(&tcp("0.0.0.0"), far).unwrap(),
            tcp("10.0.0.1").address("a")
        );
        assert_eq!(
            seen(&tcp("::"), "tls:[fe80::1]:9001").unwrap(),
            tcp("fe80::1").address("a")
        );
        assert_eq!(
            seen(&tcp("10.0.0.7"), far).unwrap(),
            tcp("10.0.0.7").address("a")
        );
        let here = Reachable(Endpoint::Unix("/run/s".into()));
        assert!(seen(&here, "tcp:127.0.0.1:9001").is_ok());
        assert!(seen(&here, far).is_err());
    }
}
