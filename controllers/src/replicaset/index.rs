//! Which pods a set, or a job, has to look at: its own, and those that are nobody's. A namespace may hold thousands of others.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use skiff_client::{Change, ObjectKey, key_of};

use crate::objects::{controller_key, controller_of};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    /// Controlled by the set of this key.
    Set(ObjectKey),
    /// Controlled by nothing, in this namespace.
    Orphans(String),
}

pub(crate) struct Index {
    /// What the sets are: `ReplicaSet`, `ReplicationController`.
    kind: String,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    pods: HashMap<Place, BTreeSet<ObjectKey>>,
    /// Where each pod is: the last version of one that is deleted may say something new.
    of_pod: HashMap<ObjectKey, Place>,
}

fn place(pod: &Pod, kind: &str) -> Option<Place> {
    match controller_key(&pod.metadata, kind) {
        Some(set) => Some(Place::Set(set)),
        None if controller_of(&pod.metadata).is_none() => {
            Some(Place::Orphans(pod.metadata.namespace.clone().unwrap_or_default()))
        }
        None => None,
    }
}

impl Index {
    pub(crate) fn new(kind: &str) -> Index {
        Index { kind: kind.to_owned(), places: Mutex::default() }
    }

    pub(crate) fn follow(&self, change: &Change<Pod>) {
        let Some(key) = change.object().map(|pod| key_of(&**pod)) else { return };
        let new = change.new.as_ref().and_then(|pod| place(pod, &self.kind));
        let mut places = self.places.lock();
        if places.of_pod.get(&key) == new.as_ref() {
            return;
        }
        if let Some(old) = places.of_pod.remove(&key)
            && let Some(pods) = places.pods.get_mut(&old)
        {
            pods.remove(&key);
            if pods.is_empty() {
                places.pods.remove(&old);
            }
        }
        if let Some(new) = new {
            places.pods.entry(new.clone()).or_default().insert(key.clone());
            places.of_pod.insert(key, new);
        }
    }

    pub(crate) fn candidates(&self, set: &ObjectKey) -> Vec<ObjectKey> {
        let places = self.places.lock();
        let own = places.pods.get(&Place::Set(set.clone()));
        let orphans = places.pods.get(&Place::Orphans(set.namespace.clone()));
        own.into_iter().chain(orphans).flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, controller: Value) -> Option<Arc<Pod>> {
        let owners = if controller.is_null() { json!([]) } else { json!([controller]) };
        let pod = json!({"metadata": {"name": name, "namespace": "d", "ownerReferences": owners}});
        Some(Arc::new(serde_json::from_value(pod).unwrap()))
    }

    fn by(kind: &str, name: &str) -> Value {
        json!({"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": name, "controller": true})
    }

    #[track_caller]
    fn check(index: &Index, set: &str, wanted: &[&str]) {
        let found: Vec<String> =
            index.candidates(&ObjectKey::new("d", set)).into_iter().map(|k| k.name).collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_set_sees_its_own_pods_and_orphans_wherever_they_move() {
        let index = Index::new("ReplicaSet");
        index.follow(&Change { old: None, new: pod("a", by("ReplicaSet", "web")) });
        index.follow(&Change { old: None, new: pod("b", Value::Null) });
        index.follow(&Change { old: None, new: pod("c", by("Job", "web")) });
        check(&index, "web", &["a", "b"]);
        check(&index, "other", &["b"]);
        index.follow(&Change { old: pod("b", Value::Null), new: pod("b", by("ReplicaSet", "other")) });
        check(&index, "web", &["a"]);
        check(&index, "other", &["b"]);
        index.follow(&Change { old: pod("a", by("ReplicaSet", "web")), new: None });
        index.follow(&Change { old: pod("b", Value::Null), new: None });
        index.follow(&Change { old: pod("c", by("Job", "web")), new: None });
        let places = index.places.lock();
        assert!(places.pods.is_empty() && places.of_pod.is_empty());
    }
}
