//! Which pods wait for a node that was, or is being, made free for them.
//!
//! Pods of no higher priority leave them the room, as if they were there already. Nodes go by their names: a pod may wait
//! for one that is not known yet, or no longer.

use std::collections::HashMap;
use std::sync::Arc;

use skiff_client::ObjectKey;

use crate::cluster::Tenant;

#[derive(Debug, Default)]
pub(crate) struct Nominations {
    by_node: HashMap<String, Vec<Arc<Tenant>>>,
    nodes: HashMap<Arc<ObjectKey>, String>,
}

impl Nominations {
    /// From now on the pod waits for this node. Answers another that it no longer waits for.
    pub(crate) fn set(&mut self, pod: Tenant, node: &str) -> Option<String> {
        let lost = self.remove(&pod.key).filter(|lost| lost != node);
        self.nodes.insert(pod.key.clone(), node.to_owned());
        self.by_node.entry(node.to_owned()).or_default().push(Arc::new(pod));
        lost
    }

    /// The pod waits for no node any longer. Answers for which it did.
    pub(crate) fn remove(&mut self, key: &ObjectKey) -> Option<String> {
        let node = self.nodes.remove(key)?;
        if let Some(pods) = self.by_node.get_mut(&node) {
            pods.retain(|pod| *pod.key != *key);
            if pods.is_empty() {
                self.by_node.remove(&node);
            }
        }
        Some(node)
    }

    /// The node that a pod waits for.
    pub(crate) fn node_of(&self, key: &ObjectKey) -> Option<&str> {
        self.nodes.get(key).map(String::as_str)
    }

    /// Those that wait for a node.
    pub(crate) fn on(&self, node: &str) -> &[Arc<Tenant>] {
        self.by_node.get(node).map(Vec::as_slice).unwrap_or_default()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &[Arc<Tenant>])> {
        self.by_node.iter().map(|(node, pods)| (node.as_str(), pods.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use skiff_client::view::Pod;

    use super::*;
    use crate::cluster::PodInfo;

    #[test]
    fn a_pod_waits_for_one_node_at_a_time_and_leaves_nothing_behind() {
        let key = ObjectKey::new("d", "a");
        let pod = || Tenant::of(&key, &PodInfo::new(Arc::new(Pod::default())));
        let mut nominations = Nominations::default();
        assert_eq!(nominations.set(pod(), "n"), None);
        assert_eq!(nominations.set(pod(), "n"), None, "it was that one before");
        assert_eq!((nominations.node_of(&key), nominations.on("n").len()), (Some("n"), 1));
        assert_eq!(nominations.set(pod(), "m").as_deref(), Some("n"));
        assert_eq!((nominations.on("n").len(), nominations.on("m").len()), (0, 1));
        assert_eq!(nominations.remove(&key).as_deref(), Some("m"));
        assert!(nominations.by_node.is_empty() && nominations.nodes.is_empty());
    }
}
