//! What is measured, read of `metrics.k8s.io`, `custom.metrics.k8s.io` and `external.metrics.k8s.io`, whoever serves them.
//!
//! Source: upstream's `podautoscaler/metrics`, and `k8s.io/metrics/pkg/client`.

use std::collections::BTreeMap;

use http_body_util::{BodyExt as _, Limited};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Client;
use kube::client::Body;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use skiff_api::duration::go_duration_ns;
use skiff_api::quantity::Quantity;

use super::replicas::{Sample, Samples};

/// The figures of some 50,000 pods.
const MAX_BYTES: usize = 32 << 20;
/// Of what names no window.
const DEFAULT_WINDOW: SignedDuration = SignedDuration::from_mins(1);
/// The newest first.
const CUSTOM_VERSIONS: [&str; 2] = ["v1beta2", "v1beta1"];

const RESOURCE: &str = "unable to fetch metrics from resource metrics API";
const CUSTOM: &str = "unable to fetch metrics from custom metrics API";
const EXTERNAL: &str = "unable to fetch metrics from external metrics API";

/// Why nothing is known. In upstream's words.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("{api}: {cause}")]
    Api { api: &'static str, cause: RequestError },
    #[error("no metrics returned from {0} metrics API")]
    Empty(&'static str),
    #[error("{CUSTOM}: the custom metrics API server returned {0} results when we asked for exactly one")]
    NotOne(usize),
    #[error("{0}")]
    Selector(String),
}

#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// What the server says.
    #[error("{message}")]
    Refused { code: u16, message: String },
    #[error(transparent)]
    Client(#[from] kube::Error),
    #[error("the answer is larger than {MAX_BYTES} bytes, or broke off")]
    Cut,
    #[error("the answer cannot be read: {0}")]
    Json(#[from] serde_json::Error),
}

impl RequestError {
    fn is_not_found(&self) -> bool {
        matches!(self, RequestError::Refused { code: 404, .. })
    }
}

#[derive(Deserialize)]
struct List<T> {
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

#[derive(Deserialize)]
struct PodMetrics {
    metadata: Metadata,
    timestamp: Timestamp,
    #[serde(default)]
    window: String,
    #[serde(default)]
    containers: Vec<ContainerMetrics>,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Deserialize)]
struct ContainerMetrics {
    name: String,
    #[serde(default)]
    usage: BTreeMap<String, String>,
}

/// Of both versions, which name the metric itself in other ways.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetricValue {
    #[serde(default)]
    described_object: Option<Metadata>,
    timestamp: Option<Timestamp>,
    #[serde(alias = "window")]
    window_seconds: Option<i64>,
    value: String,
}

/// Reads metrics for one autoscaler.
pub(super) struct Metrics<'m> {
    pub(super) client: &'m Client,
    pub(super) namespace: &'m str,
}

impl Metrics<'_> {
    /// What the selected pods, or a container of each, use of a resource.
    pub(super) async fn of_resource(
        &self,
        resource: &str,
        selector: &str,
        container: Option<&str>,
    ) -> Result<Samples, ReadError> {
        let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods", self.namespace);
        let url = url(&path, &[("labelSelector", selector)]);
        let list: List<PodMetrics> =
            read(self.client, &url).await.map_err(|cause| ReadError::Api { api: RESOURCE, cause })?;
        if list.items.is_empty() {
            return Err(ReadError::Empty("resource"));
        }
        Ok(list.items.iter().filter_map(|pod| sample(pod, resource, container)).collect())
    }

    /// A metric of each of the selected pods.
    pub(super) async fn of_pods(
        &self,
        metric: &str,
        selector: &str,
        metric_selector: Option<&LabelSelector>,
    ) -> Result<Samples, ReadError> {
        let of = format!("namespaces/{}/pods/*/{}", self.namespace, escaped(metric));
        let items = self.custom(&of, Some(selector), metric_selector).await?;
        if items.is_empty() {
            return Err(ReadError::Empty("custom"));
        }
        let samples = items.into_iter().filter_map(|item| {
            let window = item.window_seconds.map_or(DEFAULT_WINDOW, SignedDuration::from_secs);
            let at = item.timestamp.unwrap_or(Timestamp::UNIX_EPOCH);
            Some((item.described_object?.name, Sample { at, window, value: millis(&item.value)? }))
        });
        Ok(samples.collect())
    }

    /// A metric of one object: `services/web`, `ingresses.networking.k8s.io/main`, or of the namespace itself.
    pub(super) async fn of_object(
        &self,
        object: Option<(&str, &str)>,
        metric: &str,
        metric_selector: Option<&LabelSelector>,
    ) -> Result<i64, ReadError> {
        let of = match object {
            Some((resource, name)) => {
                let (name, metric) = (escaped(name), escaped(metric));
                format!("namespaces/{}/{resource}/{name}/{metric}", self.namespace)
            }
            None => format!("namespaces/{}/metrics/{}", self.namespace, escaped(metric)),
        };
        let items = self.custom(&of, None, metric_selector).await?;
        match items.as_slice() {
            [one] => millis(&one.value).ok_or(ReadError::NotOne(0)),
            others => Err(ReadError::NotOne(others.len())),
        }
    }

    /// All values of a metric that is of nothing in the cluster.
    pub(super) async fn external(
        &self,
        metric: &str,
        selector: Option<&LabelSelector>,
    ) -> Result<i64, ReadError> {
        let metric = escaped(metric);
        let path = format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{}/{metric}", self.namespace);
        let url = url(&path, &[("labelSelector", &selector_text(selector)?)]);
        let list: List<MetricValue> =
            read(self.client, &url).await.map_err(|cause| ReadError::Api { api: EXTERNAL, cause })?;
        if list.items.is_empty() {
            return Err(ReadError::Empty("external"));
        }
        let values = list.items.iter().filter_map(|item| millis(&item.value));
        Ok(values.fold(0, i64::saturating_add))
    }

    /// In the newest version that the server behind has.
    async fn custom(
        &self,
        of: &str,
        selector: Option<&str>,
        metric_selector: Option<&LabelSelector>,
    ) -> Result<Vec<MetricValue>, ReadError> {
        let metric_selector = selector_text(metric_selector)?;
        let query =
            [("labelSelector", selector.unwrap_or_default()), ("metricLabelSelector", &metric_selector)];
        let mut failed = None;
        for version in CUSTOM_VERSIONS {
            let url = url(&format!("/apis/custom.metrics.k8s.io/{version}/{of}"), &query);
            match read::<List<MetricValue>>(self.client, &url).await {
                Ok(list) => return Ok(list.items),
                Err(cause) if cause.is_not_found() => failed = Some(cause),
                Err(cause) => return Err(ReadError::Api { api: CUSTOM, cause }),
            }
        }
        Err(failed.map_or(ReadError::Empty("custom"), |cause| ReadError::Api { api: CUSTOM, cause }))
    }
}

/// `None` where a container says nothing of the resource, or is not there.
fn sample(pod: &PodMetrics, resource: &str, container: Option<&str>) -> Option<(String, Sample)> {
    let of = |one: &ContainerMetrics| millis(one.usage.get(resource)?);
    let value = match container {
        Some(wanted) => of(pod.containers.iter().find(|one| one.name == wanted)?)?,
        None if pod.containers.is_empty() => return None,
        None => pod.containers.iter().try_fold(0_i64, |sum, one| Some(sum.saturating_add(of(one)?)))?,
    };
    let window = SignedDuration::from_nanos(go_duration_ns(&pod.window).unwrap_or(0));
    Some((pod.metadata.name.clone(), Sample { at: pod.timestamp, window, value }))
}

pub(super) fn millis(quantity: &str) -> Option<i64> {
    Some(quantity.parse::<Quantity>().ok()?.millis())
}

/// A selector as a query has it.
fn selector_text(selector: Option<&LabelSelector>) -> Result<String, ReadError> {
    let Some(selector) = selector else { return Ok(String::new()) };
    let json = serde_json::to_value(selector).unwrap_or_default();
    let selector = skiff_api::LabelSelector::from_json(&json);
    let selector = selector.map_err(|status| ReadError::Selector(status.message))?;
    let terms = selector.requirements().into_iter().map(|(key, operator, values)| match operator {
        "In" => format!("{key} in ({})", values.join(",")),
        "NotIn" => format!("{key} notin ({})", values.join(",")),
        "Exists" => key.to_owned(),
        _ => format!("!{key}"),
    });
    Ok(terms.collect::<Vec<_>>().join(","))
}

fn url(path: &str, query: &[(&str, &str)]) -> String {
    let query = query.iter().filter(|(_, value)| !value.is_empty());
    let query: Vec<String> = query.map(|(name, value)| format!("{name}={}", escaped(value))).collect();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) }
}

/// Percent-encodes everything but what is safe in any part of a URL.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// GETs a document of a bounded size.
async fn read<T: DeserializeOwned>(client: &Client, url: &str) -> Result<T, RequestError> {
    let request = http::Request::get(url).body(Body::empty()).map_err(kube::Error::HttpError)?;
    let response = client.send(request).await?;
    let code = response.status();
    let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
    let bytes = body.map_err(|_| RequestError::Cut)?.to_bytes();
    if code != http::StatusCode::OK {
        let document: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let message = document["message"].as_str().map_or_else(|| code.to_string(), str::to_owned);
        return Err(RequestError::Refused { code: code.as_u16(), message });
    }
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(containers: Value) -> PodMetrics {
        let pod = json!({
            "metadata": {"name": "p"}, "timestamp": "2026-01-01T00:00:00Z", "window": "15s", "containers": containers,
        });
        serde_json::from_value(pod).expect("metrics")
    }

    #[test]
    fn a_pod_uses_what_its_containers_use_or_one_of_them() {
        let both = pod(json!([
            {"name": "a", "usage": {"cpu": "1500001n", "memory": "1Ki"}},
            {"name": "b", "usage": {"cpu": "1"}},
        ]));
        let value = |resource, container| sample(&both, resource, container).map(|(_, sample)| sample.value);
        assert_eq!(value("cpu", None), Some(1002), "thousandths are rounded up");
        assert_eq!(value("cpu", Some("b")), Some(1000));
        assert_eq!(value("memory", Some("a")), Some(1_024_000));
        assert_eq!(value("memory", None), None, "one of them does not tell");
        assert_eq!(value("cpu", Some("c")), None);
        assert_eq!(sample(&pod(json!([])), "cpu", None), None);
    }

    #[test]
    fn selectors_are_written_for_a_query() {
        let selector: LabelSelector = serde_json::from_value(json!({
            "matchLabels": {"a": "1"},
            "matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["x", "y"]}, {"key": "c", "operator": "Exists"}],
        }))
        .expect("a selector");
        assert_eq!(selector_text(Some(&selector)).expect("a text"), "a in (1),b notin (x,y),c");
        assert_eq!(
            url("/p", &[("labelSelector", "a in (1)"), ("x", "")]),
            "/p?labelSelector=a%20in%20%281%29"
        );
        assert_eq!(url("/p", &[("x", "")]), "/p");
    }
}
