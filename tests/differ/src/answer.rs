//! What a server answered, without what it may choose freely.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An answer as it is compared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    pub code: u16,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Field and reason of each cause.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub causes: BTreeSet<(String, String)>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub object: Value,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub warnings: BTreeSet<String>,
}

impl Answer {
    /// Whether there was one: a handler that panics gives none.
    pub fn is_there(&self) -> bool {
        self.code != 0
    }

    pub fn is_accepted(&self) -> bool {
        (200..300).contains(&self.code)
    }

    pub fn read(code: u16, warnings: BTreeSet<String>, bytes: &[u8]) -> Result<Answer> {
        let mut object: Value =
            serde_json::from_slice(bytes).with_context(|| String::from_utf8_lossy(bytes).into_owned())?;
        if code < 300 {
            normalise(&mut object);
            return Ok(Answer { code, warnings, object, ..Answer::default() });
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let causes = object["details"]["causes"].as_array().into_iter().flatten();
        let causes = causes.map(|cause| (text(&cause["field"]), text(&cause["reason"]))).collect();
        let (reason, message) = (text(&object["reason"]), text(&object["message"]));
        Ok(Answer { code, reason, causes, message, warnings, object: Value::Null })
    }
}

/// Kept from deletion by controllers that Skiff does not have: with them nothing of it could ever be deleted.
const PROTECTIONS: [&str; 3] =
    ["kubernetes.io/pvc-protection", "kubernetes.io/pv-protection", "kubernetes.io/vac-protection"];
/// Kinds whose status controllers of upstream's API server itself write.
const REPORTED: [&str; 3] = ["APIService", "FlowSchema", "PriorityLevelConfiguration"];

/// What a server adds to the beginning of a name that a client chose.
const RANDOM_BYTES: usize = 5;

/// Whether a text is a random identifier; ours are not.
fn is_random_id(text: &str) -> bool {
    let parts: Vec<usize> = text.split('-').map(str::len).collect();
    parts == [8, 4, 4, 4, 12]
        && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
        && !text.starts_with("1111")
}

/// Takes out of a stored object what two servers choose differently.
pub fn normalise(object: &mut Value) {
    if object["kind"].as_str().is_some_and(|kind| REPORTED.contains(&kind)) {
        _ = object.as_object_mut().map(|object| object.remove("status"));
    }
    let finalizers = object.pointer_mut("/metadata/finalizers").and_then(Value::as_array_mut);
    let is_bare = finalizers.is_some_and(|finalizers| {
        finalizers.retain(|finalizer| !finalizer.as_str().is_some_and(|text| PROTECTIONS.contains(&text)));
        finalizers.is_empty()
    });
    if is_bare {
        _ = object["metadata"].as_object_mut().map(|meta| meta.remove("finalizers"));
    }
    // JSON within JSON: the order of its fields says nothing.
    for (name, value) in
        object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut).into_iter().flatten()
    {
        if name.starts_with("autoscaling.alpha.kubernetes.io/")
            && let Some(parsed) = value.as_str().and_then(|text| serde_json::from_str(text).ok())
        {
            *value = parsed;
        }
    }
    for path in ["/status", "/spec/extra"] {
        if let Some(Value::Object(map)) = object.pointer_mut(path) {
            map.remove("authentication.kubernetes.io/credential-id");
        }
    }
    if object.pointer("/spec/extra").and_then(Value::as_object).is_some_and(|extra| extra.is_empty()) {
        _ = object["spec"].as_object_mut().map(|spec| spec.remove("extra"));
    }
    let prefix = object["metadata"]["generateName"].as_str().unwrap_or_default().to_owned();
    if let Some(name) = object.pointer_mut("/metadata/name")
        && name
            .as_str()
            .and_then(|name| name.strip_prefix(&prefix))
            .is_some_and(|rest| rest.len() == RANDOM_BYTES)
        && !prefix.is_empty()
    {
        *name = format!("{prefix}XXXXX").into();
    }
    if let Some(meta) = object["metadata"].as_object_mut() {
        for field in ["uid", "resourceVersion", "creationTimestamp", "managedFields", "selfLink"] {
            meta.remove(field);
        }
    }
    let mut rest = vec![object];
    while let Some(value) = rest.pop() {
        match value {
            Value::String(text) => {
                if text.starts_with("10.96.") || text.starts_with("198.51.100.") {
                    *text = "10.96.X.X".into();
                }
                if is_random_id(text) {
                    *text = "ID".into();
                }
                if text.starts_with("kube-api-access-") {
                    *text = "kube-api-access-X".into();
                }
            }
            Value::Array(list) => rest.extend(list),
            Value::Object(map) => {
                for (key, value) in map {
                    if matches!(key.as_str(), "nodePort" | "healthCheckNodePort")
                        && value.as_i64().is_some_and(|port| (30_000..=32_800).contains(&port))
                    {
                        *value = 30_000.into();
                    }
                    if matches!(key.as_str(), "lastTransitionTime" | "lastPhaseTransitionTime")
                        && value.is_string()
                    {
                        *value = "now".into();
                    }
                    rest.push(value);
                }
            }
            _ => {}
        }
    }
}
