//! One rule of a role.

use serde_json::{Value, json};
use skiff_api::Object;

use crate::auth::attributes::Attributes;

/// Any verb, group, resource or path.
pub(super) const ANY: &str = "*";

pub(super) type Names = Box<[Box<str>]>;

/// What a role lets its subjects do: verbs on resources, or on paths that are none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct PolicyRule {
    pub(super) verbs: Names,
    pub(super) groups: Names,
    /// `pods`, `pods/log`, `*/scale`, `*`; the last covers subresources too.
    pub(super) resources: Names,
    /// Of objects; any if there is none.
    pub(super) names: Names,
    /// Of paths that are no resources; a `*` at the end is any rest.
    pub(super) paths: Names,
}

pub(super) fn names<'n>(all: impl IntoIterator<Item = &'n str>) -> Names {
    all.into_iter().map(Into::into).collect()
}

/// The rules of a role.
pub(super) fn rules_of<C: FromIterator<PolicyRule>>(role: &Object) -> C {
    role["rules"].as_array().into_iter().flatten().map(PolicyRule::of).collect()
}

impl PolicyRule {
    pub(super) fn of(rule: &Value) -> PolicyRule {
        let list =
            |field: &str| names(rule[field].as_array().into_iter().flatten().filter_map(Value::as_str));
        PolicyRule {
            verbs: list("verbs"),
            groups: list("apiGroups"),
            resources: list("resources"),
            names: list("resourceNames"),
            paths: list("nonResourceURLs"),
        }
    }

    /// As a role has it, which is also how a review of somebody's rules lists it.
    pub(super) fn to_json(&self) -> Value {
        let mut out = json!({"verbs": self.verbs});
        let lists = [
            ("apiGroups", &self.groups),
            ("resources", &self.resources),
            ("resourceNames", &self.names),
            ("nonResourceURLs", &self.paths),
        ];
        for (field, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            out[field] = json!(list);
        }
        out
    }

    /// Whether it allows what is asked.
    pub(crate) fn allows(&self, asked: &Attributes<'_>) -> bool {
        if !has(&self.verbs, asked.verb) {
            return false;
        }
        if !asked.is_resource {
            return self.paths.iter().any(|pattern| covers_path(pattern, asked.path));
        }
        has(&self.groups, asked.group)
            && self.resources.iter().any(|one| covers_resource(one, asked.resource, asked.subresource))
            && (self.names.is_empty() || self.names.iter().any(|name| **name == *asked.name))
    }
}

/// Whether a list has an entry, or the one that is any.
pub(super) fn has(list: &[Box<str>], wanted: &str) -> bool {
    list.iter().any(|one| **one == *ANY || **one == *wanted)
}

fn covers_resource(pattern: &str, resource: &str, subresource: &str) -> bool {
    match pattern.split_once('/') {
        None => pattern == ANY || (subresource.is_empty() && pattern == resource),
        Some((of, sub)) => !subresource.is_empty() && sub == subresource && (of == ANY || of == resource),
    }
}

pub(super) fn covers_path(pattern: &str, path: &str) -> bool {
    pattern == path || (pattern.ends_with('*') && path.starts_with(pattern.trim_end_matches('*')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::UserInfo;

    fn allows(rule: &Value, verb: &str, group: &str, path: &str, name: &str) -> bool {
        let (resource, subresource) = path.split_once('/').unwrap_or((path, ""));
        let user = UserInfo::default();
        PolicyRule::of(rule).allows(&Attributes {
            subresource,
            namespace: "default",
            name,
            ..Attributes::on(&user, verb, group, resource)
        })
    }

    #[test]
    fn a_rule_allows_what_all_its_lists_have() {
        let rule =
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "*/scale", "jobs/status"]});
        for (verb, group, path, expected) in [
            ("get", "", "pods", true),
            ("list", "", "pods", false),
            ("get", "apps", "pods", false),
            ("get", "", "pods/log", false),
            ("get", "", "replicationcontrollers/scale", true),
            ("get", "", "replicationcontrollers", false),
            ("get", "", "jobs/status", true),
            ("get", "", "jobs", false),
        ] {
            assert_eq!(allows(&rule, verb, group, path, "x"), expected, "{verb} {group} {path}");
        }
        let all = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]});
        assert!(allows(&all, "watch", "apps", "deployments/status", ""));
        let named =
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"]});
        assert!(allows(&named, "get", "", "secrets", "a"));
        assert!(!allows(&named, "get", "", "secrets", "b"));
        // A collection has no name.
        assert!(!allows(&named, "get", "", "secrets", ""));
    }

    #[test]
    fn paths_may_end_in_any_rest() {
        for (pattern, path, expected) in [
            ("/healthz", "/healthz", true),
            ("/healthz", "/healthz/ping", false),
            ("/healthz/*", "/healthz/ping", true),
            ("/healthz/*", "/healthz", false),
            ("*", "/anything", true),
            ("/api*", "/apis/apps", true),
        ] {
            assert_eq!(covers_path(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn a_rule_is_written_as_it_was_read() {
        let rule =
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"]});
        assert_eq!(PolicyRule::of(&rule).to_json(), rule);
        let paths = json!({"verbs": ["get"], "nonResourceURLs": ["/healthz"]});
        assert_eq!(PolicyRule::of(&paths).to_json(), paths);
    }
}
