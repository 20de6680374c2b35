//! Pods that want to be near other pods, or far from them.
//!
//! Source: upstream's InterPodAffinity plugin.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodAffinityTerm;
use serde_json::{Value, json};
use skiff_api::LabelSelector;
use skiff_client::view::Pod;

use crate::alike::{Class, Traits};
use crate::cluster::{Cluster, NodeInfo, PodInfo, Tenant};
use crate::framework::{MAX_SCORE, Reason, Refusal};
use crate::topology::{NodeId, Tally};

/// What a required affinity of a pod that runs is worth to one that it matches: upstream's default.
const HARD_WEIGHT: i64 = 1;

pub(crate) type Labels = BTreeMap<String, String>;

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

    fn matches(&self, traits: &Traits, cluster: &Cluster) -> bool {
        let in_namespace = self.namespaces.contains(&traits.namespace)
            || matches(&self.namespace_selector, cluster.namespace_labels(&traits.namespace));
        in_namespace && matches(&self.selector, Some(&traits.labels))
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

/// What the cluster means for one pod's required affinities, counted once a decision.
#[derive(Debug)]
pub(crate) struct Affinity<'p> {
    terms: &'p Terms,
    traits: &'p Traits,
    matches_itself: bool,
    /// Pods that match all the pod's required terms, for each of the terms.
    near: Vec<Tally>,
    /// Pods that match, for each term.
    far: Vec<Tally>,
    /// Pods that do not want this one near them, by their topology keys.
    existing_far: BTreeMap<String, Tally>,
}

impl<'p> Affinity<'p> {
    pub(crate) fn of(pod: &'p PodInfo, cluster: &Cluster) -> Affinity<'p> {
        let (terms, traits) = (&*pod.terms, &*pod.traits);
        let tallies = |terms: &[Term]| terms.iter().map(|t| cluster.tally(&t.topology_key)).collect();
        let mut affinity = Affinity {
            terms,
            traits,
            matches_itself: terms.affinity.iter().all(|t| t.matches(traits, cluster)),
            near: tallies(&terms.affinity),
            far: tallies(&terms.anti_affinity),
            existing_far: BTreeMap::new(),
        };
        let mut count = |class: &Class| {
            let found = affinity.relations(&class.traits, &class.terms, cluster);
            class.on.iter().for_each(|(node, n)| affinity.apply(&found, *node, i64::from(*n), cluster));
        };
        if terms.affinity.is_empty() && terms.anti_affinity.is_empty() {
            cluster.classes().with_terms().for_each(&mut count);
        } else {
            cluster.classes().iter().for_each(&mut count);
        }
        affinity
    }

    /// A pod has come to a node, or gone from it: `by` is 1 or -1.
    pub(crate) fn shift(&mut self, tenant: &Tenant, node: NodeId, by: i64, cluster: &Cluster) {
        let found = self.relations(&tenant.traits, &tenant.terms, cluster);
        self.apply(&found, node, by, cluster);
    }

    fn relations<'c>(&self, traits: &Traits, terms: &'c Terms, cluster: &Cluster) -> Relations<'c> {
        let is_far = |t: &Term| t.matches(traits, cluster);
        let (near, far) = (&self.terms.affinity, &self.terms.anti_affinity);
        let shunning = terms.anti_affinity.iter().filter(|t| t.matches(self.traits, cluster));
        Relations {
            is_near: !near.is_empty() && near.iter().all(|t| t.matches(traits, cluster)),
            far: (0..far.len()).filter(|at| is_far(&far[*at])).collect(),
            shunning: shunning.map(|t| t.topology_key.as_str()).collect(),
        }
    }

    fn apply(&mut self, found: &Relations<'_>, node: NodeId, by: i64, cluster: &Cluster) {
        if found.is_near {
            self.near.iter_mut().for_each(|tally| tally.add(node, by));
        }
        found.far.iter().for_each(|at| self.far[*at].add(node, by));
        for key in &found.shunning {
            match self.existing_far.get_mut(*key) {
                Some(tally) => tally.add(node, by),
                None => {
                    let mut tally = cluster.tally(key);
                    tally.add(node, by);
                    self.existing_far.insert((*key).to_owned(), tally);
                }
            }
        }
    }

    pub(crate) fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        if !self.is_near(node) {
            return Err(Refusal::for_good(Reason::Affinity));
        }
        let is_there = |tally: &Tally| tally.at(node.id).is_some_and(|count| count > 0);
        if self.far.iter().any(is_there) {
            return Err(Refusal::for_now(Reason::AntiAffinity));
        }
        if self.existing_far.values().any(is_there) {
            return Err(Refusal::for_now(Reason::ExistingAntiAffinity));
        }
        Ok(())
    }

    fn is_near(&self, node: &NodeInfo) -> bool {
        let mut all_there = true;
        for tally in &self.near {
            let Some(count) = tally.at(node.id) else { return false };
            all_there &= count > 0;
        }
        // The first of pods that want to be near each other has nobody to be near to.
        all_there || (self.matches_itself && self.near.iter().all(Tally::is_zero))
    }
}

/// What a pod, or all of a class, is to one that is to be placed.
struct Relations<'c> {
    is_near: bool,
    /// Which of the pod's terms they match.
    far: Vec<usize>,
    /// The keys of their terms that the pod matches.
    shunning: Vec<&'c str>,
}

/// 0 to 100 for each node by what the pod, and those that run there, prefer; `None` where nobody does.
pub(crate) fn scores(pod: &PodInfo, cluster: &Cluster, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
    let preferred = &pod.terms.preferred;
    let mut weights: BTreeMap<&str, Tally> = BTreeMap::new();
    let classes: Vec<&Class> = if preferred.is_empty() {
        cluster.classes().with_terms().collect()
    } else {
        cluster.classes().iter().collect()
    };
    for class in classes {
        let mine = preferred.iter().filter(|(_, t)| t.matches(&class.traits, cluster));
        let hard = class.terms.affinity.iter().map(|t| (HARD_WEIGHT, t));
        let soft = class.terms.preferred.iter().map(|(weight, t)| (*weight, t));
        let theirs = hard.chain(soft).filter(|(_, t)| t.matches(&pod.traits, cluster));
        for (weight, term) in mine.map(|(weight, t)| (*weight, t)).chain(theirs) {
            let tally =
                weights.entry(term.topology_key.as_str()).or_insert_with_key(|key| cluster.tally(key));
            class.on.iter().for_each(|(node, n)| tally.add(*node, weight * i64::from(*n)));
        }
    }
    if weights.is_empty() {
        return None;
    }
    let mark = |node: &&NodeInfo| weights.values().filter_map(|tally| tally.at(node.id)).sum::<i64>();
    let marks: Vec<i64> = nodes.iter().map(mark).collect();
    let least = marks.iter().copied().min().unwrap_or_default();
    let span = marks.iter().copied().max().unwrap_or_default() - least;
    Some(marks.into_iter().map(|m| if span == 0 { 0 } else { MAX_SCORE * (m - least) / span }).collect())
}
