//! Answers: NodeMetrics and PodMetrics of what there is.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_api::duration::go_duration;
use skiff_api::meta::Meta;
use skiff_api::quantity::{Quantity, Suffixes};
use skiff_api::time::{Moment, Precision};
use skiff_api::{Object, Status};
use tokio_util::sync::CancellationToken;

use super::points::{Kept, Key, Used};
use super::scrape::{Nodes, Scraper};
use crate::answer;
use crate::cache::Entry;
use crate::call::Call;
use crate::heavy::HeavyWork;
use crate::lister::Lister;
use crate::proxy::kubelet::Kubelet;
use crate::registry::options::ListOptions;
use crate::respond::Response;

/// Reading more pods than this is too much for a thread that serves others.
const FEW: usize = 100;

const NS_PER_MS: i64 = 1_000_000;

/// Serves `metrics.k8s.io` unless another server does.
pub(crate) struct ResourceMetrics {
    lister: Lister,
    heavy: Arc<HeavyWork>,
    scraper: Scraper,
}

impl ResourceMetrics {
    pub(crate) fn new(lister: Lister, kubelet: Arc<Kubelet>, heavy: Arc<HeavyWork>) -> ResourceMetrics {
        ResourceMetrics { scraper: Scraper::new(lister.clone(), kubelet), lister, heavy }
    }

    /// Reads the nodes while somebody asks, until `shutdown`.
    pub(crate) async fn run(&self, shutdown: CancellationToken) {
        self.scraper.run(shutdown).await;
    }

    /// Answers `get` and `list`.
    ///
    /// # Errors
    /// 404 for what is not there, or of which nothing is known yet.
    pub(crate) async fn answer(&self, call: &Call) -> Result<Response, Status> {
        let cache = self.lister.cache("", "v1", &call.kind.plural)?;
        let entries: Vec<Arc<Entry>> = if call.info.verb == "get" {
            let entry = cache.get(&call.key())?;
            let plural = &call.kind.plural;
            vec![entry.ok_or_else(|| Status::not_found("", plural, &call.info.name))?]
        } else {
            let filter = ListOptions::parse(call)?.filter;
            let (_, all) = cache.snapshot_of(filter.namespace.as_deref())?;
            all.values().filter(|entry| filter.matches(entry)).cloned().collect()
        };
        let nodes = self.scraper.nodes().await;
        let is_of_pods = call.kind.is_namespaced();
        let few = entries.len() <= FEW;
        let read = move || metrics(&entries, &nodes, is_of_pods, Timestamp::now());
        let mut items = if few { read() } else { self.heavy.of(&call.user).run(read).await? };
        for item in &mut items {
            item["apiVersion"] = call.kind.api_version().into();
            item["kind"] = call.kind.kind.as_str().into();
        }
        if call.info.verb == "get" {
            let missing = || {
                let (namespace, name) = (&call.info.namespace, &call.info.name);
                let name = if is_of_pods { format!("{namespace}/{name}") } else { name.clone() };
                Status::not_found(&call.kind.group, &call.kind.kind.to_lowercase(), &name)
            };
            return Ok(call.object(200, items.pop().ok_or_else(missing)?));
        }
        Ok(answer::list(call, items))
    }
}

/// What is known of these pods or nodes, by namespace and name.
fn metrics(entries: &[Arc<Entry>], nodes: &Nodes, is_of_pods: bool, now: Timestamp) -> Vec<Object> {
    let of = |entry: &Arc<Entry>| {
        let object = entry.parse();
        if is_of_pods { of_pod(&object, nodes, now) } else { of_node(&object, nodes, now) }
    };
    let mut all: Vec<Object> = entries.iter().filter_map(of).collect();
    all.sort_by(|a, b| (a.namespace(), a.name()).cmp(&(b.namespace(), b.name())));
    all
}

fn of_node(node: &Object, nodes: &Nodes, now: Timestamp) -> Option<Object> {
    let used = nodes.get(node.name())?.node.as_ref()?.used()?;
    let mut metrics = head(node, now, &used);
    metrics["usage"] = usage(&used);
    Some(metrics)
}

/// `None` until there is a rate of every container of which something is known.
fn of_pod(pod: &Object, nodes: &Nodes, now: Timestamp) -> Option<Object> {
    let node = nodes.get(pod["spec"]["nodeName"].as_str()?)?;
    let containers = ["containers", "initContainers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|field| pod["spec"][field].as_array().into_iter().flatten());
    let known: Vec<(&str, &Kept)> = containers
        .filter_map(|container| {
            let name = container["name"].as_str()?;
            Some((name, node.container(Key::of(pod.namespace(), pod.name(), name))?))
        })
        .collect();
    if known.iter().any(|(_, kept)| !kept.has_rate() || kept.last.is_incomplete()) {
        return None;
    }
    let used: Vec<(&str, Used)> =
        known.into_iter().filter_map(|(name, kept)| Some((name, kept.used()?))).collect();
    let (_, earliest) = used.iter().min_by_key(|(_, used)| used.at_ms)?;
    let mut metrics = head(pod, now, earliest);
    let one = |(name, used): &(&str, Used)| json!({"name": name, "usage": usage(used)});
    metrics["containers"] = used.iter().map(one).collect();
    Some(metrics)
}

/// What metrics of a node and of a pod begin with.
fn head(of: &Object, now: Timestamp, used: &Used) -> Object {
    let mut metadata = json!({"name": of.name(), "creationTimestamp": second(now.as_second())});
    if !of.namespace().is_empty() {
        metadata["namespace"] = of.namespace().into();
    }
    if let labels @ Value::Object(_) = &of["metadata"]["labels"] {
        metadata["labels"] = labels.clone();
    }
    json!({
        "metadata": metadata,
        "timestamp": second(used.at_ms.div_euclid(1000)),
        "window": go_duration(used.window_ms.saturating_mul(NS_PER_MS)),
    })
}

fn second(seconds: i64) -> Value {
    Moment::new(seconds, 0).map_or(Value::Null, |at| at.to_text(Precision::Seconds).into())
}

fn usage(used: &Used) -> Value {
    let bytes = i64::try_from(used.memory_bytes).unwrap_or(i64::MAX);
    json!({
        "cpu": Quantity::from_nanos(used.cpu_nanos).to_string(),
        "memory": Quantity::from_units(bytes, Suffixes::Binary).to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::points::{NodeUsage, Page, Point};
    use super::*;

    fn point(at_s: i64, cpu_ms: u64) -> Point {
        Point { started_ms: 0, at_ms: at_s * 1000, cpu_ns: cpu_ms * 1_000_000, memory_bytes: 3 << 20 }
    }

    /// A node `n` on which these containers of `ns/p` were seen, each at these points.
    fn node(containers: &[(&str, &[Point])]) -> Nodes {
        let mut usage = NodeUsage::default();
        for round in 0..2 {
            let seen = containers.iter().filter_map(|(name, points)| {
                // Who has one point only was seen in the last round.
                Some((Key::of("ns", "p", name), *points.get((points.len() + round).checked_sub(2)?)?))
            });
            let mut containers: Vec<_> = seen.collect();
            containers.sort_unstable_by_key(|(key, _)| *key);
            usage = NodeUsage::next(Some(&usage), Page { node: None, containers });
        }
        Nodes::from([("n".to_owned(), Arc::new(usage))])
    }

    fn pod() -> Object {
        json!({
            "metadata": {"name": "p", "namespace": "ns", "labels": {"app": "a"}},
            "spec": {"nodeName": "n", "containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]},
        })
    }

    #[test]
    fn a_pod_has_the_figures_of_its_containers_and_the_earliest_time() {
        let (a, b) = ([point(100, 1000), point(115, 2500)], [point(90, 1), point(114, 25)]);
        let nodes = node(&[("a", &a), ("b", &b)]);
        let metrics = of_pod(&pod(), &nodes, Timestamp::UNIX_EPOCH).expect("both have a rate");
        let memory = "3Mi";
        assert_eq!(
            metrics,
            json!({
                "metadata": {"name": "p", "namespace": "ns", "labels": {"app": "a"}, "creationTimestamp": "1970-01-01T00:00:00Z"},
                "timestamp": "1970-01-01T00:01:54Z", "window": "24s",
                "containers": [
                    {"name": "a", "usage": {"cpu": "100m", "memory": memory}},
                    {"name": "b", "usage": {"cpu": "1m", "memory": memory}},
                ],
            })
        );
    }

    #[test]
    fn nothing_is_said_of_a_pod_while_something_is_missing() {
        let whole: &[Point] = &[point(100, 1000), point(115, 2500)];
        let said = |containers: &[(&str, &[Point])]| {
            of_pod(&pod(), &node(containers), Timestamp::UNIX_EPOCH).is_some()
        };
        assert!(said(&[("a", whole), ("b", whole)]));
        assert!(said(&[("a", whole)]), "what does not run is not waited for");
        assert!(!said(&[("a", whole), ("b", &whole[1..])]), "one point has no rate");
        assert!(!said(&[("a", whole), ("b", &[point(100, 0), point(115, 0)])]), "no CPU time at all");
        assert!(!said(&[("other", whole)]));
        let elsewhere = json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"nodeName": "other", "containers": [{"name": "a"}]}});
        assert!(
            of_pod(&elsewhere, &node(&[("a", whole)]), Timestamp::UNIX_EPOCH).is_none(),
            "a node speaks for its own pods"
        );
    }
}
