//! Patch: JSON patch, merge patch, strategic merge patch.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use serde_json::Value;
use skiff_api::decode::FieldValidation;
use skiff_api::meta::Meta;
use skiff_api::{Cause, Kind, Object, Status, decode, default, patch};

use super::options::WriteOptions;
use super::update::Part;
use crate::api::{Api, Call};
use crate::limits::read_body;
use crate::respond::Response;

/// Upstream's limit of operations in a JSON patch.
const MAX_OPERATIONS: usize = 10_000;
const PATCH_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// A patch as it was sent.
pub(crate) enum Patch {
    Json(Value),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    /// Reads the body by its content type.
    ///
    /// # Errors
    /// 415 for other types; server-side apply is not built yet.
    pub(crate) async fn read(call: &mut Call) -> Result<Patch, Status> {
        let header = call.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let content_type = header.split(';').next().unwrap_or_default().trim().to_owned();
        if content_type == "application/apply-patch+yaml" {
            return Err(Status::new(
                415,
                "UnsupportedMediaType",
                "server-side apply (application/apply-patch+yaml) is not supported by this server yet; use \
                 client-side apply",
            ));
        }
        if !PATCH_TYPES.contains(&content_type.as_str()) {
            return Err(Status::unsupported_media_type(PATCH_TYPES));
        }
        let bytes: Bytes = read_body(call.take_body()).await?;
        let document = decode::parse(&bytes)?;
        match content_type.as_str() {
            "application/json-patch+json" => {
                let operations = document.as_array().map_or(0, Vec::len);
                if operations > MAX_OPERATIONS {
                    return Err(Status::too_large(format!(
                        "Request entity too large: The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {operations}"
                    )));
                }
                Ok(Patch::Json(document))
            }
            "application/merge-patch+json" => Ok(Patch::Merge(document)),
            _ => Ok(Patch::Strategic(document)),
        }
    }

    /// Applies it to a document whose shape, for strategic merges, is that of `kind`.
    pub(crate) fn apply(&self, kind: &Kind, object: &mut Object) -> Result<(), Status> {
        match self {
            Patch::Json(patch) => patch::json(object, patch),
            Patch::Merge(patch) => {
                patch::merge(object, patch);
                Ok(())
            }
            Patch::Strategic(patch) => patch::strategic(&kind.schema, object, patch),
        }
    }
}

impl Api {
    /// PATCH of an object or its `status`.
    pub(crate) async fn patch(&self, mut call: Call) -> Result<Response, Status> {
        let options = WriteOptions::parse(&call)?;
        let patch = Patch::read(&mut call).await?;
        let part = match call.info.subresource.as_str() {
            "" => Part::Main,
            "status" => Part::Status,
            _ => Part::Approval,
        };
        let kind = call.kind.clone();
        let (mut warnings, mut old) = (Vec::new(), None);
        let outcome = self
            .update_object(&call, part, options.dry_run, |current| {
                warnings.clear();
                old = Some(current.clone());
                patched(&kind, &patch, current, options.validation, &mut warnings)
            })
            .await?;
        call.warnings.extend(warnings);
        if part == Part::Main {
            call.warnings.extend(kind.warnings(&outcome.object, old.as_ref()));
        }
        call.object(200, outcome.object)
    }
}

fn patched(
    kind: &Kind,
    patch: &Patch,
    current: &Object,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Object, Status> {
    let mut object = current.clone();
    patch.apply(kind, &mut object)?;
    let decoded = decode::conform(kind, object, validation).map_err(undecodable)?;
    warnings.extend(decoded.warnings);
    let mut object = decoded.object;
    default::apply(kind, &mut object);
    for field in ["name", "namespace"] {
        if object.meta_str(field) != current.meta_str(field) {
            return Err(Status::bad_request(match field {
                "name" => format!(
                    "the name of the object ({}) does not match the name on the URL ({})",
                    object.name(),
                    current.name()
                ),
                _ => "the namespace of the provided object does not match the namespace sent on the request"
                    .to_owned(),
            }));
        }
    }
    Ok(object)
}

/// A patch that makes something else than an object of its kind is what is wrong, not the request.
fn undecodable(status: Status) -> Status {
    if status.code != 400 {
        return status;
    }
    let cause = Cause::invalid_together("patch", &status.message);
    Status::invalid("", "", "", vec![cause])
}
