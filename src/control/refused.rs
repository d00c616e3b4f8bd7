//! What is answered to a request that reaches no verb: no such resource, no JSON, unknown keys, too long.
//!
//! The web framework says these in plain text; whoever calls gets the same object as from a verb that refuses.

use axum::Json;
use axum::body::to_bytes;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use super::service::ErrorBody;
use crate::failure::Exit;

/// Bytes of a text that is repeated.
const LONGEST: usize = 4096;

/// The answer with an object in it, if it says in plain text why nothing was done.
pub(super) async fn in_an_object(response: Response) -> Response {
    let status = response.status();
    let json = response.headers().get(CONTENT_TYPE);
    let json = json.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if json || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let text = to_bytes(response.into_body(), LONGEST).await;
    let text = text.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let why = status.canonical_reason().unwrap_or("Refused");
    let body = ErrorBody {
        error: match text.trim() {
            "" => why.to_owned(),
            text => format!("{why}: {text}"),
        },
        hint: None,
        exit_code: Exit::Usage as u8,
    };
    (status, Json(body)).into_response()
}
