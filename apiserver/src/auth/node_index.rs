//! Which objects the pods of each node refer to: what the node authorizer asks, answered without looking at a pod.
//!
//! Kept by the dispatcher of the caches (it is an [`Observer`] of pods), so that it is never behind what a node has seen.
//!
//! Source: upstream's node authorizer keeps the same facts as a graph.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use serde_json::Value;
use skiff_api::Object;
use skiff_api::meta::Meta;

use crate::cache::Observer;

const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// A kind of object that pods refer to, in their own namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Referred {
    Secret,
    ConfigMap,
    Claim,
    ServiceAccount,
    ResourceClaim,
}

impl Referred {
    pub(crate) fn of(resource: &str) -> Option<Referred> {
        Some(match resource {
            "secrets" => Referred::Secret,
            "configmaps" => Referred::ConfigMap,
            "persistentvolumeclaims" => Referred::Claim,
            "serviceaccounts" => Referred::ServiceAccount,
            "resourceclaims" => Referred::ResourceClaim,
            _ => return None,
        })
    }
}

/// An object that pods refer to, by kind, namespace and name.
type Target = (Referred, Arc<str>, Box<str>);

#[derive(Default)]
struct State {
    /// By the pod's key: its node, and what it refers to there.
    pods: HashMap<Box<str>, (Arc<str>, Vec<Target>)>,
    /// How many pods of a node refer to an object.
    references: HashMap<Target, HashMap<Arc<str>, usize>>,
}

#[derive(Default)]
pub(crate) struct NodeIndex {
    state: RwLock<State>,
}

impl NodeIndex {
    /// Whether a pod on the node, in a namespace, refers to an object.
    pub(crate) fn refers(&self, node: &str, target: Referred, namespace: &str, name: &str) -> bool {
        let state = self.state.read();
        let nodes = state.references.get(&(target, namespace.into(), name.into()));
        nodes.is_some_and(|nodes| nodes.contains_key(node))
    }
}

impl Observer for NodeIndex {
    fn changed(&self, key: &str, pod: Option<&Object>) {
        let node = pod.and_then(|pod| pod["spec"]["nodeName"].as_str()).filter(|node| !node.is_empty());
        let now = pod.zip(node).map(|(pod, node)| (node, targets(pod)));
        let mut state = self.state.write();
        if let Some((of, before)) = state.pods.get(key)
            && now.as_ref().is_some_and(|(node, targets)| **of == **node && before == targets)
        {
            return;
        }
        if let Some((node, targets)) = state.pods.remove(key) {
            targets.into_iter().for_each(|target| state.forget(target, &node));
        }
        let Some((node, targets)) = now else { return };
        let node: Arc<str> = node.into();
        for target in &targets {
            *state.references.entry(target.clone()).or_default().entry(node.clone()).or_default() += 1;
        }
        state.pods.insert(key.into(), (node, targets));
    }

    fn cleared(&self) {
        *self.state.write() = State::default();
    }
}

impl State {
    fn forget(&mut self, target: Target, node: &str) {
        let Some(nodes) = self.references.get_mut(&target) else { return };
        if let Some(pods) = nodes.get_mut(node) {
            *pods -= 1;
            if *pods == 0 {
                nodes.remove(node);
            }
        }
        if nodes.is_empty() {
            self.references.remove(&target);
        }
    }
}

/// What a pod refers to, each thing once. A mirror pod, which a node can make itself, refers to nothing.
fn targets(pod: &Object) -> Vec<Target> {
    if !pod["metadata"]["annotations"][MIRROR_ANNOTATION].is_null() {
        return Vec::new();
    }
    let namespace: Arc<str> = pod.namespace().into();
    let mut found: Vec<Target> = Vec::new();
    let mut push = |referred: Referred, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            found.push((referred, namespace.clone(), name.into()));
        }
    };
    let (spec, status) = (&pod["spec"], &pod["status"]);
    for field in ["containers", "initContainers", "ephemeralContainers"] {
        for container in list(&spec[field]) {
            for from in list(&container["envFrom"]) {
                push(Referred::Secret, &from["secretRef"]["name"]);
                push(Referred::ConfigMap, &from["configMapRef"]["name"]);
            }
            for env in list(&container["env"]) {
                push(Referred::Secret, &env["valueFrom"]["secretKeyRef"]["name"]);
                push(Referred::ConfigMap, &env["valueFrom"]["configMapKeyRef"]["name"]);
            }
        }
    }
    for volume in list(&spec["volumes"]) {
        push(Referred::Secret, &volume["secret"]["secretName"]);
        push(Referred::Secret, &volume["csi"]["nodePublishSecretRef"]["name"]);
        push(Referred::ConfigMap, &volume["configMap"]["name"]);
        push(Referred::Claim, &volume["persistentVolumeClaim"]["claimName"]);
        if volume["ephemeral"]["volumeClaimTemplate"].is_object()
            && let Some(volume) = volume["name"].as_str()
        {
            push(Referred::Claim, &format!("{}-{volume}", pod.name()).into());
        }
        for source in list(&volume["projected"]["sources"]) {
            push(Referred::Secret, &source["secret"]["name"]);
            push(Referred::ConfigMap, &source["configMap"]["name"]);
        }
    }
    for secret in list(&spec["imagePullSecrets"]) {
        push(Referred::Secret, &secret["name"]);
    }
    push(Referred::ServiceAccount, &spec["serviceAccountName"]);
    for claim in list(&spec["resourceClaims"]).chain(list(&status["resourceClaimStatuses"])) {
        push(Referred::ResourceClaim, &claim["resourceClaimName"]);
    }
    push(Referred::ResourceClaim, &status["extendedResourceClaimStatus"]["resourceClaimName"]);
    found.sort_unstable_by(|a, b| (a.0 as u8, &a.2).cmp(&(b.0 as u8, &b.2)));
    found.dedup();
    found
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(node: &str, secret: &str) -> Object {
        json!({
            "metadata": {"name": "p", "namespace": "a"},
            "spec": {"nodeName": node, "containers": [
                {"name": "c", "envFrom": [{"secretRef": {"name": secret}}, {"secretRef": {"name": secret}}]},
            ]},
        })
    }

    fn seen(index: &NodeIndex, secret: &str) -> [bool; 2] {
        ["one", "two"].map(|node| index.refers(node, Referred::Secret, "a", secret))
    }

    #[test]
    fn a_node_is_related_to_what_its_pods_refer_to_for_as_long_as_they_do() {
        let index = NodeIndex::default();
        index.changed("a/p", Some(&pod("", "s")));
        assert_eq!(seen(&index, "s"), [false, false], "it is on no node");
        index.changed("a/p", Some(&pod("one", "s")));
        index.changed("a/q", Some(&pod("one", "s")));
        assert_eq!(seen(&index, "s"), [true, false]);
        assert!(!index.refers("one", Referred::ConfigMap, "a", "s"));
        assert!(!index.refers("one", Referred::Secret, "b", "s"));
        index.changed("a/p", None);
        assert_eq!(seen(&index, "s"), [true, false], "the other pod still does");
        index.changed("a/q", Some(&pod("one", "t")));
        assert_eq!((seen(&index, "s"), seen(&index, "t")), ([false, false], [true, false]));
        index.changed("a/q", None);
        assert!(index.state.read().references.is_empty(), "nothing is kept of what is gone");
    }

    #[test]
    fn a_mirror_pod_refers_to_nothing() {
        let index = NodeIndex::default();
        let mut mirror = pod("one", "s");
        mirror["metadata"]["annotations"] = json!({MIRROR_ANNOTATION: "x"});
        index.changed("a/p", Some(&mirror));
        assert_eq!(seen(&index, "s"), [false, false]);
    }
}
