//! ResourceQuotas: how much of each is used, counted anew.
//!
//! The API server charges what is created as it comes in; here is what is given back, and what was charged wrongly.
//! Every pass lists what the quota counts, in pages, so that nothing depends on having seen each change. The larger a
//! namespace is, the longer a pass takes, and the longer its quota rests after it: see [`RESTS`].
//!
//! # Caveats
//! An object that is charged but not yet written is not counted. A quota whose status changed is therefore looked at
//! once more when such requests have ended.
//!
//! Source: upstream's resource quota controller.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ResourceQuota, Service};
use kube::api::{ApiResource, DynamicObject, ListParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_api::quota::{self, Evaluator};
use skiff_api::resources::Resources;
use skiff_client::view::Pod;
use skiff_client::{Change, Discovery, Informer, ObjectKey, ServedResource, WorkQueue, key_of};
use tokio::time::Instant;

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine, is_not_found};
use crate::objects::has_ended;

/// Between a charge and the check of it.
const SETTLE: Duration = Duration::from_secs(2);
/// Upstream's `--resource-quota-sync-period`.
const RESYNC: Duration = Duration::from_secs(300);

/// Objects counted at a time: all pods of a large namespace at once would be most of this process's memory.
const PAGE: u32 = 500;
/// A quota rests for so many times as long as its count took, so that pods that end one after the other in a large
/// namespace do not keep the API server at listing all of them; but no longer than upstream's clients wait for it.
const RESTS: u32 = 4;
const MAX_REST: Duration = Duration::from_secs(30);

pub(crate) struct Quotas {
    client: Client,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    /// What may be counted: stored, and in namespaces.
    discovery: Discovery,
    /// Until when each quota rests.
    rests: Mutex<HashMap<ObjectKey, Instant>>,
    queue: WorkQueue<ObjectKey>,
}

impl Quotas {
    pub(crate) fn new(context: &Context) -> Self {
        let informers = &context.informers;
        let (quotas, pods) = (informers.of::<ResourceQuota>(), informers.of::<Pod>());
        let services = informers.of::<Service>();
        let queue = WorkQueue::default();
        let wake = queue.clone();
        quotas.on_change(move |change| {
            let Some(new) = &change.new else { return };
            match &change.old {
                Some(old) if old.spec == new.spec => wake.add_after(key_of(&**new), SETTLE),
                _ => wake.add(key_of(&**new)),
            }
        });
        let (all, to) = (quotas.clone(), queue.clone());
        let wake_namespace = Arc::new(move |namespace: &str| {
            all.list_in(namespace).iter().for_each(|quota| to.add(key_of(&**quota)));
        });
        let wake = wake_namespace.clone();
        pods.on_change(move |change| {
            if frees_or_moves(change) {
                wake(&namespace_of(change));
            }
        });
        let wake = wake_namespace.clone();
        services.on_change(move |change| {
            let kind =
                |s: &Option<Arc<Service>>| s.as_ref().map(|s| s.spec.as_ref().map(|s| s.type_.clone()));
            if change.old.is_some() && kind(&change.old) != kind(&change.new) {
                wake(&namespace_of(change));
            }
        });
        context.deletions.on_deletion(move |kind, namespace| {
            if !namespace.is_empty() && Evaluator::of(&kind.group, &kind.plural).is_some() {
                wake_namespace(namespace);
            }
        });
        let (client, discovery) = (context.client.clone(), context.discovery.clone());
        Quotas { client, quotas, pods, services, discovery, rests: Mutex::default(), queue }
    }

    /// How much longer a quota rests.
    fn rest_left(&self, key: &ObjectKey) -> Option<Duration> {
        let until = *self.rests.lock().get(key)?;
        Some(until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }

    fn rest(&self, key: &ObjectKey, took: Duration) {
        let until = Instant::now() + took.saturating_mul(RESTS).min(MAX_REST);
        self.rests.lock().insert(key.clone(), until);
    }

    /// What is used of each resource that the quota bounds, of those that anything counts for; and the first failure, which is no
    /// reason not to count the rest: an API server that is away costs what it has.
    async fn count(&self, quota: &Value, namespace: &str) -> (Resources, Option<kube::Error>) {
        let mut failure = None;
        let hard = Resources::from_json(&quota["spec"]["hard"]);
        let mut used = Resources::default();
        let resources = self.discovery.known().await;
        for kind in resources.preferred().filter(|resource| resource.is_namespaced && resource.can("list")) {
            let Some(evaluator) = Evaluator::of(&kind.group, &kind.plural) else { continue };
            let names: Vec<&str> = hard.names().filter(|name| evaluator.counts(name)).collect();
            if names.is_empty() {
                continue;
            }
            match self.count_kind(kind, &evaluator, quota, &names, namespace).await {
                Ok(counted) => counted.iter().for_each(|(name, amount)| used.set(name, amount)),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        (used, failure)
    }

    /// Listed from the API, which has everything that was acknowledged; of what only counts as there is, no more than
    /// that.
    async fn count_kind(
        &self,
        kind: &ServedResource,
        evaluator: &Evaluator,
        quota: &Value,
        names: &[&str],
        namespace: &str,
    ) -> Result<Resources, kube::Error> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &kind.described());
        let total =
            |objects: &[Value]| quota::total(evaluator, quota, names, objects.iter(), Timestamp::now());
        let (mut counted, mut page) = (total(&[]), ListParams::default().limit(PAGE));
        loop {
            let (objects, next) = match evaluator {
                Evaluator::Objects(_) => {
                    let listed = api.list_metadata(&page).await?;
                    (vec![Value::Null; listed.items.len()], listed.metadata.continue_)
                }
                _ => {
                    let listed = api.list(&page).await?;
                    let json = |object| serde_json::to_value(object).unwrap_or_default();
                    (listed.items.iter().map(json).collect(), listed.metadata.continue_)
                }
            };
            counted.add(&total(&objects));
            match next.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(counted),
            }
        }
    }
}

fn namespace_of<K: kube::Resource>(change: &Change<K>) -> String {
    change.object().and_then(|object| object.namespace()).unwrap_or_default()
}

/// Whether a pod counts for less than before, or for other quotas.
fn frees_or_moves(change: &Change<Pod>) -> bool {
    let (Some(old), Some(new)) = (&change.old, &change.new) else { return change.new.is_none() };
    let is_bounded = |pod: &Pod| pod.spec.as_ref().is_some_and(|s| s.active_deadline_seconds.is_some());
    (!has_ended(old) && has_ended(new)) || is_bounded(old) != is_bounded(new)
}

/// The status that a quota should have, if it has another: what it bounds, and how much of that is used. What nothing
/// known counts for keeps what was said of it.
fn status(quota: &Value, counted: &Resources) -> Option<Value> {
    let hard = Resources::from_json(&quota["spec"]["hard"]);
    let mut used = Resources::from_json(&quota["status"]["used"]);
    for (name, amount) in counted.iter() {
        used.set(name, amount);
    }
    let used = used.only(|name| hard.get(name).is_some());
    let status = json!({"hard": hard.to_json(), "used": used.to_json()});
    (quota["status"] != status).then_some(status)
}

impl Controller for Quotas {
    const NAME: &'static str = "resourcequota";
    const WORKERS: usize = 3;
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.quotas.synced().await;
        self.pods.synced().await;
        self.services.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        if let Some(left) = self.rest_left(key) {
            return Ok(Outcome::After(left));
        }
        let kind = ApiResource::erase::<ResourceQuota>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &key.namespace, &kind);
        // Read before what it counts: a charge in between makes the write below a conflict.
        let mut live = match api.get(&key.name).await {
            Err(error) if is_not_found(&error) => {
                self.rests.lock().remove(key);
                return Ok(Outcome::Done);
            }
            other => other?,
        };
        let quota = serde_json::to_value(&live).unwrap_or_default();
        let began = Instant::now();
        let (counted, failure) = self.count(&quota, &key.namespace).await;
        self.rest(key, began.elapsed());
        if let Some(status) = status(&quota, &counted) {
            live.data["status"] = status;
            gone_is_fine(api.replace_status(&key.name, &PostParams::default(), &live).await)?;
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(Outcome::After(RESYNC)),
        }
    }
}

#[cfg(test)]
mod tests {
    use skiff_client::Informers;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::testing::{Asked, ScriptedApi, discovery};

    #[test]
    fn used_is_what_was_counted_of_what_is_bounded() {
        let of = |list: Value| Resources::from_json(&list);
        let quota = json!({
            "spec": {"hard": {"pods": "5", "count/widgets.example.org": "1"}},
            "status": {"hard": {"pods": "4"}, "used": {"pods": "9", "cpu": "1", "count/widgets.example.org": "1"}},
        });
        let wanted = json!({
            "hard": {"pods": "5", "count/widgets.example.org": "1"},
            "used": {"pods": "2", "count/widgets.example.org": "1"},
        });
        assert_eq!(status(&quota, &of(json!({"pods": "2"}))), Some(wanted.clone()));
        let settled = json!({"spec": quota["spec"], "status": wanted});
        assert_eq!(status(&settled, &of(json!({"pods": "2"}))), None);
    }

    #[test]
    fn only_a_pod_that_frees_something_or_moves_is_a_reason_to_count() {
        let pod = |phase: &str, deadline: Value| -> Option<Arc<Pod>> {
            let pod = json!({"spec": {"containers": [], "activeDeadlineSeconds": deadline}, "status": {"phase": phase}});
            Some(Arc::new(serde_json::from_value(pod).unwrap()))
        };
        let change = |old, new| frees_or_moves(&Change { old, new });
        assert!(!change(None, pod("Pending", Value::Null)));
        assert!(!change(pod("Pending", Value::Null), pod("Running", Value::Null)));
        assert!(change(pod("Running", Value::Null), pod("Failed", Value::Null)));
        assert!(change(pod("Running", Value::Null), pod("Running", json!(5))));
        assert!(change(pod("Failed", Value::Null), None));
    }

    #[tokio::test]
    async fn a_pass_counts_what_the_api_lists_and_writes_the_version_it_read() {
        let quota = json!({
            "apiVersion": "v1", "kind": "ResourceQuota",
            "metadata": {"name": "q", "namespace": "d", "resourceVersion": "7"},
            "spec": {"hard": {"pods": "5", "count/replicasets.apps": "3", "cpu": "1"}},
        });
        let answer = quota.clone();
        let list = |kind: &str, items: Value| json!({"kind": kind, "apiVersion": "v1", "metadata": {}, "items": items});
        let api = ScriptedApi::new(move |asked: &Asked| match asked.path.as_str() {
            "/api/v1/namespaces/d/resourcequotas/q" | "/api/v1/namespaces/d/resourcequotas/q/status" => {
                Some(answer.clone())
            }
            "/api/v1/namespaces/d/pods" => Some(list(
                "PodList",
                json!([
                    {"metadata": {"name": "a"}, "spec": {"containers": [{"resources": {"requests": {"cpu": "100m"}}}]}},
                    {"metadata": {"name": "b"}, "spec": {"containers": []}, "status": {"phase": "Succeeded"}},
                ]),
            )),
            "/apis/apps/v1/namespaces/d/replicasets" => {
                Some(list("PartialObjectMetadataList", json!([{"metadata": {"name": "r"}}])))
            }
            _ => None,
        });
        let informers = Informers::new(api.client(), CancellationToken::new());
        let quotas = Quotas::new(&Context::new(api.credentials(), informers, discovery()));
        let outcome = quotas.reconcile(&ObjectKey::new("d", "q")).await.unwrap();
        assert_eq!(outcome, Outcome::After(RESYNC));
        let written = api.written();
        assert_eq!(written.len(), 1, "{written:?}");
        assert_eq!(written[0].path, "/api/v1/namespaces/d/resourcequotas/q/status");
        assert_eq!(written[0].body["metadata"]["resourceVersion"], "7");
        assert_eq!(
            written[0].body["status"],
            json!({"hard": quota["spec"]["hard"], "used": {"pods": "1", "count/replicasets.apps": "1", "cpu": "100m"}})
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_quota_rests_in_proportion_to_what_its_count_took() {
        let api = ScriptedApi::new(|_| None);
        let informers = Informers::new(api.client(), CancellationToken::new());
        let quotas = Quotas::new(&Context::new(api.credentials(), informers, discovery()));
        let key = ObjectKey::new("d", "q");
        assert_eq!(quotas.rest_left(&key), None, "the first count does not wait");
        quotas.rest(&key, Duration::from_millis(500));
        assert_eq!(quotas.reconcile(&key).await.unwrap(), Outcome::After(Duration::from_secs(2)));
        quotas.rest(&key, Duration::from_secs(600));
        assert_eq!(quotas.rest_left(&key), Some(MAX_REST));
        tokio::time::advance(MAX_REST).await;
        assert_eq!(quotas.rest_left(&key), None);
        quotas.reconcile(&key).await.unwrap();
        assert!(quotas.rests.lock().is_empty(), "a quota that is gone was remembered");
    }

    #[tokio::test]
    async fn a_count_goes_through_all_pages() {
        let api = ScriptedApi::new(move |asked: &Asked| {
            let page = |next: &str| {
                json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"continue": next},
                    "items": [{"metadata": {"name": "p"}, "spec": {"containers": []}}]})
            };
            Some(page(if asked.query.contains("continue=second") { "" } else { "second" }))
        });
        let informers = Informers::new(api.client(), CancellationToken::new());
        let quotas = Quotas::new(&Context::new(api.credentials(), informers, discovery()));
        let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "5"}}});
        let (counted, failure) = quotas.count(&quota, "d").await;
        assert!(failure.is_none(), "{failure:?}");
        assert_eq!(counted.to_json(), json!({"pods": "2"}));
    }

    #[tokio::test]
    async fn what_cannot_be_counted_keeps_what_was_said_of_it_and_holds_up_nothing_else() {
        let quota = json!({
            "apiVersion": "v1", "kind": "ResourceQuota",
            "metadata": {"name": "q", "namespace": "d", "resourceVersion": "7"},
            "spec": {"hard": {"pods": "5", "count/replicasets.apps": "9"}},
            "status": {"hard": {"pods": "5", "count/replicasets.apps": "9"}, "used": {"pods": "0", "count/replicasets.apps": "3"}},
        });
        let answered = quota.clone();
        let api = ScriptedApi::new(move |asked: &Asked| match asked.path.as_str() {
            "/api/v1/namespaces/d/pods" => Some(json!({
                "kind": "PodList", "apiVersion": "v1", "metadata": {},
                "items": [{"metadata": {"name": "p"}, "spec": {"containers": []}}],
            })),
            path if path.ends_with("/replicasets") => None,
            _ => Some(answered.clone()),
        });
        let informers = Informers::new(api.client(), CancellationToken::new());
        let quotas = Quotas::new(&Context::new(api.credentials(), informers, discovery()));
        quotas.reconcile(&ObjectKey::new("d", "q")).await.unwrap_err();
        let written = api.written();
        assert_eq!(written.len(), 1, "{written:?}");
        assert_eq!(written[0].body["status"]["used"], json!({"pods": "1", "count/replicasets.apps": "3"}));
    }
}
