//! What a namespace that is being emptied says about it. Pure.
//!
//! Source: upstream's `status_condition_utils.go`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::NamespaceCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::ApiResource;

/// What one pass has found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// By `pods.` or `deployments.apps`.
    n_remaining: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
    /// What could not be deleted, and why.
    failures: Vec<String>,
    /// Of how many groups and versions nobody can tell what they have, and which.
    undiscovered: Option<(usize, String)>,
}

impl Found {
    /// `finalizers` are those of each object that is left.
    pub(super) fn left<'f>(
        &mut self,
        resource: &ApiResource,
        count: usize,
        finalizers: impl IntoIterator<Item = &'f str>,
    ) {
        if count > 0 {
            *self.n_remaining.entry(format!("{}.{}", resource.plural, resource.group)).or_default() += count;
        }
        for finalizer in finalizers {
            *self.finalizers.entry(finalizer.to_owned()).or_default() += 1;
        }
    }

    pub(super) fn failed(&mut self, why: String) {
        self.failures.push(why);
    }

    pub(super) fn undiscovered(&mut self, n: usize, which: String) {
        self.undiscovered = Some((n, which));
    }

    /// Whether nothing is left, as far as anybody can tell.
    pub(super) fn is_empty(&self) -> bool {
        self.n_remaining.is_empty() && self.failures.is_empty()
    }

    /// Whether there may be something that nobody can tell of.
    pub(super) fn is_unknown(&self) -> bool {
        self.undiscovered.is_some()
    }
}

/// Type, status, reason and message.
type Says = (&'static str, &'static str, &'static str, String);

fn says(found: &Found) -> [Says; 5] {
    let listed = |counts: &BTreeMap<String, usize>, word: &str| {
        let parts: Vec<String> =
            counts.iter().map(|(what, n)| format!("{what} {word} {n} resource instances")).collect();
        parts.join(", ")
    };
    let fine = |type_, reason, message: &str| (type_, "False", reason, message.to_owned());
    let content = if found.failures.is_empty() {
        fine(
            "NamespaceDeletionContentFailure",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        )
    } else {
        let mut failures = found.failures.clone();
        failures.sort();
        let message = format!(
            "Failed to delete all resource types, {} remaining: {}",
            failures.len(),
            failures.join(", ")
        );
        ("NamespaceDeletionContentFailure", "True", "ContentDeletionFailed", message)
    };
    let remaining = if found.n_remaining.is_empty() {
        fine("NamespaceContentRemaining", "ContentRemoved", "All content successfully removed")
    } else {
        let message = format!("Some resources are remaining: {}", listed(&found.n_remaining, "has"));
        ("NamespaceContentRemaining", "True", "SomeResourcesRemain", message)
    };
    let finalizers = if found.finalizers.is_empty() {
        fine(
            "NamespaceFinalizersRemaining",
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        )
    } else {
        let listed = listed(&found.finalizers, "in");
        let message = format!("Some content in the namespace has finalizers remaining: {listed}");
        ("NamespaceFinalizersRemaining", "True", "SomeFinalizersRemain", message)
    };
    let discovery = match &found.undiscovered {
        None => fine(
            "NamespaceDeletionDiscoveryFailure",
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        Some((n, which)) => {
            let message = format!("Discovery failed for some groups, {n} failing: {which}");
            ("NamespaceDeletionDiscoveryFailure", "True", "DiscoveryFailed", message)
        }
    };
    [
        discovery,
        // They come from discovery, and not as text: that they cannot be parsed cannot happen.
        fine(
            "NamespaceDeletionGroupVersionParsingFailure",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        content,
        remaining,
        finalizers,
    ]
}

/// The namespace's conditions after a pass; `None` if they say the same already.
pub(super) fn conditions(
    old: &[NamespaceCondition],
    found: &Found,
    now: Timestamp,
) -> Option<Vec<NamespaceCondition>> {
    let mut conditions = old.to_vec();
    let mut changed = false;
    for (type_, status, reason, message) in says(found) {
        let mut new = NamespaceCondition {
            type_: type_.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: Some(Time(now)),
        };
        match conditions.iter_mut().find(|c| c.type_ == type_) {
            Some(old) => {
                if old.status == new.status {
                    new.last_transition_time = old.last_transition_time.clone();
                }
                changed |= *old != new;
                *old = new;
            }
            None => {
                changed = true;
                conditions.push(new);
            }
        }
    }
    changed.then_some(conditions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn resource(plural: &str, group: &str) -> ApiResource {
        ApiResource {
            group: group.into(),
            version: "v1".into(),
            api_version: "v1".into(),
            kind: plural.into(),
            plural: plural.into(),
        }
    }

    fn shown(conditions: &[NamespaceCondition]) -> Vec<String> {
        let text = |c: &NamespaceCondition| {
            let (reason, message) = (c.reason.clone().unwrap(), c.message.clone().unwrap());
            format!("{}={} {reason}: {message}", c.type_, c.status)
        };
        conditions.iter().map(text).collect()
    }

    #[test]
    fn what_remains_is_named_as_upstream_names_it() {
        let mut found = Found::default();
        found.left(&resource("pods", ""), 2, ["example.com/hold", "example.com/hold"]);
        found.left(&resource("deployments", "apps"), 1, []);
        found.left(&resource("secrets", ""), 0, []);
        found.failed("secrets is forbidden".into());
        found.undiscovered(1, "example.com/v1 is away".into());
        let conditions = conditions(&[], &found, at(1)).unwrap();
        assert_eq!(
            shown(&conditions),
            [
                "NamespaceDeletionDiscoveryFailure=True DiscoveryFailed: Discovery failed for some groups, 1 failing: example.com/v1 is away",
                "NamespaceDeletionGroupVersionParsingFailure=False ParsedGroupVersions: All legacy kube types successfully parsed",
                "NamespaceDeletionContentFailure=True ContentDeletionFailed: Failed to delete all resource types, 1 remaining: secrets is forbidden",
                "NamespaceContentRemaining=True SomeResourcesRemain: Some resources are remaining: deployments.apps has 1 resource instances, pods. has 2 resource instances",
                "NamespaceFinalizersRemaining=True SomeFinalizersRemain: Some content in the namespace has finalizers remaining: example.com/hold in 2 resource instances",
            ]
        );
    }

    #[test]
    fn conditions_are_written_only_when_they_change_and_keep_the_time_of_their_status() {
        let empty = Found::default();
        let first = conditions(&[], &empty, at(1)).unwrap();
        assert!(conditions(&first, &empty, at(2)).is_none());
        let mut found = Found::default();
        found.left(&resource("pods", ""), 1, []);
        let second = conditions(&first, &found, at(3)).unwrap();
        let time = |conditions: &[NamespaceCondition], type_: &str| {
            let condition = conditions.iter().find(|c| c.type_ == type_).unwrap();
            condition.last_transition_time.as_ref().unwrap().0
        };
        assert_eq!(time(&second, "NamespaceContentRemaining"), at(3));
        assert_eq!(time(&second, "NamespaceFinalizersRemaining"), at(1));
        let mut more = Found::default();
        more.left(&resource("pods", ""), 5, []);
        let third = conditions(&second, &more, at(4)).unwrap();
        assert_eq!(time(&third, "NamespaceContentRemaining"), at(3), "only its words changed");
    }
}
