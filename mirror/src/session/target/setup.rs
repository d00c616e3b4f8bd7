//! The target's way from a greeting to the stream: quiet the disk, empty it if need be, write down
//! for whom it is.
//!
//! Must never let a session's record be durable before the disk it speaks of is empty or its own.

use super::{
    ConnId, Error, ErrorKind, Hello, Message, Micros, OpId, Result, Standing, State, Target,
    TargetAction, Upto,
};
use crate::record::Ownership;
use crate::wire::{Begin, Refusal, Start};

/// What is done for the source that said `Begin`, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Idle,
    /// Operations and the flush of an earlier stream end.
    Quieting,
    /// The record says that what the disk holds means nothing.
    Emptying,
    /// The image is created or opened.
    Opening,
    /// The disk's group settles which cut it names of the disk.
    Leaving,
    /// What is sealed in the journal is carried over, for a disk that is as the source's was at a moment.
    Carrying,
    /// A journal is made for such a disk.
    Starting,
    /// The record says whose data the disk holds.
    Recording,
}

#[derive(Debug, Default)]
pub(super) struct Setup {
    step: Step,
    /// What was said, by whom.
    begin: Option<(Hello, Begin)>,
    /// A step's action is under way.
    asked: bool,
    /// That of the steps Carrying and Starting, and how far the first carries.
    op: Option<OpId>,
    upto: Option<Upto>,
    /// Whether the disk's group has to settle first, once it is known.
    settles: Option<bool>,
    /// A greeting that waits until nothing is half-way.
    waiting: Option<(ConnId, Hello)>,
    /// Whether the image is open, and for which session.
    open_for: Option<uuid::Uuid>,
}

impl Setup {
    pub(super) fn is_idle(&self) -> bool {
        self.step == Step::Idle && self.waiting.is_none()
    }

    /// Whether something is being done for a source that said how to begin.
    pub(super) fn has_begun(&self) -> bool {
        self.begin.is_some()
    }

    pub(super) fn forget(&mut self, conn: ConnId) {
        if self.waiting.as_ref().is_some_and(|(c, _)| *c == conn) {
            self.waiting = None;
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open_for.is_some()
    }

    pub(super) fn opened_for_takeover(&mut self, session: uuid::Uuid) {
        self.open_for = Some(session);
    }
}

impl Target {
    pub(super) fn on_hello(&mut self, now: Micros, conn: ConnId, hello: Hello) {
        let known = [&self.lanes.control, &self.setup.waiting];
        let newer = known.into_iter().flatten().any(|(_, other)| {
            other.session == hello.session && other.incarnation >= hello.incarnation
        });
        if newer {
            let text = "a newer connection of that session is here".to_owned();
            self.refuse(conn, Refusal::Unknown, text);
            return;
        }
        if let Some((old, _)) = self.setup.waiting.replace((conn, hello)) {
            self.actions.push_back(TargetAction::Close(old));
        }
        self.pump_setup(now);
    }

    /// Answer a greeting: only what is durable, so not while a record is being written.
    fn greet(&mut self, now: Micros) {
        if self.setup.step != Step::Idle || self.switch.busy() || !self.markers.is_settled() {
            return;
        }
        let Some((conn, hello)) = self.setup.waiting.take() else {
            return;
        };
        match self.switch.standing(&hello) {
            Err((refusal, text)) => self.refuse(conn, refusal, text),
            Ok(standing) => {
                let begins = matches!(
                    standing,
                    Standing::Empty | Standing::Stale | Standing::Left { .. }
                );
                if begins && let Some(text) = self.config.admission.refuses(&hello.description) {
                    return self.refuse(conn, Refusal::CannotCreate, text);
                }
                self.drop_lanes();
                self.lanes.control = Some((conn, hello));
                self.lanes.heard = now;
                self.send(now, Message::Welcome(standing));
            }
        }
    }

    pub(super) fn on_begin(&mut self, begin: Begin) -> Result<()> {
        let Some((_, hello)) = self.lanes.control.clone() else {
            return Ok(());
        };
        if self.setup.step != Step::Idle || self.streaming || self.switch.busy() {
            return Err(Error::misbehaved("the source began twice"));
        }
        let standing = self
            .switch
            .standing(&hello)
            .map_err(|(_, text)| Error::new(ErrorKind::PeerMisbehaved, text))?;
        let allowed = match standing {
            Standing::Empty => begin.start == Start::Fresh,
            Standing::Stale => matches!(begin.start, Start::Fresh | Start::Compare),
            Standing::Left { .. } => begin.start != Start::GoOn,
            Standing::Receiving => begin.start == Start::GoOn,
            Standing::Prepared { attempt } => {
                begin.start == Start::GoOn && begin.aborted >= attempt
            }
            Standing::Owner { .. } => false,
        };
        if !allowed {
            let what = format!("the source began in a way that {standing:?} does not allow");
            return Err(Error::misbehaved(what));
        }
        if begin.start == Start::Fresh && self.config.in_use {
            let what = "the disk is in use here, and is not begun anew from an empty one";
            return Err(Error::new(ErrorKind::NotOwned, what));
        }
        if self.is_of_another_group(begin) {
            let what = "the source goes on with a disk as one of another group";
            return Err(Error::misbehaved(what));
        }
        self.setup.begin = Some((hello, begin));
        self.setup.step = Step::Quieting;
        self.setup.asked = false;
        self.setup.settles = None;
        Ok(())
    }

    /// Carry the setup on as far as it goes now.
    pub(super) fn pump_setup(&mut self, now: Micros) {
        self.greet(now);
        let Some((hello, begin)) = self.setup.begin.clone() else {
            return;
        };
        if self.setup.step == Step::Quieting && self.apply.is_still() && self.markers.is_still() {
            self.setup.step = if begin.start == Start::Fresh {
                Step::Emptying
            } else {
                Step::Opening
            };
        }
        if self.refuses_to_go_on(now) {
            return;
        }
        let (session, epoch) = (hello.session, hello.epoch);
        if self.setup.step == Step::Emptying {
            let state = State::Emptying { session, epoch };
            if self.wrote(&hello, &state) {
                self.setup.step = Step::Opening;
                self.setup.asked = false;
            }
        }
        if self.setup.step == Step::Opening && !self.setup.asked {
            if begin.start == Start::GoOn && self.setup.open_for == Some(session) {
                self.setup.step = Step::Carrying;
            } else {
                self.setup.asked = true;
                let description = Some(hello.description.clone());
                self.actions.push_back(TargetAction::Open {
                    description,
                    fresh: begin.start == Start::Fresh,
                });
            }
        }
        self.pump_journal(session, begin);
        let following = self.follows(begin);
        let group = following.then(|| self.membership_of(begin)).flatten();
        let state = if following {
            State::Following {
                session,
                epoch,
                group,
            }
        } else {
            State::Receiving { session, epoch }
        };
        if self.setup.step == Step::Recording && self.wrote(&hello, &state) {
            self.setup.step = Step::Idle;
            self.setup.begin = None;
            self.markers.begin(following, begin.group);
            self.begun(now, &hello, begin);
        }
    }

    /// A disk that became this host's own is not made into anything else, whoever asked for that before.
    fn refuses_to_go_on(&mut self, now: Micros) -> bool {
        let owned = match self.switch.state() {
            Some(State::Owner { .. } | State::Offered { .. } | State::Bound { .. }) => true,
            // What was handed over may come back.
            _ => false,
        };
        if owned {
            self.setup.step = Step::Idle;
            self.setup.begin = None;
            let what = "this host owns that disk itself";
            self.fail(now, &Error::new(ErrorKind::NotOwned, what));
        }
        owned
    }

    /// Whether the disk is as the source's was at a moment, but for what is in the journal, and is to stay so.
    fn follows(&self, begin: Begin) -> bool {
        match self.switch.state() {
            // A session that compares may not want it.
            // Nor does it go on from a moment of one group to one of another.
            Some(State::Following { group, .. }) => {
                let same = group.map(|group| group.id) == begin.group.map(|group| group.id);
                begin.start == Start::GoOn || (begin.follow && same)
            }
            Some(State::Prepared { .. }) => begin.follow,
            _ => false,
        }
    }

    /// Have the journal ready for a disk that follows.
    fn pump_journal(&mut self, session: uuid::Uuid, begin: Begin) {
        if self.setup.op.is_some() {
            return;
        }
        if self.setup.step == Step::Carrying && self.setup.settles.is_none() {
            self.setup.settles = Some(self.follows(begin) && self.has_to_settle(begin));
            self.leave_cuts_for(begin);
            if self.setup.settles == Some(true) {
                self.setup.step = Step::Leaving;
                return;
            }
        }
        if self.setup.step == Step::Carrying {
            self.setup.step = match self.switch.state() {
                _ if !self.follows(begin) => Step::Recording,
                Some(State::Following { .. }) => Step::Carrying,
                // What was final is in the disk.
                _ => Step::Starting,
            };
        }
        let op = self.apply.next_op();
        match self.setup.step {
            // A crash may have come between sealing and carrying over.
            Step::Carrying => {
                let upto = self.safe_to_carry();
                self.setup.upto = Some(upto);
                self.actions.push_back(TargetAction::Apply(op, upto));
            }
            #[rustfmt::skip]
            Step::Starting => {
                let action = TargetAction::StartJournal { op, session, seq: 0 };
                self.actions.push_back(action);
            }
            _ => return,
        }
        self.setup.op = Some(self.apply.take_op());
    }

    /// What the group was told of the journal holds on only if that goes on as it is.
    fn leave_cuts_for(&mut self, begin: Begin) {
        if !self.is_joined() || begin.start != Start::GoOn {
            self.leave_cuts();
        }
    }

    /// The group has settled which cut it names of this disk.
    pub(super) fn on_left(&mut self, cut: Option<(uuid::Uuid, u64)>) {
        if self.setup.step == Step::Leaving {
            self.config.cut = cut;
            self.setup.step = Step::Carrying;
        }
    }

    /// An operation ended well; whether it was the one of the setup.
    pub(super) fn setup_went_on(&mut self, op: OpId) -> bool {
        let own = self.setup.op.take_if(|own| *own == op).is_some();
        if own {
            let compares = |(_, begin): &(Hello, Begin)| begin.start == Start::Compare;
            self.setup.step = match self.setup.step {
                // What an earlier session appended and did not seal counts no more.
                Step::Carrying if self.setup.begin.as_ref().is_some_and(compares) => Step::Starting,
                Step::Starting => {
                    self.journaled.begin();
                    Step::Recording
                }
                _ => {
                    let upto = self.setup.upto.take().unwrap_or(Upto::Nothing);
                    self.journaled.carried_over(upto);
                    Step::Recording
                }
            };
        }
        own
    }

    /// An operation failed: if it was the one of the setup, that is over.
    pub(super) fn setup_failed(&mut self, op: OpId) {
        if self.setup.op.take_if(|own| *own == op).is_some() {
            self.setup.step = Step::Idle;
            self.setup.begin = None;
        }
    }

    /// Whether `state` is the durable one; has it written if not.
    fn wrote(&mut self, hello: &Hello, state: &State) -> bool {
        if self.switch.busy() {
            return false;
        }
        if self.switch.state() == Some(state) {
            return true;
        }
        self.persist(hello.disk, state.clone());
        false
    }

    fn begun(&mut self, now: Micros, hello: &Hello, begin: Begin) {
        let current = self.lanes.control.as_ref().is_some_and(|(_, current)| {
            current.session == hello.session && current.incarnation == hello.incarnation
        });
        if current {
            self.apply.restart(begin.acked);
            self.markers.clear();
            self.done_count = 0;
            self.streaming = true;
            self.send(
                now,
                Message::Begun {
                    window: self.config.window,
                    address: self.config.address.clone().unwrap_or_default(),
                    templates: self.config.templates > 0,
                },
            );
        }
        self.greet(now);
    }

    pub(super) fn on_opened(&mut self, now: Micros, result: std::io::Result<()>) {
        if self.takeover.is_opening() {
            self.on_opened_for_takeover(now, result.is_ok());
            return;
        }
        let Some((hello, begin)) = self.setup.begin.clone() else {
            return;
        };
        self.setup.asked = false;
        match result {
            Ok(()) => {
                self.setup.open_for = Some(hello.session);
                self.apply.set_size(hello.description.size);
                self.setup.step = Step::Carrying;
            }
            Err(e) => {
                self.setup.open_for = None;
                self.setup.step = Step::Idle;
                self.setup.begin = None;
                let seed = self.switch.record().is_some_and(Ownership::is_seed);
                let (refusal, text) = match begin.start {
                    // Somebody brought it here, and may have meant another.
                    Start::Compare if seed => {
                        let text = format!("the seed that is here is of no use: {e}");
                        (Refusal::CannotCreate, text)
                    }
                    Start::Compare | Start::Same => {
                        // What cannot be opened now may be whole all the same.
                        let refusal = match e.kind() {
                            std::io::ErrorKind::InvalidData if !self.config.in_use => {
                                Refusal::Unusable
                            }
                            _ => Refusal::CannotCreate,
                        };
                        let text = format!("cannot go on from what is here of the disk: {e}");
                        (refusal, text)
                    }
                    _ => {
                        let text = format!("cannot create the disk: {e}");
                        (Refusal::CannotCreate, text)
                    }
                };
                self.send(now, Message::Refused { refusal, text });
                self.drop_lanes();
            }
        }
    }
}

#[cfg(test)]
mod tests;
