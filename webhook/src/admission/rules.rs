//! Which requests the rules of a webhook are about.
//!
//! Source: `predicates/rules` of upstream's webhook plug-in.

use serde_json::Value;

use super::{GroupVersionResource, Operation};

/// One rule.
#[derive(Debug)]
pub struct Rule {
    operations: Operations,
    groups: Names,
    versions: Names,
    /// Resource and subresource, each `None` for all.
    resources: Vec<(Option<String>, Option<String>)>,
    scope: Scope,
}

/// A set of operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Operations(u8);

impl Operations {
    const ALL: Operations = Operations(u8::MAX);

    fn read(value: &Value) -> Operations {
        let bit = |operation: &Value| match operation.as_str() {
            Some("*") => Operations::ALL.0,
            Some("CREATE") => 1 << Operation::Create as u8,
            Some("UPDATE") => 1 << Operation::Update as u8,
            Some("DELETE") => 1 << Operation::Delete as u8,
            Some("CONNECT") => 1 << Operation::Connect as u8,
            _ => 0,
        };
        Operations(value.as_array().into_iter().flatten().map(bit).fold(0, |all, bit| all | bit))
    }

    pub(super) fn has(self, operation: Operation) -> bool {
        self.0 & (1 << operation as u8) != 0
    }

    pub(super) fn union(self, other: Operations) -> Operations {
        Operations(self.0 | other.0)
    }
}

/// Names, or all of them.
#[derive(Debug)]
enum Names {
    All,
    These(Vec<String>),
}

impl Names {
    fn read(value: &Value) -> Names {
        let names = || value.as_array().into_iter().flatten().filter_map(Value::as_str);
        if names().any(|name| name == "*") {
            return Names::All;
        }
        Names::These(names().map(str::to_owned).collect())
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Names::All => true,
            Names::These(names) => names.iter().any(|known| known == name),
        }
    }
}

#[derive(Debug)]
enum Scope {
    All,
    Cluster,
    Namespaced,
    /// Of a version that is not known here.
    None,
}

/// What of a request rules look at.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub operation: Operation,
    pub resource: &'a GroupVersionResource,
    pub subresource: &'a str,
    pub namespace: &'a str,
}

impl Rule {
    pub fn read(rule: &Value) -> Rule {
        let resources = rule["resources"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let named = |name: &str| (name != "*").then(|| name.to_owned());
        let resources = resources.map(|resource| {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            (named(resource), named(subresource))
        });
        Rule {
            operations: Operations::read(&rule["operations"]),
            groups: Names::read(&rule["apiGroups"]),
            versions: Names::read(&rule["apiVersions"]),
            resources: resources.collect(),
            scope: match rule["scope"].as_str() {
                None | Some("*") => Scope::All,
                Some("Cluster") => Scope::Cluster,
                Some("Namespaced") => Scope::Namespaced,
                Some(_) => Scope::None,
            },
        }
    }

    pub(super) fn operations(&self) -> Operations {
        self.operations
    }

    pub fn matches(&self, asked: Asked<'_>) -> bool {
        let resource = asked.resource;
        let is = |wanted: &Option<String>, name: &str| wanted.as_ref().is_none_or(|wanted| wanted == name);
        self.operations.has(asked.operation)
            && self.groups.has(&resource.group)
            && self.versions.has(&resource.version)
            && self
                .resources
                .iter()
                .any(|(name, subresource)| is(name, &resource.resource) && is(subresource, asked.subresource))
            && self.scope_matches(asked)
    }

    fn scope_matches(&self, asked: Asked<'_>) -> bool {
        // A Namespace, which is in none, has its own name for its namespace here.
        let resource = asked.resource;
        let is_namespace =
            resource.group.is_empty() && resource.version == "v1" && resource.resource == "namespaces";
        let is_of_cluster = is_namespace || asked.namespace.is_empty();
        match self.scope {
            Scope::All => true,
            Scope::Cluster => is_of_cluster,
            Scope::Namespaced => !is_of_cluster,
            Scope::None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn rules_match_what_upstreams_match() {
        let packed = include_bytes!("../../tests/calls/rules.jsonl.gz");
        let mut text = String::new();
        flate2::read::GzDecoder::new(packed.as_slice()).read_to_string(&mut text).expect("lines");
        let (mut n_lines, mut n_matches) = (0, 0);
        for line in text.lines() {
            let case: Value = serde_json::from_str(line).expect(line);
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let operation = match case["operation"].as_str() {
                Some("CREATE") => Operation::Create,
                Some("UPDATE") => Operation::Update,
                Some("DELETE") => Operation::Delete,
                _ => Operation::Connect,
            };
            let resource = GroupVersionResource {
                group: text(&case["resource"]["group"]),
                version: text(&case["resource"]["version"]),
                resource: text(&case["resource"]["resource"]),
            };
            let (subresource, namespace) = (text(&case["subresource"]), text(&case["namespace"]));
            let asked =
                Asked { operation, resource: &resource, subresource: &subresource, namespace: &namespace };
            let matches = Rule::read(&case["rule"]).matches(asked);
            assert_eq!(matches, case["matches"] == true, "{line}");
            n_lines += 1;
            n_matches += usize::from(matches);
        }
        assert!(n_lines == 6000 && n_matches > 500, "{n_matches} of {n_lines}");
    }
}
