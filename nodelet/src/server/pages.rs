//! The node API's pages that show state: pods, statistics, metrics.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use skiff_cri::v1::{
    ContainerState, CpuUsage, ListContainersRequest, ListPodSandboxRequest, MemoryUsage, PodSandboxState,
};

use crate::pod::PodExt;
use crate::server::Api;
use crate::server::exposition::{self, Metric};
use crate::server::usage::{self, ClaimUsage, FsUsage, PodRef, Used, sum};
use crate::snapshot::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID};

fn list(pods: Vec<Value>) -> Response {
    Json(json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods })).into_response()
}

fn failed(error: impl std::fmt::Display) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
}

pub(super) async fn pods(State(api): State<Api>) -> Response {
    let pods = api.index.read().values().map(|pod: &std::sync::Arc<Pod>| json!(**pod)).collect();
    list(pods)
}

/// What the runtime runs, with no more than it knows.
pub(super) async fn running_pods(State(api): State<Api>) -> Response {
    let containers = match api.shared.cri.list_containers(ListContainersRequest::default()).await {
        Ok(answer) => answer.containers,
        Err(error) => return failed(error),
    };
    let mut pods: BTreeMap<String, Value> = BTreeMap::new();
    for container in containers.into_iter().filter(|c| c.state == ContainerState::ContainerRunning as i32) {
        let label = |name: &str| container.labels.get(name).cloned().unwrap_or_default();
        let pod = pods.entry(label(POD_UID)).or_insert_with(|| {
            json!({
                "metadata": { "name": label(POD_NAME), "namespace": label(POD_NAMESPACE), "uid": label(POD_UID) },
                "spec": { "containers": [] },
                "status": {},
            })
        });
        let image = container.image.as_ref().map(|i| i.image.clone()).unwrap_or_default();
        if let Some(list) = pod["spec"]["containers"].as_array_mut() {
            list.push(json!({ "name": label(CONTAINER_NAME), "image": image, "resources": {} }));
        }
    }
    list(pods.into_values().collect())
}

fn cpu(usage: Option<&CpuUsage>) -> Value {
    let Some(usage) = usage else { return Value::Null };
    json!({
        "time": time(usage.timestamp),
        "usageNanoCores": usage.usage_nano_cores.as_ref().map(|v| v.value),
        "usageCoreNanoSeconds": usage.usage_core_nano_seconds.as_ref().map(|v| v.value),
    })
}

fn memory(usage: Option<&MemoryUsage>) -> Value {
    let Some(usage) = usage else { return Value::Null };
    json!({
        "time": time(usage.timestamp),
        "usageBytes": usage.usage_bytes.as_ref().map(|v| v.value),
        "workingSetBytes": usage.working_set_bytes.as_ref().map(|v| v.value),
        "rssBytes": usage.rss_bytes.as_ref().map(|v| v.value),
    })
}

fn time(ns: i64) -> String {
    let time = Timestamp::from_second(ns.div_euclid(1_000_000_000)).unwrap_or_default();
    time.to_string()
}

pub(super) async fn summary(State(api): State<Api>) -> Response {
    let by_pod = match usage::of_pods(&api).await {
        Ok(pods) => pods,
        Err(error) => return failed(error),
    };
    let node = usage::of_node(&api);
    let now = Timestamp::from_second(node.at.as_second()).unwrap_or(node.at).to_string();
    let (claims, disk) = usage::of_disks(&api).await;
    let pods = by_pod.iter().map(|(pod, used)| {
        let mut summary = pod_summary(&api, pod, used, &now);
        let own = claims.iter().filter(|claim| claim.pod == *pod);
        let volumes: Vec<Value> = own.map(|claim| volume_summary(claim, &now)).collect();
        if !volumes.is_empty() {
            summary["volume"] = volumes.into();
        }
        summary
    });
    let pods: Vec<Value> = pods.collect();
    let node = json!({
        "nodeName": api.shared.config.node_name,
        "cpu": { "time": now, "usageCoreNanoSeconds": node.cpu_ns },
        "memory": { "time": now, "availableBytes": node.available_bytes, "workingSetBytes": node.working_set_bytes },
        "fs": disk.map(|disk| fs_summary(&disk, &now)),
    });
    Json(json!({ "node": node, "pods": pods })).into_response()
}

fn fs_summary(usage: &FsUsage, now: &str) -> Value {
    json!({
        "time": now,
        "availableBytes": usage.available_bytes,
        "capacityBytes": usage.capacity_bytes,
        "usedBytes": usage.used_bytes,
        "inodesFree": usage.inodes_free,
        "inodes": usage.inodes,
        "inodesUsed": usage.inodes.saturating_sub(usage.inodes_free),
    })
}

fn volume_summary(claim: &ClaimUsage, now: &str) -> Value {
    let mut summary = fs_summary(&claim.usage, now);
    summary["name"] = claim.volume.as_str().into();
    summary["pvcRef"] = json!({ "name": claim.claim, "namespace": claim.pod.namespace });
    summary
}

fn pod_summary(api: &Api, pod: &PodRef, used: &[Used], now: &str) -> Value {
    let PodRef { namespace, name, uid } = pod;
    let started = api.index.read().get(&(namespace.clone(), name.clone())).and_then(|p| {
        p.status.as_ref().filter(|_| p.uid() == uid)?.start_time.as_ref().map(|t| t.0.to_string())
    });
    let containers: Vec<Value> = used
        .iter()
        .map(|one| {
            let stats = &one.stats;
            json!({
                "name": one.name, "startTime": time(one.started_ns),
                "cpu": cpu(stats.cpu.as_ref()), "memory": memory(stats.memory.as_ref()),
                "rootfs": {
                    "time": now,
                    "usedBytes": stats.writable_layer.as_ref().and_then(|l| Some(l.used_bytes.as_ref()?.value)),
                },
            })
        })
        .collect();
    let of_memory = |of: fn(&MemoryUsage) -> Option<u64>| sum(used, |one| of(one.stats.memory.as_ref()?));
    let nano_cores = sum(used, |one| Some(one.stats.cpu.as_ref()?.usage_nano_cores.as_ref()?.value));
    json!({
        "podRef": { "name": name, "namespace": namespace, "uid": uid },
        "startTime": started,
        "containers": containers,
        "cpu": {
            "time": now, "usageNanoCores": nano_cores.unwrap_or(0),
            "usageCoreNanoSeconds": sum(used, Used::cpu_ns).unwrap_or(0),
        },
        "memory": {
            "time": now,
            "usageBytes": of_memory(|m| Some(m.usage_bytes.as_ref()?.value)).unwrap_or(0),
            "workingSetBytes": sum(used, Used::working_set_bytes).unwrap_or(0),
            "rssBytes": of_memory(|m| Some(m.rss_bytes.as_ref()?.value)).unwrap_or(0),
        },
    })
}

pub(super) async fn metrics(State(api): State<Api>) -> Response {
    let (sandboxes, containers) = match futures::try_join!(
        api.shared.cri.list_pod_sandbox(ListPodSandboxRequest::default()),
        api.shared.cri.list_containers(ListContainersRequest::default()),
    ) {
        Ok((sandboxes, containers)) => (sandboxes.items, containers.containers),
        Err(error) => return failed(error),
    };
    let mut text = String::new();
    let mut gauge = |name: &'static str, help: &str, value: usize| {
        Metric::begin(&mut text, name, "gauge", help).sample(&[], value, None);
    };
    let ready = sandboxes.iter().filter(|s| s.state == PodSandboxState::SandboxReady as i32).count();
    let running = containers.iter().filter(|c| c.state == ContainerState::ContainerRunning as i32).count();
    gauge("kubelet_running_pods", "[ALPHA] Number of pods that have a running pod sandbox", ready);
    gauge("kubelet_running_containers", "[ALPHA] Number of containers currently running", running);
    gauge(
        "kubelet_desired_pods",
        "[ALPHA] The number of pods the kubelet is being instructed to run",
        api.index.read().len(),
    );
    let (claims, _) = usage::of_disks(&api).await;
    for (name, help, of) in VOLUME_METRICS {
        if claims.is_empty() {
            break;
        }
        let mut metric = Metric::begin(&mut text, name, "gauge", help);
        for claim in &claims {
            let labels =
                [("namespace", claim.pod.namespace.as_str()), ("persistentvolumeclaim", &claim.claim)];
            metric.sample(&labels, of(&claim.usage), None);
        }
    }
    exposition::answer(text)
}

type OfFs = fn(&FsUsage) -> u64;

/// The kubelet's figures of claims: name, help, and where it comes from.
const VOLUME_METRICS: [(&str, &str, OfFs); 6] = [
    ("kubelet_volume_stats_capacity_bytes", "[ALPHA] Capacity in bytes of the volume", |u| u.capacity_bytes),
    ("kubelet_volume_stats_available_bytes", "[ALPHA] Number of available bytes in the volume", |u| {
        u.available_bytes
    }),
    ("kubelet_volume_stats_used_bytes", "[ALPHA] Number of used bytes in the volume", |u| u.used_bytes),
    ("kubelet_volume_stats_inodes", "[ALPHA] Maximum number of inodes in the volume", |u| u.inodes),
    ("kubelet_volume_stats_inodes_free", "[ALPHA] Number of free inodes in the volume", |u| u.inodes_free),
    ("kubelet_volume_stats_inodes_used", "[ALPHA] Number of used inodes in the volume", |u| {
        u.inodes.saturating_sub(u.inodes_free)
    }),
];
