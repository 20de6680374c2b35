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
    pub fn is_accepted(&self) -> bool {
        self.code < 300
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

/// Takes out of a stored object what two servers choose differently.
pub fn normalise(object: &mut Value) {
    if let Some(meta) = object["metadata"].as_object_mut() {
        for field in ["uid", "resourceVersion", "creationTimestamp", "managedFields"] {
            meta.remove(field);
        }
    }
    let mut rest = vec![object];
    while let Some(value) = rest.pop() {
        match value {
            Value::String(text) => {
                if text.starts_with("10.96.") {
                    *text = "10.96.X.X".into();
                }
                if text.starts_with("kube-api-access-") {
                    *text = "kube-api-access-X".into();
                }
            }
            Value::Array(list) => rest.extend(list),
            Value::Object(map) => {
                for (key, value) in map {
                    if matches!(key.as_str(), "nodePort" | "healthCheckNodePort")
                        && value.as_i64().is_some_and(|port| (30_000..=32_767).contains(&port))
                    {
                        *value = 30_000.into();
                    }
                    rest.push(value);
                }
            }
            _ => {}
        }
    }
}
