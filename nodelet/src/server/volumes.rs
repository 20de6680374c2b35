//! `/volumes/{name}`: volumes of this node, for the provisioner of claims.
//!
//! `PUT {"capacityBytes": N}` makes one, or makes it larger; `GET` looks at it; `DELETE` removes it. Errors are `Status`.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::local_volumes::{LIMIT, LocalVolume, LocalVolumeError};
use crate::server::Api;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wanted {
    capacity_bytes: u64,
}

pub(super) async fn get(State(api): State<Api>, Path(name): Path<String>) -> Response {
    match api.shared.volumes.local.get(&name).await {
        Ok(Some(volume)) => Json(shown(&volume)).into_response(),
        Ok(None) => status(StatusCode::NOT_FOUND, "NotFound", format!("this node has no volume {name:?}")),
        Err(error) => refused(&error),
    }
}

pub(super) async fn put(State(api): State<Api>, Path(name): Path<String>, body: Bytes) -> Response {
    let wanted: Wanted = match serde_json::from_slice(&body) {
        Ok(wanted) => wanted,
        Err(error) => return status(StatusCode::BAD_REQUEST, "BadRequest", format!("the body: {error}")),
    };
    // To its end, whether or not who asked waits for it.
    let shared = api.shared.clone();
    let made = tokio::spawn(async move { shared.volumes.local.make(&name, wanted.capacity_bytes).await });
    match made.await {
        Ok(Ok(volume)) => Json(shown(&volume)).into_response(),
        Ok(Err(error)) => refused(&error),
        Err(error) => status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", error.to_string()),
    }
}

pub(super) async fn delete(State(api): State<Api>, Path(name): Path<String>) -> Response {
    let shared = api.shared.clone();
    match tokio::spawn(async move { shared.volumes.local.remove(&name).await }).await {
        Ok(Ok(())) => {
            Json(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}))
                .into_response()
        }
        Ok(Err(error)) => refused(&error),
        Err(error) => status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", error.to_string()),
    }
}

fn shown(volume: &LocalVolume) -> Value {
    json!({
        "path": volume.path,
        "capacityBytes": volume.capacity_bytes,
        "usedBytes": volume.used_bytes,
        "limit": LIMIT,
    })
}

fn refused(error: &LocalVolumeError) -> Response {
    let (code, reason) = match error {
        LocalVolumeError::Name(_) => (StatusCode::BAD_REQUEST, "BadRequest"),
        LocalVolumeError::Smaller { .. } | LocalVolumeError::InUse { .. } => {
            (StatusCode::CONFLICT, "Conflict")
        }
        LocalVolumeError::NoRoom { .. } => (StatusCode::INSUFFICIENT_STORAGE, "InsufficientStorage"),
        LocalVolumeError::Command { .. } | LocalVolumeError::Late { .. } | LocalVolumeError::Volume(_) => {
            (StatusCode::INTERNAL_SERVER_ERROR, "InternalError")
        }
    };
    status(code, reason, error.to_string())
}

fn status(code: StatusCode, reason: &str, message: String) -> Response {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    });
    (code, Json(body)).into_response()
}
