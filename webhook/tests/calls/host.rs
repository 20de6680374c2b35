//! A host of admission that knows gadgets: `example.com/v1` and `v2`, and `OldGadget` of `old.example.com/v1`, which are all the same.
//! It is what `xtask/webhooks` gives upstream.

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::Value;
use skiff_cel::{Authorizer, Check, Decision};
use skiff_webhook::admission::{CallEnd, Called, GroupVersionKind, GroupVersionResource, Host, Permissions};

#[derive(Default)]
pub(crate) struct Gadgets {
    pub(crate) calls: Mutex<Vec<(String, CallEnd, u16)>>,
}

#[async_trait]
impl Host for Gadgets {
    fn equivalents(&self, resource: &GroupVersionResource, subresource: &str) -> Vec<GroupVersionResource> {
        if resource.resource != "gadgets" {
            return vec![resource.clone()];
        }
        let mut all = vec!["example.com/v1", "example.com/v2"];
        if subresource.is_empty() {
            all.push("old.example.com/v1");
        }
        all.into_iter().map(|version| GroupVersionResource::new(version, "gadgets")).collect()
    }

    fn kind_for(&self, resource: &GroupVersionResource, _: &str) -> Option<GroupVersionKind> {
        let kind = if resource.group == "old.example.com" { "OldGadget" } else { "Gadget" };
        let GroupVersionResource { group, version, .. } = resource.clone();
        Some(GroupVersionKind { group, version, kind: kind.into() })
    }

    async fn convert(&self, mut object: Value, kind: &GroupVersionKind) -> Result<Value, String> {
        object["apiVersion"] = format!("{}/{}", kind.group, kind.version).into();
        object["kind"] = kind.kind.as_str().into();
        Ok(object)
    }

    fn decode(&self, _: &GroupVersionKind, object: Value) -> Result<Value, String> {
        match &object {
            Value::Object(fields) if fields.contains_key("kind") => Ok(object),
            Value::Object(_) => Err("Object 'Kind' is missing".into()),
            _ => Err("it is no object".into()),
        }
    }

    fn default(&self, _: &GroupVersionKind, object: &mut Value) {
        if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
            spec.entry("defaulted").or_insert(true.into());
        }
    }

    fn called(&self, call: &Called<'_>) {
        self.calls.lock().push((call.webhook.to_owned(), call.end, call.code));
    }
}

/// Everybody may get everything, and nothing else.
pub(crate) struct MayGet;

impl Authorizer for MayGet {
    fn check(&self, _: &Check, verb: &str) -> Decision {
        Decision { is_allowed: verb == "get", ..Decision::default() }
    }
}

impl Permissions for MayGet {}
