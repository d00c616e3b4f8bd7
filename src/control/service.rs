//! The server's side of the control socket.

use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;

use super::machine::{self, MachineControl};
use super::{Checkpoint, Compact, Control, Resize, StartMirror, TakeSnapshot};
use crate::failure::{Exit, Failure, Result};

/// What a request that failed brings.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ErrorBody {
    /// What went wrong, and where.
    pub(crate) error: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
    /// What a command that gets this exits with.
    pub(crate) exit_code: u8,
}

type Shared = State<Arc<dyn Control>>;

/// Control sockets that are listened on, on a thread of their own; their files go when this is dropped.
#[derive(Debug)]
pub(crate) struct Controlled {
    paths: Vec<PathBuf>,
    runtime: Option<Runtime>,
}

impl Controlled {
    /// Serve `control`, and `machine` if there is one, on each of `paths`.
    pub(crate) fn start(
        control: &Arc<dyn Control>,
        machine: Option<&Arc<dyn MachineControl>>,
        paths: Vec<PathBuf>,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("control")
            .enable_all()
            .build()
            .map_err(|e| Failure::io("the control sockets cannot be served", &e))?;
        let guard = runtime.enter();
        let mut service = Self {
            paths: Vec::new(),
            runtime: None,
        };
        for path in paths {
            let listener = bind(&path)?;
            service.paths.push(path);
            let mut router = router(Arc::clone(control));
            if let Some(machine) = machine {
                router = router.merge(machine::router(Arc::clone(machine)));
            }
            tokio::spawn(async move {
                if let Err(error) = axum::serve(listener, router).await {
                    tracing::error!(%error, "the control socket failed");
                }
            });
        }
        drop(guard);
        service.runtime = Some(runtime);
        Ok(service)
    }
}

impl Drop for Controlled {
    fn drop(&mut self) {
        for path in &self.paths {
            // It may have been replaced or removed by hand; nothing depends on it.
            let _ = std::fs::remove_file(path);
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

fn bind(path: &Path) -> Result<UnixListener> {
    let failed = |e| Failure::io(format!("cannot listen at {}", path.display()), &e);
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        let what = format!("{}: another server listens there", path.display());
        return Err(Failure::new(Exit::InUse, what));
    }
    // Nobody answers: what lies there is left of a server that was killed.
    let _ = std::fs::remove_file(path);
    let listener = StdListener::bind(path).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    UnixListener::from_std(listener).map_err(failed)
}

fn router(control: Arc<dyn Control>) -> Router {
    Router::new()
        .route("/v1/disks", get(disks))
        .route("/v1/disks/{disk}/resize", post(resize))
        .route("/v1/disks/{disk}/compact", post(compact))
        .route("/v1/disks/{disk}/checkpoints", post(checkpoint))
        .route("/v1/disks/{disk}/snapshot", post(snapshot))
        .route("/v1/disks/{disk}/mirror", get(mirror).post(start_mirror))
        .route("/v1/disks/{disk}/mirror/cutover", post(cutover))
        .route("/v1/disks/{disk}/mirror/cancel", post(cancel))
        .with_state(control)
}

async fn disks(State(control): Shared) -> Response {
    answer(blocking(move || Ok(control.disks())).await)
}

async fn resize(
    State(control): Shared,
    UrlPath(disk): UrlPath<String>,
    Json(to): Json<Resize>,
) -> Response {
    answer(blocking(move || control.resize(&disk, to)).await)
}

async fn compact(
    State(control): Shared,
    UrlPath(disk): UrlPath<String>,
    Json(step): Json<Compact>,
) -> Response {
    answer(blocking(move || control.compact(&disk, step)).await)
}

async fn checkpoint(
    State(control): Shared,
    UrlPath(disk): UrlPath<String>,
    Json(taken): Json<Checkpoint>,
) -> Response {
    answer(blocking(move || control.checkpoint(&disk, &taken)).await)
}

async fn snapshot(
    State(control): Shared,
    UrlPath(disk): UrlPath<String>,
    Json(wanted): Json<TakeSnapshot>,
) -> Response {
    answer(blocking(move || control.snapshot(&disk, &wanted)).await)
}

async fn mirror(State(control): Shared, UrlPath(disk): UrlPath<String>) -> Response {
    answer(blocking(move || control.mirror(&disk)).await)
}

async fn start_mirror(
    State(control): Shared,
    UrlPath(disk): UrlPath<String>,
    Json(start): Json<StartMirror>,
) -> Response {
    answer(blocking(move || control.start_mirror(&disk, &start)).await)
}

async fn cutover(State(control): Shared, UrlPath(disk): UrlPath<String>) -> Response {
    answer(blocking(move || control.cutover(&disk)).await)
}

async fn cancel(State(control): Shared, UrlPath(disk): UrlPath<String>) -> Response {
    answer(blocking(move || control.cancel(&disk)).await)
}

/// Run what may wait for a disk where it does not keep other requests waiting.
pub(super) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => result,
        Err(error) => Err(Failure::new(
            Exit::Failed,
            format!("the request broke off: {error}"),
        )),
    }
}

pub(super) fn answer<T: Serialize>(result: Result<T>) -> Response {
    let failure = match result.map(serde_json::to_value) {
        Ok(Ok(value)) => return Json::<Value>(value).into_response(),
        Ok(Err(error)) => Failure::new(Exit::Failed, format!("the answer has no form: {error}")),
        Err(failure) => failure,
    };
    let status = match failure.exit {
        Exit::Usage => StatusCode::BAD_REQUEST,
        Exit::InUse | Exit::TookOver | Exit::Cancelled => StatusCode::CONFLICT,
        Exit::Unsupported => StatusCode::NOT_IMPLEMENTED,
        Exit::Network => StatusCode::BAD_GATEWAY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let body = ErrorBody {
        error: failure.what,
        hint: failure.hint,
        exit_code: failure.exit as u8,
    };
    (status, Json(body)).into_response()
}
