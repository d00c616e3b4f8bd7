//! What can be asked of a running machine, and how: the resources below `/v1/machine`.

pub(crate) mod console;
pub(crate) mod disks;
pub(crate) mod statistics;

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use vmm::description::DiskEntry;

use self::console::ConsoleState;
use self::disks::{MachineDisk, RemoveDisk};
use self::statistics::MachineStatistics;
use super::service::{answer, blocking};
use crate::failure::Result;
use crate::moving::source::{MoveState, MoveTo, Moved};
use crate::saved::take::{Taken, Wanted};

/// How a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Life {
    /// Its processors run.
    Running,
    /// They stand still between two instructions.
    Paused,
    /// A snapshot is being taken of it.
    Saving,
    /// It has been powered off.
    Ended,
}

impl Life {
    /// What it does, as the end of a sentence about it.
    pub(crate) fn in_words(self) -> &'static str {
        match self {
            Self::Running => "runs",
            Self::Paused => "is paused",
            Self::Saving => "stands still for a snapshot or a move",
            Self::Ended => "has ended",
        }
    }
}

/// A machine as its process sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MachineState {
    /// The file that describes it.
    pub(crate) machine: String,
    pub(crate) state: Life,
    pub(crate) vcpus: u8,
    /// Bytes that the guest has.
    pub(crate) memory: u64,
    /// The process that it runs in.
    pub(crate) pid: u32,
    pub(crate) confinement: Confinement,
}

/// How its process is confined.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Confinement {
    /// What is done to system calls that are not allowed: `kill`, `log`, or `off` when nothing is confined.
    pub(crate) system_calls: String,
    /// The version of Landlock by which files are confined; 0 where the host has none.
    pub(crate) landlock: i32,
    /// What the host's Landlock does not hold.
    pub(crate) missing: Vec<String>,
}

/// What can be asked of a running machine. Calls return when it has been done.
pub(crate) trait MachineControl: Send + Sync + 'static {
    /// How it is.
    fn state(&self) -> MachineState;
    /// Its processors stand still. What its disks have begun goes on.
    fn pause(&self) -> Result<MachineState>;
    /// They run on.
    fn resume(&self) -> Result<MachineState>;
    /// It is powered off, as by pulling the plug: what the guest did not flush may be lost.
    fn power_off(&self) -> Result<MachineState>;
    /// Its power button is pressed: the guest is asked to shut down. Returns at once.
    fn shutdown(&self) -> Result<MachineState>;
    /// It begins anew, as after a power cut.
    fn reset(&self) -> Result<MachineState>;
    /// Where its console is.
    fn console(&self) -> Result<ConsoleState>;
    /// Its disks.
    fn disks(&self) -> Vec<MachineDisk>;
    /// It gets another disk.
    fn add_disk(&self, disk: &DiskEntry) -> Result<MachineDisk>;
    /// It loses a disk; what that was.
    fn remove_disk(&self, name: &str, how: RemoveDisk) -> Result<MachineDisk>;
    /// What it has done.
    fn statistics(&self) -> Result<MachineStatistics>;
    /// It is kept in a folder, and goes on, or ends. Whatever fails is undone, and it goes on.
    fn snapshot(&self, wanted: &Wanted) -> Result<Taken>;
    /// It moves to another host, and has ended here. Whatever fails before that is decided is undone, and it goes
    /// on.
    fn move_to(&self, to: &MoveTo) -> Result<Moved>;
    /// How its move stands.
    fn moving(&self) -> Result<MoveState>;
    /// It stays, if there is still a way back. Returns at once.
    fn cancel_move(&self) -> Result<MoveState>;
}

type Shared = State<Arc<dyn MachineControl>>;

pub(super) fn router(machine: Arc<dyn MachineControl>) -> Router {
    Router::new()
        .route("/v1/machine", get(state))
        .route("/v1/machine/pause", post(pause))
        .route("/v1/machine/resume", post(resume))
        .route("/v1/machine/power-off", post(power_off))
        .route("/v1/machine/shutdown", post(shutdown))
        .route("/v1/machine/reset", post(reset))
        .route("/v1/machine/stats", get(stats))
        .route("/v1/machine/console", get(console))
        .merge(disks::router())
        .route("/v1/machine/snapshot", post(snapshot))
        .route("/v1/machine/move", get(moving).post(move_to))
        .route("/v1/machine/move/cancel", post(cancel_move))
        .with_state(machine)
}

async fn state(State(machine): Shared) -> Response {
    answer(blocking(move || Ok(machine.state())).await)
}

async fn pause(State(machine): Shared) -> Response {
    answer(blocking(move || machine.pause()).await)
}

async fn resume(State(machine): Shared) -> Response {
    answer(blocking(move || machine.resume()).await)
}

async fn power_off(State(machine): Shared) -> Response {
    answer(blocking(move || machine.power_off()).await)
}

async fn shutdown(State(machine): Shared) -> Response {
    answer(blocking(move || machine.shutdown()).await)
}

async fn reset(State(machine): Shared) -> Response {
    answer(blocking(move || machine.reset()).await)
}

async fn stats(State(machine): Shared) -> Response {
    answer(blocking(move || machine.statistics()).await)
}

async fn console(State(machine): Shared) -> Response {
    answer(blocking(move || machine.console()).await)
}

async fn move_to(State(machine): Shared, Json(to): Json<MoveTo>) -> Response {
    answer(blocking(move || machine.move_to(&to)).await)
}

async fn moving(State(machine): Shared) -> Response {
    answer(blocking(move || machine.moving()).await)
}

async fn cancel_move(State(machine): Shared) -> Response {
    answer(blocking(move || machine.cancel_move()).await)
}

async fn snapshot(State(machine): Shared, Json(wanted): Json<Wanted>) -> Response {
    answer(blocking(move || machine.snapshot(&wanted)).await)
}
