//! Sessions: from the first change after an open to the parking of the image.
//!
//! A session opens at the first change (MS-VHDX 2.2.2: new GUIDs before anything else):
//!
//! ```text
//!   (where changes are tracked) the tracker's header names both versions | flush
//!   header: new FileWriteGuid, DataWriteGuid, log empty | flush
//!   cut the file to what is in use; place and reserve the log; its first, empty entry | flush
//!   header: LogGuid | flush | the same in the other copy | flush
//! ```
//!
//! The first entry is there before a header names its GUID, so that no crash leaves a log that
//! claims entries and has none. Parking is the way back:
//!
//! ```text
//!   (where changes are tracked) all that is noted is complete | flush
//!   a flush round (with the metadata page, if the mark changes)
//!   all logged pages to their places | flush
//!   header: log empty | flush | the same in the other copy | flush
//!   cut the file to what is in use | flush
//! ```

use std::collections::VecDeque;

use bytes::Bytes;

use super::{GuidSource, Vhdx};
use crate::engine::ops::Purpose;
use crate::engine::step::Run;
use crate::engine::{Engine, FileOpKind, Mark, RequestId};
use crate::error::{Error, Result};
use crate::format::Region;
use crate::format::header::Slot;
use crate::format::metadata::set_mark;
use crate::format::{Guid, Header};
use crate::units::FileOffset;

/// One thing to do; the next begins when it has ended.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// What is noted of changes begins with the session, or is complete at its end.
    TrackOpen,
    TrackClose,
    /// Write a header to the other slot, naming the log as empty or as in use.
    Header {
        log: bool,
    },
    Flush,
    /// Cut or lengthen the file to what is in use.
    Cut,
    /// Place and reserve the log.
    PlaceLog,
    /// Write the first entry of the log.
    FirstEntry,
    /// A flush round.
    Round,
    /// Every logged page to its place.
    Checkpoint,
}

const OPENING: &[Step] = &[
    Step::TrackOpen,
    Step::Header { log: false },
    Step::Flush,
    Step::PlaceLog,
    Step::Cut,
    Step::FirstEntry,
    Step::Flush,
    Step::Header { log: true },
    Step::Flush,
    Step::Header { log: true },
    Step::Flush,
];

const PARKING: &[Step] = &[
    Step::TrackClose,
    Step::Round,
    Step::Checkpoint,
    Step::Flush,
    Step::Header { log: false },
    Step::Flush,
    Step::Header { log: false },
    Step::Flush,
    Step::Cut,
    Step::Flush,
];

/// Whether the image is in a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Parked,
    Opening,
    Open,
    Parking,
}

/// A request to park, and what it leaves.
#[derive(Clone, Debug)]
struct Parking {
    request: RequestId,
    mark: Option<Mark>,
    /// The metadata page with that mark, if it is not there already.
    page: Option<Bytes>,
}

/// What there was before the log was placed anew.
#[derive(Clone, Copy, Debug)]
struct LogBefore {
    at: FileOffset,
    len: u32,
    /// End of what was in use.
    end: u64,
    /// When the next session opens, the log goes to the lowest place.
    lower: bool,
}

/// The headers, and the way from one state to the other.
#[derive(Debug)]
pub(super) struct Session {
    header: Header,
    slot: Slot,
    guids: GuidSource,
    /// The `DataWriteGuid` of every session, if it is not a fresh one.
    data_write: Option<Guid>,
    state: State,
    steps: VecDeque<Step>,
    /// The step that runs.
    running: Option<Step>,
    /// The flush round that [`Step::Round`] waits for.
    round: u64,
    log_guid: Guid,
    log_before: LogBefore,
    parking: Option<Parking>,
    /// The metadata page for the next round.
    page_for_round: Option<Bytes>,
}

impl Session {
    pub(super) fn new(
        header: Header,
        slot: Slot,
        (seed, data_write): (u128, Option<Guid>),
    ) -> Self {
        let log_before = LogBefore {
            at: header.log_at,
            len: header.log_len,
            end: 0,
            lower: false,
        };
        Self {
            header,
            slot,
            guids: GuidSource::new(seed),
            data_write,
            state: State::Parked,
            steps: VecDeque::new(),
            running: None,
            round: 0,
            log_guid: Guid::ZERO,
            log_before,
            parking: None,
            page_for_round: None,
        }
    }

    fn begin(&mut self, state: State, steps: &[Step]) {
        self.state = state;
        self.steps = steps.iter().copied().collect();
        self.running = None;
    }
}

impl Session {
    /// Whether the next round carries the page with the mark.
    pub(super) fn has_page_for_round(&self) -> bool {
        self.page_for_round.is_some()
    }
}

impl Vhdx {
    /// The log's place: where it is; if it is too short, the end of the file; a free one before it, if a
    /// compaction has asked for that.
    fn place_log(&mut self) {
        let header = &mut self.session.header;
        let lower = self.session.log_before.lower;
        self.session.log_before = LogBefore {
            at: header.log_at,
            len: header.log_len,
            end: self.space.end_of_used(),
            lower: false,
        };
        if u64::from(header.log_len) < self.log.len {
            header.log_at = FileOffset(self.space.append(self.log.len));
            header.log_len = self.log.len as u32;
        } else if let (true, Some(at)) =
            (lower, self.space.place_below(self.log.len, header.log_at.0))
        {
            self.space.fill(at, self.log.len);
            header.log_at = FileOffset(at);
            header.log_len = self.log.len as u32;
        }
        self.session.log_guid = self.session.guids.next();
        self.log.begin(header.log_at.0, self.session.log_guid);
    }
}

impl Vhdx {
    /// Both headers name the log where it is now: where it was, nobody looks for one any more.
    fn release_old_log(&mut self) {
        let LogBefore { at, len, .. } = self.session.log_before;
        if at != self.session.header.log_at {
            self.space.release(at.0, u64::from(len));
        }
    }

    /// The log is where it was before.
    fn unplace_log(&mut self) {
        let LogBefore { at, len, end, .. } = self.session.log_before;
        let now = self.session.header.log_at;
        if now.0 < end && now != at {
            self.space.release(now.0, self.log.len);
        }
        self.session.header.log_at = at;
        self.session.header.log_len = len;
        self.space.take_back(end);
    }

    /// Where the log lies.
    pub(super) fn log_place(&self) -> Region {
        Region {
            at: self.session.header.log_at,
            len: u64::from(self.session.header.log_len),
        }
    }

    /// Whether the log is the last thing in the file and there is a place for it before that.
    pub(super) fn log_may_move(&self) -> bool {
        let log = self.log_place();
        let last = log.end() == self.space.end_of_used();
        last && self.space.place_below(self.log.len, log.at.0).is_some()
    }

    /// When the next session opens, the log goes to the lowest place.
    pub(super) fn lower_log(&mut self) {
        self.session.log_before.lower = true;
    }

    /// Whether a session is open.
    pub(super) fn in_session(&self) -> bool {
        self.session.state == State::Open
    }
}

impl Engine {
    /// Whether a change may go on; else `id` is blocked until the session is open, or refused since
    /// there is no room for one.
    pub(super) fn session_open(&mut self, id: RequestId) -> Result<(), Run> {
        let Some(vhdx) = &mut self.vhdx else {
            return Ok(());
        };
        let state = vhdx.session.state;
        if state == State::Open {
            return Ok(());
        }
        if let (State::Parked, Some(error)) = (state, vhdx.space.full()) {
            return Err(Run::Failed(error));
        }
        self.requests.block(id);
        if state == State::Parked {
            self.begin_opening();
        }
        Err(Run::Blocked)
    }

    /// A step of the session failed: without room for the log the image stays parked as it was,
    /// anything else leaves the medium unknown.
    pub(in crate::engine) fn session_op_failed(&mut self, error: &std::io::Error) {
        let Some(vhdx) = &mut self.vhdx else { return };
        let step = vhdx.session.running;
        let harmless = matches!(step, Some(Step::PlaceLog | Step::Cut));
        if harmless && vhdx.session.state == State::Opening {
            vhdx.unplace_log();
            vhdx.space.set_full(error);
            vhdx.session.begin(State::Parked, &[]);
            self.wake = true;
            return;
        }
        self.fail_disk(&format!("a metadata update failed: {error}"));
    }

    fn begin_opening(&mut self) {
        let Some(vhdx) = &mut self.vhdx else { return };
        let session = &mut vhdx.session;
        session.begin(State::Opening, OPENING);
        session.header.file_write = session.guids.next();
        let fresh = session.guids.next();
        session.header.data_write = session.data_write.unwrap_or(fresh);
        self.session_go_on();
    }

    /// Park the image with `mark`; every change has ended.
    pub(in crate::engine) fn park(&mut self, id: RequestId, mark: Option<Mark>) {
        // Whoever is alone on the disk need not wait for those that wait for him.
        if self.requests.any_change() && !self.fence.holds(id) || self.moving() {
            self.requests.block(id);
            return;
        }
        let Some(vhdx) = &mut self.vhdx else {
            return self.flush_wait(id);
        };
        if vhdx.space.growing() {
            // Else the file could be lengthened after it was cut, or believed to be.
            self.requests.block(id);
            return;
        }
        match vhdx.session.state {
            State::Opening | State::Parking => self.requests.block(id),
            State::Parked if vhdx.layout.mark == mark => self.flush_wait(id),
            State::Parked => {
                if let Some(error) = vhdx.space.full() {
                    self.finish_with(id, error);
                } else {
                    self.requests.block(id);
                    self.begin_opening();
                }
            }
            State::Open => match vhdx.page_with(mark) {
                Ok(page) => {
                    self.map.set_armed(false);
                    vhdx.session.page_for_round.clone_from(&page);
                    vhdx.session.parking = Some(Parking {
                        request: id,
                        mark,
                        page,
                    });
                    vhdx.session.begin(State::Parking, PARKING);
                    self.session_go_on();
                }
                Err(error) => self.finish_with(id, error),
            },
        }
    }

    /// Run steps until one must be waited for.
    pub(in crate::engine) fn session_go_on(&mut self) {
        loop {
            if !self.session_noted() {
                return;
            }
            let Some(vhdx) = &mut self.vhdx else { return };
            match vhdx.session.running {
                Some(Step::Round) if self.flusher.ended < vhdx.session.round => return,
                Some(Step::Checkpoint) if !vhdx.log.all_applied() => {
                    vhdx.log.forget_written();
                    self.checkpoint_begin();
                    return;
                }
                Some(Step::Round | Step::Checkpoint | Step::TrackOpen | Step::TrackClose)
                | None => {}
                Some(_) => return,
            }
            vhdx.session.running = vhdx.session.steps.pop_front();
            match vhdx.session.running {
                None => return self.session_arrived(),
                Some(Step::TrackOpen | Step::TrackClose) => {}
                Some(step) => self.session_step(step),
            }
        }
    }

    /// Whether the running step is none of the tracker's, or has ended.
    fn session_noted(&mut self) -> bool {
        let Some(vhdx) = &self.vhdx else { return true };
        match vhdx.session.running {
            Some(Step::TrackOpen) => self.track_opened(vhdx.data_write()),
            Some(Step::TrackClose) => self.track_closed(),
            _ => true,
        }
    }

    /// The operation of the running step ended well.
    pub(in crate::engine) fn session_op_ended(&mut self) {
        if let Some(vhdx) = &mut self.vhdx
            && !matches!(vhdx.session.running, Some(Step::Round | Step::Checkpoint))
        {
            if matches!(vhdx.session.running, Some(Step::Cut)) {
                vhdx.space.set_file_len(vhdx.cut_len());
            }
            vhdx.session.running = None;
            self.session_go_on();
        }
    }

    fn session_step(&mut self, step: Step) {
        let Some(vhdx) = &mut self.vhdx else { return };
        let kind = match step {
            Step::Header { log } => vhdx.write_header(log),
            Step::Flush => FileOpKind::Flush,
            Step::Cut => {
                if vhdx.session.state == State::Parking {
                    vhdx.space.give_back_end();
                }
                FileOpKind::SetLen {
                    len: vhdx.cut_len(),
                }
            }
            Step::PlaceLog => {
                // The flush before this step covered the length that the file has.
                vhdx.space.set_durable_len(vhdx.space.file_len());
                vhdx.place_log();
                FileOpKind::Reserve {
                    at: FileOffset(vhdx.log.at),
                    len: vhdx.log.len,
                }
            }
            Step::FirstEntry => vhdx.first_entry(),
            Step::Round => {
                vhdx.session.round = self.flusher.begun + 1;
                self.flusher.wanted = true;
                return self.flush_kick();
            }
            Step::Checkpoint => {
                vhdx.log.forget_written();
                return self.checkpoint_begin();
            }
            // Seen to by whoever asks whether they have ended.
            Step::TrackOpen | Step::TrackClose => return,
        };
        self.ops.push(Purpose::Session, kind);
    }

    fn session_arrived(&mut self) {
        let Some(vhdx) = &mut self.vhdx else { return };
        self.wake = true;
        match vhdx.session.state {
            State::Opening => {
                vhdx.session.state = State::Open;
                vhdx.release_old_log();
                vhdx.space.release_retired();
                vhdx.space.set_durable_len(vhdx.space.file_len());
                self.map.set_armed(!self.map.read_only());
                self.survey_begin();
            }
            State::Parking => {
                vhdx.session.state = State::Parked;
                let Some(parking) = vhdx.session.parking.take() else {
                    return;
                };
                vhdx.layout.mark = parking.mark;
                if let Some(page) = parking.page {
                    vhdx.layout.metadata_page = page;
                }
                self.parked(parking.request);
            }
            State::Parked | State::Open => {}
        }
    }

    fn parked(&mut self, request: RequestId) {
        if self.compaction_parked(request) {
            return;
        }
        self.requests.finish(request);
        self.fence_release(request);
    }

    /// The metadata page that the round beginning now must carry.
    pub(super) fn take_metadata_page(&mut self) -> Option<(FileOffset, Bytes)> {
        let vhdx = self.vhdx.as_mut()?;
        let page = vhdx.session.page_for_round.take()?;
        Some((vhdx.layout.regions.metadata().at, page))
    }

    /// Whoever waits for the image to be parked hears that it failed.
    pub(in crate::engine) fn session_failed(&mut self, error: Error) {
        let Some(vhdx) = &mut self.vhdx else { return };
        vhdx.session.steps.clear();
        if let Some(parking) = vhdx.session.parking.take() {
            self.requests.fail(parking.request, error);
        }
    }
}

impl Vhdx {
    fn page_with(&self, mark: Option<Mark>) -> Result<Option<Bytes>> {
        if self.layout.mark == mark {
            return Ok(None);
        }
        set_mark(&self.layout.metadata_page, mark).map(Some)
    }

    /// The `DataWriteGuid` of the session.
    pub(super) fn data_write(&self) -> Guid {
        self.session.header.data_write
    }

    fn write_header(&mut self, log: bool) -> FileOpKind {
        let session = &mut self.session;
        session.header.log_guid = if log { session.log_guid } else { Guid::ZERO };
        // 2^64 header updates do not happen; a hostile number near the end was refused at open.
        session.header.sequence = session.header.sequence.saturating_add(1);
        session.slot = session.slot.other();
        let data = Bytes::copy_from_slice(&session.header.encode());
        FileOpKind::Write {
            at: session.slot.at(),
            data,
        }
    }

    /// The file's length when a session opens, or when it has been parked. Where blocks may still be
    /// found nothing of the file lies beyond it.
    fn cut_len(&self) -> u64 {
        self.space.end_of_used()
    }

    fn first_entry(&mut self) -> FileOpKind {
        // Neither the old length nor the new one is surely on the medium: claim the lesser.
        let flushed = self.space.durable_len().min(self.space.file_len());
        let mut writes = self.log.append(&[], flushed, self.space.end_of_used());
        let (at, data) = writes.swap_remove(0);
        FileOpKind::Write { at, data }
    }
}
