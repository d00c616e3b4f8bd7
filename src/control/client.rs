//! The side of the verbs that talk to a running server.

use std::path::{Path, PathBuf};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::service::ErrorBody;
use crate::failure::{Exit, Failure, Result};

/// No answer of a server is longer.
const MAX_ANSWER: usize = 16 << 20;

/// A server that is asked over its control socket.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    /// The server behind `socket`.
    pub(crate) fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Whether anybody listens there.
    pub(crate) fn answers(&self) -> bool {
        std::os::unix::net::UnixStream::connect(&self.socket).is_ok()
    }

    /// Ask for a resource.
    pub(crate) fn get<T: DeserializeOwned>(&self, resource: &str) -> Result<T> {
        self.call(Method::GET, resource, &())
    }

    /// Have something done.
    pub(crate) fn post<T: DeserializeOwned>(
        &self,
        resource: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        self.call(Method::POST, resource, body)
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        resource: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.map_err(|e| Failure::io("no runtime", &e))?;
        let body = serde_json::to_vec(body).map_err(|e| self.broken(&e))?;
        let (status, answer) = runtime.block_on(self.exchange(method, resource, body))?;
        if status.is_success() {
            return serde_json::from_slice(&answer).map_err(|e| self.broken(&e));
        }
        let error: ErrorBody = serde_json::from_slice(&answer).map_err(|_| {
            let text = String::from_utf8_lossy(&answer).into_owned();
            Failure::new(
                Exit::Failed,
                format!("the server answered {status}: {text}"),
            )
        })?;
        let exit = Exit::of_code(error.exit_code).unwrap_or(Exit::Failed);
        let failure = Failure::new(exit, error.error);
        Err(match error.hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        })
    }

    async fn exchange(
        &self,
        method: Method,
        resource: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes)> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| {
            let what = format!("no server listens at {}: {e}", self.socket.display());
            Failure::new(Exit::Failed, what)
                .hint("start one with `diskferry serve`, or name its socket with --control")
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.broken(&e))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(resource)
            .header("host", "diskferry")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| self.broken(&e))?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|e| self.broken(&e))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER);
        let body = body.collect().await.map_err(|e| self.broken(&e))?;
        Ok((status, body.to_bytes()))
    }

    fn broken(&self, error: &dyn std::fmt::Display) -> Failure {
        let what = format!(
            "the talk with the server at {} broke off: {error}",
            self.socket.display()
        );
        Failure::new(Exit::Failed, what)
    }
}
