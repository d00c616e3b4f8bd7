//! The server's side of the control socket.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use std::{fmt, io};

use axum::Json;
use axum::Router;
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::{StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use blockserver::throttle::Limits;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch::Sender;
use tokio::task::JoinHandle;

use super::machine::{self, MachineControl};
use super::place;
use super::refused::in_an_object;
use super::{
    Checkpoint, Compact, Control, CutoverNow, Draw, MirrorDeadline, MirrorRate, Resize,
    StartMirror, TakeSnapshot,
};
use crate::commands::confinement;
use crate::failure::{Exit, Failure, Result};
use crate::metrics;

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

/// How long whoever is being answered when the server ends is waited for.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

type Shared = State<Arc<dyn Control>>;

/// Control sockets that are listened on, on a thread of their own; their files go when this is dropped.
#[derive(Debug)]
pub(crate) struct Controlled {
    sockets: Arc<Sockets>,
    runtime: Option<Runtime>,
}

/// By path: what answers there, and what ends it once it has answered.
type Serving = BTreeMap<PathBuf, (JoinHandle<()>, Sender<bool>)>;

/// The sockets, to which some may be added and taken from.
pub(crate) struct Sockets {
    /// What answers on each of them.
    router: Router,
    handle: Handle,
    serving: Mutex<Serving>,
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.serving().keys()).finish()
    }
}

impl Sockets {
    fn serving(&self) -> MutexGuard<'_, Serving> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is answered at `path`.
    pub(crate) fn has(&self, path: &Path) -> bool {
        self.serving().contains_key(path)
    }

    /// Answer at `path` too.
    pub(crate) fn listen(&self, path: PathBuf) -> Result<()> {
        let _guard = self.handle.enter();
        let listener = bind(&path)?;
        let end = Sender::new(false);
        let mut told = end.subscribe();
        let ended = async move {
            // An error means that nobody is left who could end it otherwise.
            let _ = told.wait_for(|end| *end).await;
        };
        let router = self.router.clone();
        let serving = tokio::spawn(async move {
            let serving = axum::serve(listener, router).with_graceful_shutdown(ended);
            if let Err(error) = serving.await {
                tracing::error!(%error, "the control socket failed");
            }
        });
        self.serving().insert(path, (serving, end));
        Ok(())
    }

    /// Answer at `path` no more; who is being answered gets that answer.
    pub(crate) fn forget(&self, path: &Path) {
        if let Some((_, end)) = self.serving().remove(path) {
            // It may have been replaced or removed by hand; nothing depends on it.
            let _ = std::fs::remove_file(path);
            let _ = end.send(true);
        }
    }
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
        let mut router = router(Arc::clone(control));
        if let Some(machine) = machine {
            router = router.merge(machine::router(Arc::clone(machine)));
        }
        let sockets = Sockets {
            router: router.layer(map_response(in_an_object)),
            handle: runtime.handle().clone(),
            serving: Mutex::default(),
        };
        let service = Self {
            sockets: Arc::new(sockets),
            runtime: Some(runtime),
        };
        for path in paths {
            service.sockets.listen(path)?;
        }
        Ok(service)
    }

    /// Answers `GET /metrics`, and nothing else, to everybody who connects to `at`; where that is.
    pub(crate) fn metrics_at(
        &self,
        control: &Arc<dyn Control>,
        at: SocketAddr,
    ) -> Result<SocketAddr> {
        let _guard = self.sockets.handle.enter();
        let failed = |e| Failure::io(format!("cannot listen for metrics at {at}"), &e);
        let listener = std::net::TcpListener::bind(at).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = TcpListener::from_std(listener).map_err(failed)?;
        let at = listener.local_addr().map_err(failed)?;
        let router = metrics_router(Arc::clone(control)).layer(map_response(in_an_object));
        self.sockets.handle.spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "metrics are not served any more");
            }
        });
        Ok(at)
    }

    /// The sockets, for whoever adds to them. They answer no longer than this lives.
    pub(crate) fn sockets(&self) -> Weak<Sockets> {
        Arc::downgrade(&self.sockets)
    }
}

impl Drop for Controlled {
    fn drop(&mut self) {
        let serving = std::mem::take(&mut *self.sockets.serving());
        for (path, (_, end)) in &serving {
            // As in `forget`.
            let _ = std::fs::remove_file(path);
            let _ = end.send(true);
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.block_on(async {
                let all = async {
                    for (_, (one, _)) in serving {
                        let _ = one.await;
                    }
                };
                let _ = tokio::time::timeout(LAST_ANSWERS, all).await;
            });
            runtime.shutdown_timeout(LAST_ANSWERS);
        }
    }
}

/// A socket at `path` that nobody else listens on; it does not block.
pub(crate) fn listener(path: &Path) -> Result<StdListener> {
    let failed = |e| Failure::io(format!("cannot listen at {}", path.display()), &e);
    match UnixStream::connect(path) {
        Ok(_) => {
            let what = format!("{}: another server listens there", path.display());
            return Err(Failure::new(Exit::InUse, what));
        }
        Err(error) => remove_left_over(path, &error)?,
    }
    let listener = StdListener::bind(path).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// Removes what a server that was killed has left at `path`, and nothing else; `why` is what connecting brought.
fn remove_left_over(path: &Path, why: &io::Error) -> Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    let kind = found.file_type();
    let refused = why.kind() == io::ErrorKind::ConnectionRefused;
    let link = kind.is_symlink() && place::is_ours(path);
    if (kind.is_socket() && refused) || link {
        let failed = |e| Failure::io(format!("cannot listen at {}", path.display()), &e);
        return std::fs::remove_file(path).map_err(failed);
    }
    let what = format!("{}: is there already ({why})", path.display());
    Err(Failure::usage(what)
        .hint("only a socket that nobody answers at is replaced; name another path"))
}

fn bind(path: &Path) -> Result<UnixListener> {
    let failed = |e| Failure::io(format!("cannot listen at {}", path.display()), &e);
    UnixListener::from_std(listener(path)?).map_err(failed)
}

fn router(control: Arc<dyn Control>) -> Router {
    Router::new()
        .route("/v1/disks", get(disks))
        .route("/v1/disks/{disk}/resize", post(resize))
        .route("/v1/disks/{disk}/limits", post(limit))
        .route("/v1/disks/{disk}/compact", post(compact))
        .route("/v1/disks/{disk}/checkpoints", post(checkpoint))
        .route("/v1/disks/{disk}/snapshot", post(snapshot))
        .route("/v1/disks/{disk}/mirror", get(mirror).post(start_mirror))
        .route("/v1/disks/{disk}/mirror/picture", get(picture))
        .route("/v1/disks/{disk}/mirror/cutover", post(cutover))
        .route("/v1/disks/{disk}/mirror/rollback", post(rollback))
        .route("/v1/disks/{disk}/mirror/rate", post(rate))
        .route("/v1/disks/{disk}/mirror/deadline", post(deadline))
        .route("/v1/disks/{disk}/mirror/cancel", post(cancel))
        .route("/v1/disks/{disk}/mirror/verify", post(verify))
        .with_state(Arc::clone(&control))
        .merge(metrics_router(control))
}

fn metrics_router(control: Arc<dyn Control>) -> Router {
    Router::new()
        .route("/metrics", get(observe))
        .with_state(control)
}

async fn observe(State(control): Shared) -> Response {
    match blocking(move || metrics::text(&control.observe())).await {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(failure) => answer::<()>(Err(failure)),
    }
}

async fn picture(
    State(control): Shared,
    UrlPath(disk): UrlPath<String>,
    Query(draw): Query<Draw>,
) -> Response {
    answer(blocking(move || control.picture(&disk, draw.cells)).await)
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

async fn limit(
    State(control): Shared,
    UrlPath(disk): UrlPath<String>,
    Json(limits): Json<Limits>,
) -> Response {
    answer(blocking(move || control.limit(&disk, limits)).await)
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

async fn cutover(
    State(control): Shared,
    UrlPath(disk): UrlPath<String>,
    // Nothing, or null, which an older program sends.
    now: Option<Json<Option<CutoverNow>>>,
) -> Response {
    let now = now.and_then(|Json(now)| now).unwrap_or_default();
    answer(blocking(move || control.cutover(&disk, now)).await)
}

async fn rate(
    State(control): Shared,
    UrlPath(disk): UrlPath<String>,
    Json(rate): Json<MirrorRate>,
) -> Response {
    answer(blocking(move || control.rate(&disk, rate)).await)
}

async fn deadline(
    State(control): Shared,
    UrlPath(disk): UrlPath<String>,
    Json(wish): Json<MirrorDeadline>,
) -> Response {
    answer(blocking(move || control.deadline(&disk, wish)).await)
}

async fn verify(State(control): Shared, UrlPath(disk): UrlPath<String>) -> Response {
    answer(blocking(move || control.verify(&disk)).await)
}

async fn rollback(State(control): Shared, UrlPath(disk): UrlPath<String>) -> Response {
    answer(blocking(move || control.rollback(&disk)).await)
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
    let outside = confinement::hint(&failure.what);
    let body = ErrorBody {
        error: failure.what,
        hint: failure.hint.or(outside),
        exit_code: failure.exit as u8,
    };
    (status, Json(body)).into_response()
}
