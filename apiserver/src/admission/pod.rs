//! What every pod gets: tolerations of failing nodes, a priority, and what its runtime class says.

use serde_json::{Value, json};
use skiff_api::meta::Meta;
use skiff_api::{Cause, Object, Status};

use crate::lister::Lister;

/// Labels of a node that the pods on it have as well.
const TOPOLOGY: [&str; 2] = ["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const TOLERATION_S: i64 = 300;

/// `DefaultTolerationSeconds`: five minutes on a node that is not ready or not reachable, unless the pod says
/// otherwise.
pub(super) fn add_default_tolerations(pod: &mut Object) {
    let mut tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    for taint in [NOT_READY, UNREACHABLE] {
        let tolerated = tolerations.iter().any(|t| {
            let key = t["key"].as_str().unwrap_or_default();
            let effect = t["effect"].as_str().unwrap_or_default();
            (key == taint || key.is_empty()) && matches!(effect, "NoExecute" | "")
        });
        if !tolerated {
            tolerations.push(json!({
                "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_S,
            }));
        }
    }
    pod["spec"]["tolerations"] = Value::Array(tolerations);
}

/// What admission gave a pod on its creation it gives again on an update, so that a pod may be replaced by its own manifest.
/// That nothing else changes is for validation.
pub(super) fn admit_update(pod: &mut Object, old: &Object) {
    for field in ["priority", "preemptionPolicy"] {
        if pod["spec"][field].is_null() && !old["spec"][field].is_null() {
            pod["spec"][field] = old["spec"][field].clone();
        }
    }
}

struct Priority {
    class: String,
    value: i64,
    preemption: String,
}

/// `Priority`: the number behind the class, or the default class's, or 0.
pub(super) async fn admit_priority(lister: &Lister, pod: &mut Object) -> Result<(), Status> {
    let class = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let forbid = |why: &str| Status::forbidden("", "pods", pod.name(), why);
    let priority = if class.is_empty() {
        default_priority(lister)?
    } else {
        let found = priority_class(lister, &class).await?;
        found.ok_or_else(|| forbid(&format!("no PriorityClass with name {class} was found")))?
    };
    let spec = &pod["spec"];
    if spec["priority"].as_i64().is_some_and(|given| given != priority.value) {
        return Err(forbid(&format!(
            "the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {} from the given PriorityClass name",
            spec["priority"], priority.value
        )));
    }
    if spec["preemptionPolicy"].as_str().is_some_and(|given| given != priority.preemption) {
        return Err(forbid(&format!(
            "the string value of PreemptionPolicy ({}) must not be provided in pod spec; priority admission controller computed {} from the given PriorityClass name",
            spec["preemptionPolicy"].as_str().unwrap_or_default(),
            priority.preemption
        )));
    }
    if !priority.class.is_empty() {
        pod["spec"]["priorityClassName"] = priority.class.into();
    }
    pod["spec"]["priority"] = priority.value.into();
    pod["spec"]["preemptionPolicy"] = priority.preemption.into();
    Ok(())
}

/// `RuntimeClass`: the class must exist; its overhead and its nodes become the pod's.
pub(super) async fn admit_runtime_class(lister: &Lister, pod: &mut Object) -> Result<(), Status> {
    let name = pod["spec"]["runtimeClassName"].as_str().unwrap_or_default().to_owned();
    let given = pod["spec"]["overhead"].clone();
    let is_given = given.as_object().is_some_and(|given| !given.is_empty());
    let class = if name.is_empty() {
        Object::default()
    } else {
        let found = found(lister, "node.k8s.io", "runtimeclasses", &name).await?;
        let missing = || forbidden(pod, &format!("pod rejected: RuntimeClass {name:?} not found"), None);
        found.ok_or_else(missing)?
    };
    let overhead = class["overhead"]["podFixed"].clone();
    if is_given && !overhead.is_null() && given != overhead {
        let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
        return Err(forbidden(pod, why, None));
    }
    if overhead.is_object() {
        pod["spec"]["overhead"] = overhead;
    }
    for (key, value) in class["scheduling"]["nodeSelector"].as_object().into_iter().flatten() {
        let own = pod["spec"]["nodeSelector"].get(key).unwrap_or(value);
        if own != value {
            let why = format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                value.as_str().unwrap_or_default(),
                own.as_str().unwrap_or_default()
            );
            return Err(forbidden(pod, &why, None));
        }
        pod["spec"]["nodeSelector"][key] = value.clone();
    }
    let mut tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    for toleration in class["scheduling"]["tolerations"].as_array().into_iter().flatten() {
        if !tolerations.contains(toleration) {
            tolerations.push(toleration.clone());
        }
    }
    pod["spec"]["tolerations"] = Value::Array(tolerations);
    Ok(())
}

/// Nobody but a runtime knows what it takes itself.
pub(super) async fn check_overhead(lister: &Lister, pod: &Object) -> Result<(), Status> {
    if pod["spec"]["overhead"].as_object().is_none_or(|overhead| overhead.is_empty()) {
        return Ok(());
    }
    let class = match pod["spec"]["runtimeClassName"].as_str().unwrap_or_default() {
        "" => None,
        name => found(lister, "node.k8s.io", "runtimeclasses", name).await?,
    };
    if class.is_none_or(|class| class["overhead"]["podFixed"].is_null()) {
        let why = "Pod Overhead set without corresponding RuntimeClass defined Overhead";
        return Err(forbidden(pod, why, None));
    }
    Ok(())
}

/// `PodTopologyLabels`: what a pod on this node is labelled with.
pub(crate) fn topology_labels(lister: &Lister, node: &str) -> Result<Vec<(&'static str, String)>, Status> {
    let Some(node) = lister.cached("nodes", node)? else { return Ok(Vec::new()) };
    Ok(TOPOLOGY.iter().filter_map(|key| Some((*key, node.label(key)?.to_owned()))).collect())
}

pub(super) fn admit_topology(lister: &Lister, pod: &mut Object) -> Result<(), Status> {
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
    for (key, value) in topology_labels(lister, &node)? {
        pod["metadata"]["labels"][key] = value.into();
    }
    Ok(())
}

async fn priority_class(lister: &Lister, name: &str) -> Result<Option<Priority>, Status> {
    let found = found(lister, "scheduling.k8s.io", "priorityclasses", name).await?;
    Ok(found.map(|class| priority_of(&class)))
}

/// A cluster-scoped object. One that was created just before this request is found, too.
async fn found(lister: &Lister, group: &str, plural: &str, name: &str) -> Result<Option<Object>, Status> {
    let cache = lister.cache(group, "v1", plural)?;
    let mut entry = cache.get(name)?;
    if entry.is_none() {
        lister.caches.wait_for_newest().await?;
        entry = cache.get(name)?;
    }
    Ok(entry.map(|entry| entry.parse()))
}

/// The class marked `globalDefault`; of several the lowest.
fn default_priority(lister: &Lister) -> Result<Priority, Status> {
    let (_, classes) = lister.cache("scheduling.k8s.io", "v1", "priorityclasses")?.snapshot()?;
    let lowest = classes
        .values()
        .map(|entry| entry.parse())
        .filter(|class| class["globalDefault"] == true)
        .min_by_key(|class| class["value"].as_i64().unwrap_or(0));
    Ok(lowest.map_or_else(
        || Priority { class: String::new(), value: 0, preemption: "PreemptLowerPriority".into() },
        |class| priority_of(&class),
    ))
}

fn priority_of(class: &Object) -> Priority {
    Priority {
        class: class.name().to_owned(),
        value: class["value"].as_i64().unwrap_or(0),
        preemption: class["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority").to_owned(),
    }
}

/// A cause for a pod that cannot be accepted as it is.
pub(super) fn forbidden(pod: &Object, why: &str, cause: Option<Cause>) -> Status {
    let name = if pod.name().is_empty() { pod.meta_str("generateName") } else { pod.name() };
    let mut status = Status::forbidden("", "pods", name, why);
    if let (Some(details), Some(cause)) = (&mut status.details, cause) {
        details.causes = vec![cause];
    }
    status
}
