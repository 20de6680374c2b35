//! What several controllers ask of objects.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::serde::Serialize;
use kube::Resource;
use serde_json::{Value, json};
use skiff_api::protobuf;
use skiff_client::ObjectKey;
use skiff_client::view::{Pod, PodCondition};

/// A reference that makes `owner` the one controller of what carries it.
pub(crate) fn controller_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|r| r.controller == Some(true))
}

/// A number, or a percentage of so many, rounded down.
pub(crate) fn scaled_down(value: &IntOrString, of: i32) -> i32 {
    scaled(value, of, 0)
}

/// The same, rounded up.
pub(crate) fn scaled_up(value: &IntOrString, of: i32) -> i32 {
    scaled(value, of, 99)
}

fn scaled(value: &IntOrString, of: i32, extra_hundredths: i64) -> i32 {
    match value {
        IntOrString::Int(count) => *count,
        IntOrString::String(text) => {
            let percent: i32 = text.trim_end_matches('%').parse().unwrap_or(0);
            let hundredths = i64::from(percent) * i64::from(of) + extra_hundredths;
            i32::try_from(hundredths / 100).unwrap_or(i32::MAX)
        }
    }
}

/// The key of the controller of a kind that an object has, if it has one.
pub(crate) fn controller_key(meta: &ObjectMeta, kind: &str) -> Option<ObjectKey> {
    let owner = controller_of(meta).filter(|r| r.kind == kind)?;
    Some(ObjectKey::new(meta.namespace.clone().unwrap_or_default(), &owner.name))
}

pub(crate) fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

/// A selector, ready to be asked often. An empty one, which validation refuses, selects nothing here.
pub(crate) struct Selector(Option<skiff_api::LabelSelector>);

impl Selector {
    pub(crate) fn new(selector: &LabelSelector) -> Selector {
        let json = serde_json::to_value(selector).unwrap_or_default();
        Selector(skiff_api::LabelSelector::from_json(&json).ok().filter(|s| !s.is_empty()))
    }

    /// An empty one selects everything here.
    pub(crate) fn or_all(selector: &LabelSelector) -> Selector {
        let json = serde_json::to_value(selector).unwrap_or_default();
        Selector(skiff_api::LabelSelector::from_json(&json).ok())
    }

    pub(crate) fn selects(&self, meta: &ObjectMeta) -> bool {
        let labels = meta.labels.as_ref();
        let get = |key: &str| labels.and_then(|l| l.get(key)).map(String::as_str);
        self.0.as_ref().is_some_and(|selector| selector.matches(get))
    }
}

/// Whether labels satisfy a selector.
pub(crate) fn selects(selector: &LabelSelector, meta: &ObjectMeta) -> bool {
    Selector::new(selector).selects(meta)
}

/// A merge patch that makes a status what it should be. A field that there was and is no more is `null` in it: a merge
/// does not take it away by itself.
pub(crate) fn status_patch<S: Serialize>(meta: &ObjectMeta, new: &S, old: Option<&S>) -> Value {
    let mut patch = json!({"metadata": {"uid": meta.uid}, "status": new});
    let old = serde_json::to_value(old).unwrap_or_default();
    for field in old.as_object().into_iter().flatten().map(|(name, _)| name) {
        if patch["status"][field].is_null() {
            patch["status"][field] = Value::Null;
        }
    }
    patch
}

/// Whether a status of a `K` says what another says. The API leaves out a count that is zero.
pub(crate) fn says_same<K: k8s_openapi::Resource, S: Serialize + PartialEq>(
    old: Option<&S>,
    new: &S,
) -> bool {
    let json = |status: Option<&S>| json!({"status": status});
    old == Some(new)
        || protobuf::type_of(K::API_VERSION, K::KIND)
            .is_some_and(|id| protobuf::same(id, &json(old), &json(Some(new))))
}

pub(crate) fn pod_condition<'p>(pod: &'p Pod, type_: &str) -> Option<&'p PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == type_)
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    pod_condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Ready for at least so many seconds; if not yet, when it will be.
pub(crate) fn available_in_s(pod: &Pod, min_ready_s: i64, now: Timestamp) -> Option<i64> {
    let ready = pod_condition(pod, "Ready").filter(|c| c.status == "True")?;
    if min_ready_s == 0 {
        return Some(0);
    }
    let since = ready.last_transition_time.as_ref().map_or(now, |t| t.0);
    Some((since.as_second() + min_ready_s - now.as_second()).max(0))
}

/// Neither ended nor on its way out.
pub(crate) fn is_active(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && !has_ended(pod)
}

pub(crate) fn has_ended(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Seven to ten characters that stand for a pod template: upstream's alphabet, so that names look as everywhere.
pub(crate) fn template_hash(template: &serde_json::Value, n_collisions: i32) -> String {
    use sha2::{Digest as _, Sha256};
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let digest = Sha256::digest(format!("{template}{n_collisions}"));
    digest.iter().take(10).map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])).collect()
}
