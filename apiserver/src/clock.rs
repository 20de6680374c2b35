//! Times as the API writes them: whole seconds, UTC.

use serde_json::Value;

/// Seconds of time as the API writes them.
pub(crate) fn timestamp(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub(crate) fn now() -> Value {
    timestamp(jiff::Timestamp::now()).into()
}
