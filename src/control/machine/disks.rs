//! The disks of a machine that runs: the resources below `/v1/machine/disks`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use vmm::description::DiskEntry;

use super::super::service::{answer, blocking};
use super::MachineControl;

/// A disk of a machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MachineDisk {
    /// Name of its export, and its serial number.
    pub(crate) name: String,
    /// The image.
    pub(crate) path: String,
    /// Number of its device on PCI.
    pub(crate) slot: usize,
    pub(crate) read_only: bool,
    /// Bytes of the disk.
    pub(crate) virtual_size: u64,
}

/// How a disk shall go.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RemoveDisk {
    /// Whether the guest is not asked.
    #[serde(default)]
    pub(crate) force: bool,
    /// How long the guest may take to let go, in milliseconds.
    #[serde(default = "half_a_minute")]
    pub(crate) timeout_ms: u64,
}

fn half_a_minute() -> u64 {
    30_000
}

type Shared = State<Arc<dyn MachineControl>>;

pub(super) fn router() -> Router<Arc<dyn MachineControl>> {
    Router::new()
        .route("/v1/machine/disks", get(disks).post(add))
        .route("/v1/machine/disks/{disk}/remove", post(remove))
}

async fn disks(State(machine): Shared) -> Response {
    answer(blocking(move || Ok(machine.disks())).await)
}

async fn add(State(machine): Shared, Json(disk): Json<DiskEntry>) -> Response {
    answer(blocking(move || machine.add_disk(&disk)).await)
}

async fn remove(
    State(machine): Shared,
    Path(disk): Path<String>,
    Json(how): Json<RemoveDisk>,
) -> Response {
    answer(blocking(move || machine.remove_disk(&disk, how)).await)
}
