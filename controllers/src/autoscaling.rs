//! HorizontalPodAutoscalers: as many pods as their metrics ask for.
//!
//! ```text
//!  every 15 s, and when its spec changes ─ scale of the target ─┬─ outside of min and max ─────────────────────┐
//!                                                               └─ measure.rs ─ replicas.rs ─ behavior.rs ─────┴─ scale written ─ status
//!                                                                  metrics.rs ◀─ metrics.k8s.io, custom, external
//! ```
//!
//! # Guarantees
//! - It only ever writes the `scale` of what an autoscaler names, and the autoscaler's status.
//! - Pods that several autoscalers select are scaled by none of them.
//!
//! # Caveats
//! - What was proposed before is in memory: who leads next begins with the number of pods that there are, as upstream does.
//!
//! Source: upstream's `podautoscaler`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerStatus, MetricStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use skiff_api::LabelSelector;
use skiff_client::view::Pod;
use skiff_client::{
    Discovery, EventRecorder, EventType, Informer, ObjectKey, Read, Resources, WorkQueue, key_of,
};

use crate::Context;
use crate::driver::{Controller, Outcome, is_not_found, text};
use crate::lookup::Pods;
use crate::objects::says_same;

mod behavior;
mod conditions;
mod measure;
mod metrics;
mod replicas;
mod target;

use behavior::{Bounds, History};
use conditions::{Step, first_step, has_condition, set_condition};
use measure::{Measured, Measuring};
use metrics::Metrics;
use target::Target;

/// Upstream's `--horizontal-pod-autoscaler-sync-period`.
const SYNC_EVERY: Duration = Duration::from_secs(15);
/// So many autoscalers of the same pods are named.
const NAMED: usize = 2;

const SCALED_TO_ZERO: &str = "ScaledToZero";

/// What is remembered of an autoscaler between passes.
#[derive(Default)]
struct Memory {
    history: History,
    /// Whom it selects, once that is known.
    selector: Option<LabelSelector>,
}

type Memories = Arc<Mutex<HashMap<ObjectKey, Memory>>>;

pub(crate) struct Autoscalers {
    client: Client,
    autoscalers: Informer<HorizontalPodAutoscaler>,
    pods: Pods,
    discovery: Discovery,
    events: EventRecorder,
    queue: WorkQueue<ObjectKey>,
    memories: Memories,
}

/// Why a pass ended early. What is to be told of it was told.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Ended(String);

impl Autoscalers {
    pub(crate) fn new(context: &Context) -> Self {
        let autoscalers = context.informers.of::<HorizontalPodAutoscaler>();
        let (queue, memories) = (WorkQueue::default(), Memories::default());
        let (wake, known) = (queue.clone(), memories.clone());
        autoscalers.on_change(move |change| match (&change.old, &change.new) {
            (Some(old), None) => _ = known.lock().remove(&key_of(&**old)),
            (old, Some(new)) => {
                let key = key_of(&**new);
                known.lock().entry(key.clone()).or_default();
                // Its status, which is written here, wakes nobody.
                let before = old.as_ref().map(|old| old.metadata.generation);
                if before != Some(new.metadata.generation) {
                    wake.add(key);
                }
            }
            (None, None) => {}
        });
        Autoscalers {
            client: context.client.clone(),
            autoscalers,
            pods: context.pods.clone(),
            discovery: context.discovery.clone(),
            events: context.events("horizontal-pod-autoscaler"),
            queue,
            memories,
        }
    }

    fn warn(&self, hpa: &HorizontalPodAutoscaler, reason: &str, message: &str) {
        self.events.event(hpa, EventType::Warning, reason, message);
    }

    /// Notes something of one that is still there.
    fn note<T>(&self, key: &ObjectKey, note: impl FnOnce(&mut Memory) -> T) -> Result<T, Ended> {
        let gone = || Ended(format!("HPA {}/{} was deleted during reconciliation", key.namespace, key.name));
        self.memories.lock().get_mut(key).map(note).ok_or_else(gone)
    }

    async fn pass(&self, key: &ObjectKey, hpa: &HorizontalPodAutoscaler) -> Result<(), Ended> {
        let resources = self.discovery.known().await;
        let mut pass = Pass { hpa, status: hpa.status.clone().unwrap_or_default(), now: Timestamp::now() };
        let reference = &hpa.spec.scale_target_ref;
        let mut target = match Target::of(&self.client, &resources, &key.namespace, reference).await {
            Ok(target) => target,
            Err(error) => {
                let why = error.to_string();
                self.warn(hpa, "FailedGetScale", &why);
                let message =
                    format!("the HPA controller was unable to get the target's current scale: {why}");
                pass.set("AbleToScale", false, "FailedGetScale", &message);
                self.write(key, pass).await?;
                return Err(Ended(why));
            }
        };
        let told = "the HPA controller was able to get the target's current scale";
        pass.set("AbleToScale", true, "SucceededGetScale", told);
        let current = target.wanted();
        self.note(key, |memory| memory.history.begin(current, Instant::now()))?;

        let mut statuses = None;
        let (desired, reason) = match first_step(hpa, &pass.status, current) {
            Step::Leave => {
                let message = "scaling is disabled since the replica count of the target is zero";
                pass.set("ScalingActive", false, "ScalingDisabled", message);
                (current, String::new())
            }
            Step::Set(replicas, reason) => (replicas, reason.to_owned()),
            Step::Measure => {
                let measured = self.measure(key, &mut pass, &target, &resources).await;
                let measured = match measured {
                    Ok(measured) => measured,
                    Err(ended) => return self.failed(key, pass, current, None, ended).await,
                };
                let failure = measured.failure();
                let Some(proposed) = measured.proposed else {
                    let why = failure.unwrap_or_else(|| "no metrics are asked for".to_owned());
                    return self.failed(key, pass, current, Some(measured.statuses), Ended(why)).await;
                };
                statuses = Some(measured.statuses);
                self.decide(key, &mut pass, current, proposed)?
            }
        };
        if desired != current {
            self.rescale(key, &mut pass, &mut target, desired, &reason, statuses.as_deref()).await?;
        }
        pass.status.current_replicas = Some(current);
        pass.status.desired_replicas = desired;
        pass.status.current_metrics = statuses;
        pass.status.observed_generation = Some(hpa.metadata.generation.unwrap_or(0));
        self.write(key, pass).await
    }

    /// Of what was proposed, what is done now; and why.
    fn decide(
        &self,
        key: &ObjectKey,
        pass: &mut Pass<'_>,
        current: i32,
        (proposed, metric): (i32, String),
    ) -> Result<(i32, String), Ended> {
        let spec = &pass.hpa.spec;
        let proposed = proposed.max(0);
        let mut reason = match proposed.cmp(&current) {
            std::cmp::Ordering::Greater => format!("{metric} above target"),
            std::cmp::Ordering::Less => "All metrics below target".to_owned(),
            std::cmp::Ordering::Equal => String::new(),
        };
        let bounds = Bounds { min: spec.min_replicas.unwrap_or(1), max: spec.max_replicas, current };
        let now = Instant::now();
        let behavior = spec.behavior.as_ref();
        let decision = self.note(key, |memory| memory.history.decide(proposed, bounds, behavior, now))?;
        let (status, why, message) = decision.able;
        pass.set("AbleToScale", status, why, message);
        let (status, why, message) = decision.limited;
        pass.set("ScalingLimited", status, why, message);
        let mut desired = decision.replicas;
        let from_zero = current == 0 && bounds.min != 0 && has_condition(&pass.status, SCALED_TO_ZERO);
        if from_zero && desired < bounds.min {
            desired = bounds.min;
            if reason.is_empty() {
                reason = "Current number of replicas below Spec.MinReplicas".to_owned();
            }
        }
        Ok((desired, reason))
    }

    /// Asks for the metrics; says in the conditions whether that went well.
    async fn measure(
        &self,
        key: &ObjectKey,
        pass: &mut Pass<'_>,
        target: &Target,
        resources: &Resources,
    ) -> Result<Measured, Ended> {
        let pods = self.selected(key, pass, target.selector())?;
        let measuring = Measuring {
            hpa: pass.hpa,
            metrics: Metrics { client: &self.client, namespace: &key.namespace },
            resources,
            selector: target.selector(),
            pods: &pods,
            current: target.wanted(),
            observed: target.observed(),
            now: pass.now,
        };
        let measured = measuring.run().await;
        for fault in &measured.faults {
            self.warn(pass.hpa, fault.reason, &fault.why);
        }
        match (&measured.proposed, measured.faults.first()) {
            (None, Some(fault)) => {
                let message = format!("the HPA was unable to compute the replica count: {}", fault.why);
                pass.set("ScalingActive", false, fault.reason, &message);
            }
            (proposed, _) => {
                let of = proposed.as_ref().map(|(_, metric)| metric.as_str()).unwrap_or_default();
                let message = format!("the HPA was able to successfully calculate a replica count from {of}");
                pass.set("ScalingActive", true, "ValidMetricFound", &message);
            }
        }
        Ok(measured)
    }

    /// The pods that a selector selects, unless another autoscaler has some of them too.
    fn selected(&self, key: &ObjectKey, pass: &mut Pass<'_>, selector: &str) -> Result<Vec<Arc<Pod>>, Ended> {
        if selector.is_empty() {
            let why = "selector is required";
            self.warn(pass.hpa, "SelectorRequired", why);
            let message = "the HPA target's scale is missing a selector";
            pass.set("ScalingActive", false, "InvalidSelector", message);
            return Err(Ended(why.to_owned()));
        }
        let parsed = match LabelSelector::parse(selector) {
            Ok(parsed) => parsed,
            Err(status) => {
                let why = format!(
                    "couldn't convert selector into a corresponding internal selector object: {status}"
                );
                self.warn(pass.hpa, "InvalidSelector", &why);
                pass.set("ScalingActive", false, "InvalidSelector", &why);
                return Err(Ended(why));
            }
        };
        self.note(key, |memory| memory.selector = Some(parsed.clone()))?;
        let labels: Vec<(&str, &str)> = parsed
            .requirements()
            .into_iter()
            .filter_map(|(name, operator, values)| match values {
                [value] if operator == "In" => Some((name, value.as_str())),
                _ => None,
            })
            .collect();
        let pods = self.pods.labelled(&key.namespace, &labels, |pod| selects(&parsed, pod));
        let also = self.selecting(&key.namespace, &pods);
        if also.len() > 1 {
            let named: Vec<String> =
                also.iter().map(|key| format!("{{{} {}}}", key.name, key.namespace)).collect();
            let named = named.join(" ");
            let why =
                format!("pods by selector {selector} are controlled by more than one HPA (e.g. [{named}])");
            self.warn(pass.hpa, "AmbiguousSelector", &why);
            pass.set("ScalingActive", false, "AmbiguousSelector", &why);
            return Err(Ended(why));
        }
        Ok(pods)
    }

    /// Some of the autoscalers that select one of these pods.
    fn selecting(&self, namespace: &str, pods: &[Arc<Pod>]) -> Vec<ObjectKey> {
        let memories = self.memories.lock();
        let selects_any = |memory: &Memory| {
            let selector = memory.selector.as_ref();
            selector.is_some_and(|selector| pods.iter().any(|pod| selects(selector, pod)))
        };
        let selecting =
            memories.iter().filter(|(key, memory)| key.namespace == namespace && selects_any(memory));
        let by_name: BTreeMap<&str, &ObjectKey> =
            selecting.map(|(key, _)| (key.name.as_str(), key)).collect();
        by_name.into_values().take(NAMED).cloned().collect()
    }

    /// Nothing can be computed: the status says how it stands.
    async fn failed(
        &self,
        key: &ObjectKey,
        mut pass: Pass<'_>,
        current: i32,
        statuses: Option<Vec<MetricStatus>>,
        ended: Ended,
    ) -> Result<(), Ended> {
        let hpa = pass.hpa;
        pass.status.current_replicas = Some(current);
        pass.status.current_metrics = statuses;
        pass.status.observed_generation = Some(hpa.metadata.generation.unwrap_or(0));
        self.write(key, pass).await?;
        self.warn(hpa, "FailedComputeMetricsReplicas", &ended.to_string());
        Err(ended)
    }

    async fn rescale(
        &self,
        key: &ObjectKey,
        pass: &mut Pass<'_>,
        target: &mut Target,
        desired: i32,
        reason: &str,
        statuses: Option<&[MetricStatus]>,
    ) -> Result<(), Ended> {
        let (hpa, current) = (pass.hpa, target.wanted());
        if let Err(error) = target.set(desired).await {
            let why = error.to_string();
            self.warn(hpa, "FailedRescale", &format!("New size: {desired}; reason: {reason}; error: {why}"));
            let message = format!("the HPA controller was unable to update the target scale: {why}");
            pass.set("AbleToScale", false, "FailedUpdateScale", &message);
            pass.status.current_replicas = Some(current);
            pass.status.current_metrics = statuses.map(<[MetricStatus]>::to_vec);
            let failed = Pass { hpa, status: pass.status.clone(), now: pass.now };
            self.write(key, failed).await?;
            return Err(Ended(why));
        }
        let message = format!("the HPA controller was able to update the target scale to {desired}");
        pass.set("AbleToScale", true, "SucceededRescale", &message);
        let message = format!("New size: {desired}; reason: {reason}");
        self.events.event(hpa, EventType::Normal, "SuccessfulRescale", &message);
        let behavior = hpa.spec.behavior.as_ref();
        self.note(key, |memory| memory.history.scaled(current, desired, behavior, Instant::now()))?;
        let is_to_zero = desired == 0 && hpa.spec.min_replicas == Some(0) && conditions::may_reach_zero(hpa);
        match is_to_zero {
            true => {
                let message = "the HPA controller scaled the workload to zero";
                pass.set(SCALED_TO_ZERO, true, "ScaledToZero", message);
            }
            false => {
                let message = "the HPA controller did not scale the workload to zero";
                pass.set(SCALED_TO_ZERO, false, "NotScaledToZero", message);
            }
        }
        pass.status.last_scale_time = Some(Time(pass.now));
        Ok(())
    }

    /// Writes the status, if it says something else.
    async fn write(&self, key: &ObjectKey, pass: Pass<'_>) -> Result<(), Ended> {
        let Pass { hpa, status, .. } = pass;
        if says_same::<HorizontalPodAutoscaler, _>(hpa.status.as_ref(), &status) {
            return Ok(());
        }
        let api: Api<Read<HorizontalPodAutoscaler>> = Api::namespaced(self.client.clone(), &key.namespace);
        let written = Read(HorizontalPodAutoscaler { status: Some(status), ..hpa.clone() });
        match api.replace_status(&key.name, &PostParams::default(), &written).await {
            Err(error) if !is_not_found(&error) => {
                let why = text(&error);
                self.warn(hpa, "FailedUpdateStatus", &why);
                Err(Ended(format!("failed to update status for {}: {why}", key.name)))
            }
            _ => Ok(()),
        }
    }
}

fn selects(selector: &LabelSelector, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    selector.matches(|name| labels.and_then(|labels| labels.get(name)).map(String::as_str))
}

/// One look at an autoscaler, and the status that it leads to.
struct Pass<'p> {
    hpa: &'p HorizontalPodAutoscaler,
    status: HorizontalPodAutoscalerStatus,
    now: Timestamp,
}

impl Pass<'_> {
    fn set(&mut self, type_: &str, status: bool, reason: &str, message: &str) {
        set_condition(&mut self.status, type_, status, reason, message, self.now);
    }
}

impl Controller for Autoscalers {
    const NAME: &'static str = "horizontalpodautoscaler";
    const WORKERS: usize = 5;
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.autoscalers.synced().await;
        self.pods.all().synced().await;
    }

    /// Whatever it comes to, the next pass is in a while: what fails may be others', and is told in events and conditions.
    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(hpa) = self.autoscalers.get(key) else { return Ok(Outcome::Done) };
        if let Err(error) = self.pass(key, &hpa).await {
            tracing::debug!(%key, %error, "an autoscaler could do nothing");
        }
        Ok(Outcome::After(SYNC_EVERY))
    }
}
