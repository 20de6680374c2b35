//! From the metrics of an autoscaler to a number of pods, with what its status says of each.
//!
//! Source: `computeReplicasForMetrics` of upstream's controller, with its words.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, CrossVersionObjectReference, ExternalMetricSource, ExternalMetricStatus,
    HorizontalPodAutoscaler, MetricIdentifier, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus,
    ObjectMetricSource, ObjectMetricStatus, PodsMetricSource, PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use skiff_api::quantity::{Quantity, Suffixes};
use skiff_client::Resources;
use skiff_client::view::Pod;

use super::metrics::{Metrics, ReadError, millis};
use super::replicas::{CountError, Scaled, Tolerances, per_pod};
use super::target::{self, TargetError};

/// Upstream's `--horizontal-pod-autoscaler-tolerance`.
const TOLERANCE: f64 = 0.1;

/// Why a metric proposes nothing.
#[derive(Debug, thiserror::Error)]
enum ProposeError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Count(#[from] CountError),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("{0}")]
    Spec(&'static str),
    /// One of the above, and of what it is.
    #[error("{of}: {cause}")]
    Of { of: String, cause: Box<ProposeError> },
}

impl ProposeError {
    fn of(self, of: impl Into<String>) -> ProposeError {
        ProposeError::Of { of: of.into(), cause: Box::new(self) }
    }
}

/// A metric that proposes nothing, and what is said of that.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) reason: &'static str,
    /// For an event and for the condition.
    pub(super) why: String,
    /// The same as a part of all metrics.
    failed: String,
}

/// What a metric proposes.
struct Proposed {
    replicas: i32,
    /// What the metric is called in events.
    name: String,
    status: MetricStatus,
}

/// What all metrics of an autoscaler came to.
pub(super) struct Measured {
    /// How many pods the highest proposal is for, and what it is of; `None` if nothing may be done.
    pub(super) proposed: Option<(i32, String)>,
    pub(super) statuses: Vec<MetricStatus>,
    pub(super) faults: Vec<Fault>,
    n_metrics: usize,
}

impl Measured {
    /// All faults as one sentence.
    pub(super) fn failure(&self) -> Option<String> {
        let first = self.faults.first()?;
        let (n_faults, n_metrics) = (self.faults.len(), self.n_metrics);
        Some(format!(
            "invalid metrics ({n_faults} invalid out of {n_metrics}), first error is: {}",
            first.failed
        ))
    }
}

/// What is measured for one autoscaler, and of whom.
pub(super) struct Measuring<'m> {
    pub(super) hpa: &'m HorizontalPodAutoscaler,
    pub(super) metrics: Metrics<'m>,
    pub(super) resources: &'m Resources,
    /// The selector of the scale, as it is written there.
    pub(super) selector: &'m str,
    pub(super) pods: &'m [Arc<Pod>],
    /// Of the scale's spec and of its status.
    pub(super) current: i32,
    pub(super) observed: i32,
    pub(super) now: Timestamp,
}

impl Measuring<'_> {
    pub(super) async fn run(&self) -> Measured {
        let specs = self.hpa.spec.metrics.as_deref().unwrap_or_default();
        let (mut highest, mut statuses, mut faults) = (None, Vec::with_capacity(specs.len()), Vec::new());
        for spec in specs {
            match self.one(spec).await {
                Ok(Proposed { replicas, name, status }) => {
                    statuses.push(status);
                    if highest.as_ref().is_none_or(|(known, _)| *known == 0 || replicas > *known) {
                        highest = Some((replicas, name));
                    }
                }
                Err(fault) => {
                    statuses.push(MetricStatus::default());
                    faults.push(fault);
                }
            }
        }
        // A metric that is not known might be the one that needs the pods.
        let goes_down = highest.as_ref().is_some_and(|(replicas, _)| *replicas < self.current);
        let proposed = highest.filter(|_| faults.is_empty() || !goes_down);
        Measured { proposed, statuses, faults, n_metrics: specs.len() }
    }

    async fn one(&self, spec: &MetricSpec) -> Result<Proposed, Fault> {
        const UNSAID: &str = "the metric says nothing of what it is";
        let missing = || ProposeError::Spec(UNSAID);
        let (reason, of, outcome) = match spec.type_.as_str() {
            "Resource" => {
                let source = spec.resource.as_ref();
                let name = source.map(|source| source.name.as_str()).unwrap_or_default();
                let outcome = match source {
                    Some(source) => self.resource(&source.name, None, &source.target).await,
                    None => Err(missing()),
                };
                ("FailedGetResourceMetric", format!("failed to get {name} resource metric value"), outcome)
            }
            "ContainerResource" => {
                let source = spec.container_resource.as_ref();
                let container = source.map(|source| source.container.as_str()).unwrap_or_default();
                let outcome = match source {
                    Some(source) => self.resource(&source.name, Some(container), &source.target).await,
                    None => Err(missing()),
                };
                let of = format!("failed to get {container} container metric value");
                ("FailedGetContainerResourceMetric", of, outcome)
            }
            "Pods" => {
                let outcome = match &spec.pods {
                    Some(source) => self.pods(source).await,
                    None => Err(missing()),
                };
                ("FailedGetPodsMetric", "failed to get pods metric value".to_owned(), outcome)
            }
            "Object" => {
                let outcome = match &spec.object {
                    Some(source) => self.object(source).await,
                    None => Err(missing()),
                };
                ("FailedGetObjectMetric", "failed to get object metric value".to_owned(), outcome)
            }
            "External" => {
                let source = spec.external.as_ref();
                let name = source.map(|source| source.metric.name.as_str()).unwrap_or_default();
                let outcome = match source {
                    Some(source) => self.external(source).await,
                    None => Err(missing()),
                };
                ("FailedGetExternalMetric", format!("failed to get {name} external metric value"), outcome)
            }
            other => {
                let why = format!("unknown metric source type {other:?}");
                return Err(Fault { reason: "InvalidMetricSourceType", failed: why.clone(), why });
            }
        };
        outcome.map_err(|error| {
            let why = error.to_string();
            Fault { reason, failed: format!("{of}: {why}"), why }
        })
    }

    fn scaled(&self) -> Scaled<'_> {
        Scaled { pods: self.pods, current: self.current, tolerances: tolerances(self.hpa), now: self.now }
    }

    async fn resource(
        &self,
        resource: &str,
        container: Option<&str>,
        target: &MetricTarget,
    ) -> Result<Proposed, ProposeError> {
        let samples = async || {
            let read = self.metrics.of_resource(resource, self.selector, container).await;
            let of = || format!("unable to get metrics for resource {resource}");
            read.map_err(|error| ProposeError::from(error).of(of()))
        };
        let (proposal, name) = if let Some(average) = average_of(target) {
            let count = async { Ok(self.scaled().by_average(samples().await?, resource, average)?) };
            let counted: Result<_, ProposeError> = count.await;
            let counted = counted.map_err(|error| error.of(format!("failed to get {resource} usage")))?;
            (counted, format!("{resource} resource"))
        } else if let Some(percent) = target.average_utilization {
            let count =
                async { Ok(self.scaled().by_utilization(samples().await?, resource, container, percent)?) };
            let counted: Result<_, ProposeError> = count.await;
            let counted =
                counted.map_err(|error| error.of(format!("failed to get {resource} utilization")))?;
            let of = if container.is_some() { "container resource" } else { "resource" };
            (counted, format!("{resource} {of} utilization (percentage of request)"))
        } else {
            return Err(ProposeError::Spec(
                "invalid resource metric source: neither an average utilization target nor an average value (usage) \
                 target was set",
            ));
        };
        let average = Quantity::from_millis(proposal.average);
        // As metrics of memory are written.
        let average = if resource == "memory" { average.written_as(Suffixes::Binary) } else { average };
        let current = MetricValueStatus {
            average_utilization: proposal.utilization,
            average_value: Some(Text(average.to_string())),
            value: None,
        };
        let status = match container {
            Some(container) => MetricStatus {
                type_: "ContainerResource".to_owned(),
                container_resource: Some(ContainerResourceMetricStatus {
                    container: container.to_owned(),
                    current,
                    name: resource.to_owned(),
                }),
                ..MetricStatus::default()
            },
            None => MetricStatus {
                type_: "Resource".to_owned(),
                resource: Some(ResourceMetricStatus { current, name: resource.to_owned() }),
                ..MetricStatus::default()
            },
        };
        Ok(Proposed { replicas: proposal.replicas, name, status })
    }

    async fn pods(&self, source: &PodsMetricSource) -> Result<Proposed, ProposeError> {
        let MetricIdentifier { name, selector } = &source.metric;
        let target = average_of(&source.target);
        let target =
            target.ok_or(ProposeError::Spec("invalid pods metric source: no average value was set"))?;
        let samples = self.metrics.of_pods(name, self.selector, selector.as_ref()).await;
        let samples =
            samples.map_err(|error| ProposeError::from(error).of(format!("unable to get metric {name}")))?;
        let proposal = self.scaled().by_average(samples, "", target)?;
        let status = MetricStatus {
            type_: "Pods".to_owned(),
            pods: Some(PodsMetricStatus {
                metric: source.metric.clone(),
                current: average(proposal.average),
            }),
            ..MetricStatus::default()
        };
        Ok(Proposed { replicas: proposal.replicas, name: format!("pods metric {name}"), status })
    }

    async fn object(&self, source: &ObjectMetricSource) -> Result<Proposed, ProposeError> {
        let (name, target, of) = (&source.metric.name, &source.target, &source.described_object);
        let (replicas, current, told) = if let ("Value", Some(value)) =
            (target.type_.as_str(), value_of(target))
        {
            let total = self.of_object(source).await?;
            let replicas = self.scaled().by_ratio(total as f64 / value as f64)?;
            (replicas, whole(total), format!("{} metric {name}", of.kind))
        } else if let ("AverageValue", Some(each)) = (target.type_.as_str(), average_of(target)) {
            let total = self.of_object(source).await;
            let total = total.map_err(|error| error.of(format!("failed to get {name} object metric")))?;
            let (replicas, used) = per_pod(self.observed, total, each, tolerances(self.hpa));
            (replicas, average(used), external_name(&source.metric))
        } else {
            return Err(ProposeError::Spec(
                "invalid object metric source: neither a value target nor an average value target was set",
            ));
        };
        let status = MetricStatus {
            type_: "Object".to_owned(),
            object: Some(ObjectMetricStatus {
                current,
                described_object: of.clone(),
                metric: source.metric.clone(),
            }),
            ..MetricStatus::default()
        };
        Ok(Proposed { replicas, name: told, status })
    }

    async fn of_object(&self, source: &ObjectMetricSource) -> Result<i64, ProposeError> {
        let CrossVersionObjectReference { api_version, kind, name } = &source.described_object;
        let (metric, namespace) = (&source.metric, self.metrics.namespace);
        let read = async {
            let group = target::group_of(api_version.as_deref().unwrap_or_default())?;
            let selector = metric.selector.as_ref();
            // Nobody names another namespace than the one that he is in.
            if (group, kind.as_str()) == ("", "Namespace") {
                return Ok(self.metrics.of_object(None, &metric.name, selector).await?);
            }
            let resource = target::mapped(self.resources, group, kind)?.name();
            Ok(self.metrics.of_object(Some((&resource, name)), &metric.name, selector).await?)
        };
        let read: Result<i64, ProposeError> = read.await;
        let of = || format!("unable to get metric {} on {kind} {namespace}/{name}", metric.name);
        read.map_err(|error| error.of(of()))
    }

    async fn external(&self, source: &ExternalMetricSource) -> Result<Proposed, ProposeError> {
        let MetricIdentifier { name, selector } = &source.metric;
        let read = async || {
            let of = || {
                let selector = go_selector(selector.as_ref());
                format!("unable to get external metric {}/{name}/{selector}", self.metrics.namespace)
            };
            let total = self.metrics.external(name, selector.as_ref()).await;
            total.map_err(|error| ProposeError::from(error).of(of()))
        };
        let (replicas, current) = if let Some(each) = average_of(&source.target) {
            let total =
                read().await.map_err(|error| error.of(format!("failed to get {name} external metric")))?;
            let (replicas, used) = per_pod(self.observed, total, each, tolerances(self.hpa));
            (replicas, average(used))
        } else if let Some(value) = value_of(&source.target) {
            let count = async {
                let total = read().await?;
                Ok((self.scaled().by_ratio(total as f64 / value as f64)?, whole(total)))
            };
            let counted: Result<_, ProposeError> = count.await;
            counted.map_err(|error| error.of(format!("failed to get external metric {name}")))?
        } else {
            return Err(ProposeError::Spec(
                "invalid external metric source: neither a value target nor an average value target was set",
            ));
        };
        let status = MetricStatus {
            type_: "External".to_owned(),
            external: Some(ExternalMetricStatus { current, metric: source.metric.clone() }),
            ..MetricStatus::default()
        };
        Ok(Proposed { replicas, name: external_name(&source.metric), status })
    }
}

/// Of its behavior, where that says one.
fn tolerances(hpa: &HorizontalPodAutoscaler) -> Tolerances {
    let behavior = hpa.spec.behavior.as_ref();
    let said = |rules: Option<&k8s_openapi::api::autoscaling::v2::HPAScalingRules>| {
        let Text(text) = rules?.tolerance.as_ref()?;
        text.parse::<Quantity>().ok()?.to_decimal().parse::<f64>().ok()
    };
    Tolerances {
        down: said(behavior.and_then(|of| of.scale_down.as_ref())).unwrap_or(TOLERANCE),
        up: said(behavior.and_then(|of| of.scale_up.as_ref())).unwrap_or(TOLERANCE),
    }
}

fn average_of(target: &MetricTarget) -> Option<i64> {
    millis(&target.average_value.as_ref()?.0)
}

fn value_of(target: &MetricTarget) -> Option<i64> {
    millis(&target.value.as_ref()?.0)
}

fn average(millis: i64) -> MetricValueStatus {
    let average_value = Some(Text(Quantity::from_millis(millis).to_string()));
    MetricValueStatus { average_value, ..MetricValueStatus::default() }
}

fn whole(millis: i64) -> MetricValueStatus {
    let value = Some(Text(Quantity::from_millis(millis).to_string()));
    MetricValueStatus { value, ..MetricValueStatus::default() }
}

fn external_name(metric: &MetricIdentifier) -> String {
    format!("external metric {}({})", metric.name, go_selector(metric.selector.as_ref()))
}

/// A selector as Go prints it.
fn go_selector(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else { return "nil".to_owned() };
    let labels = selector.match_labels.iter().flatten();
    let labels: String = labels.map(|(key, value)| format!("{key}: {value},")).collect();
    let expressions = selector.match_expressions.iter().flatten();
    let expressions: String = expressions
        .map(|of| {
            let values = of.values.as_deref().unwrap_or_default().join(" ");
            format!("LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},", of.key, of.operator)
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_behavior_says_its_own_tolerance_for_each_way() {
        let of = |behavior: serde_json::Value| {
            let spec =
                json!({"scaleTargetRef": {"kind": "k", "name": "n"}, "maxReplicas": 1, "behavior": behavior});
            let hpa = serde_json::from_value(json!({"metadata": {}, "spec": spec})).expect("an autoscaler");
            tolerances(&hpa)
        };
        assert_eq!(of(json!(null)), Tolerances { down: 0.1, up: 0.1 });
        let said = of(json!({"scaleUp": {"tolerance": "10m"}, "scaleDown": {"tolerance": "0"}}));
        assert_eq!(said, Tolerances { down: 0.0, up: 0.01 });
    }

    #[test]
    fn selectors_are_printed_as_go_prints_them() {
        assert_eq!(go_selector(None), "nil");
        let selector = serde_json::from_value(json!({"matchLabels": {"a": "b"}})).expect("a selector");
        assert_eq!(
            go_selector(Some(&selector)),
            "&LabelSelector{MatchLabels:map[string]string{a: b,},MatchExpressions:[]LabelSelectorRequirement{},}"
        );
    }
}
