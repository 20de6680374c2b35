//! What finds the objects that a controller has to look at, without a look at all the others.
//!
//! - [`Pods`]: by node, by controller, by label. One for all controllers.
//! - [`Owned`]: objects of another kind by their controller, and those that are nobody's by label.
//! - [`Slices`]: EndpointSlices by the Service that they are of.
//! - [`Selecting`]: the other way round: what may select an object, such as the Services of a pod.
//!
//! Facts are kept as numbers ([`Mark`]): the strings of every label of every pod would be as large as the pods.

use std::fmt::Debug;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, LazyLock};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::serde::de::DeserializeOwned;
use kube::Resource;
use skiff_client::view::Pod;
use skiff_client::{Index, Informer, Informers, ObjectKey};

use crate::objects::{controller_of, has_ended};

/// Seeded, so that nobody can choose labels that all come to one number.
static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Stands for something that an object says. Two facts may share a number: whoever finds by one looks at the object too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mark(u64);

impl Mark {
    fn of(fact: &str, parts: [&str; 3]) -> Mark {
        Mark(KEYS.hash_one((fact, parts)))
    }

    fn node(name: &str) -> Mark {
        Mark::of("node", [name, "", ""])
    }

    fn controller(kind: &str, key: &ObjectKey) -> Mark {
        Mark::of("controller", [kind, &key.namespace, &key.name])
    }

    fn label(namespace: &str, key: &str, value: &str) -> Mark {
        Mark::of("label", [namespace, key, value])
    }

    fn orphan(namespace: &str) -> Mark {
        Mark::of("orphan", [namespace, "", ""])
    }

    fn orphan_label(namespace: &str, key: &str, value: &str) -> Mark {
        Mark::of("orphan label", [namespace, key, value])
    }

    /// Selects by no label that must have one certain value.
    fn selects_otherwise(namespace: &str) -> Mark {
        Mark::of("selects otherwise", [namespace, "", ""])
    }

    fn service(namespace: &str, name: &str) -> Mark {
        Mark::of("service", [namespace, name, ""])
    }

    fn claim(namespace: &str, name: &str) -> Mark {
        Mark::of("claim", [namespace, name, ""])
    }

    fn ended() -> Mark {
        Mark::of("ended", ["", "", ""])
    }
}

fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}

/// Whose it is; if nobody's, how those find it that may adopt it.
fn owner_marks(meta: &ObjectMeta) -> Vec<Mark> {
    let namespace = namespace(meta);
    if let Some(owner) = controller_of(meta) {
        return vec![Mark::controller(&owner.kind, &ObjectKey::new(namespace, &owner.name))];
    }
    let labels = meta.labels.iter().flatten().map(|(key, value)| Mark::orphan_label(namespace, key, value));
    std::iter::once(Mark::orphan(namespace)).chain(labels).collect()
}

fn pod_marks(pod: &Pod) -> Vec<Mark> {
    let mut marks = owner_marks(&pod.metadata);
    let namespace = namespace(&pod.metadata);
    let labels = pod.metadata.labels.iter().flatten();
    marks.extend(labels.map(|(key, value)| Mark::label(namespace, key, value)));
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    marks.extend(node.filter(|name| !name.is_empty()).map(Mark::node));
    marks.extend(pod.claims().map(|claim| Mark::claim(namespace, &claim.name)));
    if has_ended(pod) {
        marks.push(Mark::ended());
    }
    marks
}

/// The labels that everything has that a selector selects.
pub(crate) fn required(selector: &LabelSelector) -> Vec<(&str, &str)> {
    let equal = selector.match_labels.iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()));
    let of_one = selector.match_expressions.iter().flatten().filter_map(|expression| {
        match expression.values.as_deref().unwrap_or_default() {
            [value] if expression.operator == "In" => Some((expression.key.as_str(), value.as_str())),
            _ => None,
        }
    });
    equal.chain(of_one).collect()
}

/// Of the marks that everything has that is looked for, the one that fewest have.
fn rarest<K>(index: &Index<K, Mark>, marks: impl Iterator<Item = Mark>) -> Option<Mark> {
    marks.min_by_key(|mark| index.count(mark))
}

/// All pods, and what they are found by. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Pods {
    all: Informer<Pod>,
    index: Index<Pod, Mark>,
}

impl Pods {
    pub(crate) fn new(informers: &Informers) -> Pods {
        let all = informers.of::<Pod>();
        Pods { index: all.index(pod_marks), all }
    }

    pub(crate) fn all(&self) -> &Informer<Pod> {
        &self.all
    }

    pub(crate) fn on_node(&self, node: &str) -> Vec<Arc<Pod>> {
        let is_there = |pod: &Pod| pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(node);
        self.index.filter(&Mark::node(node), is_there)
    }

    /// Pods whose controller is of this kind and name, whichever object that was.
    pub(crate) fn of_controller(&self, kind: &str, key: &ObjectKey) -> Vec<Arc<Pod>> {
        let index = &self.index;
        index.filter(&Mark::controller(kind, key), |pod| is_of(&pod.metadata, kind, key))
    }

    /// Pods of a namespace that may have all of these labels, and that are to be kept.
    pub(crate) fn labelled(
        &self,
        namespace: &str,
        labels: &[(&str, &str)],
        keep: impl Fn(&Pod) -> bool,
    ) -> Vec<Arc<Pod>> {
        let marks = labels.iter().map(|(key, value)| Mark::label(namespace, key, value));
        match rarest(&self.index, marks) {
            Some(mark) => self.index.filter(&mark, |pod| is_in(&pod.metadata, namespace) && keep(pod)),
            None => self.all.filter_in(namespace, keep),
        }
    }

    /// Pods that nobody controls and that the selector may select.
    pub(crate) fn orphans(&self, namespace: &str, selector: &LabelSelector) -> Vec<Arc<Pod>> {
        orphans(&self.index, namespace, selector, |pod| &pod.metadata)
    }

    /// Pods with a volume that is of a claim, by its name or made for it.
    pub(crate) fn using_claim(&self, claim: &ObjectKey) -> Vec<Arc<Pod>> {
        let uses = |pod: &Pod| {
            is_in(&pod.metadata, &claim.namespace) && pod.claims().any(|one| one.name == claim.name)
        };
        self.index.filter(&Mark::claim(&claim.namespace, &claim.name), uses)
    }

    pub(crate) fn n_ended(&self) -> usize {
        self.index.count(&Mark::ended())
    }

    pub(crate) fn ended(&self) -> Vec<Arc<Pod>> {
        self.index.filter(&Mark::ended(), has_ended)
    }
}

fn is_in(meta: &ObjectMeta, of: &str) -> bool {
    namespace(meta) == of
}

fn is_of(meta: &ObjectMeta, kind: &str, key: &ObjectKey) -> bool {
    is_in(meta, &key.namespace)
        && controller_of(meta).is_some_and(|owner| owner.kind == kind && owner.name == key.name)
}

fn orphans<K>(
    index: &Index<K, Mark>,
    namespace: &str,
    selector: &LabelSelector,
    meta: impl Fn(&K) -> &ObjectMeta,
) -> Vec<Arc<K>> {
    let required = required(selector);
    let marks = required.iter().map(|(key, value)| Mark::orphan_label(namespace, key, value));
    let mark = rarest(index, marks).unwrap_or_else(|| Mark::orphan(namespace));
    index.filter(&mark, |object| is_in(meta(object), namespace) && controller_of(meta(object)).is_none())
}

/// What an informer can be of.
pub(crate) trait Watched:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}

impl<K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static> Watched for K {}

/// Objects by whose they are. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Owned<K>(Index<K, Mark>);

impl<K: Watched> Owned<K> {
    pub(crate) fn new(all: &Informer<K>) -> Owned<K> {
        Owned(all.index(|object| owner_marks(object.meta())))
    }

    /// Objects whose controller is of this kind and name.
    pub(crate) fn of_controller(&self, kind: &str, key: &ObjectKey) -> Vec<Arc<K>> {
        self.0.filter(&Mark::controller(kind, key), |object| is_of(object.meta(), kind, key))
    }

    /// Objects that nobody controls and that the selector may select.
    pub(crate) fn orphans(&self, namespace: &str, selector: &LabelSelector) -> Vec<Arc<K>> {
        orphans(&self.0, namespace, selector, |object| object.meta())
    }
}

/// Slices of one controller by Service. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Slices {
    all: Informer<EndpointSlice>,
    index: Index<EndpointSlice, Mark>,
    service_of: fn(&EndpointSlice) -> Option<String>,
}

impl Slices {
    /// `service_of` answers `None` for what is another controller's.
    pub(crate) fn new(informers: &Informers, service_of: fn(&EndpointSlice) -> Option<String>) -> Slices {
        let all = informers.of::<EndpointSlice>();
        let index = all.index(move |slice: &EndpointSlice| {
            let service = service_of(slice);
            service.map(|service| Mark::service(namespace(&slice.metadata), &service)).into_iter().collect()
        });
        Slices { all, index, service_of }
    }

    pub(crate) fn all(&self) -> &Informer<EndpointSlice> {
        &self.all
    }

    pub(crate) fn of_service(&self, service: &ObjectKey) -> Vec<Arc<EndpointSlice>> {
        self.index.filter(&Mark::service(&service.namespace, &service.name), |slice| {
            is_in(&slice.metadata, &service.namespace)
                && (self.service_of)(slice).as_ref() == Some(&service.name)
        })
    }
}

/// Objects by a label that they ask for: an object is not asked whether it is selected by those that ask for another.
#[derive(Clone)]
pub(crate) struct Selecting<K>(Index<K, Mark>);

/// By what an object with this selector is found.
fn selecting_marks(namespace: &str, selector: Option<&LabelSelector>) -> Vec<Mark> {
    let Some(selector) = selector else { return Vec::new() };
    let mark = required(selector).first().map(|(key, value)| Mark::label(namespace, key, value));
    vec![mark.unwrap_or_else(|| Mark::selects_otherwise(namespace))]
}

impl<K: Watched> Selecting<K> {
    /// `selector` answers `None` for what selects nothing.
    pub(crate) fn new(
        all: &Informer<K>,
        selector: impl Fn(&K) -> Option<LabelSelector> + Send + Sync + 'static,
    ) -> Selecting<K> {
        Selecting(
            all.index(move |object| selecting_marks(namespace(object.meta()), selector(object).as_ref())),
        )
    }

    /// What may select an object of its namespace and is to be kept, in no order.
    pub(crate) fn of(&self, meta: &ObjectMeta, keep: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        let namespace = namespace(meta);
        let labels = meta.labels.iter().flatten().map(|(key, value)| Mark::label(namespace, key, value));
        let marks = labels.chain([Mark::selects_otherwise(namespace)]);
        let kept = |object: &K| is_in(object.meta(), namespace) && keep(object);
        marks.flat_map(|mark| self.0.filter(&mark, kept)).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::objects::Selector;

    fn selector(json: Value) -> LabelSelector {
        serde_json::from_value(json).unwrap()
    }

    fn pod(namespace: &str, labels: Value, controller: Option<&str>) -> Pod {
        let owners: Vec<Value> = controller
            .map(|name| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": name, "controller": true}))
            .into_iter()
            .collect();
        let meta = json!({"name": "p", "namespace": namespace, "labels": labels, "ownerReferences": owners});
        serde_json::from_value(json!({"metadata": meta, "spec": {"nodeName": "n", "containers": []}}))
            .unwrap()
    }

    /// Whatever selects a pod must be found by one of the pod's marks, and the pod by each of the selector's.
    #[track_caller]
    fn check(wanted: Value, labels: Value) {
        let (wanted, pod) = (selector(wanted), pod("d", labels, None));
        if !Selector::new(&wanted).selects(&pod.metadata) {
            return;
        }
        let marks = pod_marks(&pod);
        for (key, value) in required(&wanted) {
            assert!(marks.contains(&Mark::label("d", key, value)), "{wanted:?} does not find {pod:?}");
            assert!(
                marks.contains(&Mark::orphan_label("d", key, value)),
                "{wanted:?} does not adopt {pod:?}"
            );
        }
        let by = selecting_marks("d", Some(&wanted));
        let asked = [marks, vec![Mark::selects_otherwise("d")]].concat();
        assert!(by.iter().all(|mark| asked.contains(mark)), "{pod:?} does not find {wanted:?}");
    }

    #[test]
    fn whatever_selects_a_pod_is_found_from_it_and_finds_it() {
        let selectors = [
            json!({"matchLabels": {"a": "1"}}),
            json!({"matchLabels": {"a": "1", "b": "2"}}),
            json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1"]}]}),
            json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}),
            json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}),
            json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]}),
            json!({"matchLabels": {"b": "2"}, "matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}),
        ];
        for wanted in selectors {
            for labels in [
                json!({}),
                json!({"a": "1"}),
                json!({"a": "2", "b": "2"}),
                json!({"a": "1", "b": "2"}),
                json!({"b": "2"}),
            ] {
                check(wanted.clone(), labels);
            }
        }
    }

    #[test]
    fn a_pod_of_another_namespace_shares_no_label_with_it() {
        let labels = json!({"a": "1"});
        let (here, there) = (pod_marks(&pod("d", labels.clone(), None)), pod_marks(&pod("e", labels, None)));
        let shared: Vec<&Mark> = here.iter().filter(|mark| there.contains(mark)).collect();
        assert_eq!(shared, [&Mark::node("n")]);
    }

    #[test]
    fn a_pod_that_is_somebodys_is_found_by_its_controller_and_not_as_an_orphan() {
        let owned = pod("d", json!({"a": "1"}), Some("web"));
        let marks = pod_marks(&owned);
        let web = ObjectKey::new("d", "web");
        assert!(marks.contains(&Mark::controller("ReplicaSet", &web)));
        assert!(marks.contains(&Mark::label("d", "a", "1")));
        assert!(!marks.contains(&Mark::orphan("d")) && !marks.contains(&Mark::orphan_label("d", "a", "1")));
        assert!(is_of(&owned.metadata, "ReplicaSet", &web) && !is_of(&owned.metadata, "Job", &web));
    }

    #[test]
    fn what_selects_nothing_is_found_by_nothing() {
        assert_eq!(selecting_marks("d", None), []);
    }
}
