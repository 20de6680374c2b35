//! How many pods there should be, by what those that there are use. Pure.
//!
//! Source: upstream's replica calculator.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use skiff_client::view::{Amounts, Container, Pod};

use crate::objects::{is_ready, pod_condition};

/// For so long after its start a pod's CPU counts only once it is ready, and only of the time since.
const CPU_INITIALIZATION: SignedDuration = SignedDuration::from_secs(300);
/// A pod that became unready so soon after its start has never been ready.
const INITIAL_READINESS_DELAY: SignedDuration = SignedDuration::from_secs(30);

const CPU: &str = "cpu";

/// What a pod uses, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) at: Timestamp,
    pub(super) window: SignedDuration,
    pub(super) value: i64,
}

/// By the names of pods.
pub(super) type Samples = BTreeMap<String, Sample>;

/// How far from what is wanted nothing is changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tolerances {
    pub(super) down: f64,
    pub(super) up: f64,
}

impl Tolerances {
    fn covers(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// Why there is no telling. In upstream's words.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum CountError {
    #[error("no pods returned by selector while calculating replica count")]
    NoPods,
    #[error("did not receive metrics for targeted pods (pods might be unready)")]
    NoSamples,
    #[error("missing request for {resource} in container {container} of Pod {pod}")]
    NoRequest { resource: String, container: String, pod: String },
    #[error("missing pod-level request for {resource} in Pod {pod}")]
    NoPodRequest { resource: String, pod: String },
    #[error("container {container} not found in Pod {pod}")]
    NoContainer { container: String, pod: String },
    #[error("no metrics returned matched known pods")]
    NoneKnown,
}

/// What is known of the pods that are scaled.
pub(super) struct Scaled<'s> {
    pub(super) pods: &'s [Arc<Pod>],
    /// What the scale says that there should be.
    pub(super) current: i32,
    pub(super) tolerances: Tolerances,
    pub(super) now: Timestamp,
}

/// How many there should be, and what is used on average.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Proposal {
    pub(super) replicas: i32,
    /// Percent of the requests.
    pub(super) utilization: Option<i32>,
    /// In thousandths.
    pub(super) average: i64,
}

/// Pods by what their samples are good for.
#[derive(Debug, Default, PartialEq)]
struct Groups {
    n_ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

impl Scaled<'_> {
    /// By what the pods use of what they, or a container of each, ask for. `target` is in percent.
    pub(super) fn by_utilization(
        &self,
        mut samples: Samples,
        resource: &str,
        container: Option<&str>,
        target: i32,
    ) -> Result<Proposal, CountError> {
        let groups = self.grouped(&mut samples, resource)?;
        let requests = requests(self.pods, container, resource)?;
        let first = utilization(&samples, &requests, target)?;
        let proposal =
            |replicas| Proposal { replicas, utilization: Some(first.percent), average: first.average };
        if let Some(replicas) = self.counted(&groups, first.ratio) {
            return Ok(proposal(replicas));
        }
        // Going down, who does not tell uses all of what it asks for.
        let assumed_percent = i64::from(target.max(100));
        let assumed = |pod: &str| requests.get(pod).map_or(0, |request| request * assumed_percent / 100);
        self.assume(&mut samples, &groups, first.ratio, assumed);
        let second = utilization(&samples, &requests, target)?;
        Ok(proposal(self.counted_again(first.ratio, second.ratio, samples.len())))
    }

    /// By what the pods use on average, `target` in thousandths. `resource` is empty where it is none.
    pub(super) fn by_average(
        &self,
        mut samples: Samples,
        resource: &str,
        target: i64,
    ) -> Result<Proposal, CountError> {
        let groups = self.grouped(&mut samples, resource)?;
        let (ratio, average) = average_over(&samples, target);
        let proposal = |replicas| Proposal { replicas, utilization: None, average };
        if let Some(replicas) = self.counted(&groups, ratio) {
            return Ok(proposal(replicas));
        }
        // Going down, who does not tell uses what is wanted.
        self.assume(&mut samples, &groups, ratio, |_| target);
        let (again, _) = average_over(&samples, target);
        Ok(proposal(self.counted_again(ratio, again, samples.len())))
    }

    /// By how much of one thing for all of them there is, over what is wanted of it.
    pub(super) fn by_ratio(&self, ratio: f64) -> Result<i32, CountError> {
        if self.current == 0 {
            return Ok(ceil(ratio));
        }
        if self.tolerances.covers(ratio) {
            return Ok(self.current);
        }
        if self.pods.is_empty() {
            return Err(CountError::NoPods);
        }
        let runs = |pod: &&Arc<Pod>| phase(pod) == "Running" && is_ready(pod);
        Ok(ceil(ratio * self.pods.iter().filter(runs).count() as f64))
    }

    /// Sorts pods, and leaves out the samples that do not count.
    fn grouped(&self, samples: &mut Samples, resource: &str) -> Result<Groups, CountError> {
        if self.pods.is_empty() {
            return Err(CountError::NoPods);
        }
        let groups = group(self.pods, samples, resource, self.now);
        samples.retain(|pod, _| !groups.ignored.contains(pod) && !groups.unready.contains(pod));
        if samples.is_empty() { Err(CountError::NoSamples) } else { Ok(groups) }
    }

    /// How many there should be, if nothing has to be assumed of any pod.
    fn counted(&self, groups: &Groups, ratio: f64) -> Option<i32> {
        let is_up_with_unready = !groups.unready.is_empty() && ratio > 1.0;
        if is_up_with_unready || !groups.missing.is_empty() {
            return None;
        }
        let within = self.tolerances.covers(ratio);
        Some(if within { self.current } else { ceil(ratio * groups.n_ready as f64) })
    }

    /// Assumes of pods that do not tell, or are not ready, what makes the least change: going up, that they use nothing.
    fn assume(&self, samples: &mut Samples, groups: &Groups, ratio: f64, going_down: impl Fn(&str) -> i64) {
        let mut set = |pod: &String, value| {
            let sample = Sample { at: self.now, window: SignedDuration::ZERO, value };
            samples.insert(pod.clone(), sample);
        };
        if ratio < 1.0 {
            groups.missing.iter().for_each(|pod| set(pod, going_down(pod)));
        } else if ratio > 1.0 {
            groups.missing.iter().chain(&groups.unready).for_each(|pod| set(pod, 0));
        }
    }

    /// How many there should be with what is assumed, which turns no change around.
    fn counted_again(&self, first: f64, second: f64, n_samples: usize) -> i32 {
        let turns = (first < 1.0 && second > 1.0) || (first > 1.0 && second < 1.0);
        if turns || self.tolerances.covers(second) {
            return self.current;
        }
        let replicas = ceil(second * n_samples as f64);
        let goes_back =
            (second < 1.0 && replicas > self.current) || (second > 1.0 && replicas < self.current);
        if goes_back { self.current } else { replicas }
    }
}

/// By how much of something there is for each of `n` pods; how many there should be, and how much that is for each.
pub(super) fn per_pod(n: i32, total: i64, target: i64, tolerances: Tolerances) -> (i32, i64) {
    let wanted = total as f64 / target as f64;
    let replicas = if tolerances.covers(wanted / f64::from(n)) { n } else { ceil(wanted) };
    // Of no pods each would have endlessly much.
    let each = if n == 0 { total } else { (total as f64 / f64::from(n)).ceil() as i64 };
    (replicas, each)
}

/// A cast of what is too large is the largest that there is.
fn ceil(count: f64) -> i32 {
    count.ceil() as i32
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn name(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap_or_default()
}

fn group(pods: &[Arc<Pod>], samples: &Samples, resource: &str, now: Timestamp) -> Groups {
    let mut groups = Groups::default();
    for pod in pods {
        let name = name(pod);
        if pod.metadata.deletion_timestamp.is_some() || phase(pod) == "Failed" {
            groups.ignored.insert(name);
        } else if phase(pod) == "Pending" {
            groups.unready.insert(name);
        } else if let Some(sample) = samples.get(&name) {
            if resource == CPU && is_starting(pod, sample, now) {
                groups.unready.insert(name);
            } else {
                groups.n_ready += 1;
            }
        } else {
            groups.missing.insert(name);
        }
    }
    groups
}

/// Whether its CPU tells of its start rather than of its work.
fn is_starting(pod: &Pod, sample: &Sample, now: Timestamp) -> bool {
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    let (Some(ready), Some(started)) = (pod_condition(pod, "Ready"), started) else { return true };
    let since = ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |at| at.0);
    if started.0 + CPU_INITIALIZATION > now {
        // A whole window must lie after it became ready.
        return ready.status == "False" || sample.at < since + sample.window;
    }
    ready.status == "False" && started.0 + INITIAL_READINESS_DELAY > since
}

struct Utilization {
    ratio: f64,
    percent: i32,
    average: i64,
}

fn utilization(
    samples: &Samples,
    requests: &BTreeMap<String, i64>,
    target: i32,
) -> Result<Utilization, CountError> {
    let known = samples.iter().filter_map(|(pod, sample)| Some((sample.value, *requests.get(pod)?)));
    let (mut used, mut requested, mut n) = (0_i128, 0_i128, 0_i128);
    for (value, request) in known {
        used += i128::from(value);
        requested += i128::from(request);
        n += 1;
    }
    if requested == 0 {
        return Err(CountError::NoneKnown);
    }
    let percent = i32::try_from(used * 100 / requested).unwrap_or(i32::MAX);
    let average = i64::try_from(used / n).unwrap_or(i64::MAX);
    Ok(Utilization { ratio: f64::from(percent) / f64::from(target), percent, average })
}

/// The average over what is wanted, and the average.
fn average_over(samples: &Samples, target: i64) -> (f64, i64) {
    let sum: i128 = samples.values().map(|sample| i128::from(sample.value)).sum();
    let n = i128::try_from(samples.len()).unwrap_or(1).max(1);
    let average = i64::try_from(sum / n).unwrap_or(i64::MAX);
    (average as f64 / target as f64, average)
}

/// What each pod asks for, in thousandths.
fn requests(
    pods: &[Arc<Pod>],
    container: Option<&str>,
    resource: &str,
) -> Result<BTreeMap<String, i64>, CountError> {
    let of = |pod: &Arc<Pod>| {
        let requested = match container {
            None if has_own_requests(pod) => pod_request(pod, resource)?,
            _ => container_requests(pod, container, resource)?,
        };
        Ok((name(pod), requested))
    };
    pods.iter().map(of).collect()
}

fn amount(amounts: Option<&Amounts>, resource: &str) -> Option<i64> {
    let (_, Quantity(text)) = amounts?.iter().find(|(name, _)| *name == resource)?;
    Some(text.parse::<skiff_api::quantity::Quantity>().ok()?.millis())
}

/// What the pod itself asks for, beside its containers.
fn own_requests(pod: &Pod) -> Option<&Amounts> {
    pod.spec.as_ref()?.resources.as_ref()?.requests.as_ref()
}

fn has_own_requests(pod: &Pod) -> bool {
    own_requests(pod).is_some_and(|requests| requests.iter().next().is_some())
}

/// Those that run for as long as the pod does.
fn lasting(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| {
        let sidecars = spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
        spec.containers.iter().chain(sidecars)
    })
}

fn container_request(container: &Container, resource: &str) -> Option<i64> {
    amount(container.resources.as_ref()?.requests.as_ref(), resource)
}

fn pod_request(pod: &Pod, resource: &str) -> Result<i64, CountError> {
    let of_containers = || {
        let all: Vec<i64> =
            lasting(pod).filter_map(|container| container_request(container, resource)).collect();
        (!all.is_empty()).then(|| all.iter().fold(0, |sum: i64, one| sum.saturating_add(*one)))
    };
    let missing = || CountError::NoPodRequest { resource: resource.to_owned(), pod: name(pod) };
    let own = amount(own_requests(pod), resource).or_else(of_containers).ok_or_else(missing)?;
    let overhead = amount(pod.spec.as_ref().and_then(|spec| spec.overhead.as_ref()), resource);
    Ok(own.saturating_add(overhead.unwrap_or(0)))
}

fn container_requests(pod: &Pod, container: Option<&str>, resource: &str) -> Result<i64, CountError> {
    let (mut sum, mut is_found) = (0_i64, container.is_none());
    for one in lasting(pod).filter(|one| container.is_none_or(|wanted| *wanted == *one.name)) {
        is_found = true;
        let missing = || CountError::NoRequest {
            resource: resource.to_owned(),
            container: one.name.to_string(),
            pod: name(pod),
        };
        sum = sum.saturating_add(container_request(one, resource).ok_or_else(missing)?);
    }
    match (is_found, container) {
        (false, Some(container)) => {
            Err(CountError::NoContainer { container: container.to_owned(), pod: name(pod) })
        }
        _ => Ok(sum),
    }
}

#[cfg(test)]
mod tests;
