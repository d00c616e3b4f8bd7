//! What is still free of links, hosts, targets and their room, and how a machine is fitted into that.
//!
//! Pure. A machine that is booked takes what it can use of what is free from its first moment on; one that is booked
//! later never changes what was booked before. So capacities cannot be exceeded, and a plan can be made one by one.
//!
//! With `r` bytes a second on the wire, a machine of which `S` bytes are left, to which `w·a` have to travel each second
//! and whose data packs `c` to one comes nearer to being in step by `r·c − w·a` bytes a second; once it is, it takes
//! `w·a/c` of the wire until it switches over.

use super::problem::{Problem, Route};
use super::steps::Steps;

/// A machine begins only where it would come nearer by this share of what it could at best.
pub(super) const WORTH: f64 = 0.05;
/// Of a capacity, what is taken for nothing: what rounding leaves.
const NOTHING: f64 = 1e-9;

/// How a machine is now, as far as planning goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    /// Bytes left.
    pub(super) left: f64,
    /// Bytes a second that have to travel because they are written.
    pub(super) load: f64,
    /// Bytes of disk for one on the wire.
    pub(super) gain: f64,
    /// Not to be begun before.
    pub(super) from: f64,
    /// Whether it has begun: then nothing keeps it from going on.
    pub(super) begun: bool,
    /// More of the link than is free, in bytes a second.
    pub(super) extra: f64,
}

/// Bytes a second on the wire, from one moment to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Piece {
    /// The first moment.
    pub from: f64,
    /// The last.
    pub to: f64,
    /// What is taken meanwhile.
    pub rate: f64,
}

/// What a machine would take.
#[derive(Clone, Debug)]
pub(super) struct Trial {
    pub(super) pieces: Vec<Piece>,
    pub(super) start: f64,
    pub(super) in_step: f64,
}

/// What is free.
#[derive(Clone, Debug)]
pub(super) struct Ground {
    pub(super) free: Vec<Steps>,
    pub(super) room: Vec<f64>,
    full: Vec<f64>,
    /// Before that, nothing is free of a resource.
    open: Vec<f64>,
    horizon: f64,
}

/// Where in the figures of each resource of a route the last look was: a link, a host and a target.
type Near = [usize; 3];

/// What is free for one machine from a moment on, and until when.
struct Offer {
    rate: f64,
    until: f64,
}

impl Ground {
    /// All of it, with the links worth what `trust` says of each.
    pub(super) fn new(problem: &Problem, trust: &[f64]) -> Self {
        let number = |resource: usize| trust.get(resource).copied().unwrap_or(1.0);
        let all = 0..problem.resources.len();
        let free: Vec<_> = all.map(|r| problem.capacity(r, number(r))).collect();
        Self {
            full: free.iter().map(Steps::greatest).collect(),
            open: vec![0.0; free.len()],
            free,
            room: problem.targets.iter().map(|target| target.free).collect(),
            horizon: problem.horizon(),
        }
    }

    fn offer(&self, route: &Route, work: &Work, (at, near): (f64, &mut Near)) -> Offer {
        let mut offer = Offer {
            rate: route.most,
            until: self.horizon,
        };
        for ((resource, takes), near) in route.uses(work.gain).zip(near) {
            let (mut free, until) = self.free[resource].after(at, near);
            if resource == route.line {
                free += work.extra;
            }
            if free < self.full[resource] * NOTHING {
                free = 0.0;
            }
            offer.rate = offer.rate.min(free / takes);
            offer.until = offer.until.min(until);
        }
        offer
    }

    /// What the machine could use if it were alone, at best.
    pub(super) fn best(&self, route: &Route, work: &Work) -> f64 {
        let resources = route.uses(work.gain);
        resources.fold(route.most, |best, (resource, takes)| {
            let more = if resource == route.line {
                work.extra
            } else {
                0.0
            };
            best.min((self.full[resource] + more) / takes)
        })
    }

    /// The machine on that route, as early as it may be; `None` if it would not be in step by the horizon.
    pub(super) fn fit(&self, route: &Route, work: &Work) -> Option<Trial> {
        self.fit_by(route, work, self.horizon)
    }

    /// The same; `None` if it would not be in step by then.
    pub(super) fn fit_by(&self, route: &Route, work: &Work, by: f64) -> Option<Trial> {
        let by = by.min(self.horizon);
        let worth = self.best(route, work) * work.gain * WORTH;
        let mut at = work.from;
        if !work.begun && work.extra == 0.0 {
            let uses = route.uses(work.gain);
            at = uses.fold(at, |at, (resource, _)| at.max(self.open[resource]));
        }
        while at < by {
            if !work.begun {
                at = self.beginning(route, work, (at, by, worth))?;
            }
            match self.go(route, work, (at, by)) {
                Ok(trial) => return trial,
                Err(until) => at = until,
            }
        }
        None
    }

    /// From when on it is worth to begin.
    fn beginning(
        &self,
        route: &Route,
        work: &Work,
        (from, by, worth): (f64, f64, f64),
    ) -> Option<f64> {
        let (mut at, mut near) = (from, [usize::MAX; 3]);
        while at < by {
            let offer = self.offer(route, work, (at, &mut near));
            if offer.rate * work.gain - work.load >= worth && offer.rate > 0.0 {
                return Some(at);
            }
            at = offer.until;
        }
        None
    }

    /// How it goes from there; or until when what is free does not even carry what is written.
    fn go(
        &self,
        route: &Route,
        work: &Work,
        (start, by): (f64, f64),
    ) -> Result<Option<Trial>, f64> {
        let (mut at, mut left) = (start, work.left);
        let mut near = [usize::MAX; 3];
        let mut pieces: Vec<Piece> = Vec::new();
        while left > 0.0 {
            if at >= by {
                return Ok(None);
            }
            let Offer { rate, until } = self.offer(route, work, (at, &mut near));
            let nearer = rate * work.gain - work.load;
            if nearer < -work.load * 1e-6 && !work.begun {
                return Err(until);
            }
            let needs = if nearer > 0.0 {
                left / nearer
            } else {
                f64::INFINITY
            };
            let to = until.min(at + needs);
            left = if needs <= until - at {
                0.0
            } else {
                left - nearer * (to - at)
            };
            match pieces.last_mut() {
                #[expect(clippy::float_cmp, reason = "it is the same figure, copied")]
                Some(last) if last.rate == rate => last.to = to,
                _ => pieces.push(Piece { from: at, to, rate }),
            }
            // A step too short to be told from none is left behind.
            at = if to > at { to } else { until.max(at + 1e-6) };
        }
        Ok(Some(Trial {
            pieces,
            start,
            in_step: at,
        }))
    }

    /// Whether what is written between two moments can travel.
    pub(super) fn carries(&self, route: &Route, work: &Work, span: (f64, f64)) -> bool {
        let rate = work.load / work.gain;
        rate == 0.0
            || span.0 >= span.1
            || route.uses(work.gain).all(|(resource, takes)| {
                let slack = self.full[resource] * 1e-6;
                self.free[resource].least(span) + slack >= rate * takes
            })
    }

    /// Take, or with a negative rate give back.
    pub(super) fn take(&mut self, route: &Route, gain: f64, piece: &Piece) {
        for (resource, takes) in route.uses(gain) {
            self.free[resource].add((piece.from, piece.to), -piece.rate * takes);
            if piece.rate < 0.0 {
                self.open[resource] = self.open[resource].min(piece.from);
                continue;
            }
            let nothing = self.full[resource] * NOTHING;
            let mut open = self.open[resource];
            while open < self.horizon {
                let (free, until) = self.free[resource].at(open);
                if free >= nothing {
                    break;
                }
                open = until;
            }
            self.open[resource] = open;
        }
    }

    /// Bytes of disk that what is free brings between two moments.
    pub(super) fn brings(&self, route: &Route, work: &Work, (from, to): (f64, f64)) -> f64 {
        let (mut at, mut sum) = (from, 0.0);
        let mut near = [usize::MAX; 3];
        while at < to {
            let offer = self.offer(route, work, (at, &mut near));
            let until = offer.until.min(to);
            sum += offer.rate * work.gain * (until - at);
            if until <= at {
                break;
            }
            at = until;
        }
        sum
    }
}
