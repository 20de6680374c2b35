//! Which requests a policy, or a binding of one, is about.
//!
//! Source: `matching/matching.go` and `generic/policy_matcher.go` of upstream's policy plug-in.

use serde_json::Value;
use skiff_api::{LabelSelector, Status};
use skiff_webhook::admission::{
    Asked, Attributes, Equivalents, GroupVersionResource, Invocation, Rule, namespace_matches, object_matches,
};

/// `matchConstraints` of a policy, `matchResources` of a binding.
pub(crate) struct Resources {
    /// `None` where the field is missing, which is a fault of its own.
    namespace_selector: Option<Result<LabelSelector, Status>>,
    object_selector: Option<Result<LabelSelector, Status>>,
    excluded: Vec<NamedRule>,
    rules: Vec<NamedRule>,
    policy: MatchPolicy,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum MatchPolicy {
    Exact,
    Equivalent,
}

/// A rule that may be for some names only.
struct NamedRule {
    rule: Rule,
    /// Empty for all.
    names: Vec<String>,
}

impl NamedRule {
    fn read(rule: &Value) -> NamedRule {
        let names = rule["resourceNames"].as_array().into_iter().flatten();
        NamedRule {
            rule: Rule::read(rule),
            names: names.filter_map(|name| name.as_str().map(str::to_owned)).collect(),
        }
    }

    fn has_name(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|known| known == name)
    }
}

impl Resources {
    /// `None` if there are none.
    pub(crate) fn read(resources: &Value) -> Option<Resources> {
        if resources.is_null() {
            return None;
        }
        let selector = |field: &str| {
            let selector = &resources[field];
            (!selector.is_null()).then(|| LabelSelector::from_json(selector))
        };
        let rules = |field: &str| {
            resources[field].as_array().into_iter().flatten().map(NamedRule::read).collect::<Vec<_>>()
        };
        Some(Resources {
            namespace_selector: selector("namespaceSelector"),
            object_selector: selector("objectSelector"),
            excluded: rules("excludeResourceRules"),
            rules: rules("resourceRules"),
            policy: match resources["matchPolicy"].as_str() {
                Some("Equivalent") => MatchPolicy::Equivalent,
                _ => MatchPolicy::Exact,
            },
        })
    }

    /// What of a request they take, if they take it. The sentence says why it cannot be known.
    pub(crate) fn invocation(
        &self,
        attributes: &Attributes<'_>,
        equivalents: &Equivalents<'_>,
    ) -> Result<Option<Invocation>, String> {
        let missing = |which: &str| {
            format!("a nil {which} selector was passed, please ensure selectors are initialized properly")
        };
        let of_namespace = self.namespace_selector.as_ref().ok_or_else(|| missing("namespace"))?;
        let of_object = self.object_selector.as_ref().ok_or_else(|| missing("object"))?;
        // A selector that cannot be read is only of interest where the rules match.
        let of_namespace = namespace_matches(of_namespace, attributes, attributes.object);
        if matches!(of_namespace, Ok(false)) {
            return Ok(None);
        }
        let of_object = object_matches(of_object, attributes, attributes.object);
        if matches!(of_object, Ok(false)) || self.of(&self.excluded, attributes, equivalents)?.is_some() {
            return Ok(None);
        }
        let invocation = if self.rules.is_empty() {
            Some(own(attributes))
        } else {
            self.of(&self.rules, attributes, equivalents)?
        };
        let Some(invocation) = invocation else { return Ok(None) };
        of_namespace.map_err(|status| status.message)?;
        of_object.map_err(|status| status.message)?;
        Ok(Some(invocation))
    }

    /// What the first rule that matches takes: the request's own resource, or one that is equivalent.
    fn of(
        &self,
        rules: &[NamedRule],
        attributes: &Attributes<'_>,
        equivalents: &Equivalents<'_>,
    ) -> Result<Option<Invocation>, String> {
        let asked = |resource| Asked {
            operation: attributes.operation,
            resource,
            subresource: attributes.subresource,
            namespace: attributes.namespace,
        };
        let is_own = |rule: &NamedRule| {
            rule.rule.matches(asked(attributes.resource)) && rule.has_name(attributes.name)
        };
        if rules.iter().any(is_own) {
            return Ok(Some(own(attributes)));
        }
        if rules.is_empty() || self.policy == MatchPolicy::Exact {
            return Ok(None);
        }
        let others = equivalents.of(attributes);
        for rule in rules {
            for resource in others.iter().filter(|other| rule.rule.matches(asked(other))) {
                let kind = equivalents.host.kind_for(resource, attributes.subresource).ok_or_else(|| {
                    let GroupVersionResource { group, version, resource } = resource;
                    format!("unable to convert to {group}/{version}, Resource={resource}: unknown kind")
                })?;
                if rule.has_name(attributes.name) {
                    return Ok(Some(Invocation { resource: resource.clone(), kind }));
                }
            }
        }
        Ok(None)
    }
}

fn own(attributes: &Attributes<'_>) -> Invocation {
    Invocation { resource: attributes.resource.clone(), kind: attributes.kind.clone() }
}
