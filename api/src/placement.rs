//! Whether a node is one for a pod, as far as labels and taints say.
//!
//! Source: upstream's `component-helpers/scheduling/corev1`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

/// What a node's selectors look at.
#[derive(Clone, Copy, Debug)]
pub struct NodeFacts<'n> {
    pub name: &'n str,
    pub labels: Option<&'n BTreeMap<String, String>>,
}

impl NodeFacts<'_> {
    fn label(&self, key: &str) -> Option<&str> {
        self.labels?.get(key).map(String::as_str)
    }
}

/// What a pod says of the nodes that it may be on.
#[derive(Clone, Copy, Debug)]
pub struct Placement<'p> {
    pub node_selector: Option<&'p BTreeMap<String, String>>,
    pub affinity: Option<&'p Affinity>,
    pub tolerations: &'p [Toleration],
}

impl<'p> From<&'p PodSpec> for Placement<'p> {
    fn from(pod: &'p PodSpec) -> Placement<'p> {
        Placement {
            node_selector: pod.node_selector.as_ref(),
            affinity: pod.affinity.as_ref(),
            tolerations: pod.tolerations.as_deref().unwrap_or_default(),
        }
    }
}

/// Whether a pod's node selector and required node affinity allow the node.
pub fn selects_node<'p>(pod: impl Into<Placement<'p>>, node: &NodeFacts<'_>) -> bool {
    let pod = pod.into();
    let mut selector = pod.node_selector.into_iter().flatten();
    let affinity = pod.affinity.and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selector.all(|(key, value)| node.label(key) == Some(value))
        && required.is_none_or(|required| any_term_holds(&required.node_selector_terms, node))
}

/// Whether one of the terms of a node selector allows the node.
pub fn any_term_holds(terms: &[NodeSelectorTerm], node: &NodeFacts<'_>) -> bool {
    terms.iter().any(|term| term_holds(term, node))
}

/// An empty term matches nothing.
fn term_holds(term: &NodeSelectorTerm, node: &NodeFacts<'_>) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let field_holds =
        |r: &NodeSelectorRequirement| r.key == "metadata.name" && requirement_holds(r, Some(node.name));
    !(labels.is_empty() && fields.is_empty())
        && labels.iter().all(|r| requirement_holds(r, node.label(&r.key)))
        && fields.iter().all(field_holds)
}

/// Whether a requirement holds of the value that a node has for its key.
pub fn requirement_holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = || value.is_some_and(|v| values.iter().any(|w| w == v));
    let compare = |holds: fn(i64, i64) -> bool| {
        let bound = values.first().and_then(|v| v.parse().ok());
        matches!((value.and_then(|v| v.parse().ok()), bound), (Some(value), Some(bound)) if holds(value, bound))
    };
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|value, bound| value > bound),
        "Lt" => compare(|value, bound| value < bound),
        _ => false,
    }
}

/// Whether a pod with this toleration bears the taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    fn text(field: &Option<String>) -> &str {
        field.as_deref().unwrap_or_default()
    }
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match text(&toleration.operator) {
            "Exists" => true,
            // An empty key with `Equal`, which validation refuses, matches no taint.
            "" | "Equal" => !key.is_empty() && text(&toleration.value) == text(&taint.value),
            _ => false,
        }
}

/// Whether a pod bears all taints of these effects.
pub fn tolerates_all<'p>(pod: impl Into<Placement<'p>>, taints: &[Taint], effects: &[&str]) -> bool {
    let tolerations = pod.into().tolerations;
    let mut hard = taints.iter().filter(|taint| effects.contains(&taint.effect.as_str()));
    hard.all(|taint| tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn selects(pod: Value) -> bool {
        let labels =
            BTreeMap::from([("disk".to_owned(), "ssd".to_owned()), ("cores".to_owned(), "8".to_owned())]);
        let mut pod = pod;
        pod["containers"] = json!([]);
        let pod: PodSpec = serde_json::from_value(pod).unwrap();
        selects_node(&pod, &NodeFacts { name: "n", labels: Some(&labels) })
    }

    fn affine(terms: Value) -> bool {
        let required =
            json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
        selects(json!({"affinity": {"nodeAffinity": required}}))
    }

    fn one(key: &str, operator: &str, values: &[&str]) -> Value {
        json!({"key": key, "operator": operator, "values": values})
    }

    #[test]
    fn a_node_needs_every_label_of_a_selector() {
        assert!(selects(json!({})));
        assert!(selects(json!({"nodeSelector": {"disk": "ssd", "cores": "8"}})));
        assert!(!selects(json!({"nodeSelector": {"disk": "ssd", "cores": "9"}})));
        assert!(!selects(json!({"nodeSelector": {"gpu": ""}})));
    }

    #[test]
    fn one_term_of_an_affinity_must_hold_whole() {
        let (ssd, few) = (one("disk", "In", &["ssd"]), one("cores", "Lt", &["8"]));
        assert!(affine(json!([{"matchExpressions": [ssd]}])));
        assert!(!affine(json!([{"matchExpressions": [ssd, few]}])));
        assert!(affine(json!([{"matchExpressions": [few]}, {"matchExpressions": [ssd]}])));
        assert!(!affine(json!([{}])), "an empty term matches nothing");
        assert!(!affine(json!([])));
        assert!(affine(json!([{"matchFields": [one("metadata.name", "In", &["n"])]}])));
        assert!(!affine(json!([{"matchFields": [one("metadata.name", "NotIn", &["n"])]}])));
    }

    #[test]
    fn operators_hold_as_upstream_says() {
        for (operator, key, values, wanted) in [
            ("In", "disk", ["hdd", "ssd"], true),
            ("NotIn", "disk", ["hdd", "ssd"], false),
            ("NotIn", "gpu", ["a", "b"], true),
            ("Exists", "disk", ["", ""], true),
            ("DoesNotExist", "disk", ["", ""], false),
            ("Gt", "cores", ["7", ""], true),
            ("Gt", "cores", ["8", ""], false),
            ("Lt", "disk", ["9", ""], false),
        ] {
            assert_eq!(
                affine(json!([{"matchExpressions": [one(key, operator, &values)]}])),
                wanted,
                "{operator} {key}"
            );
        }
    }

    #[test]
    fn a_toleration_bears_what_it_names() {
        let bears = |toleration: Value| {
            let taint = Taint {
                key: "k".into(),
                value: Some("v".into()),
                effect: "NoExecute".into(),
                time_added: None,
            };
            tolerates(&serde_json::from_value(toleration).unwrap(), &taint)
        };
        assert!(bears(json!({"operator": "Exists"})));
        assert!(bears(json!({"key": "k", "value": "v"})));
        assert!(bears(json!({"key": "k", "operator": "Equal", "value": "v", "effect": "NoExecute"})));
        assert!(!bears(json!({"key": "k", "value": "w"})));
        assert!(!bears(json!({"key": "k", "operator": "Exists", "effect": "NoSchedule"})));
        assert!(!bears(json!({"value": "v"})), "an empty key needs Exists");
    }
}
