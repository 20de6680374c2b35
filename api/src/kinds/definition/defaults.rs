//! Whether the defaults of a schema are values of it.

use serde_json::Value;

use super::options::Options;
use crate::Cause;
use crate::kinds::builtin::rules::path::Path;

pub(super) fn check(_schema: &Value, _options: &Options<'_>, _path: &Path<'_>) -> Vec<Cause> {
    Vec::new()
}

/// Whether a stored schema has a default with fields that it does not know.
pub(super) fn has_unpruned(_schema: &Value) -> bool {
    false
}
