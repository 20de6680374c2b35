//! Pods that are alike to all who look at other pods: thousands of them are matched against a selector as one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use skiff_client::view::Pod;

use crate::affinity::{Labels, Terms};
use crate::topology::NodeId;

/// What pods are told apart by.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Traits {
    pub(crate) namespace: String,
    pub(crate) labels: Labels,
    /// They are being deleted.
    pub(crate) going: bool,
    /// Their pod affinity and anti-affinity, as text.
    affinity: String,
}

impl Traits {
    pub(crate) fn of(pod: &Pod) -> Traits {
        let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
        let affinity = affinity.map(|a| (a.pod_affinity.as_ref(), a.pod_anti_affinity.as_ref()));
        let text = match affinity {
            None | Some((None, None)) => String::new(),
            // What was JSON can be written as such.
            Some(both) => serde_json::to_string(&both).unwrap_or_default(),
        };
        Traits {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            going: pod.metadata.deletion_timestamp.is_some(),
            affinity: text,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClassId(u32);

/// All pods of the same traits that are on nodes.
#[derive(Debug)]
pub(crate) struct Class {
    pub(crate) traits: Arc<Traits>,
    pub(crate) terms: Arc<Terms>,
    /// How many are on each node.
    pub(crate) on: BTreeMap<NodeId, u32>,
}

#[derive(Debug, Default)]
pub(crate) struct Classes {
    all: BTreeMap<ClassId, Class>,
    ids: HashMap<Arc<Traits>, ClassId>,
    /// Those whose pods care which others are near them.
    with_terms: BTreeSet<ClassId>,
    next: u32,
}

impl Classes {
    /// Counts a pod on a node. Answers its class.
    pub(crate) fn add(&mut self, traits: &Arc<Traits>, terms: &Arc<Terms>, node: NodeId) -> ClassId {
        let id = match self.ids.get(traits) {
            Some(id) => *id,
            None => self.found(traits.clone(), terms.clone()),
        };
        if let Some(class) = self.all.get_mut(&id) {
            *class.on.entry(node).or_default() += 1;
        }
        id
    }

    fn found(&mut self, traits: Arc<Traits>, terms: Arc<Terms>) -> ClassId {
        // More than four billion pods later a number may come again, if it is free by then.
        while self.all.contains_key(&ClassId(self.next)) {
            self.next = self.next.wrapping_add(1);
        }
        let id = ClassId(self.next);
        self.next = self.next.wrapping_add(1);
        if !terms.is_empty() {
            self.with_terms.insert(id);
        }
        self.ids.insert(traits.clone(), id);
        self.all.insert(id, Class { traits, terms, on: BTreeMap::new() });
        id
    }

    /// Takes back what [`Classes::add`] counted.
    pub(crate) fn remove(&mut self, id: ClassId, node: NodeId) {
        let Some(class) = self.all.get_mut(&id) else { return };
        if let Some(count) = class.on.get_mut(&node) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                class.on.remove(&node);
            }
        }
        if class.on.is_empty()
            && let Some(class) = self.all.remove(&id)
        {
            self.ids.remove(&class.traits);
            self.with_terms.remove(&id);
        }
    }

    pub(crate) fn get(&self, id: ClassId) -> Option<&Class> {
        self.all.get(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Class> {
        self.all.values()
    }

    pub(crate) fn with_terms(&self) -> impl Iterator<Item = &Class> {
        self.with_terms.iter().filter_map(|id| self.all.get(id))
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty() && self.ids.is_empty() && self.with_terms.is_empty()
    }
}
