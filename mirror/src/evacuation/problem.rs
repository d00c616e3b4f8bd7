//! An evacuation that was found to make sense: names have become numbers, and figures have one unit.
//!
//! Pure. Bytes, bytes a second and seconds from the moment that the plan is for, all as floating point: these are
//! figures to plan with.

use super::steps::Steps;

/// How much of a link is counted on, as for a single move's deadline: the rest is for what cannot be foreseen.
pub const COUNTED_ON: f64 = 0.9;
/// Kept free for each switchover, in seconds.
pub const SWITCHOVER: f64 = 1.0;
/// Lanes that a move opens where its kernel has no BBR, and where it has.
pub const LANES: (u32, u32) = (32, 2);
/// Bytes of a packet's payload.
const SEGMENT: f64 = 1448.0;

/// What is to be planned.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Machines have to have moved by then.
    pub deadline: f64,
    /// In the order of the file.
    pub machines: Vec<Machine>,
    /// What a move can use up: the links first, in the order of the file, then hosts and targets that are limited.
    pub resources: Vec<Resource>,
    /// The links.
    pub lines: Vec<Line>,
    /// The targets.
    pub targets: Vec<Site>,
    /// Machines that switch over together. One comes after all that it depends on.
    pub units: Vec<Unit>,
    /// Bytes of a drive, and bytes a second that it can be written with.
    pub drive: (f64, f64),
}

/// Something of which there is only so much at a time.
#[derive(Clone, Debug)]
pub struct Resource {
    /// What it is called.
    pub name: String,
    /// Bytes a second over time.
    pub capacity: Steps,
    /// By how much that usually is off, as a share of it.
    pub varies: f64,
}

/// A link.
#[derive(Clone, Debug)]
pub struct Line {
    /// What one connection brings by itself; `None` where nothing but the bandwidth limits it.
    pub stream: Option<f64>,
    /// Round trip in seconds.
    pub rtt: f64,
    /// Whether only a part of it may be used, at any time.
    pub shared: bool,
    /// Times a day that it is lost, and seconds for which it then is.
    pub breaks: (f64, f64),
}

/// A target.
#[derive(Clone, Debug)]
pub struct Site {
    /// What it is called.
    pub name: String,
    /// Bytes that are free.
    pub free: f64,
}

/// A machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What it is called.
    pub name: String,
    /// What it counts among those of its priority.
    pub weight: f64,
    /// Bytes of its disks that have to travel.
    pub left: f64,
    /// Bytes a second that have to travel because they are written.
    pub load: f64,
    /// Of them for each byte written; never zero.
    pub amplification: f64,
    /// Bytes of disk that one byte on the wire brings.
    pub gain: f64,
    /// Bytes that it takes at a target.
    pub room: f64,
    /// Bytes allocated.
    pub allocated: f64,
    /// Machines that switch over before.
    pub after: Vec<usize>,
    /// The unit that it belongs to.
    pub unit: usize,
    /// Where it may go, and how.
    pub routes: Vec<Route>,
    /// By how much its figures usually are off, as a share of them.
    pub varies: f64,
}

/// A way from where a machine is to where it may go.
#[derive(Clone, Debug)]
pub struct Route {
    /// The link; also the number of its resource.
    pub line: usize,
    /// The target.
    pub target: usize,
    /// Resources of which each byte of disk takes one: host and target, if they are limited.
    pub disks: Vec<usize>,
    /// The most bytes a second on the wire that the machine can use by itself.
    pub most: f64,
}

impl Route {
    /// What a byte on the wire takes of which resource.
    pub fn uses(&self, gain: f64) -> impl Iterator<Item = (usize, f64)> + '_ {
        let disks = self.disks.iter().map(move |resource| (*resource, gain));
        std::iter::once((self.line, 1.0)).chain(disks)
    }
}

/// Machines that switch over together; mostly it is one.
#[derive(Clone, Debug)]
pub struct Unit {
    /// Which.
    pub members: Vec<usize>,
    /// Units that switch over before.
    pub after: Vec<usize>,
    /// The highest priority of its machines and of those that wait for it.
    pub priority: i32,
}

impl Line {
    /// Connections that carry so many bytes a second.
    #[must_use]
    pub fn streams(&self, rate: f64) -> u32 {
        let Some(stream) = self.stream else {
            return LANES.1;
        };
        #[expect(
            clippy::cast_sign_loss,
            reason = "it is between two positive numbers of lanes"
        )]
        let needed = (rate / stream)
            .ceil()
            .clamp(f64::from(LANES.1), f64::from(LANES.0)) as u32;
        needed
    }
}

/// What one connection brings over a long and lossy way, by Mathis' formula; `None` for no limit.
#[must_use]
pub(super) fn stream(rtt: f64, loss: f64, bbr: bool) -> Option<f64> {
    let limited = !bbr && rtt > 0.0 && loss > 0.0;
    limited.then(|| SEGMENT / rtt * 1.22 / loss.sqrt())
}

impl Problem {
    /// What a unit counts.
    #[must_use]
    pub fn weight(&self, unit: usize) -> f64 {
        let members = self.units[unit].members.iter();
        members.map(|member| self.machines[*member].weight).sum()
    }

    /// The capacity of a resource of which so much is counted on: `trust` times what was told, in the case of a link.
    #[must_use]
    pub fn capacity(&self, resource: usize, trust: f64) -> Steps {
        let steps = &self.resources[resource].capacity;
        if resource < self.lines.len() {
            steps.scaled(trust)
        } else {
            steps.clone()
        }
    }

    /// When nothing is planned any more.
    #[must_use]
    pub fn horizon(&self) -> f64 {
        self.deadline * 4.0
    }
}
