//! The way back of a disk, at either end of it: who waits for it, who keeps the copy there in step, and for how long.
//!
//! ```text
//!  home   listens ─moved─► away: clients are sent on, the disk may come ─it has come─► served here, listens on
//!                                   └─ window over ─► listens no more, sends on
//!  away   told of it ─owned here─► a session keeps the copy there in step ─rollback─► handed over, sends on
//!                                   └─ window over, or cancelled ─► ends it
//! ```
//!
//! Must never have a disk come home before the move away from it is durably over.

use std::net::IpAddr;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mirror::net::SiteAddress;
use mirror::record::{Ownership, State};
use mirror::way_back::{Side, WayBack};
use serde_json::{Value, json};

use super::waiting::{Harbour, Waiting};
use super::{Moving, SiteDisk, way_back};
use crate::control::StartMirror;
use crate::failure::{Exit, Failure, Result};
use crate::identity;

/// How often it is looked whether something has changed.
const LOOK: Duration = Duration::from_millis(200);
/// How long after something has failed it is tried again, at first.
const AGAIN: Duration = Duration::from_secs(2);
/// How often that is doubled.
const MOST_DOUBLED: u32 = 8;
/// The same of a disk for which others wait: so that it comes before they give up.
const MOST_DOUBLED_TOGETHER: u32 = 3;
/// How long a way back is open if nothing else is said.
const DAY: u64 = 24 * 3600;
/// For how many seconds more than the other host this one takes a way back for open.
const GRACE: u64 = 60;

/// What a disk has of a way back.
#[derive(Default)]
pub(super) struct Way {
    pub(super) kept: Option<WayBack>,
    /// Where it is waited for.
    listening: Option<Waiting>,
    /// It has left, or was found on its way back: nothing is done to it but by who brings it.
    pub(super) away: bool,
    /// Somebody looks after it.
    tended: bool,
    tried: Option<Instant>,
    /// How often in a row what was tried has failed.
    pub(super) failures: u32,
    /// What it has in common with the others here, for who waits or goes back anew.
    pub(super) harbour: Option<Arc<Harbour>>,
}

impl Way {
    /// Whether it is time to try again: each time later, but before others that wait for it give up.
    pub(super) fn is_due(&mut self, others_wait: bool) -> bool {
        let most = if others_wait {
            MOST_DOUBLED_TOGETHER
        } else {
            MOST_DOUBLED
        };
        let wait = AGAIN * 2_u32.pow(self.failures.min(most));
        let due = self.tried.is_none_or(|tried| tried.elapsed() >= wait);
        if due {
            self.tried = Some(Instant::now());
        }
        due
    }
}

/// What is to be done once nothing is locked.
pub(super) enum Next {
    Nothing,
    /// Nobody waits for the disk any more.
    Drop(Option<Waiting>),
    /// Wait for it there, where nobody does.
    Listen(String),
    /// There is nothing to look after.
    End,
}

impl SiteDisk {
    pub(super) fn way(&self) -> MutexGuard<'_, Way> {
        self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way back of a move that is about to begin, as its target is told; another one is closed.
    pub(super) fn new_way(
        self: &Arc<Self>,
        start: &StartMirror,
        harbour: &Arc<Harbour>,
    ) -> Result<Option<(String, u64)>> {
        let path = self.opened().path.clone();
        self.wait_no_more();
        if way_back::kept_of(&path).is_some() {
            way_back::keep(&path, None);
        }
        let Some(listen) = &start.way_back else {
            return Ok(None);
        };
        self.is_here("way back")?;
        if !SiteAddress::is_written(&start.to) {
            let what = "a move has a way back only from another host that runs `diskferry receive`";
            return Err(Failure::usage(what));
        }
        identity::allowed(listen, start.plain)?;
        let Some(at) = harbour.reachable.get() else {
            let what = format!("`{}` is served at no address", self.export.name());
            return Err(Failure::usage(what).hint("serve it with `diskferry serve`"));
        };
        identity::passes_on(listen, &at.seen_from(listen)?.0, start.plain)?;
        let listening = harbour.wait_for(self, listen)?;
        can_be_told(listening.handle().address().ip(), listen, &start.to)?;
        let way = WayBack {
            span: start.way_back_for_s.unwrap_or(DAY),
            until: None,
            side: Side::Home {
                listen: listening.handle().site(),
                clients: None,
            },
        };
        way_back::keep(&path, Some(&way));
        let told = way_back::told(Some(&way));
        let mut mine = self.way();
        mine.kept = Some(way);
        mine.listening = Some(listening);
        mine.harbour = Some(Arc::clone(harbour));
        mine.failures = 0;
        drop(mine);
        self.tend();
        Ok(told)
    }

    /// Go on with a way back that was kept.
    pub(super) fn go_on_with(self: &Arc<Self>, kept: &WayBack, harbour: &Arc<Harbour>) {
        let mut way = self.way();
        let over = self.closes(kept);
        way.kept = Some(kept.clone());
        way.harbour = Some(Arc::clone(harbour));
        if let Side::Home { listen, clients } = &kept.side {
            // Who has a record of a session here and no session of its own found it on its way back.
            way.away = self.lock_is_none() && self.comes_back();
            if let (true, Some(clients)) = (way.away, clients) {
                match clients.parse() {
                    Ok(address) => self.export.forward(address),
                    Err(error) => tracing::error!(%clients, %error, "is no address of a disk"),
                }
            }
            let waits = way.listening.is_some();
            drop(way);
            if !over && !waits {
                self.wait_at(listen);
            }
        } else {
            drop(way);
        }
        self.tend();
    }

    /// Wait for the disk there; if that cannot be now, later.
    fn wait_at(self: &Arc<Self>, listen: &str) {
        let Some(harbour) = self.way().harbour.clone() else {
            return;
        };
        // It asks after the way by itself.
        let listening = harbour.wait_for(self, listen);
        let mut way = self.way();
        way.tried = Some(Instant::now());
        match listening {
            Ok(listening) => {
                way.failures = 0;
                // Another way may have been begun meanwhile.
                let there = |kept: &WayBack| matches!(&kept.side, Side::Home { listen: at, .. } if at == listen);
                if way.listening.is_none() && way.kept.as_ref().is_some_and(there) {
                    way.listening = Some(listening);
                } else {
                    // It may ask after the way at this moment.
                    drop(way);
                    drop(listening);
                }
            }
            Err(failure) => {
                way.failures = way.failures.saturating_add(1);
                let name = self.export.name();
                tracing::error!("{name}: its way back is closed for now: {}", failure.what);
            }
        }
    }

    /// Whether the record says that the disk is on its way back here.
    fn comes_back(&self) -> bool {
        let opened = self.opened();
        let way = way_back::kept_of(&opened.path);
        opened.away(way.as_ref()).is_some()
    }

    fn lock_is_none(&self) -> bool {
        // Nobody else knows of the disk yet.
        self.moving.try_lock().is_ok_and(|moving| moving.is_none())
    }

    /// Where it is waited for, or will be.
    pub(super) fn waits_at(&self) -> Option<String> {
        let way = self.way();
        Some(way.listening.as_ref()?.handle().site())
    }

    /// There is no way back after all.
    pub(super) fn close_way(&self) {
        if self.way().kept.is_some() {
            self.wait_no_more();
            way_back::keep(&self.opened().path, None);
        }
    }

    /// Nobody waits for the disk any more.
    pub(super) fn wait_no_more(&self) {
        let listening = {
            let mut way = self.way();
            way.kept = None;
            way.listening.take()
        };
        drop(listening);
    }

    /// Look after it from now on, on a thread of its own.
    fn tend(self: &Arc<Self>) {
        if std::mem::replace(&mut self.way().tended, true) {
            return;
        }
        let disk = Arc::downgrade(self);
        let run = move || {
            while disk.upgrade().is_some_and(|disk| disk.look()) {
                thread::sleep(LOOK);
            }
        };
        let started = thread::Builder::new().name("way-back".into()).spawn(run);
        if let Err(error) = started {
            tracing::error!(%error, "nobody looks after the way back");
            self.way().tended = false;
        }
    }

    /// Do what there is to do now; whether to look again.
    fn look(self: &Arc<Self>) -> bool {
        let mut moving = self.lock();
        let kept = self.way().kept.clone();
        let next = match &kept {
            None => Next::End,
            Some(kept) if matches!(kept.side, Side::Home { .. }) => {
                self.look_at_home(moving.as_ref(), kept)
            }
            Some(kept) => self.look_when_away(&mut moving, kept),
        };
        let mut way = self.way();
        match next {
            Next::Nothing => true,
            Next::Drop(listening) => {
                drop((way, moving));
                drop(listening);
                true
            }
            Next::Listen(at) => {
                drop((way, moving));
                self.wait_at(&at);
                true
            }
            Next::End => {
                way.tended = false;
                false
            }
        }
    }

    fn look_at_home(&self, moving: Option<&Moving>, kept: &WayBack) -> Next {
        let mut way = self.way();
        let path = self.opened().path.clone();
        let (now, mut kept) = (way_back::now(), kept.clone());
        let left = moving.filter(|moving| moving.is_done());
        if !way.away
            && left.is_some()
            && let Some(address) = self.export.forwards_to()
            && let Side::Home { clients, .. } = &mut kept.side
        {
            *clients = Some(address.to_string());
            kept.until = kept.until.or(Some(now.saturating_add(kept.span)));
            // Not before that is durable: what comes next may leave nothing but it to tell where the disk is.
            if way_back::keep(&path, Some(&kept)) {
                way.kept = Some(kept.clone());
                way.away = true;
            }
        }
        let failed = moving.is_some_and(|moving| moving.session.status().error.is_some());
        if kept.until.is_none() && failed {
            // The disk stays here.
            way_back::keep(&path, None);
            way.kept = None;
            return Next::Drop(way.listening.take());
        }
        if !self.closes(&kept) {
            return match &kept.side {
                Side::Home { listen, .. } if way.listening.is_none() && way.is_due(false) => {
                    Next::Listen(listen.clone())
                }
                _ => Next::Nothing,
            };
        }
        if !way.away {
            way_back::keep(&path, None);
            way.kept = None;
        } else if way.listening.is_none() {
            return Next::End;
        }
        Next::Drop(way.listening.take())
    }

    /// Whether nobody is waited for any more: who has the disk ends it first, and one that has been prepared here is for who
    /// waits to decide about.
    fn closes(&self, kept: &WayBack) -> bool {
        if !kept.is_over(way_back::now().saturating_sub(GRACE)) {
            return false;
        }
        let record = self.opened().record().load();
        !matches!(
            record,
            Ok(Some(Ownership {
                state: State::Prepared { .. },
                ..
            }))
        )
    }

    /// It has come home: who had it is told so for a while, should it not have heard.
    pub(super) fn stays_open(&self) {
        let mut way = self.way();
        if let Some(kept) = &mut way.kept
            && matches!(kept.side, Side::Home { .. })
        {
            let least = way_back::now().saturating_add(DAY);
            kept.until = kept.until.map(|until| until.max(least));
            way_back::keep(&self.opened().path, Some(kept));
        }
    }

    /// How a move stands, and what there is of a way back.
    pub(super) fn state_of(&self, moving: &Moving) -> Result<Value> {
        let state = serde_json::to_value(moving.session.status());
        let mut state =
            state.map_err(|e| Failure::new(Exit::Failed, format!("the state has no form: {e}")))?;
        let way = self.way();
        if let Some(kept) = &way.kept {
            state["way_back"] = match &kept.side {
                Side::Home { listen, .. } => json!({
                    "until": kept.until,
                    "waits_at": listen,
                    "waits": way.listening.is_some(),
                }),
                Side::Away { to, .. } => json!({
                    "until": kept.until,
                    "to": to,
                    "under_way": moving.back,
                }),
            };
        }
        Ok(state)
    }
}

/// Whether the other host, at `to`, can bring the disk to who listens at `ip`, as `listen` came out to be.
fn can_be_told(ip: IpAddr, listen: &str, to: &str) -> Result<()> {
    let hint = "name an address of this host by which the other one reaches it";
    if ip.is_unspecified() {
        let what = format!("`{listen}` is no address to which the disk could be brought back");
        return Err(Failure::usage(what).hint(hint));
    }
    let near = SiteAddress::parse(to).is_ok_and(|to| to.is_loopback());
    if ip.is_loopback() && !near {
        let what = format!("`{listen}` is {ip} here, which the other host cannot reach");
        return Err(Failure::usage(what).hint(hint));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_back_that_the_other_host_could_not_go_is_refused() {
        let told = |ip: &str, to| can_be_told(ip.parse().unwrap(), "tls:name:9001", to);
        let far = "tls:10.0.0.2:9000";
        assert!(told("10.0.0.1", far).is_ok());
        // What Debian makes of a host's own name.
        assert!(told("127.0.1.1", far).is_err());
        assert!(told("0.0.0.0", far).is_err());
        assert!(told("::", far).is_err());
        assert!(told("127.0.0.1", "tcp:127.0.0.1:9000").is_ok());
    }

    #[test]
    fn what_fails_again_and_again_is_tried_later_each_time() {
        let tried = Instant::now().checked_sub(AGAIN * 2);
        let due = |failures| {
            Way {
                tried,
                failures,
                ..Way::default()
            }
            .is_due(false)
        };
        assert!(due(0));
        assert!(!due(2));
    }
}
