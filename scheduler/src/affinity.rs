//! Pods that want to be near other pods, or far from them.
//!
//! Source: upstream's InterPodAffinity plugin.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm};
use serde_json::{Value, json};
use skiff_api::LabelSelector;

use crate::cluster::{NodeInfo, PodInfo, Snapshot};
use crate::framework::{MAX_SCORE, Refusal};

const AFFINITY: &str = "node(s) didn't match pod affinity rules";
const ANTI_AFFINITY: &str = "node(s) didn't match pod anti-affinity rules";
const EXISTING_ANTI_AFFINITY: &str = "node(s) didn't satisfy existing pods anti-affinity rules";
/// What a required affinity of a pod that runs is worth to one that it matches: upstream's default.
const HARD_WEIGHT: i64 = 1;

type Labels = BTreeMap<String, String>;

/// One term of a pod's, ready to be matched.
#[derive(Clone, Debug)]
struct Term {
    topology_key: String,
    selector: LabelSelector,
    namespaces: Vec<String>,
    namespace_selector: LabelSelector,
}

/// All terms of a pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct Terms {
    affinity: Vec<Term>,
    anti_affinity: Vec<Term>,
    /// Positive to be near, negative to be far.
    preferred: Vec<(i64, Term)>,
}

/// A selector, with what a term's or constraint's label keys add to it. One that cannot be read, which validation
/// refuses, selects nothing.
pub(crate) fn selector(selector: &Value, extra: Vec<Value>) -> LabelSelector {
    let mut selector = selector.clone();
    if !selector.is_null() && !extra.is_empty() {
        let mut all = selector["matchExpressions"].as_array().cloned().unwrap_or_default();
        all.extend(extra);
        selector["matchExpressions"] = all.into();
    }
    LabelSelector::from_json(&selector)
        .or_else(|_| LabelSelector::from_json(&Value::Null))
        .unwrap_or_default()
}

/// That a label is what the pod itself has, or is not.
pub(crate) fn key_requirements(keys: Option<&Vec<String>>, operator: &str, pod: &Pod) -> Vec<Value> {
    let labels = pod.metadata.labels.as_ref();
    let value = |key: &String| labels.and_then(|l| l.get(key));
    let keys = keys.into_iter().flatten();
    keys.filter_map(|key| Some(json!({"key": key, "operator": operator, "values": [value(key)?]}))).collect()
}

pub(crate) fn matches(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    selector.matches(|key| labels.and_then(|l| l.get(key)).map(String::as_str))
}

impl Term {
    fn new(term: &PodAffinityTerm, pod: &Pod) -> Term {
        let json = |s: &Option<_>| serde_json::to_value(s).unwrap_or_default();
        let mut extra = key_requirements(term.match_label_keys.as_ref(), "In", pod);
        extra.extend(key_requirements(term.mismatch_label_keys.as_ref(), "NotIn", pod));
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.extend(pod.metadata.namespace.clone());
        }
        Term {
            topology_key: term.topology_key.clone(),
            selector: selector(&json(&term.label_selector), extra),
            namespaces,
            namespace_selector: selector(&json(&term.namespace_selector), Vec::new()),
        }
    }

    fn matches(&self, pod: &Pod, snapshot: &Snapshot) -> bool {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let in_namespace = self.namespaces.iter().any(|n| n == namespace)
            || matches(&self.namespace_selector, snapshot.namespaces.get(namespace));
        in_namespace && matches(&self.selector, pod.metadata.labels.as_ref())
    }
}

impl Terms {
    pub(crate) fn is_empty(&self) -> bool {
        self.affinity.is_empty() && self.anti_affinity.is_empty() && self.preferred.is_empty()
    }

    pub(crate) fn of(pod: &Pod) -> Terms {
        let Some(affinity) = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()) else {
            return Terms::default();
        };
        let (near, far) = (affinity.pod_affinity.as_ref(), affinity.pod_anti_affinity.as_ref());
        let required = |terms: Option<&Vec<PodAffinityTerm>>| {
            terms.into_iter().flatten().map(|t| Term::new(t, pod)).collect()
        };
        let wanted = near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
        let unwanted = far.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
        let wanted = wanted.into_iter().flatten().map(|t| (i64::from(t.weight), &t.pod_affinity_term));
        let unwanted = unwanted.into_iter().flatten().map(|t| (-i64::from(t.weight), &t.pod_affinity_term));
        Terms {
            affinity: required(
                near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            anti_affinity: required(
                far.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            preferred: wanted.chain(unwanted).map(|(weight, t)| (weight, Term::new(t, pod))).collect(),
        }
    }
}

/// How many pods match, by topology key and value.
type Counts = HashMap<(String, String), i64>;

fn count(counts: &mut Counts, node: &NodeInfo, key: &str, by: i64) {
    if let Some(value) = node.label(key) {
        *counts.entry((key.to_owned(), value.clone())).or_default() += by;
    }
}

/// What the cluster means for one pod's affinities, counted once a decision.
#[derive(Debug)]
pub(crate) struct Affinity<'p> {
    terms: &'p Terms,
    matches_itself: bool,
    /// Pods that match all the pod's required terms.
    near: Counts,
    far: Counts,
    /// Pods that do not want this one near them.
    existing_far: Counts,
}

impl<'p> Affinity<'p> {
    pub(crate) fn of(pod: &'p PodInfo, snapshot: &Snapshot) -> Affinity<'p> {
        let terms = &pod.terms;
        let mut affinity = Affinity {
            terms,
            matches_itself: terms.affinity.iter().all(|t| t.matches(&pod.pod, snapshot)),
            near: Counts::new(),
            far: Counts::new(),
            existing_far: Counts::new(),
        };
        let has_required = !terms.affinity.is_empty() || !terms.anti_affinity.is_empty();
        for node in snapshot.nodes.iter().filter(|node| has_required || node.n_with_terms > 0) {
            for other in &node.pods {
                for term in other.terms.anti_affinity.iter().filter(|t| t.matches(&pod.pod, snapshot)) {
                    count(&mut affinity.existing_far, node, &term.topology_key, 1);
                }
                if terms.affinity.iter().all(|t| t.matches(&other.pod, snapshot)) {
                    for term in &terms.affinity {
                        count(&mut affinity.near, node, &term.topology_key, 1);
                    }
                }
                for term in terms.anti_affinity.iter().filter(|t| t.matches(&other.pod, snapshot)) {
                    count(&mut affinity.far, node, &term.topology_key, 1);
                }
            }
        }
        affinity
    }

    pub(crate) fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        if !self.is_near(node) {
            return Err(Refusal::for_good(AFFINITY));
        }
        let counted = |counts: &Counts, key: &str| {
            let value = node.label(key);
            value.is_some_and(|v| counts.contains_key(&(key.to_owned(), v.clone())))
        };
        if self.terms.anti_affinity.iter().any(|t| counted(&self.far, &t.topology_key)) {
            return Err(Refusal::for_now(ANTI_AFFINITY));
        }
        if self.existing_far.keys().any(|(key, value)| node.label(key) == Some(value)) {
            return Err(Refusal::for_now(EXISTING_ANTI_AFFINITY));
        }
        Ok(())
    }

    fn is_near(&self, node: &NodeInfo) -> bool {
        let mut all_there = true;
        for term in &self.terms.affinity {
            let Some(value) = node.label(&term.topology_key) else { return false };
            all_there &= self.near.contains_key(&(term.topology_key.clone(), value.clone()));
        }
        // The first of pods that want to be near each other has nobody to be near to.
        all_there || (self.near.is_empty() && self.matches_itself)
    }

    /// 0 to 100 for each node by what the pod, and those that run there, prefer; `None` where nobody does.
    pub(crate) fn scores(&self, pod: &Pod, snapshot: &Snapshot, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let mut weights = Counts::new();
        let has_preferred = !self.terms.preferred.is_empty();
        for node in snapshot.nodes.iter().filter(|node| has_preferred || node.n_with_terms > 0) {
            for other in &node.pods {
                for (weight, term) in
                    self.terms.preferred.iter().filter(|(_, t)| t.matches(&other.pod, snapshot))
                {
                    count(&mut weights, node, &term.topology_key, *weight);
                }
                let hard = other.terms.affinity.iter().map(|t| (HARD_WEIGHT, t));
                let soft = other.terms.preferred.iter().map(|(weight, t)| (*weight, t));
                for (weight, term) in hard.chain(soft).filter(|(_, t)| t.matches(pod, snapshot)) {
                    count(&mut weights, node, &term.topology_key, weight);
                }
            }
        }
        if weights.is_empty() {
            return None;
        }
        let mark = |node: &&NodeInfo| {
            let here = weights.iter().filter(|((key, value), _)| node.label(key) == Some(value));
            here.map(|(_, weight)| weight).sum::<i64>()
        };
        let marks: Vec<i64> = nodes.iter().map(mark).collect();
        let least = marks.iter().copied().min().unwrap_or_default();
        let span = marks.iter().copied().max().unwrap_or_default() - least;
        Some(marks.into_iter().map(|m| if span == 0 { 0 } else { MAX_SCORE * (m - least) / span }).collect())
    }
}
