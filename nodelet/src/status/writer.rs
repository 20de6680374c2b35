//! Writes one pod's status to the API: only what changed, only the newest, until it is there.
//!
//! ```text
//!  worker ──set──▶ newest wanted status ──▶ writer task ──PATCH status──▶ API
//!  watch ──observe─▶ what the API shows ──▶      │
//!  worker ◀──flush── version written ◀───────────┘
//! ```
//!
//! Statuses set while a patch is on its way replace each other: an API server that is slow or away
//! never holds up the pod.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::pod::PodExt;
use crate::status::generate::is_own;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const MAX_RETRY: Duration = Duration::from_secs(10);

#[derive(Clone, Default)]
struct Wanted {
    version: u64,
    status: Option<PodStatus>,
    /// It may wait until then for a newer one.
    not_before: Option<Instant>,
    /// What the API showed last, with its resource version.
    seen: Option<(u64, PodStatus)>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Written {
    version: u64,
    /// The pod is no longer there, or another pod has its name.
    gone: bool,
}

pub(crate) struct StatusWriter {
    wanted: watch::Sender<Wanted>,
    written: watch::Receiver<Written>,
    _stop: DropGuard,
}

impl StatusWriter {
    pub(crate) fn start(client: Client, pod: &Pod) -> StatusWriter {
        let (wanted, wanted_rx) = watch::channel(Wanted { seen: seen(pod), ..Wanted::default() });
        let (written_tx, written) = watch::channel(Written::default());
        let stop = CancellationToken::new();
        let task = Task {
            api: Api::namespaced(client, pod.namespace()),
            name: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
            wanted: wanted_rx,
            written: written_tx,
        };
        let stopped = stop.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(task.run()).await });
        StatusWriter { wanted, written, _stop: stop.drop_guard() }
    }

    /// Wants this status in the API from now on.
    pub(crate) fn set(&self, status: &PodStatus) {
        self.want(status, None);
    }

    /// Wants this status in the API, unless a newer one is set within `delay`.
    pub(crate) fn set_later(&self, status: &PodStatus, delay: Duration) {
        self.want(status, Some(Instant::now() + delay));
    }

    fn want(&self, status: &PodStatus, not_before: Option<Instant>) {
        self.wanted.send_if_modified(|wanted| {
            let changed = wanted.status.as_ref() != Some(status)
                || (not_before.is_none() && wanted.not_before.is_some());
            if changed {
                wanted.status = Some(status.clone());
                wanted.not_before = not_before;
                wanted.version += 1;
            }
            changed
        });
    }

    /// Someone else may have changed the pod's status (the node controller marks pods of silent nodes):
    /// what this node knows better is written again.
    pub(crate) fn observe(&self, pod: &Pod) {
        if let Some(seen) = seen(pod) {
            self.wanted.send_modify(|wanted| wanted.seen = Some(seen));
        }
    }

    /// Waits until what was set last is in the API, or the pod is gone from it. Bounded: `false` if it
    /// took longer.
    pub(crate) async fn flush(&self, timeout: Duration) -> bool {
        let version = self.wanted.borrow().version;
        let mut written = self.written.clone();
        let arrived = written.wait_for(|w| w.gone || w.version >= version);
        tokio::time::timeout(timeout, arrived).await.is_ok_and(|r| r.is_ok())
    }
}

fn seen(pod: &Pod) -> Option<(u64, PodStatus)> {
    let version = pod.metadata.resource_version.as_deref()?.parse().ok()?;
    Some((version, pod.status.clone().unwrap_or_default()))
}

struct Task {
    api: Api<Pod>,
    name: String,
    uid: String,
    wanted: watch::Receiver<Wanted>,
    written: watch::Sender<Written>,
}

impl Task {
    async fn run(mut self) {
        let mut known: (u64, PodStatus) = (0, PodStatus::default());
        let mut retry = FIRST_RETRY;
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            if let Some(due) = wanted.not_before {
                // Both arms only wait.
                tokio::select! {
                    () = tokio::time::sleep_until(due) => {}
                    changed = self.wanted.changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => return,
                    },
                }
            }
            if let Some(seen) = wanted.seen.filter(|(version, _)| *version > known.0) {
                known = seen;
            }
            let outcome = match wanted.status.and_then(|status| diff(&known.1, &status)) {
                None => Ok(None),
                Some(patch) => self.patch(patch).await.map(Some),
            };
            match outcome {
                Ok(answer) => {
                    if let Some(pod) = answer {
                        known = seen(&pod).unwrap_or(known);
                    }
                    retry = FIRST_RETRY;
                    self.written.send_replace(Written { version: wanted.version, gone: false });
                    if self.wanted.changed().await.is_err() {
                        return;
                    }
                }
                Err(kube::Error::Api(status)) if status.code == 404 => return self.gone(),
                Err(error) => {
                    tracing::warn!(pod = %self.name, %error, "cannot write the pod's status, trying again");
                    // A refusal may be another pod of this name (whose UID the patch may not change, or which is on another
                    // node), a change that came between, or admission's word: only the pod itself tells which.
                    if matches!(&error, kube::Error::Api(status) if matches!(status.code, 403 | 409 | 422)) {
                        match self.api.get(&self.name).await {
                            Ok(pod) if pod.uid() == self.uid => known = seen(&pod).unwrap_or(known),
                            Ok(_) => return self.gone(),
                            Err(kube::Error::Api(status)) if status.code == 404 => return self.gone(),
                            Err(error) => {
                                tracing::debug!(pod = %self.name, %error, "cannot read the pod again")
                            }
                        }
                    }
                    // A newer status is tried at once; both arms only wait.
                    tokio::select! {
                        _ = tokio::time::sleep(retry) => retry = (retry * 2).min(MAX_RETRY),
                        changed = self.wanted.changed() => if changed.is_err() { return },
                    }
                }
            }
        }
    }

    fn gone(&self) {
        tracing::debug!(pod = %self.name, uid = %self.uid, "the pod is gone; its status is dropped");
        self.written.send_modify(|w| w.gone = true);
    }

    async fn patch(&self, status: Value) -> Result<Pod, kube::Error> {
        // The UID is a precondition: a new pod of the same name must not get this one's status.
        let patch = json!({ "metadata": { "uid": self.uid }, "status": status });
        self.api.patch_status(&self.name, &PatchParams::default(), &Patch::Strategic(patch)).await
    }
}

/// Fields of the status that other components write.
const FOREIGN_FIELDS: [&str; 6] = [
    "conditions",
    "nominatedNodeName",
    "resourceClaimStatuses",
    "extendedResourceClaimStatus",
    "nodeAllocatableResourceClaimStatuses",
    "resize",
];

/// The strategic merge patch from one status to the other, `None` if there is nothing to change.
fn diff(old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let object = |status: &PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (old_map, new_map) = (object(old), object(new));
    let mut patch = Map::new();
    for key in old_map.keys().chain(new_map.keys()) {
        if FOREIGN_FIELDS.contains(&key.as_str()) || old_map.get(key) == new_map.get(key) {
            continue;
        }
        let mut value = new_map.get(key).cloned().unwrap_or(Value::Null);
        if let ("podIPs" | "hostIPs", Value::Array(list), true) =
            (key.as_str(), &mut value, old_map.contains_key(key))
        {
            // These lists merge by address unless told otherwise.
            list.push(json!({ "$patch": "replace" }));
        }
        patch.insert(key.clone(), value);
    }
    let own = |status: &PodStatus| -> Vec<PodCondition> {
        let all = status.conditions.iter().flatten();
        all.filter(|c| is_own(c)).cloned().collect()
    };
    let (before, now) = (own(old), own(new));
    let gone = before.iter().filter(|o| !now.iter().any(|c| c.type_ == o.type_));
    let gone = gone.map(|o| json!({ "type": o.type_, "$patch": "delete" }));
    let changed = now.iter().filter(|c| !before.contains(c)).map(|c| json!(c));
    let conditions: Vec<Value> = changed.chain(gone).collect();
    if !conditions.is_empty() {
        patch.insert("conditions".to_owned(), json!(conditions));
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(type_: &str, status: &str) -> PodCondition {
        PodCondition { type_: type_.to_owned(), status: status.to_owned(), ..PodCondition::default() }
    }

    #[test]
    fn an_unchanged_status_is_not_written() {
        let status = PodStatus {
            phase: Some("Running".into()),
            conditions: Some(vec![condition("Ready", "True")]),
            ..Default::default()
        };
        assert_eq!(diff(&status, &status), None);
    }

    #[test]
    fn only_changed_fields_and_own_conditions_are_written() {
        let old = PodStatus {
            phase: Some("Running".into()),
            reason: Some("Old".into()),
            host_ip: Some("10.0.0.1".into()),
            conditions: Some(vec![
                condition("Ready", "False"),
                condition("PodResizePending", "True"),
                condition("mine.example/gate", "True"),
            ]),
            ..Default::default()
        };
        let new = PodStatus {
            phase: Some("Running".into()),
            host_ip: Some("10.0.0.1".into()),
            conditions: Some(vec![condition("Ready", "True"), condition("Initialized", "True")]),
            ..Default::default()
        };
        let patch = diff(&old, &new).unwrap();
        assert_eq!(patch["reason"], Value::Null);
        assert_eq!(patch.get("phase"), None);
        let types: Vec<_> =
            patch["conditions"].as_array().unwrap().iter().map(|c| c["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["Ready", "Initialized", "PodResizePending"]);
        assert_eq!(patch["conditions"][2]["$patch"], "delete");
    }
}
