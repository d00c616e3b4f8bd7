//! What can be asked of a running machine, and how: the resources below `/v1/machine`.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};

use super::service::{answer, blocking};
use crate::failure::Result;
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
    /// It is kept in a folder, and goes on, or ends. Whatever fails is undone, and it goes on.
    fn snapshot(&self, wanted: &Wanted) -> Result<Taken>;
}

type Shared = State<Arc<dyn MachineControl>>;

pub(super) fn router(machine: Arc<dyn MachineControl>) -> Router {
    Router::new()
        .route("/v1/machine", get(state))
        .route("/v1/machine/pause", post(pause))
        .route("/v1/machine/resume", post(resume))
        .route("/v1/machine/power-off", post(power_off))
        .route("/v1/machine/snapshot", post(snapshot))
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

async fn snapshot(State(machine): Shared, Json(wanted): Json<Wanted>) -> Response {
    answer(blocking(move || machine.snapshot(&wanted)).await)
}
