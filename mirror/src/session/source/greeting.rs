//! From the target's word on what it has to the stream.
//!
//! Must never go on with a target that has lost what it acknowledged.

use super::{ConnId, Control, Error, ErrorKind, Left, Message, Micros, Phase, Result, Source};
use crate::wire::{Begin, Standing, Start, WayHome};

impl Source {
    pub(super) fn on_welcome(
        &mut self,
        now: Micros,
        conn: ConnId,
        standing: &Standing,
    ) -> Result<()> {
        if self.link.control() != Control::Greeting(conn) {
            return Err(Error::misbehaved("the target greeted twice"));
        }
        self.link.greeted();
        if self.switch.decided() {
            // Whatever it says it has: the grant is repeated until it runs.
            self.local.granted_at = None;
            if !matches!(standing, Standing::Prepared { .. } | Standing::Owner { .. }) {
                let what = "the target does not have the disk that was handed over to it; only \
                            its operator or an override here can help";
                self.end.trouble = Some(what.into());
            }
            return Ok(());
        }
        if self.switch.is_offered() {
            self.on_welcome_to_offer(now, standing);
            return Ok(());
        }
        let start = match standing {
            Standing::Owner { epoch } => {
                let what = format!(
                    "the target says that it owns the disk under epoch {epoch}; was it forced \
                     there? Nothing was handed over"
                );
                return Err(Error::new(ErrorKind::Refused, what));
            }
            Standing::Prepared { attempt } if *attempt > self.switch.aborted() => {
                // The commit request was lost with the link. No data flows on this connection.
                self.on_commit_request(*attempt);
                return Ok(());
            }
            Standing::Prepared { .. } | Standing::Receiving => Start::GoOn,
            Standing::Empty | Standing::Stale | Standing::Left { .. } if self.end.begun => {
                let what = "the target no longer has what it acknowledged; start a new session";
                return Err(Error::new(ErrorKind::PeerLostState, what));
            }
            Standing::Empty | Standing::Stale | Standing::Left { .. } if self.keeping.is_back() => {
                self.begin_another(now);
                return Ok(());
            }
            Standing::Left { session, epoch } if self.was_left((*session, *epoch)) => {
                self.copy.compare(true);
                Start::Same
            }
            Standing::Stale | Standing::Left { .. } if self.config.replica.compare => {
                self.know_nothing();
                // Also if the target should be empty when it is greeted again.
                self.copy.compare(true);
                Start::Compare
            }
            Standing::Empty | Standing::Stale | Standing::Left { .. } => {
                self.know_nothing();
                self.copy.compare(false);
                Start::Fresh
            }
        };
        let aborted = self.switch.aborted();
        self.send(
            now,
            conn,
            Message::Begin(Begin {
                start,
                acked: self.stream.acked(),
                aborted,
                follow: self.config.replica.follow,
                group: self.config.replica.group.as_ref().map(|place| place.group),
            }),
        );
        Ok(())
    }

    /// Where this host will wait for the disk once it has moved.
    fn way_home(&self) -> WayHome {
        let Some((address, seconds)) = self.config.replica.way_back.clone() else {
            return WayHome::default();
        };
        let group = self.config.replica.group.as_ref();
        let together = group.map(|place| place.together.lineages());
        WayHome {
            seconds,
            address,
            together: together.unwrap_or_default(),
        }
    }

    /// Whether the target has the disk as it was when this host got it, by both their records.
    fn was_left(&self, (session, epoch): (uuid::Uuid, u64)) -> bool {
        let left = self.config.replica.left;
        #[cfg(test)]
        if left.is_some() && self.broken(crate::session::Sabotage::TakeForTheSame) {
            return true;
        }
        left == Some(Left { session, epoch }) && self.config.replica.compare
    }

    /// The target may differ anywhere, whatever was thought of it.
    fn know_nothing(&mut self) {
        if self.config.replica.left.take().is_some() {
            self.copy.all();
        }
    }

    /// What the target has of the disk is of no use: the next greeting is for an empty one.
    pub(super) fn begin_anew_after(&mut self, now: Micros, why: String) {
        self.config.replica.compare = false;
        self.copy.compare(false);
        self.end.trouble = Some(why);
        self.lose_link(now);
    }

    /// The target has nothing of the session that came back: what is kept of it is not of use, another one begins.
    fn begin_another(&mut self, now: Micros) {
        let Some(session) = self.keeping.forget_the_past() else {
            return;
        };
        // Under its old name, a crash that came before it is kept would take up what is kept now.
        self.config.session = session;
        self.switch.rename(session);
        self.copy.all();
        self.end.trouble = Some("the target has nothing of the session that was kept".into());
        self.lose_link(now);
    }

    pub(super) fn on_begun(&mut self, now: Micros, window: u64, address: String) -> Result<()> {
        if !matches!(self.link.control(), Control::Beginning(_)) {
            return Err(Error::misbehaved("the target began twice"));
        }
        self.link.begun();
        self.local.offering.address = Some(address).filter(|address| !address.is_empty());
        self.end.begun = true;
        self.config.limits.window = self.config.limits.window.min(window);
        self.stream.restart(self.config.limits.window);
        self.cuts_begin_anew();
        self.copy.restart(&self.tracker);
        self.tick(now);
        self.send_control(now, Message::WayBack(self.way_home()));
        if self.switch.phase() == Phase::Preparing {
            // The question or its answer was lost with the link.
            self.send_prepare(now);
        }
        self.attach();
        Ok(())
    }
}
