//! `/metrics/resource`: what the node, its pods and their containers use, under a kubelet's names. metrics-server reads it.
//!
//! Source: `pkg/kubelet/metrics/collectors/resource_metrics.go`. Nothing here swaps.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::Response;

use crate::server::Api;
use crate::server::exposition::{self, Metric};
use crate::server::usage::{self, NodeUsage, PodRef, Used, sum};

const NS_PER_S: f64 = 1e9;
const NS_PER_MS: i64 = 1_000_000;

pub(super) async fn page(State(api): State<Api>) -> Response {
    let node = usage::of_node(&api);
    let pods = usage::of_pods(&api).await.inspect_err(|error| {
        tracing::warn!(%error, "cannot read what containers use");
    });
    exposition::answer(text(&node, pods.as_ref().ok()))
}

fn text(node: &NodeUsage, pods: Option<&BTreeMap<PodRef, Vec<Used>>>) -> String {
    let mut out = String::new();
    let none = BTreeMap::new();
    let all = pods.unwrap_or(&none);
    let containers = || {
        all.iter().flat_map(|(pod, containers)| {
            containers.iter().map(move |used| {
                let labels =
                    [("container", used.name.as_str()), ("namespace", &pod.namespace), ("pod", &pod.name)];
                (labels, used)
            })
        })
    };
    let of_pods = || {
        all.iter().map(|(pod, containers)| {
            ([("namespace", pod.namespace.as_str()), ("pod", pod.name.as_str())], containers.as_slice())
        })
    };
    let now = node.at.as_millisecond();

    let help = "[STABLE] Cumulative cpu time consumed by the container in core-seconds";
    let mut metric = Metric::begin(&mut out, "container_cpu_usage_seconds_total", "counter", help);
    for (labels, used) in containers() {
        if let Some(ns) = used.cpu_ns() {
            metric.sample(
                &labels,
                ns as f64 / NS_PER_S,
                used.stats.cpu.as_ref().map(|c| c.timestamp / NS_PER_MS),
            );
        }
    }
    let help = "[STABLE] Current working set of the container in bytes";
    let mut metric = Metric::begin(&mut out, "container_memory_working_set_bytes", "gauge", help);
    for (labels, used) in containers() {
        if let Some(bytes) = used.working_set_bytes() {
            metric.sample(&labels, bytes, used.stats.memory.as_ref().map(|m| m.timestamp / NS_PER_MS));
        }
    }
    let help = "[STABLE] Start time of the container since unix epoch in seconds";
    let mut metric = Metric::begin(&mut out, "container_start_time_seconds", "gauge", help);
    for (labels, used) in containers() {
        metric.sample(&labels, used.started_ns as f64 / NS_PER_S, None);
    }
    let help = "[STABLE] Cumulative cpu time consumed by the node in core-seconds";
    let mut metric = Metric::begin(&mut out, "node_cpu_usage_seconds_total", "counter", help);
    if let Some(ns) = node.cpu_ns {
        metric.sample(&[], ns as f64 / NS_PER_S, Some(now));
    }
    let help = "[STABLE] Current working set of the node in bytes";
    let mut metric = Metric::begin(&mut out, "node_memory_working_set_bytes", "gauge", help);
    metric.sample(&[], node.working_set_bytes, Some(now));
    let help = "[STABLE] Cumulative cpu time consumed by the pod in core-seconds";
    let mut metric = Metric::begin(&mut out, "pod_cpu_usage_seconds_total", "counter", help);
    for (labels, used) in of_pods() {
        if let Some(ns) = sum(used, Used::cpu_ns) {
            metric.sample(&labels, ns as f64 / NS_PER_S, Some(now));
        }
    }
    let help = "[STABLE] Current working set of the pod in bytes";
    let mut metric = Metric::begin(&mut out, "pod_memory_working_set_bytes", "gauge", help);
    for (labels, used) in of_pods() {
        if let Some(bytes) = sum(used, Used::working_set_bytes) {
            metric.sample(&labels, bytes, Some(now));
        }
    }
    let help = "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise";
    let mut metric = Metric::begin(&mut out, "resource_scrape_error", "gauge", help);
    metric.sample(&[], u8::from(pods.is_none()), None);
    out
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use jiff::Timestamp;
    use skiff_cri::v1::{ContainerStats, CpuUsage, MemoryUsage, UInt64Value};

    use super::*;

    #[test]
    fn the_page_is_what_metrics_server_reads() {
        let value = |value| Some(UInt64Value { value });
        let stats = ContainerStats {
            cpu: Some(CpuUsage {
                timestamp: 2_000_000_000,
                usage_core_nano_seconds: value(1_250_000_000),
                ..CpuUsage::default()
            }),
            memory: Some(MemoryUsage {
                timestamp: 2_000_000_000,
                working_set_bytes: value(4096),
                ..MemoryUsage::default()
            }),
            ..ContainerStats::default()
        };
        let pod = PodRef { namespace: "n".into(), name: "p".into(), uid: "u".into() };
        let used = Used { name: "c".into(), started_ns: 1_500_000_000, stats };
        let node = NodeUsage {
            at: Timestamp::from_second(3).unwrap(),
            cpu_ns: Some(7_000_000_000),
            available_bytes: 1,
            working_set_bytes: 8192,
        };
        let page = text(&node, Some(&BTreeMap::from([(pod, vec![used])])));
        let samples: Vec<&str> = page.lines().filter(|line| !line.starts_with("# HELP")).collect();
        expect![[r##"
            # TYPE container_cpu_usage_seconds_total counter
            container_cpu_usage_seconds_total{container="c",namespace="n",pod="p"} 1.25 2000
            # TYPE container_memory_working_set_bytes gauge
            container_memory_working_set_bytes{container="c",namespace="n",pod="p"} 4096 2000
            # TYPE container_start_time_seconds gauge
            container_start_time_seconds{container="c",namespace="n",pod="p"} 1.5
            # TYPE node_cpu_usage_seconds_total counter
            node_cpu_usage_seconds_total 7 3000
            # TYPE node_memory_working_set_bytes gauge
            node_memory_working_set_bytes 8192 3000
            # TYPE pod_cpu_usage_seconds_total counter
            pod_cpu_usage_seconds_total{namespace="n",pod="p"} 1.25 3000
            # TYPE pod_memory_working_set_bytes gauge
            pod_memory_working_set_bytes{namespace="n",pod="p"} 4096 3000
            # TYPE resource_scrape_error gauge
            resource_scrape_error 0"##]]
        .assert_eq(&samples.join("\n"));
        assert!(text(&node, None).ends_with("resource_scrape_error 1\n"));
    }
}
