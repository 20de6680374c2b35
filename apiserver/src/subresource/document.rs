//! Bodies of other kinds than what their path names.

use serde_json::Value;
use skiff_api::meta::Meta;
use skiff_api::{Status, decode};

use crate::call::Call;
use crate::limits::read_body;
use crate::negotiate::body_format;

/// Reads a body of another kind than the call's, such as a `Binding`.
pub(super) async fn read_document(call: &mut Call, api_version: &str, kind: &str) -> Result<Value, Status> {
    let format = body_format(&call.headers)?;
    let bytes = read_body(call.take_body()).await?;
    let document = decode::document(&bytes, format, api_version, kind)?;
    let found = document["kind"].as_str().unwrap_or_default();
    if !found.is_empty() && found != kind {
        return Err(Status::bad_request(format!("expected a {kind}, got a {found}")));
    }
    let name = document.name();
    if !name.is_empty() && !call.info.name.is_empty() && name != call.info.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.info.name
        )));
    }
    Ok(document)
}
