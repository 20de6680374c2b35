//! Judgements against those of upstream's plug-in: `validate.jsonl.gz`, which `xtask/policies` records.

use std::collections::BTreeMap;
use std::io::Read as _;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};
use skiff_api::{LabelSelector, Object, Status};
use skiff_cel::{Authorizer, Check, Decision};
use skiff_policy::{Caller, Params, Policies, Scope};
use skiff_webhook::admission::{
    Attributes, GroupVersionKind, GroupVersionResource, Host, Operation, Record, UserInfo,
};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    name: String,
    policies: Vec<Value>,
    bindings: Vec<Value>,
    namespaces: Option<Vec<Value>>,
    params: Vec<Value>,
    attributes: Given,
    error: Option<Value>,
    annotations: BTreeMap<String, String>,
    warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Given {
    operation: String,
    kind: Value,
    resource: Value,
    subresource: String,
    namespace: String,
    name: String,
    user: Value,
    dry_run: bool,
    object: Option<Value>,
    old_object: Option<Value>,
    options: Option<Value>,
}

/// Cases that are judged otherwise, and why.
const KNOWN: &[(&str, &str)] = &[
    (
        "an expression 29: variables.worse == 1",
        "upstream's words for a wrong expression show a blank more of it",
    ),
    (
        "an expression 44: variables == variables",
        "variables are made one by one; all of them together are no value",
    ),
];

/// What `xtask/policies` gives upstream: gadgets of two versions, an old group, and those that stay what they are.
struct Gadgets;

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
struct MayGet;

impl Authorizer for MayGet {
    fn check(&self, _: &Check, verb: &str) -> Decision {
        Decision { is_allowed: verb == "get", ..Decision::default() }
    }
}

/// Limits are in namespaces, rules are not.
struct Stored<'c>(&'c [Value]);

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

/// What came of a case: the error as it would be sent, and the record.
async fn run(case: &Case) -> (Option<Value>, Record) {
    let given = &case.attributes;
    let of = |value: &Value, field: &str| text(&value[field]);
    let kind = GroupVersionKind {
        group: of(&given.kind, "group"),
        version: of(&given.kind, "version"),
        kind: of(&given.kind, "kind"),
    };
    let resource = GroupVersionResource {
        group: of(&given.resource, "group"),
        version: of(&given.resource, "version"),
        resource: of(&given.resource, "resource"),
    };
    let user = UserInfo {
        name: of(&given.user, "Name"),
        uid: of(&given.user, "UID"),
        groups: serde_json::from_value::<Option<_>>(given.user["Groups"].clone())
            .expect("groups")
            .unwrap_or_default(),
        extra: serde_json::from_value::<Option<_>>(given.user["Extra"].clone())
            .expect("extra")
            .unwrap_or_default(),
    };
    let operation = match given.operation.as_str() {
        "CREATE" => Operation::Create,
        "UPDATE" => Operation::Update,
        "DELETE" => Operation::Delete,
        _ => Operation::Connect,
    };
    let attributes = Attributes {
        operation,
        kind: &kind,
        resource: &resource,
        subresource: &given.subresource,
        namespace: &given.namespace,
        name: &given.name,
        user: &user,
        dry_run: given.dry_run,
        object: given.object.as_ref(),
        old_object: given.old_object.as_ref(),
        options: given.options.as_ref(),
        namespace_object: case
            .namespaces
            .iter()
            .flatten()
            .find(|n| n["metadata"]["name"] == given.namespace.as_str()),
        authorizer: Some(&MayGet),
        deadline: None,
    };
    let stored = Stored(&case.params);
    let caller = Caller { host: &Gadgets, params: &stored };
    let policies = Policies::compile(&case.policies, &case.bindings, None);
    let mut record = Record::default();
    let result = policies.validate(caller, &attributes, &mut record).await;
    let error = result.err().map(|status| {
        let mut document = status.to_json();
        for field in ["kind", "apiVersion"] {
            document.as_object_mut().expect("an object").remove(field);
        }
        document
    });
    (error, record)
}

#[tokio::test]
async fn policies_judge_as_upstreams_do() {
    let packed = include_bytes!("validate.jsonl.gz");
    let mut lines = String::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_string(&mut lines).expect("lines");
    let (mut faults, mut n_cases, mut n_known) = (Vec::new(), 0, 0);
    for line in lines.lines() {
        let case: Case = serde_json::from_str(line).expect(line);
        let (error, record) = run(&case).await;
        let annotations: BTreeMap<String, String> =
            record.annotations.into_iter().map(|(key, (_, value))| (key, value)).collect();
        let found = json!([error, annotations, record.warnings]);
        let wanted = json!([case.error, case.annotations, case.warnings]);
        n_cases += 1;
        if KNOWN.iter().any(|(name, _)| *name == case.name) {
            assert_ne!(found, wanted, "{} is the same by now", case.name);
            n_known += 1;
        } else if found != wanted {
            faults.push(format!("{}\n   found {found}\n  wanted {wanted}", case.name));
        }
    }
    assert!(faults.is_empty(), "{} of {n_cases}:\n{}", faults.len(), faults.join("\n"));
    assert!(n_cases > 900, "{n_cases}");
    assert_eq!(n_known, KNOWN.len());
}
