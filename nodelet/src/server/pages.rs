//! The node API's pages that show state: pods, statistics, metrics.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use skiff_cri::v1::{
    ContainerState, ContainerStats, CpuUsage, ListContainerStatsRequest, ListContainersRequest,
    ListPodSandboxRequest, MemoryUsage, PodSandboxState,
};

use crate::node::status::available_memory;
use crate::pod::PodExt;
use crate::server::Api;
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

/// Adds up one figure of all containers.
fn sum(stats: &[ContainerStats], of: impl Fn(&ContainerStats) -> Option<u64>) -> u64 {
    stats.iter().filter_map(of).fold(0, u64::saturating_add)
}

pub(super) async fn summary(State(api): State<Api>) -> Response {
    let stats = match api.shared.cri.list_container_stats(ListContainerStatsRequest::default()).await {
        Ok(answer) => answer.stats,
        Err(error) => return failed(error),
    };
    let mut by_pod: BTreeMap<(String, String, String), Vec<ContainerStats>> = BTreeMap::new();
    for stat in stats {
        let labels = stat.attributes.as_ref().map(|a| a.labels.clone()).unwrap_or_default();
        let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
        if !label(POD_UID).is_empty() {
            by_pod.entry((label(POD_NAMESPACE), label(POD_NAME), label(POD_UID))).or_default().push(stat);
        }
    }
    let now = Timestamp::now();
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    let pods: Vec<Value> = by_pod.iter().map(|(pod, stats)| pod_summary(&api, pod, stats, &now)).collect();
    let total = u64::try_from(api.shared.memory_capacity).unwrap_or(0);
    let available = available_memory().unwrap_or(0);
    let node = json!({
        "nodeName": api.shared.config.node_name,
        "cpu": { "time": now, "usageCoreNanoSeconds": node_cpu_ns() },
        "memory": { "time": now, "availableBytes": available, "workingSetBytes": total.saturating_sub(available) },
    });
    Json(json!({ "node": node, "pods": pods })).into_response()
}

fn pod_summary(api: &Api, pod: &(String, String, String), stats: &[ContainerStats], now: &str) -> Value {
    let (namespace, name, uid) = pod;
    let started = api.index.read().get(&(namespace.clone(), name.clone())).and_then(|p| {
        p.status.as_ref().filter(|_| p.uid() == uid)?.start_time.as_ref().map(|t| t.0.to_string())
    });
    let containers: Vec<Value> = stats
        .iter()
        .map(|s| {
            let name = s.attributes.as_ref().and_then(|a| a.labels.get(CONTAINER_NAME)).cloned();
            json!({ "name": name, "startTime": started, "cpu": cpu(s.cpu.as_ref()), "memory": memory(s.memory.as_ref()) })
        })
        .collect();
    let core_ns = sum(stats, |s| s.cpu.as_ref()?.usage_core_nano_seconds.as_ref().map(|v| v.value));
    let nano_cores = sum(stats, |s| s.cpu.as_ref()?.usage_nano_cores.as_ref().map(|v| v.value));
    let working_set = sum(stats, |s| s.memory.as_ref()?.working_set_bytes.as_ref().map(|v| v.value));
    let rss = sum(stats, |s| s.memory.as_ref()?.rss_bytes.as_ref().map(|v| v.value));
    let usage = sum(stats, |s| s.memory.as_ref()?.usage_bytes.as_ref().map(|v| v.value));
    json!({
        "podRef": { "name": name, "namespace": namespace, "uid": uid },
        "startTime": started,
        "containers": containers,
        "cpu": { "time": now, "usageNanoCores": nano_cores, "usageCoreNanoSeconds": core_ns },
        "memory": { "time": now, "usageBytes": usage, "workingSetBytes": working_set, "rssBytes": rss },
    })
}

/// Processor time that this machine has spent on anything since it started.
fn node_cpu_ns() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<u64> =
        text.lines().next()?.split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    let busy: u64 =
        fields.iter().take(8).enumerate().filter(|(i, _)| !matches!(i, 3 | 4)).map(|(_, v)| v).sum();
    // The kernel counts in hundredths of a second towards user space, on every architecture.
    Some(busy.saturating_mul(10_000_000))
}

pub(super) async fn metrics(State(api): State<Api>) -> Response {
    let (sandboxes, containers) = match futures::try_join!(
        api.shared.cri.list_pod_sandbox(ListPodSandboxRequest::default()),
        api.shared.cri.list_containers(ListContainersRequest::default()),
    ) {
        Ok((sandboxes, containers)) => (sandboxes.items, containers.containers),
        Err(error) => return failed(error),
    };
    let mut registry = Registry::default();
    let mut gauge = |name: &str, help: &str, value: usize| {
        let gauge: Gauge = Gauge::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    let ready = sandboxes.iter().filter(|s| s.state == PodSandboxState::SandboxReady as i32).count();
    let running = containers.iter().filter(|c| c.state == ContainerState::ContainerRunning as i32).count();
    gauge("kubelet_running_pods", "Number of pods that have a running pod sandbox", ready);
    gauge("kubelet_running_containers", "Number of containers currently running", running);
    gauge(
        "kubelet_desired_pods",
        "The number of pods the kubelet is being instructed to run",
        api.index.read().len(),
    );
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => {
            ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
                .into_response()
        }
        Err(error) => failed(error),
    }
}
