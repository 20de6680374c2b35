//! What `xtask/policies` gives upstream: gadgets of two versions and of an old group, params, and who may what.

use std::io::Read as _;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::Value;
use skiff_api::{LabelSelector, Object, Status};
use skiff_cel::{Authorizer, Check, Decision};
use skiff_policy::{Params, Scope};
use skiff_webhook::admission::{
    Attributes, GroupVersionKind, GroupVersionResource, Host, Operation, Permissions, UserInfo,
};

/// The lines of a packed file.
pub(crate) fn unpacked(packed: &[u8]) -> String {
    let mut lines = String::new();
    flate2::read::GzDecoder::new(packed).read_to_string(&mut lines).expect("lines");
    lines
}

/// An error as it would be sent, as far as upstream says it here.
pub(crate) fn shown(status: &Status) -> Value {
    let mut document = status.to_json();
    for field in ["kind", "apiVersion"] {
        document.as_object_mut().expect("an object").remove(field);
    }
    document
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Given {
    pub(crate) operation: String,
    pub(crate) kind: Value,
    pub(crate) resource: Value,
    pub(crate) subresource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) user: Value,
    pub(crate) dry_run: bool,
    pub(crate) object: Option<Value>,
    pub(crate) old_object: Option<Value>,
    pub(crate) options: Option<Value>,
}

/// What `xtask/policies` gives upstream: gadgets of two versions, an old group, and those that stay what they are.
pub(crate) struct Gadgets;

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
        if object["metadata"]["labels"]["stays"].is_string() {
            return Err("that cannot be converted".into());
        }
        object["apiVersion"] = format!("{}/{}", kind.group, kind.version).into();
        object["kind"] = kind.kind.as_str().into();
        Ok(object)
    }

    fn decode(&self, _: &GroupVersionKind, object: Value) -> Result<Value, String> {
        Ok(object)
    }

    fn default(&self, _: &GroupVersionKind, _: &mut Value) {}
}

/// Everybody may get everything, and nothing else.
pub(crate) struct MayGet;

impl Authorizer for MayGet {
    fn check(&self, _: &Check, verb: &str) -> Decision {
        Decision { is_allowed: verb == "get", ..Decision::default() }
    }
}

impl Permissions for MayGet {}

/// Limits are in namespaces, rules are not.
pub(crate) struct Stored<'c>(pub(crate) &'c [Value]);

impl Stored<'_> {
    fn of(&self, kind: &GroupVersionKind, namespace: Option<&str>) -> Vec<&Value> {
        let mut found: Vec<&Value> = self
            .0
            .iter()
            .filter(|object| object["kind"] == kind.kind.as_str())
            .filter(|object| namespace.is_none_or(|namespace| object["metadata"]["namespace"] == namespace))
            .collect();
        found.sort_by_key(|object| object["metadata"]["name"].as_str());
        found
    }
}

impl Params for Stored<'_> {
    fn scope(&self, kind: &GroupVersionKind) -> Option<Scope> {
        match (kind.group.as_str(), kind.kind.as_str()) {
            ("rules.example.com", "Limit") => Some(Scope::Namespaced),
            ("rules.example.com", "Rule") => Some(Scope::Cluster),
            _ => None,
        }
    }

    fn get(
        &self,
        kind: &GroupVersionKind,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<Object>, Status> {
        Ok(self.of(kind, namespace).into_iter().find(|object| object["metadata"]["name"] == name).cloned())
    }

    fn select(
        &self,
        kind: &GroupVersionKind,
        namespace: Option<&str>,
        selector: &LabelSelector,
    ) -> Result<Vec<Object>, Status> {
        let all = self.of(kind, namespace).into_iter();
        Ok(all.filter(|o| selector.matches(|key| o["metadata"]["labels"][key].as_str())).cloned().collect())
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What the attributes of a request borrow from.
pub(crate) struct Request {
    kind: GroupVersionKind,
    resource: GroupVersionResource,
    user: UserInfo,
}

impl Request {
    pub(crate) fn new(given: &Given) -> Request {
        let of = |value: &Value, field: &str| text(&value[field]);
        Request {
            kind: GroupVersionKind {
                group: of(&given.kind, "group"),
                version: of(&given.kind, "version"),
                kind: of(&given.kind, "kind"),
            },
            resource: GroupVersionResource {
                group: of(&given.resource, "group"),
                version: of(&given.resource, "version"),
                resource: of(&given.resource, "resource"),
            },
            user: UserInfo {
                name: of(&given.user, "Name"),
                uid: of(&given.user, "UID"),
                groups: serde_json::from_value::<Option<_>>(given.user["Groups"].clone())
                    .expect("groups")
                    .unwrap_or_default(),
                extra: serde_json::from_value::<Option<_>>(given.user["Extra"].clone())
                    .expect("extra")
                    .unwrap_or_default(),
            },
        }
    }

    pub(crate) fn attributes<'a>(&'a self, given: &'a Given, namespaces: &'a [Value]) -> Attributes<'a> {
        Attributes {
            operation: match given.operation.as_str() {
                "CREATE" => Operation::Create,
                "UPDATE" => Operation::Update,
                "DELETE" => Operation::Delete,
                _ => Operation::Connect,
            },
            kind: &self.kind,
            resource: &self.resource,
            subresource: &given.subresource,
            namespace: &given.namespace,
            name: &given.name,
            user: &self.user,
            dry_run: given.dry_run,
            object: given.object.as_ref(),
            old_object: given.old_object.as_ref(),
            options: given.options.as_ref(),
            namespace_object: namespaces.iter().find(|n| n["metadata"]["name"] == given.namespace.as_str()),
            authorizer: Some(&MayGet),
            deadline: None,
        }
    }
}
