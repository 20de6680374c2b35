//! Pods, as a node sees those of the whole cluster.
//!
//! A node may not read other nodes' pods: their environment, arguments and volumes are none of its business. The API server
//! shows all nodes what policies need of every pod, and nothing else, at a path of its own, with the shapes of a list and a watch.

use std::borrow::Cow;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;
use skiff_client::{Change, Informer, Informers, ObjectKey, key_of, view};

use super::rules::Protocol;
use super::state::{NamedPort, PodFacts};

type Full = k8s_openapi::api::core::v1::Pod;

/// Where the node reads pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodSource {
    /// What the API server shows all nodes.
    ForNodes,
    /// What the control plane in this process holds of pods anyway.
    ControlPlane,
}

/// What the API server shows all nodes of a pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct SeenPod {
    metadata: ObjectMeta,
    spec: Spec,
    status: Status,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    host_network: bool,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Container {
    ports: Vec<Port>,
    restart_policy: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Port {
    container_port: i32,
    name: Option<String>,
    protocol: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: String,
}

impl Resource for SeenPod {
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

    fn url_path(_: &(), _: Option<&str>) -> String {
        skiff_api::paths::NODE_PODS.to_owned()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// The pods of the cluster, of either source.
pub(super) enum Pods {
    ForNodes(Informer<SeenPod>),
    ControlPlane(Informer<view::Pod>),
}

impl Pods {
    pub(super) fn follow(
        source: PodSource,
        informers: &Informers,
        changed: impl Fn(ObjectKey) + Send + Sync + 'static,
    ) -> Pods {
        fn key<K: Resource>(change: &Change<K>) -> ObjectKey {
            change.object().map(|pod| key_of(&**pod)).unwrap_or_default()
        }
        match source {
            PodSource::ForNodes => {
                let pods = informers.of::<SeenPod>();
                pods.on_change(move |change| changed(key(change)));
                Pods::ForNodes(pods)
            }
            PodSource::ControlPlane => {
                let pods = informers.of::<view::Pod>();
                pods.on_change(move |change| changed(key(change)));
                Pods::ControlPlane(pods)
            }
        }
    }

    pub(super) async fn synced(&self) {
        match self {
            Pods::ForNodes(pods) => pods.synced().await,
            Pods::ControlPlane(pods) => pods.synced().await,
        }
    }

    pub(super) fn get(&self, key: &ObjectKey) -> Option<PodFacts> {
        match self {
            Pods::ForNodes(pods) => pods.get(key).map(|pod| pod.facts()),
            Pods::ControlPlane(pods) => pods.get(key).map(|pod| facts_of_view(&pod)),
        }
    }
}

impl SeenPod {
    fn facts(&self) -> PodFacts {
        let ips = self.status.pod_ips.iter().map(|ip| ip.ip.as_str());
        let always = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
        let sidecars = self.spec.init_containers.iter().filter(always);
        let ports = self.spec.containers.iter().chain(sidecars).flat_map(|container| &container.ports);
        let ports = ports.map(|port| (port.name.as_deref(), port.protocol.as_deref(), port.container_port));
        facts(&self.metadata, self.spec.host_network, self.status.phase.as_deref(), ips, ports)
    }
}

fn facts_of_view(pod: &view::Pod) -> PodFacts {
    let status = pod.status.as_ref();
    let ips = status.and_then(|status| status.pod_ip.as_deref());
    let phase = status.and_then(|status| status.phase.as_deref());
    let Some(spec) = &pod.spec else { return facts(&pod.metadata, false, phase, ips, []) };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let ports = ports.map(|port| (port.name.as_deref(), port.protocol.as_deref(), port.container_port));
    facts(&pod.metadata, spec.host_network.unwrap_or_default(), phase, ips, ports)
}

/// Who is on its node's network has its node's address, and who has ended may have somebody else's by now.
fn facts<'p>(
    metadata: &ObjectMeta,
    host_network: bool,
    phase: Option<&str>,
    ips: impl IntoIterator<Item = &'p str>,
    ports: impl IntoIterator<Item = (Option<&'p str>, Option<&'p str>, i32)>,
) -> PodFacts {
    let has_none = host_network || matches!(phase, Some("Succeeded" | "Failed"));
    let ports = ports.into_iter().filter_map(|(name, protocol, number)| {
        let name = name.filter(|name| !name.is_empty())?.into();
        Some(NamedPort { name, protocol: Protocol::parse(protocol)?, number: u16::try_from(number).ok()? })
    });
    PodFacts {
        uid: metadata.uid.clone().unwrap_or_default(),
        labels: Arc::new(metadata.labels.clone().unwrap_or_default()),
        // IPv6 is not built.
        addresses: ips.into_iter().filter(|_| !has_none).filter_map(|ip| ip.parse().ok()).collect(),
        ports: ports.collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What both ways of seeing a pod make of it.
    fn both(pod: serde_json::Value) -> PodFacts {
        let seen: SeenPod = serde_json::from_value(pod.clone()).unwrap();
        let held: view::Pod = serde_json::from_value(pod).unwrap();
        assert_eq!(seen.facts(), facts_of_view(&held));
        seen.facts()
    }

    #[test]
    fn a_pod_is_its_labels_its_addresses_and_its_named_ports() {
        let pod = |host_network: bool, phase: &str| {
            json!({
                "metadata": {"name": "a", "namespace": "d", "uid": "u", "labels": {"l": "1"}},
                "spec": {"hostNetwork": host_network,
                    "initContainers": [{"ports": [{"name": "init", "containerPort": 1}]},
                        {"restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 2, "protocol": "UDP"}]}],
                    "containers": [{"ports": [{"name": "web", "containerPort": 80}, {"containerPort": 81}]}]},
                "status": {"phase": phase, "podIP": "10.42.0.2", "podIPs": [{"ip": "10.42.0.2"}]},
            })
        };
        let facts = both(pod(false, "Running"));
        assert_eq!((facts.uid.as_str(), facts.labels["l"].as_str()), ("u", "1"));
        assert_eq!(facts.addresses, ["10.42.0.2".parse::<std::net::Ipv4Addr>().unwrap()]);
        let ports: Vec<_> = facts.ports.iter().map(|p| (&*p.name, p.protocol, p.number)).collect();
        assert_eq!(ports, [("web", Protocol::Tcp, 80), ("side", Protocol::Udp, 2)]);
        assert!(both(pod(true, "Running")).addresses.is_empty(), "its node's address");
        assert!(both(pod(false, "Succeeded")).addresses.is_empty(), "it may be another's by now");
        both(json!({"metadata": {"name": "a"}}));
    }
}
