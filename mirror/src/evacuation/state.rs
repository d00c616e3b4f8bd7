//! How an evacuation stands: what of each machine is left, and what was measured of it and of the links.
//!
//! Pure: figures in, figures out.

use super::ground::{Piece, Work};
use super::problem::Problem;

/// How far a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing has begun.
    Waiting,
    /// It is copied.
    Copying,
    /// The target follows.
    InStep,
    /// It was told to switch over.
    Switching,
    /// It runs at the target.
    Moved,
    /// It stays where it is, for a reason that trying again does not change.
    Out,
}

/// A machine now.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// How far it is.
    pub standing: Standing,
    /// Bytes left.
    pub left: f64,
    /// Bytes a second that have to travel because they are written.
    pub load: f64,
    /// Bytes of disk for one on the wire.
    pub gain: f64,
    /// The route, once it has begun.
    pub route: Option<usize>,
    /// Not to be begun before.
    pub from: f64,
}

/// All of them.
#[derive(Clone, Debug)]
pub struct State {
    /// The moment.
    pub now: f64,
    /// By machine.
    pub machines: Vec<Now>,
    /// By link: what it was measured to carry, as a share of what was told.
    pub measured: Vec<f64>,
}

impl State {
    /// As it was told, with nothing begun.
    #[must_use]
    pub fn told(problem: &Problem) -> Self {
        let machines = problem.machines.iter().map(|machine| Now {
            standing: Standing::Waiting,
            left: machine.left,
            load: machine.load,
            gain: machine.gain,
            route: None,
            from: 0.0,
        });
        Self {
            now: 0.0,
            machines: machines.collect(),
            measured: vec![1.0; problem.lines.len()],
        }
    }

    /// What of that was told a link carries.
    #[must_use]
    pub fn trust(&self, line: usize) -> f64 {
        self.measured[line]
    }
}

impl Now {
    pub(super) fn work(&self, now: f64) -> Work {
        let in_step = matches!(self.standing, Standing::InStep | Standing::Switching);
        Work {
            left: if in_step { 0.0 } else { self.left },
            load: self.load,
            gain: self.gain,
            from: self.from.max(now),
            begun: self.route.is_some(),
            extra: 0.0,
        }
    }

    /// What it takes of its link from now on whatever is planned, because it is written; if it has begun and not moved.
    pub(super) fn writes(&self, now: f64) -> Option<Piece> {
        let standing = self.standing;
        let moves = self.route.is_some() && !matches!(standing, Standing::Moved | Standing::Out);
        moves.then(|| Piece {
            from: now,
            to: f64::INFINITY,
            rate: self.load / self.gain,
        })
    }
}
