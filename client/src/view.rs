//! Objects as informers of the control plane hold them: what somebody there reads, and nothing else.
//!
//! A pod of 3 kB takes 24 KiB in k8s-openapi's type, most of it room for fields that are not set (2.1 KiB for each
//! container, 3.2 KiB for each volume). What is here is named and nested as there, so that code reads as of the type.
//!
//! # Caveats
//! - A view is never written back: who replaces an object, or a list in one, reads the whole object first.
//! - A field that a component begins to read is added here; until then it does not compile.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Affinity, PodSchedulingGate, Toleration, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use skiff_api::placement::Placement;
use skiff_api::volumes::ephemeral_claim;

/// Of a pod's annotations, what controllers read begins so.
const ANNOTATIONS: [&str; 2] = ["batch.kubernetes.io/", "controller.kubernetes.io/"];

type Full = k8s_openapi::api::core::v1::Pod;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// With those annotations only that begin with one of [`ANNOTATIONS`].
    #[serde(deserialize_with = "pod_metadata")]
    pub metadata: ObjectMeta,
    pub spec: Option<PodSpec>,
    pub status: Option<PodStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    pub active_deadline_seconds: Option<i64>,
    pub affinity: Option<Box<Affinity>>,
    pub containers: Vec<Container>,
    pub host_network: Option<bool>,
    pub hostname: Option<String>,
    pub init_containers: Option<Vec<Container>>,
    pub node_name: Option<String>,
    pub node_selector: Option<BTreeMap<String, String>>,
    pub overhead: Option<Amounts>,
    pub preemption_policy: Option<String>,
    pub priority: Option<i32>,
    pub resources: Option<Requests>,
    pub scheduler_name: Option<String>,
    pub scheduling_gates: Option<Vec<PodSchedulingGate>>,
    pub subdomain: Option<String>,
    pub tolerations: Option<Vec<Toleration>>,
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,
    pub volumes: Option<Vec<Volume>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Container {
    pub image: Option<String>,
    pub name: Box<str>,
    pub ports: Option<Vec<ContainerPort>>,
    pub resources: Option<Requests>,
    pub restart_policy: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerPort {
    pub container_port: i32,
    #[serde(rename = "hostIP")]
    pub host_ip: Option<String>,
    pub host_port: Option<i32>,
    pub name: Option<String>,
    pub protocol: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Requests {
    pub requests: Option<Amounts>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Volume {
    pub name: String,
    pub persistent_volume_claim: Option<ClaimSource>,
    pub ephemeral: Option<EphemeralSource>,
}

/// A claim is made for it; of what kind is read when that is done.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct EphemeralSource {}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClaimSource {
    pub claim_name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    /// What the pod's node has set aside for it, which may be more than it asks for by now.
    pub allocated_resources: Option<Amounts>,
    pub conditions: Option<Vec<PodCondition>>,
    pub container_statuses: Option<Vec<ContainerStatus>>,
    pub init_container_statuses: Option<Vec<ContainerStatus>>,
    pub nominated_node_name: Option<String>,
    pub phase: Option<Word>,
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    pub reason: Option<String>,
    pub start_time: Option<Time>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodCondition {
    pub last_transition_time: Option<Time>,
    pub message: Option<String>,
    pub observed_generation: Option<i64>,
    pub reason: Option<String>,
    pub status: Word,
    #[serde(rename = "type")]
    pub type_: Word,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerStatus {
    pub name: String,
    pub restart_count: i32,
    pub state: Option<ContainerState>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    pub terminated: Option<Box<ContainerStateTerminated>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerStateTerminated {
    pub exit_code: i32,
    pub finished_at: Option<Time>,
}

fn pod_metadata<'de, D: Deserializer<'de>>(from: D) -> Result<ObjectMeta, D::Error> {
    let mut meta = ObjectMeta::deserialize(from)?;
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.retain(|name, _| ANNOTATIONS.iter().any(|prefix| name.starts_with(prefix)));
        if annotations.is_empty() {
            meta.annotations = None;
        }
    }
    Ok(meta)
}

/// A claim that a pod uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodClaim {
    pub name: String,
    /// It is made for this pod alone.
    pub is_own: bool,
}

impl Pod {
    /// The claims that its volumes are of.
    pub fn claims(&self) -> impl Iterator<Item = PodClaim> {
        let volumes = self.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        volumes.filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) => Some(PodClaim { name: claim.claim_name.clone(), is_own: false }),
            (None, Some(_)) => {
                let pod = self.metadata.name.as_deref().unwrap_or_default();
                Some(PodClaim { name: ephemeral_claim(pod, &volume.name), is_own: true })
            }
            (None, None) => None,
        })
    }

    /// A pod of which nothing but its metadata is known, such as one that is about to be made.
    pub fn of(metadata: ObjectMeta) -> Pod {
        Pod { metadata, spec: None, status: None }
    }
}

impl<'p> From<&'p PodSpec> for Placement<'p> {
    fn from(pod: &'p PodSpec) -> Placement<'p> {
        Placement {
            node_selector: pod.node_selector.as_ref(),
            affinity: pod.affinity.as_deref(),
            tolerations: pod.tolerations.as_deref().unwrap_or_default(),
        }
    }
}

impl Resource for Pod {
    type DynamicType = ();
    type Scope = <Full as Resource>::Scope;

    fn kind(of: &()) -> Cow<'_, str> {
        Full::kind(of)
    }

    fn group(of: &()) -> Cow<'_, str> {
        Full::group(of)
    }

    fn version(of: &()) -> Cow<'_, str> {
        Full::version(of)
    }

    fn plural(of: &()) -> Cow<'_, str> {
        Full::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// A text that is one of few: those take no memory of their own.
#[derive(Clone, PartialEq, Eq)]
pub struct Word(Cow<'static, str>);

/// Phases, types and statuses of conditions that every pod has.
const WORDS: [&str; 13] = [
    "",
    "True",
    "False",
    "Unknown",
    "Pending",
    "Running",
    "Succeeded",
    "Failed",
    "Ready",
    "PodScheduled",
    "Initialized",
    "ContainersReady",
    "PodReadyToStartContainers",
];

impl Word {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Word {
    fn from(text: &str) -> Word {
        let known = WORDS.into_iter().find(|word| *word == text);
        Word(known.map_or_else(|| Cow::Owned(text.to_owned()), Cow::Borrowed))
    }
}

impl Default for Word {
    fn default() -> Word {
        Word(Cow::Borrowed(""))
    }
}

impl std::ops::Deref for Word {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for Word {
    fn eq(&self, other: &str) -> bool {
        *self.0 == *other
    }
}

impl PartialEq<&str> for Word {
    fn eq(&self, other: &&str) -> bool {
        *self.0 == **other
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Word::from(&*Cow::<str>::deserialize(from)?))
    }
}

/// Amounts of resources by name: few, so that a list takes less than a map.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Amounts(Box<[(Box<str>, Quantity)]>);

impl Amounts {
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Quantity)> {
        self.0.iter().map(|(name, quantity)| (&**name, quantity))
    }

    pub fn has(&self, name: &str) -> bool {
        self.iter().any(|(own, _)| own == name)
    }
}

impl<'de> Deserialize<'de> for Amounts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Vec<(Box<str>, Quantity)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of quantities")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(entries)
            }
        }

        Ok(Amounts(from.deserialize_map(Entries)?.into_boxed_slice()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_is_read_with_what_is_used_of_it_and_without_the_rest() {
        let pod: Pod = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "namespace": "d", "labels": {"l": "1"},
                "annotations": {"batch.kubernetes.io/job-completion-index": "3", "example.com/long": "text"},
                "managedFields": [{"manager": "kubectl"}]},
            "spec": {"nodeName": "n", "overhead": {"cpu": "1"}, "terminationGracePeriodSeconds": 30,
                "containers": [{"name": "c", "image": "i", "env": [{"name": "e"}],
                    "ports": [{"containerPort": 80, "hostIP": "127.0.0.1", "hostPort": 8080}],
                    "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"cpu": "1"}}}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "qosClass": "Burstable",
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "example.com/own", "status": "Unknown"}],
                "containerStatuses": [{"name": "c", "ready": true, "image": "i", "imageID": "",
                    "restartCount": 2, "state": {"terminated": {"exitCode": 3}}}]},
        }))
        .unwrap();
        let index: Vec<_> = pod.metadata.annotations.iter().flatten().collect();
        assert_eq!(index, [(&"batch.kubernetes.io/job-completion-index".to_owned(), &"3".to_owned())]);
        assert_eq!((pod.metadata.managed_fields, pod.metadata.labels.unwrap().len()), (None, 1));
        let (spec, status) = (pod.spec.unwrap(), pod.status.unwrap());
        let container = &spec.containers[0];
        let port = &container.ports.as_ref().unwrap()[0];
        assert_eq!(
            (port.container_port, port.host_port, port.host_ip.as_deref()),
            (80, Some(8080), Some("127.0.0.1"))
        );
        let requests = container.resources.as_ref().unwrap().requests.as_ref().unwrap();
        assert_eq!(
            requests.iter().map(|(name, q)| (name, q.0.as_str())).collect::<Vec<_>>(),
            [("cpu", "100m"), ("memory", "1Gi")]
        );
        assert!(requests.has("cpu") && !requests.has("pods") && spec.overhead.unwrap().has("cpu"));
        assert_eq!((status.phase.as_deref(), status.pod_ip.as_deref()), (Some("Running"), Some("10.0.0.1")));
        let conditions: Vec<(&str, &str)> =
            status.conditions.iter().flatten().map(|c| (c.type_.as_str(), c.status.as_str())).collect();
        assert_eq!(conditions, [("Ready", "True"), ("example.com/own", "Unknown")]);
        let ended = status.container_statuses.unwrap().remove(0);
        assert_eq!((ended.restart_count, ended.state.unwrap().terminated.unwrap().exit_code), (2, 3));
    }

    #[test]
    fn the_claims_of_a_pod_are_those_that_it_names_and_those_that_are_made_for_it() {
        let template = json!({"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"]}}});
        let volumes = json!([{"name": "a", "persistentVolumeClaim": {"claimName": "c"}},
            {"name": "b", "ephemeral": template}, {"name": "none", "emptyDir": {}}]);
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"volumes": volumes}})).unwrap();
        let claims: Vec<_> = pod.claims().map(|claim| (claim.name, claim.is_own)).collect();
        assert_eq!(claims, [("c".to_owned(), false), ("p-b".to_owned(), true)]);
    }

    #[test]
    fn a_pod_of_three_kilobytes_takes_less_than_two_of_structure() {
        // Without its texts, and with two containers.
        let structure = size_of::<Pod>() + 2 * size_of::<Container>() + 4 * size_of::<PodCondition>();
        assert!(structure < 2048, "{structure} bytes");
    }
}
