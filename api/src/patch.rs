//! The patches a client may send.

use serde_json::Value;

use crate::schema::TypeRef;
use crate::{Object, Status};

mod strategic;

/// RFC 6902. `patch` is the parsed array of operations.
///
/// # Errors
/// 400 for what is no patch, 422 for one that does not apply, such as a failed `test`.
pub fn json(object: &mut Object, patch: &Value) -> Result<(), Status> {
    /// Upstream's cap on one patch.
    const MAX_OPERATIONS: usize = 10_000;
    let patch: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    if patch.0.len() > MAX_OPERATIONS {
        return Err(Status::too_large(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            patch.0.len()
        )));
    }
    json_patch::patch(object, &patch).map_err(|e| {
        Status::new(
            422,
            "Invalid",
            format!("the server rejected our request due to an error in our request: {e}"),
        )
    })
}

/// RFC 7386.
pub fn merge(object: &mut Object, patch: &Value) {
    json_patch::merge(object, patch);
}

/// Kubernetes' strategic merge patch: lists merge by their keys, `$patch`, `$retainKeys`,
/// `$deleteFromPrimitiveList` and `$setElementOrder` direct it.
///
/// # Errors
/// 400 for a patch whose directives or shape make no sense.
pub fn strategic(schema: &TypeRef, object: &mut Object, patch: &Value) -> Result<(), Status> {
    let Value::Object(map) = patch else {
        return Err(Status::bad_request("error decoding patch: a strategic merge patch must be an object"));
    };
    strategic::merge_object(&schema.schema, Some(schema.id), object, map)
        .map_err(|why| Status::bad_request(format!("error applying strategic merge patch: {why}")))
}

#[cfg(test)]
mod tests;
