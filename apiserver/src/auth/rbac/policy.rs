//! The roles and bindings that every cluster has (`policy.txt`), and what is added to those that a cluster has already.
//!
//! Source: upstream's reconciliation of its bootstrap policy: what is missing is added, what people added stays, and what they
//! marked with the annotation is left alone.

use serde_json::{Value, json};
use skiff_api::Object;
use skiff_api::meta::Meta;
use thiserror::Error;

use super::escalation::missing;
use super::rule::{PolicyRule, names, rules_of};

const POLICY: &str = include_str!("policy.txt");
const API_GROUP: &str = "rbac.authorization.k8s.io";
/// `false` on a role or a binding: it is its owner's alone.
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

#[derive(Debug, Error, PartialEq, Eq)]
#[error("line {line} of the roles that every cluster has cannot be read: {text:?}")]
pub struct PolicyError {
    line: usize,
    text: String,
}

/// A role or a binding that is to be there.
#[derive(Debug)]
pub(crate) struct Expected {
    pub(crate) plural: &'static str,
    pub(crate) object: Object,
}

#[derive(Debug)]
pub(crate) struct Policy {
    /// Roles before the bindings to them.
    pub(crate) expected: Vec<Expected>,
}

impl Policy {
    pub(crate) fn builtin() -> Result<Policy, PolicyError> {
        Policy::parse(POLICY)
    }

    fn parse(text: &str) -> Result<Policy, PolicyError> {
        let mut expected: Vec<Expected> = Vec::new();
        for (at, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            let read = if line.starts_with(' ') {
                expected.last_mut().and_then(|last| add(last, &words))
            } else {
                begin(&words).map(|begun| expected.push(begun))
            };
            if read.is_none() {
                return Err(PolicyError { line: at + 1, text: line.to_owned() });
            }
        }
        Ok(Policy { expected })
    }

    /// The rules of a ClusterRole.
    pub(crate) fn rules_of(&self, name: &str) -> Vec<PolicyRule> {
        let role = self.expected.iter().find(|one| one.plural == "clusterroles" && one.object.name() == name);
        role.map(|role| rules_of(&role.object)).unwrap_or_default()
    }
}

/// The head of an object.
fn begin(words: &[&str]) -> Option<Expected> {
    let (plural, has_namespace, words) = match words {
        ["ClusterRole", rest @ ..] => ("clusterroles", false, rest),
        ["Role", rest @ ..] => ("roles", true, rest),
        ["ClusterRoleBinding", rest @ ..] => ("clusterrolebindings", false, rest),
        ["RoleBinding", rest @ ..] => ("rolebindings", true, rest),
        _ => return None,
    };
    let mut object = json!({"metadata": {
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}, "annotations": {AUTO_UPDATE: "true"},
    }});
    let words = if has_namespace {
        let (namespace, rest) = words.split_first()?;
        object["metadata"]["namespace"] = (*namespace).into();
        rest
    } else {
        words
    };
    match (plural.ends_with("bindings"), words) {
        (false, [name]) => object["metadata"]["name"] = (*name).into(),
        (true, [name, kind, role]) => {
            object["metadata"]["name"] = (*name).into();
            object["roleRef"] = json!({"apiGroup": API_GROUP, "kind": kind, "name": role});
        }
        _ => return None,
    }
    Some(Expected { plural, object })
}

/// One line of an object.
fn add(to: &mut Expected, words: &[&str]) -> Option<()> {
    let object = &mut to.object;
    if to.plural.ends_with("bindings") {
        let subject = match words {
            ["ServiceAccount", namespace, name] => {
                json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
            }
            [kind @ ("User" | "Group"), name] => json!({"apiGroup": API_GROUP, "kind": kind, "name": name}),
            _ => return None,
        };
        push(&mut object["subjects"], subject);
        return Some(());
    }
    let list = |words: &str| names(words.split(',').map(|word| if word == "core" { "" } else { word }));
    match words {
        ["labelled", label] => {
            let (label, value) = label.split_once('=')?;
            object["metadata"]["labels"][label] = value.into();
        }
        ["aggregates", label] => {
            let (label, value) = label.split_once('=')?;
            push(
                &mut object["aggregationRule"]["clusterRoleSelectors"],
                json!({"matchLabels": {label: value}}),
            );
        }
        [verbs, "at", paths] => {
            let rule = PolicyRule { verbs: list(verbs), paths: list(paths), ..PolicyRule::default() };
            push(&mut object["rules"], rule.to_json());
        }
        [verbs, groups, resources, of @ ..] if of.len() <= 1 => {
            let rule = PolicyRule {
                verbs: list(verbs),
                groups: list(groups),
                resources: list(resources),
                names: of.first().map(|of| list(of)).unwrap_or_default(),
                paths: Box::default(),
            };
            push(&mut object["rules"], rule.to_json());
        }
        _ => return None,
    }
    Some(())
}

fn push(list: &mut Value, item: Value) {
    match list {
        Value::Array(items) => items.push(item),
        list => *list = json!([item]),
    }
}

/// What becomes of an object that is there; `None` if it stays as it is.
pub(crate) fn completed(existing: &Object, expected: &Object) -> Option<Object> {
    if existing["metadata"]["annotations"][AUTO_UPDATE] == "false" {
        return None;
    }
    let mut completed = existing.clone();
    for field in ["labels", "annotations"] {
        let present = completed["metadata"][field].as_object().cloned().unwrap_or_default();
        let mut merged = expected["metadata"][field].as_object().cloned().unwrap_or_default();
        merged.extend(present);
        completed["metadata"][field] = Value::Object(merged);
    }
    let (held, wanted): (Vec<_>, Vec<_>) = (rules_of(existing), rules_of(expected));
    let lacking = missing(&held, &wanted).unwrap_or(wanted);
    lacking.iter().for_each(|rule| push(&mut completed["rules"], rule.to_json()));
    if expected["aggregationRule"].is_null() {
        if let Some(root) = completed.as_object_mut() {
            root.remove("aggregationRule");
        }
    } else {
        add_missing(&mut completed, expected, &["aggregationRule", "clusterRoleSelectors"]);
    }
    add_missing(&mut completed, expected, &["subjects"]);
    if existing["roleRef"] != expected["roleRef"] {
        return Some(completed);
    }
    (completed != *existing).then_some(completed)
}

/// Adds what a list of the expected object has and that of another lacks.
fn add_missing(to: &mut Object, expected: &Object, path: &[&str]) {
    let of = |object: &Object| path.iter().fold(object, |value, field| &value[*field]).as_array().cloned();
    let present = of(to).unwrap_or_default();
    let lacking: Vec<Value> =
        of(expected).into_iter().flatten().filter(|one| !present.contains(one)).collect();
    if !lacking.is_empty() {
        let list = path.iter().fold(to, |value, field| &mut value[*field]);
        lacking.into_iter().for_each(|one| push(list, one));
    }
}
