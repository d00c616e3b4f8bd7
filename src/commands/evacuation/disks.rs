//! The disks of machines that are evacuated, at the servers that have them: how they are, and what is done to them.
//!
//! All that is known of a move is asked for anew each time; nothing is kept that could be wrong after a restart. Decides
//! nothing about which machine moves when.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mirror::evacuation::conductor::{Phase, Seen};
use mirror::evacuation::{Evacuation, Problem, input};
use mirror::files::{load_record, sidecar_path};
use mirror::record::State;
use mirror::timetable::{LEAST_RATE, Timetable};
use serde_json::Value;

use super::super::remote::Remote;
use crate::control::client::Client;
use crate::control::{Cutover, CutoverNow, DiskState, MirrorRate, StartMirror, place};
use crate::failure::{Exit, Failure, Result};
use crate::plan;

/// A disk, as the file has it.
struct Place {
    image: PathBuf,
    control: Option<String>,
    /// Bytes that were told to be left.
    left: f64,
}

/// How its move stands.
#[derive(Clone, Debug, Default)]
struct Look {
    phase: Option<Phase>,
    left: f64,
    done: f64,
    sent: f64,
    to: Option<String>,
    session: Option<String>,
    pause: Option<u64>,
    trouble: Option<String>,
}

/// Where a machine may be moved to.
struct Target {
    address: String,
    plain: bool,
}

/// All machines with their disks.
pub(super) struct Fleet {
    places: Vec<Vec<Place>>,
    looks: Vec<Vec<Look>>,
    targets: Vec<Target>,
    /// Sessions that had ended without a move before this command was started: nothing to be learnt from.
    old: Option<Vec<String>>,
}

/// What a machine's move came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    /// Bytes of disk that are durable at the target.
    pub(super) done: f64,
    /// Bytes on the wire.
    pub(super) sent: f64,
    /// How long requests were held at each switchover, in microseconds.
    pub(super) pauses: Vec<u64>,
    /// What keeps it, or kept it.
    pub(super) trouble: Option<String>,
}

impl Fleet {
    /// What `told` has of them; each disk needs an image and each target an address.
    pub(super) fn new(told: &Evacuation, problem: &Problem) -> Result<Self> {
        let needed = |what: String| {
            Failure::usage(what)
                .hint("`diskferry plan` does without; to move disks they have to be named")
        };
        let targets = told.targets.iter().map(|target| {
            let none = || needed(format!("target {}: has no address", target.site));
            let address = target.address.clone().ok_or_else(none)?;
            let plain = target.plain;
            Ok(Target { address, plain })
        });
        let targets = targets.collect::<Result<Vec<_>>>()?;
        let place = |machine: &input::Machine, disk: &input::Disk| {
            let none = || {
                needed(format!(
                    "machine {}: a disk of it has no image",
                    machine.name
                ))
            };
            let image = disk.image.clone().ok_or_else(none)?;
            let number = |figure: &input::Figure| figure.bytes().unwrap_or(0.0);
            Ok(Place {
                image: PathBuf::from(image),
                control: disk.control.clone(),
                left: number(&disk.allocated) - number(&disk.at_target),
            })
        };
        let machines = told.machines.iter();
        let places = machines.map(|m| m.disks.iter().map(|disk| place(m, disk)).collect());
        let places: Result<Vec<Vec<_>>> = places.collect();
        Ok(Self {
            looks: vec![Vec::new(); problem.machines.len()],
            old: None,
            places: places?,
            targets,
        })
    }

    /// Ask all servers how everything stands.
    pub(super) fn look(&mut self, problem: &Problem) -> Vec<Seen> {
        let mut heard = Heard::new();
        let places = self.places.iter();
        let looks = places.map(|disks| disks.iter().map(|d| look(d, &mut heard)).collect());
        self.looks = looks.collect();
        let looks = || self.looks.iter().flatten();
        let ended = looks().filter(|look| look.phase == Some(Phase::Failed));
        let ended: Vec<_> = ended.filter_map(|look| look.session.clone()).collect();
        let old = self.old.get_or_insert(ended);
        for look in self.looks.iter_mut().flatten() {
            if look.session.as_ref().is_some_and(|s| old.contains(s)) {
                (look.phase, look.trouble) = (Some(Phase::Waiting), None);
            }
        }
        let machines = self.looks.iter().enumerate();
        let seen = machines.map(|(machine, looks)| Seen {
            phase: together(looks),
            left: looks.iter().map(|look| look.left).sum(),
            done: looks.iter().map(|look| look.done).sum(),
            sent: looks.iter().map(|look| look.sent).sum(),
            route: self.route(problem, machine, looks),
        });
        seen.collect()
    }

    /// The route of a move that runs, by where it goes.
    fn route(&self, problem: &Problem, machine: usize, looks: &[Look]) -> Option<usize> {
        let runs =
            |look: &&Look| !matches!(look.phase, None | Some(Phase::Failed | Phase::Waiting));
        let to = looks.iter().find(runs)?.to.as_ref();
        let routes = problem.machines[machine].routes.iter();
        let mut there = routes.map(|route| Some(&self.targets[route.target].address) == to);
        Some(there.position(|there| there).unwrap_or(0))
    }

    /// What came of a machine.
    pub(super) fn figures(&self, machine: usize) -> Figures {
        let looks = &self.looks[machine];
        Figures {
            done: looks.iter().map(|look| look.done).sum(),
            sent: looks.iter().map(|look| look.sent).sum(),
            pauses: looks.iter().filter_map(|look| look.pause).collect(),
            trouble: looks.iter().find_map(|look| look.trouble.clone()),
        }
    }

    /// Begin to move those disks of a machine of which no move runs.
    pub(super) fn start(
        &self,
        problem: &Problem,
        (machine, route): (usize, usize),
        rate: Option<u64>,
    ) -> Result<()> {
        let target = &self.targets[problem.machines[machine].routes[route].target];
        let idle = |look: &Look| matches!(look.phase, None | Some(Phase::Waiting | Phase::Failed));
        for (number, place) in self.places[machine].iter().enumerate() {
            if !idle(&self.looks[machine][number]) {
                continue;
            }
            let start = StartMirror {
                to: target.address.clone(),
                cutover: Cutover::Manual,
                max_pause_ms: None,
                fresh: false,
                plain: target.plain,
                without_flush: false,
                rate: Timetable::always(rate.map(|rate| self.part(machine, number, rate))),
                deadline_s: None,
                max_slowdown: None,
                switchover: mirror::arbiter::Switchover::default(),
                arbiter: None,
                way_back: None,
                way_back_for_s: None,
                together_with: Vec::new(),
            };
            let disk = find(place)?;
            let started: Result<Value> = disk.client.post(&disk.resource("mirror"), &start);
            match started {
                // Somebody else was faster; what runs is seen at the next look.
                Err(failure) if failure.exit == Exit::InUse => {}
                started => drop(started?),
            }
        }
        Ok(())
    }

    /// Of a machine's rate, what one of its disks has: as much as of what is left is its.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a rate, of which a part is taken that is not below zero"
    )]
    fn part(&self, machine: usize, disk: usize, rate: u64) -> u64 {
        let looks = &self.looks[machine];
        let all: f64 = looks.iter().map(|look| look.left).sum();
        let part = if all > 0.0 {
            looks[disk].left / all
        } else {
            1.0 / looks.len() as f64
        };
        ((rate as f64 * part) as u64).max(LEAST_RATE)
    }

    /// Have the copies of a machine read so many bytes a second.
    pub(super) fn rate(&self, machine: usize, rate: Option<u64>) -> Result<()> {
        for (number, place) in self.places[machine].iter().enumerate() {
            if self.looks[machine][number].phase != Some(Phase::Copying) {
                continue;
            }
            let rate = Timetable::always(rate.map(|rate| self.part(machine, number, rate)));
            post(place, "mirror/rate", &MirrorRate { rate })?;
        }
        Ok(())
    }

    /// Have those disks of a machine switch over that are in step.
    pub(super) fn cut_over(&self, machine: usize) -> Result<()> {
        let disks = self.places[machine].iter().zip(&self.looks[machine]);
        for (place, _) in disks.filter(|(_, look)| look.phase == Some(Phase::InStep)) {
            post(place, "mirror/cutover", &CutoverNow::default())?;
        }
        Ok(())
    }

    /// Whether a disk of a machine is to follow others of it that have been begun.
    pub(super) fn is_partly_begun(&self, machine: usize) -> bool {
        let looks = &self.looks[machine];
        let waits = |look: &Look| look.phase == Some(Phase::Waiting);
        looks.iter().any(waits) && !looks.iter().all(waits)
    }

    /// End the moves of a machine's disks that have not come to switching over.
    pub(super) fn cancel(&self, machine: usize) -> Result<()> {
        let disks = self.places[machine].iter().zip(&self.looks[machine]);
        let running = |look: &Look| matches!(look.phase, Some(Phase::Copying | Phase::InStep));
        for (place, _) in disks.filter(|(_, look)| running(look)) {
            post(place, "mirror/cancel", &())?;
        }
        Ok(())
    }
}

fn find(place: &Place) -> Result<Remote> {
    Remote::find(&place.image, place.control.as_deref())
}

fn post(place: &Place, what: &str, body: &impl serde::Serialize) -> Result<()> {
    let disk = find(place)?;
    let answer: Value = disk.client.post(&disk.resource(what), body)?;
    drop(answer);
    Ok(())
}

/// What servers said in one round, by the file of each disk: one of them has many.
type Heard = BTreeMap<PathBuf, Option<Value>>;

/// The migration of a disk at its server, if there is one.
fn migration(place: &Place, heard: &mut Heard) -> Result<Option<Value>> {
    let file = std::fs::canonicalize(&place.image).ok();
    let known = |heard: &Heard| heard.get(file.as_ref()?).cloned();
    if let Some(state) = known(heard) {
        return Ok(state);
    }
    let socket = match &place.control {
        Some(text) => plan::control_path(text)?,
        None => place::socket_of(&place.image)?,
    };
    let disks: Vec<DiskState> = Client::new(&socket).get("/v1/disks")?;
    for disk in disks {
        if let Ok(file) = std::fs::canonicalize(&disk.path) {
            heard.insert(file, disk.mirror);
        }
    }
    match known(heard) {
        Some(state) => Ok(state),
        // It may be known by another path there.
        None => Ok(find(place)?.state.mirror),
    }
}

/// How a disk is, by its server's word; or by its record, if it has none.
fn look(place: &Place, heard: &mut Heard) -> Look {
    let told = Look {
        left: place.left,
        ..Look::default()
    };
    match migration(place, heard) {
        Ok(Some(state)) => of_state(place, &state),
        Ok(None) => Look {
            phase: Some(Phase::Waiting),
            ..told
        },
        Err(_) if is_handed_over(&place.image) => Look {
            phase: Some(Phase::Moved),
            left: 0.0,
            ..told
        },
        Err(failure) => Look {
            phase: Some(Phase::Failed),
            trouble: Some(failure.what),
            ..told
        },
    }
}

/// Whether the disk's record says that another host has it.
fn is_handed_over(image: &Path) -> bool {
    let record = load_record(&sidecar_path(image)).ok().flatten();
    record.is_some_and(|record| matches!(record.state, State::Released { .. }))
}

fn of_state(place: &Place, state: &Value) -> Look {
    let number = |field: &str| state[field].as_f64().unwrap_or(0.0);
    let text = |field: &str| state[field].as_str().map(str::to_owned);
    let ended = state["ended"] == Value::Bool(true);
    let phase = match state["stage"].as_str() {
        _ if ended && state["error"].is_null() => Phase::Moved,
        _ if ended => Phase::Failed,
        Some("forwarding") => Phase::Moved,
        Some("switching" | "bound" | "released") => Phase::Switching,
        Some("synced") => Phase::InStep,
        _ => Phase::Copying,
    };
    let here = number("remaining") + number("unacknowledged");
    let left = match phase {
        Phase::Moved => 0.0,
        Phase::Failed => place.left,
        // What was not asked about yet is what was told, less what was found.
        _ if number("scanned") < number("size") => here + (place.left - number("found")).max(0.0),
        _ => here,
    };
    Look {
        phase: Some(phase),
        left,
        done: number("copied") + number("same") + number("streamed"),
        sent: number("sent"),
        to: text("to"),
        session: text("session"),
        pause: state["pause"].as_u64(),
        trouble: text("error").or_else(|| text("trouble")),
    }
}

/// How a machine is whose disks are so.
fn together(looks: &[Look]) -> Phase {
    let phases = || looks.iter().map(|look| look.phase.unwrap_or(Phase::Failed));
    let all = |of: &[Phase]| phases().all(|phase| of.contains(&phase));
    if all(&[Phase::Moved]) {
        Phase::Moved
    } else if phases().any(|phase| phase == Phase::Failed) {
        Phase::Failed
    } else if all(&[Phase::Waiting]) {
        Phase::Waiting
    } else if all(&[Phase::InStep]) {
        Phase::InStep
    } else if all(&[Phase::InStep, Phase::Switching, Phase::Moved]) {
        Phase::Switching
    } else {
        Phase::Copying
    }
}
