//! APIServices of what this server serves itself: which there are to be. Pure.
//!
//! Source: kube-aggregator's `pkg/controllers/autoregister`, and `crdregistration` of kube-apiserver.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use skiff_api::meta::Meta;
use skiff_api::{Kinds, Object};

use super::priorities::{self, METRICS_GROUP, OWN_GROUP};

/// The label that says who keeps an APIService.
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// How long an APIService is kept as it is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Managed {
    /// Once, when the server has started: a person may then delete or change it.
    OnStart,
    /// For as long as its group and version is served.
    Always,
    /// Made whenever there is none, and anybody's to change: another server may serve it in place of this one.
    Default,
}

impl Managed {
    /// What the label says; one that is a default has none.
    fn label(self) -> Option<&'static str> {
        match self {
            Managed::OnStart => Some("onstart"),
            Managed::Always => Some("true"),
            Managed::Default => None,
        }
    }

    fn of(service: &Object) -> Option<Managed> {
        let label = service["metadata"]["labels"][MANAGED].as_str()?;
        [Managed::OnStart, Managed::Always].into_iter().find(|managed| managed.label() == Some(label))
    }
}

/// An APIService as it is to be.
#[derive(Debug, PartialEq)]
struct Desired {
    managed: Managed,
    spec: Value,
}

/// What a pass has seen and done, for the passes after it.
#[derive(Default)]
pub(super) struct Registered {
    /// Those that were there before the first pass.
    at_start: Option<BTreeSet<String>>,
    /// Those that were once as they are to be.
    synced: BTreeSet<String>,
}

#[derive(Debug, PartialEq)]
pub(super) enum Action {
    Create(Object),
    /// Its spec is to be this.
    Set {
        name: String,
        spec: Value,
    },
    Delete {
        name: String,
        uid: String,
    },
}

impl Action {
    pub(super) fn name(&self) -> &str {
        match self {
            Action::Create(service) => service.name(),
            Action::Set { name, .. } | Action::Delete { name, .. } => name,
        }
    }
}

impl Registered {
    /// What is to be done, of which nothing has been done yet. Whoever does it says so ([`Registered::done`]).
    pub(super) fn plan(&mut self, kinds: &Kinds, services: &BTreeMap<String, Object>) -> Vec<Action> {
        let at_start = self.at_start.get_or_insert_with(|| services.keys().cloned().collect());
        let desired = desired(kinds);
        let mut actions = Vec::new();
        let names: BTreeSet<&String> = desired.keys().chain(services.keys()).collect();
        for name in names {
            let (wanted, current) = (desired.get(name), services.get(name));
            let is_synced = self.synced.contains(name);
            match action(name, wanted, current, at_start.contains(name), is_synced) {
                Some(action) => actions.push(action),
                None => _ = self.synced.insert(name.clone()),
            }
        }
        self.synced.retain(|name| desired.contains_key(name) || services.contains_key(name));
        actions
    }

    pub(super) fn done(&mut self, name: &str) {
        self.synced.insert(name.to_owned());
    }
}

fn action(
    name: &str,
    wanted: Option<&Desired>,
    current: Option<&Object>,
    was_at_start: bool,
    is_synced: bool,
) -> Option<Action> {
    if current.is_some() && wanted.is_some_and(|wanted| wanted.managed == Managed::Default) {
        return None;
    }
    let is_onstart = wanted.is_some_and(|wanted| wanted.managed == Managed::OnStart);
    if is_onstart && is_synced {
        return None;
    }
    let Some(current) = current else {
        let Desired { managed, spec } = wanted?;
        let mut metadata = json!({"name": name});
        if let Some(label) = managed.label() {
            metadata["labels"] = json!({MANAGED: label});
        }
        return Some(Action::Create(json!({"metadata": metadata, "spec": spec})));
    };
    let managed = Managed::of(current)?;
    if managed == Managed::OnStart && (!was_at_start || is_synced) {
        return None;
    }
    match wanted {
        None => Some(Action::Delete { name: name.to_owned(), uid: current.uid().to_owned() }),
        Some(wanted) if current["spec"] == wanted.spec => None,
        Some(wanted) => Some(Action::Set { name: name.to_owned(), spec: wanted.spec.clone() }),
    }
}

/// One for each group and version.
fn desired(kinds: &Kinds) -> BTreeMap<String, Desired> {
    let mut all = BTreeMap::new();
    for kind in kinds.iter().filter(|kind| kind.group != OWN_GROUP) {
        let name = format!("{}.{}", kind.version, kind.group);
        let managed = match kind.group.as_str() {
            _ if kind.custom().is_some() => Managed::Always,
            METRICS_GROUP => Managed::Default,
            _ => Managed::OnStart,
        };
        all.entry(name).or_insert_with(|| {
            let priority = priorities::local(&kind.group, &kind.version);
            let mut spec = json!({
                "version": kind.version,
                "groupPriorityMinimum": priority.group, "versionPriority": priority.version,
            });
            if !kind.group.is_empty() {
                spec["group"] = kind.group.as_str().into();
            }
            Desired { managed, spec }
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, label: Value, priority: i64) -> Object {
        let (version, group) = name.split_once('.').expect("a name");
        let spec = json!({
            "group": group, "version": version, "groupPriorityMinimum": priority, "versionPriority": 100,
        });
        json!({"metadata": {"name": name, "uid": "u", "labels": {MANAGED: label}}, "spec": spec})
    }

    /// What is done of one that is wanted, or not, in this way, as one word.
    fn done(
        wanted: Option<Managed>,
        current: Option<(&str, i64)>,
        was_at_start: bool,
        is_synced: bool,
    ) -> &'static str {
        let name = "v1.example.com";
        let spec = service(name, Value::Null, 1000)["spec"].clone();
        let wanted = wanted.map(|managed| Desired { managed, spec });
        let current = current.map(|(label, priority)| service(name, label.into(), priority));
        match action(name, wanted.as_ref(), current.as_ref(), was_at_start, is_synced) {
            None => "-",
            Some(Action::Create(made)) => {
                assert_eq!(made["metadata"]["name"], name);
                "create"
            }
            Some(Action::Set { spec, .. }) => {
                assert_eq!(spec["groupPriorityMinimum"], 1000);
                "set"
            }
            Some(Action::Delete { uid, .. }) => {
                assert_eq!(uid, "u");
                "delete"
            }
        }
    }

    /// The table in the head of upstream's `checkAPIService`.
    #[test]
    fn each_is_created_set_and_deleted_as_upstream_does() {
        let (none, once, always) = (None, Some(Managed::OnStart), Some(Managed::Always));
        let all = [none, once, always];
        let row = |current, was_at_start, is_synced| {
            all.map(|wanted| done(wanted, current, was_at_start, is_synced))
        };
        assert_eq!(row(None, false, false), ["-", "create", "create"]);
        assert_eq!(row(None, false, true), ["-", "-", "create"], "what a person deleted stays deleted");
        assert_eq!(row(Some(("", 7)), true, false), ["-", "-", "-"], "others are left alone");
        assert_eq!(row(Some(("onstart", 7)), false, false), ["-", "-", "-"]);
        assert_eq!(row(Some(("onstart", 7)), true, false), ["delete", "set", "set"]);
        assert_eq!(row(Some(("onstart", 7)), true, true), ["-", "-", "-"]);
        assert_eq!(row(Some(("true", 7)), true, false), ["delete", "set", "set"]);
        assert_eq!(row(Some(("true", 7)), false, true), ["delete", "-", "set"]);
        assert_eq!(row(Some(("true", 1000)), true, false), ["delete", "-", "-"]);
    }

    #[test]
    fn a_default_is_made_whenever_there_is_none_and_never_changed() {
        let done =
            |current, was_at_start, is_synced| done(Some(Managed::Default), current, was_at_start, is_synced);
        assert_eq!([done(None, false, false), done(None, true, true)], ["create", "create"]);
        for label in ["", "onstart"] {
            assert_eq!(
                [done(Some((label, 7)), true, false), done(Some((label, 7)), false, true)],
                ["-", "-"]
            );
        }
        let mut registered = Registered::default();
        let actions = registered.plan(&Kinds::builtin(), &BTreeMap::new());
        let made = actions.iter().find(|action| action.name() == "v1beta1.metrics.k8s.io");
        let Some(Action::Create(made)) = made else { panic!("{made:?}") };
        assert_eq!((&made["metadata"]["labels"], &made["spec"]["service"]), (&Value::Null, &Value::Null));
    }

    #[test]
    fn a_pass_plans_for_every_group_and_version_once() {
        let (kinds, mut registered) = (Kinds::builtin(), Registered::default());
        let actions = registered.plan(&kinds, &BTreeMap::new());
        let names: Vec<&str> = actions.iter().map(Action::name).collect();
        assert!(names.contains(&"v1.") && names.contains(&"v2.autoscaling"), "{names:?}");
        assert!(!names.contains(&"v1.apiregistration.k8s.io"));
        assert_eq!(registered.plan(&kinds, &BTreeMap::new()).len(), names.len(), "nothing was done yet");
        names.into_iter().for_each(|name| registered.done(name));
        let again = registered.plan(&kinds, &BTreeMap::new());
        let again: Vec<&str> = again.iter().map(Action::name).collect();
        assert_eq!(again, ["v1beta1.metrics.k8s.io"], "only a default that is gone is made again");
    }
}
