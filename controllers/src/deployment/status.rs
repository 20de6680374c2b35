//! What a Deployment's status says. Pure.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::{desired, is_paused, max_unavailable};

pub(super) struct Next {
    pub(super) status: DeploymentStatus,
    /// When progress will be overdue.
    pub(super) look_again_s: Option<u64>,
}

struct Totals {
    replicas: i32,
    updated: i32,
    ready: i32,
    available: i32,
}

fn totals(sets: &[Arc<ReplicaSet>], new: Option<&Arc<ReplicaSet>>) -> Totals {
    let count = |of: fn(&ReplicaSetStatus) -> Option<i32>| {
        let counts = sets.iter().filter_map(|s| s.status.as_ref().and_then(of));
        counts.fold(0, i32::saturating_add)
    };
    Totals {
        replicas: count(|s| Some(s.replicas)),
        updated: new.and_then(|s| s.status.as_ref()).map_or(0, |s| s.replicas),
        ready: count(|s| s.ready_replicas),
        available: count(|s| s.available_replicas),
    }
}

/// `None` while some set does not say.
fn terminating(sets: &[Arc<ReplicaSet>]) -> Option<i32> {
    let mut counts = sets.iter().map(|s| s.status.as_ref().and_then(|s| s.terminating_replicas));
    counts.try_fold(0, |sum: i32, count| Some(sum.saturating_add(count?)))
}

/// Everything wanted runs, is new, and nothing else does.
pub(super) fn is_complete(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    new: Option<&Arc<ReplicaSet>>,
) -> bool {
    let totals = totals(sets, new);
    let wanted = desired(deployment);
    totals.updated == wanted && totals.replicas == wanted && totals.available == wanted
}

pub(super) fn status(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    new: Option<&Arc<ReplicaSet>>,
    made: bool,
    now: Timestamp,
) -> Next {
    let old = deployment.status.clone().unwrap_or_default();
    let totals = totals(sets, new);
    let positive = |count: i32| (count > 0).then_some(count);
    let mut conditions = Conditions { list: old.conditions.clone().unwrap_or_default(), now };
    availability(&mut conditions, deployment, &totals);
    let look_again_s = progress(&mut conditions, deployment, &old, &totals, new, made);
    replica_failure(&mut conditions, sets, new);
    let status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: positive(totals.replicas),
        updated_replicas: positive(totals.updated),
        ready_replicas: positive(totals.ready),
        available_replicas: positive(totals.available),
        unavailable_replicas: positive(super::plan::total(sets).saturating_sub(totals.available)),
        collision_count: old.collision_count,
        conditions: Some(conditions.list),
        terminating_replicas: terminating(sets),
    };
    Next { status, look_again_s }
}

/// The conditions once the set for the current template could not be made; `None` if they say so already.
pub(super) fn create_failed(
    deployment: &Deployment,
    message: &str,
    now: Timestamp,
) -> Option<Vec<DeploymentCondition>> {
    let old = deployment.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let has_deadline = deployment.spec.progress_deadline_seconds != Some(i32::MAX);
    let mut conditions = Conditions { list: old.clone(), now };
    conditions.set("Progressing", "False", "ReplicaSetCreateError", message.to_owned(), false);
    Some(conditions.list).filter(|new| has_deadline && *new != old)
}

struct Conditions {
    list: Vec<DeploymentCondition>,
    now: Timestamp,
}

impl Conditions {
    fn get(&self, type_: &str) -> Option<&DeploymentCondition> {
        self.list.iter().find(|c| c.type_.as_deref() == Some(type_))
    }

    /// `update` says that something happened even if the words stay the same.
    fn set(&mut self, type_: &str, status: &str, reason: &str, message: String, update: bool) {
        let old = self.get(type_).cloned();
        let same_status = old.as_ref().filter(|c| c.status.as_deref() == Some(status));
        let same = same_status.is_some_and(|c| {
            c.reason.as_deref() == Some(reason) && c.message.as_deref() == Some(message.as_str())
        });
        if same && !update {
            return;
        }
        let transition = same_status.and_then(|c| c.last_transition_time.clone()).unwrap_or(Time(self.now));
        self.list.retain(|c| c.type_.as_deref() != Some(type_));
        self.list.push(DeploymentCondition {
            type_: Some(type_.into()),
            status: Some(status.into()),
            reason: Some(reason.into()),
            message: Some(message),
            last_update_time: Some(Time(self.now)),
            last_transition_time: Some(transition),
        });
    }
}

fn availability(conditions: &mut Conditions, deployment: &Deployment, totals: &Totals) {
    if totals.available >= desired(deployment).saturating_sub(max_unavailable(deployment)) {
        let message = "Deployment has minimum availability.".into();
        conditions.set("Available", "True", "MinimumReplicasAvailable", message, false);
    } else {
        let message = "Deployment does not have minimum availability.".into();
        conditions.set("Available", "False", "MinimumReplicasUnavailable", message, false);
    }
}

/// Answers in how many seconds progress is overdue, if there is any to come.
fn progress(
    conditions: &mut Conditions,
    deployment: &Deployment,
    old: &DeploymentStatus,
    totals: &Totals,
    new: Option<&Arc<ReplicaSet>>,
    made: bool,
) -> Option<u64> {
    const PROGRESSING: &str = "Progressing";
    let deadline_s = i64::from(deployment.spec.progress_deadline_seconds.unwrap_or(600));
    let subject = match new {
        Some(set) => format!("ReplicaSet {:?}", set.metadata.name.as_deref().unwrap_or_default()),
        None => format!("Deployment {:?}", deployment.metadata.name.as_deref().unwrap_or_default()),
    };
    let reason_was = |conditions: &Conditions, reason: &str| {
        conditions.get(PROGRESSING).is_some_and(|c| c.reason.as_deref() == Some(reason))
    };
    // Upstream's way of saying that progress has no deadline.
    if deadline_s == i64::from(i32::MAX) {
        conditions.list.retain(|c| c.type_.as_deref() != Some(PROGRESSING));
        return None;
    }
    if is_paused(deployment) {
        // That it had timed out stays said.
        if reason_was(conditions, "ProgressDeadlineExceeded") {
            return None;
        }
        conditions.set(PROGRESSING, "Unknown", "DeploymentPaused", "Deployment is paused".into(), false);
        return None;
    }
    if reason_was(conditions, "DeploymentPaused") {
        conditions.set(PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed".into(), true);
    }
    let wanted = desired(deployment);
    let complete = totals.updated == wanted && totals.replicas == wanted && totals.available == wanted;
    let was = |count: Option<i32>| count.unwrap_or(0);
    let moved = totals.updated > was(old.updated_replicas)
        || totals.ready > was(old.ready_replicas)
        || totals.available > was(old.available_replicas)
        || totals.replicas - totals.updated < was(old.replicas) - was(old.updated_replicas);
    if complete {
        // What was complete before is not news.
        let message = format!("{subject} has successfully progressed.");
        conditions.set(PROGRESSING, "True", "NewReplicaSetAvailable", message, false);
        return None;
    }
    // A change of scale, or a pod that fell back, is no rollout: what was complete stays so.
    if !made && totals.replicas == totals.updated && reason_was(conditions, "NewReplicaSetAvailable") {
        return None;
    }
    let is_new_rollout = deployment.metadata.generation != old.observed_generation;
    if made {
        let message = format!(
            "Created new replica set {:?}",
            new.and_then(|s| s.metadata.name.clone()).unwrap_or_default()
        );
        conditions.set(PROGRESSING, "True", "NewReplicaSetCreated", message, true);
    } else if moved
        || conditions.get(PROGRESSING).is_none()
        || (is_new_rollout && !reason_was(conditions, "NewReplicaSetCreated"))
    {
        let message = format!("{subject} is progressing.");
        conditions.set(PROGRESSING, "True", "ReplicaSetUpdated", message, true);
    } else {
        let since =
            conditions.get(PROGRESSING).and_then(|c| c.last_update_time.as_ref()).map(|t| t.0.as_second());
        let overdue = since.is_some_and(|at| conditions.now.as_second() >= at + deadline_s);
        if overdue {
            let message = format!("{subject} has timed out progressing.");
            conditions.set(PROGRESSING, "False", "ProgressDeadlineExceeded", message, false);
            return None;
        }
    }
    let since =
        conditions.get(PROGRESSING).and_then(|c| c.last_update_time.as_ref()).map(|t| t.0.as_second());
    since.and_then(|at| u64::try_from(at + deadline_s - conditions.now.as_second() + 1).ok())
}

const FAILURE: &str = "ReplicaFailure";

/// What a ReplicaSet cannot make, its Deployment says too.
fn replica_failure(conditions: &mut Conditions, sets: &[Arc<ReplicaSet>], new: Option<&Arc<ReplicaSet>>) {
    let failure = new
        .into_iter()
        .chain(sets)
        .flat_map(|s| s.status.iter().flat_map(|s| s.conditions.iter().flatten()))
        .find(|c| c.type_.as_deref() == Some(FAILURE) && c.status.as_deref() == Some("True"));
    match failure {
        Some(c) => {
            let (reason, message) =
                (c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default());
            conditions.set(FAILURE, "True", &reason, message, false);
        }
        None => conditions.list.retain(|c| c.type_.as_deref() != Some(FAILURE)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(status: serde_json::Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "generation": 2},
            "spec": {"replicas": 2, "selector": {}, "progressDeadlineSeconds": 60, "template": {},
                     "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}},
            "status": status,
        }))
        .unwrap()
    }

    fn set(available: i32) -> Arc<ReplicaSet> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": "web-1"}, "spec": {"replicas": 2, "selector": {}},
                "status": {"replicas": 2, "readyReplicas": available, "availableReplicas": available},
            }))
            .unwrap(),
        )
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn reasons(next: &Next) -> Vec<String> {
        next.status.conditions.iter().flatten().map(|c| c.reason.clone().unwrap()).collect()
    }

    #[test]
    fn a_complete_rollout_says_so_and_needs_no_further_look() {
        let set = set(2);
        let next = status(&deployment(json!({})), std::slice::from_ref(&set), Some(&set), false, at(100));
        assert_eq!(reasons(&next), ["MinimumReplicasAvailable", "NewReplicaSetAvailable"]);
        assert_eq!(next.status.unavailable_replicas, None);
        assert_eq!(next.look_again_s, None);
    }

    #[test]
    fn a_rollout_that_stalls_times_out() {
        let set = set(0);
        let first = status(
            &deployment(json!({"observedGeneration": 1})),
            std::slice::from_ref(&set),
            Some(&set),
            true,
            at(100),
        );
        assert_eq!(reasons(&first), ["MinimumReplicasUnavailable", "NewReplicaSetCreated"]);
        assert_eq!(first.look_again_s, Some(61));
        let stalled = deployment(serde_json::to_value(&first.status).unwrap());
        let later = status(&stalled, std::slice::from_ref(&set), Some(&set), false, at(161));
        assert_eq!(reasons(&later), ["MinimumReplicasUnavailable", "ProgressDeadlineExceeded"]);
    }

    #[test]
    fn a_set_that_cannot_be_made_is_said_once() {
        let deployment = deployment(json!({}));
        let failed = create_failed(&deployment, "no", at(1)).unwrap();
        let shown = (failed[0].status.as_deref(), failed[0].reason.as_deref(), failed[0].message.as_deref());
        assert_eq!(shown, (Some("False"), Some("ReplicaSetCreateError"), Some("no")));
        let mut told = deployment;
        told.status.get_or_insert_default().conditions = Some(failed);
        assert_eq!(create_failed(&told, "no", at(2)), None);
    }

    #[test]
    fn without_a_deadline_nothing_is_said_about_progress() {
        let mut endless = deployment(json!({}));
        endless.spec.progress_deadline_seconds = Some(i32::MAX);
        let set = set(0);
        let next = status(&endless, std::slice::from_ref(&set), Some(&set), true, at(100));
        assert_eq!(reasons(&next), ["MinimumReplicasUnavailable"]);
    }
}
