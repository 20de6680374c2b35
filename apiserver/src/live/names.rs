//! Which definition may have which names, and how that is told in its status.
//!
//! Source: apiextensions-apiserver's `pkg/controller/status/naming_controller.go` and `pkg/controller/establish`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use skiff_api::Object;
use skiff_api::meta::Meta;

use crate::clock::now;

/// Where definitions are.
pub(super) const DEFINITIONS: (&str, &str, &str) =
    ("apiextensions.k8s.io", "v1", "customresourcedefinitions");

/// What is decided of one definition.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Decision {
    accepted: Value,
    /// `None`: there is no conflict.
    conflict: Option<Conflict>,
}

#[derive(Clone, Debug, PartialEq)]
struct Conflict {
    reason: &'static str,
    message: String,
}

/// The names that are taken within a group: those of resources, and those of kinds.
#[derive(Default)]
struct Taken {
    resources: BTreeSet<String>,
    kinds: BTreeSet<String>,
}

/// What is to be told of the definitions that ask for other names than they have, by their names. The older goes first.
pub(super) fn decide(definitions: &[Object]) -> BTreeMap<String, Decision> {
    let mut order: Vec<&Object> = definitions.iter().collect();
    order.sort_by_key(|definition| (definition.meta_str("creationTimestamp"), definition.name()));
    let mut groups: BTreeMap<&str, Taken> = BTreeMap::new();
    for definition in definitions {
        groups.entry(group(definition)).or_default().add(&definition["status"]["acceptedNames"]);
    }
    let mut decided = BTreeMap::new();
    for definition in order {
        let (wanted, has) = (&definition["spec"]["names"], &definition["status"]["acceptedNames"]);
        if wanted == has {
            continue;
        }
        let taken = groups.entry(group(definition)).or_default();
        let decision = decide_one(wanted, has, taken);
        taken.remove(has);
        taken.add(&decision.accepted);
        if decision.accepted != *has || !decision.is_told(definition) {
            decided.insert(definition.name().to_owned(), decision);
        }
    }
    decided
}

fn decide_one(wanted: &Value, has: &Value, taken: &Taken) -> Decision {
    let mut accepted = if has.is_object() { has.clone() } else { json!({}) };
    let mut conflict = None;
    let fields = [
        ("plural", "PluralConflict", &taken.resources),
        ("singular", "SingularConflict", &taken.resources),
        ("kind", "KindConflict", &taken.kinds),
        ("listKind", "ListKindConflict", &taken.kinds),
    ];
    for (field, reason, taken) in &fields[..2] {
        decide_field(field, reason, wanted, has, taken, &mut accepted, &mut conflict);
    }
    let own: BTreeSet<&str> = texts(&has["shortNames"]).collect();
    let refused: Vec<String> = texts(&wanted["shortNames"])
        .filter(|name| !own.contains(name) && taken.resources.contains(*name))
        .map(|name| format!("{name:?} is already in use"))
        .collect();
    match refused.as_slice() {
        [] => set(&mut accepted, "shortNames", &wanted["shortNames"]),
        [one] => conflict = Some(Conflict { reason: "ShortNamesConflict", message: one.clone() }),
        all => {
            conflict =
                Some(Conflict { reason: "ShortNamesConflict", message: format!("[{}]", all.join(", ")) });
        }
    }
    for (field, reason, taken) in &fields[2..] {
        decide_field(field, reason, wanted, has, taken, &mut accepted, &mut conflict);
    }
    set(&mut accepted, "categories", &wanted["categories"]);
    Decision { accepted, conflict }
}

fn decide_field(
    field: &str,
    reason: &'static str,
    wanted: &Value,
    has: &Value,
    taken: &BTreeSet<String>,
    accepted: &mut Value,
    conflict: &mut Option<Conflict>,
) {
    let name = wanted[field].as_str().unwrap_or_default();
    if has[field] != wanted[field] && taken.contains(name) {
        *conflict = Some(Conflict { reason, message: format!("{name:?} is already in use") });
    } else {
        set(accepted, field, &wanted[field]);
    }
}

fn set(names: &mut Value, field: &str, value: &Value) {
    if let Some(names) = names.as_object_mut() {
        match value {
            Value::Null => _ = names.remove(field),
            value => _ = names.insert(field.to_owned(), value.clone()),
        }
    }
}

impl Decision {
    fn is_told(&self, definition: &Object) -> bool {
        let (status, reason, message) = self.names_accepted();
        condition(definition, "NamesAccepted").is_some_and(|told| {
            told["status"] == status && told["reason"] == reason && told["message"] == message
        })
    }

    fn names_accepted(&self) -> (&'static str, &str, &str) {
        match &self.conflict {
            None => ("True", "NoConflicts", "no conflicts found"),
            Some(conflict) => ("False", conflict.reason, &conflict.message),
        }
    }

    /// Writes the decision into the definition's status.
    pub(super) fn tell(&self, definition: &mut Object) {
        definition["status"]["acceptedNames"] = self.accepted.clone();
        let (status, reason, message) = self.names_accepted();
        set_condition(definition, "NamesAccepted", status, reason, message);
        if is_true(definition, "Established") {
            return;
        }
        match self.conflict {
            None => {
                let message = "the initial names have been accepted";
                set_condition(definition, "Established", "False", "Installing", message);
            }
            Some(_) if condition(definition, "Established").is_none() => {
                let message = "not all names are accepted";
                set_condition(definition, "Established", "False", "NotAccepted", message);
            }
            Some(_) => {}
        }
    }
}

/// Tells that the objects of a definition are served.
pub(super) fn establish(definition: &mut Object) {
    if is_accepted(definition) && !is_true(definition, "Established") {
        let message = "the initial names have been accepted";
        set_condition(definition, "Established", "True", "InitialNamesAccepted", message);
    }
}

pub(super) fn is_accepted(definition: &Object) -> bool {
    is_true(definition, "NamesAccepted")
}

pub(super) fn is_true(definition: &Object, type_: &str) -> bool {
    condition(definition, type_).is_some_and(|condition| condition["status"] == "True")
}

fn condition<'d>(definition: &'d Object, type_: &str) -> Option<&'d Value> {
    let conditions = definition["status"]["conditions"].as_array();
    conditions.into_iter().flatten().find(|condition| condition["type"] == type_)
}

/// The time of a condition is that of the last change of its status.
pub(super) fn set_condition(definition: &mut Object, type_: &str, status: &str, reason: &str, message: &str) {
    let mut new = json!({
        "type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": now(),
    });
    if !definition["status"]["conditions"].is_array() {
        definition["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = definition["status"]["conditions"].as_array_mut() else { return };
    match conditions.iter_mut().find(|condition| condition["type"] == type_) {
        Some(old) => {
            if old["status"] == status {
                new["lastTransitionTime"] = old["lastTransitionTime"].take();
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}

impl Taken {
    fn add(&mut self, names: &Value) {
        self.resources.extend(resources(names).map(str::to_owned));
        self.kinds.extend(kinds(names).map(str::to_owned));
    }

    fn remove(&mut self, names: &Value) {
        resources(names).for_each(|name| _ = self.resources.remove(name));
        kinds(names).for_each(|name| _ = self.kinds.remove(name));
    }
}

fn resources(names: &Value) -> impl Iterator<Item = &str> {
    [&names["plural"], &names["singular"]]
        .into_iter()
        .filter_map(Value::as_str)
        .chain(texts(&names["shortNames"]))
}

fn kinds(names: &Value) -> impl Iterator<Item = &str> {
    [&names["kind"], &names["listKind"]].into_iter().filter_map(Value::as_str)
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn group(definition: &Object) -> &str {
    definition["spec"]["group"].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(plural: &str, kind: &str, short: &[&str], created: &str) -> Object {
        json!({
            "metadata": {"name": format!("{plural}.example.com"), "creationTimestamp": created},
            "spec": {"group": "example.com", "names": {
                "plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List"),
                "shortNames": short,
            }},
        })
    }

    fn told(definition: &Object, type_: &str) -> (String, String, String) {
        let condition = condition(definition, type_).expect(type_);
        let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        (text("status"), text("reason"), text("message"))
    }

    #[test]
    fn names_that_are_free_are_accepted_and_then_the_kind_is_established() {
        let mut one = definition("foos", "Foo", &["fo"], "2026-01-01T00:00:00Z");
        let decided = decide(std::slice::from_ref(&one));
        decided["foos.example.com"].tell(&mut one);
        assert_eq!(one["status"]["acceptedNames"], one["spec"]["names"]);
        assert_eq!(told(&one, "NamesAccepted").1, "NoConflicts");
        assert_eq!(
            told(&one, "Established"),
            ("False".into(), "Installing".into(), "the initial names have been accepted".into())
        );
        establish(&mut one);
        assert_eq!(told(&one, "Established").0, "True");
        assert!(decide(&[one]).is_empty());
    }

    #[test]
    fn the_younger_of_two_that_want_one_name_waits_until_it_is_free() {
        let mut old = definition("foos", "Foo", &["f"], "2026-01-01T00:00:00Z");
        let mut young = definition("bars", "Foo", &["f", "b"], "2026-01-02T00:00:00Z");
        let decided = decide(&[young.clone(), old.clone()]);
        decided["foos.example.com"].tell(&mut old);
        decided["bars.example.com"].tell(&mut young);
        assert!(is_accepted(&old));
        let (status, reason, message) = told(&young, "NamesAccepted");
        assert_eq!((&*status, &*reason), ("False", "ListKindConflict"));
        assert_eq!(message, "\"FooList\" is already in use");
        assert_eq!(told(&young, "Established").1, "NotAccepted");
        assert_eq!(young["status"]["acceptedNames"]["plural"], "bars");
        assert_eq!(young["status"]["acceptedNames"]["kind"], Value::Null);
        assert_eq!(decide(&[young.clone(), old.clone()]), BTreeMap::new(), "nothing is told twice");
        let decided = decide(&[young.clone()]);
        decided["bars.example.com"].tell(&mut young);
        assert!(is_accepted(&young));
    }

    #[test]
    fn what_is_established_stays_so_when_its_names_change_to_those_of_another() {
        let mut one = definition("foos", "Foo", &[], "2026-01-01T00:00:00Z");
        let mut other = definition("bars", "Bar", &[], "2026-01-01T00:00:00Z");
        for (name, definition) in [("foos.example.com", &mut one), ("bars.example.com", &mut other)] {
            let decided = decide(std::slice::from_ref(definition));
            decided[name].tell(definition);
            establish(definition);
        }
        other["spec"]["names"]["shortNames"] = json!(["foos"]);
        let decided = decide(&[one, other.clone()]);
        decided["bars.example.com"].tell(&mut other);
        assert_eq!(told(&other, "NamesAccepted").1, "ShortNamesConflict");
        assert!(is_true(&other, "Established"));
    }
}
