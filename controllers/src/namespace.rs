//! Namespaces that are being deleted: their pods go first, then everything else in them, then the finalizer.
//!
//! # Guarantees
//! - While a pod of the namespace is left, nothing else is deleted: no pod outlives the NetworkPolicy or the Secret
//!   that it was started under (CVE-2024-7598; KEP-5080).
//! - What holds up the deletion stands in the namespace's conditions.
//! - While nobody can tell what some group has, because its API server is away, everything else of the namespace is deleted and
//!   the namespace stays.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Collected, Limited};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::client::Body;
use kube::core::Status;
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use skiff_client::{Discovery, Informer, ObjectKey, ServedResource, WorkQueue, key_of};
use tracing::warn;

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine, is_not_found, text};

mod plan;

use plan::Found;

/// The finalizer that this controller takes off.
const FINALIZER: &str = "kubernetes";
/// Pods end in their own time; this is how often we look whether they have.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// The same of API servers, which come back in theirs.
const DISCOVER_AGAIN: Duration = Duration::from_secs(5);
/// Counting what is left of a large namespace is no small thing: a pass may take one part of the time in so many.
const RESTS: u32 = 2;
/// Of a `Status`.
const MAX_REFUSAL_BYTES: usize = 1 << 20;
/// Objects counted at a time.
const PAGE: u32 = 500;

pub(crate) struct Namespaces {
    client: Client,
    namespaces: Informer<Namespace>,
    discovery: Discovery,
    queue: WorkQueue<ObjectKey>,
}

impl Namespaces {
    pub(crate) fn new(context: &Context) -> Self {
        let namespaces = context.informers.of::<Namespace>();
        let queue = WorkQueue::default();
        let wake = queue.clone();
        namespaces.on_change(move |change| {
            if let Some(namespace) = change.new.as_ref().filter(|n| n.metadata.deletion_timestamp.is_some()) {
                wake.add(key_of(&**namespace));
            }
        });
        let (client, discovery) = (context.client.clone(), context.discovery.clone());
        Namespaces { client, namespaces, discovery, queue }
    }

    /// Deletes what there is, of pods first; answers what is left, and the first failure.
    async fn empty(&self, namespace: &str) -> (Found, Option<kube::Error>) {
        let (mut found, mut failure) = (Found::default(), None);
        let served = self.discovery.known().await;
        if let Some(which) = served.failure() {
            found.undiscovered(served.stale().len(), which);
        }
        let can_be_emptied =
            |r: &&Arc<ServedResource>| r.is_namespaced && r.can("list") && r.can("deletecollection");
        let (pods, others): (Vec<ApiResource>, Vec<ApiResource>) = served
            .preferred()
            .filter(can_be_emptied)
            .map(|resource| resource.described())
            .partition(|r| r.group.is_empty() && r.plural == "pods");
        for resources in [&pods, &others] {
            for resource in resources {
                if let Err(error) = self.empty_of(namespace, resource, &mut found).await {
                    found.failed(text(&error));
                    failure = failure.or(Some(error));
                }
            }
            if !found.is_empty() {
                break;
            }
        }
        (found, failure)
    }

    async fn empty_of(
        &self,
        namespace: &str,
        resource: &ApiResource,
        found: &mut Found,
    ) -> Result<(), kube::Error> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, resource);
        if api.list_metadata(&ListParams::default().limit(1)).await?.items.is_empty() {
            return Ok(());
        }
        let deleted = gone_is_fine(self.delete_all(&api).await);
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let left = api.list_metadata(&page).await?;
            let finalizers = left.items.iter().flat_map(|o| o.finalizers()).map(String::as_str);
            found.left(resource, left.items.len(), finalizers);
            match left.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return deleted,
            }
        }
    }

    /// Deletes a collection. What was deleted, which the answer lists, is not read: of ten thousand objects it is a lot.
    async fn delete_all(&self, api: &Api<DynamicObject>) -> Result<(), kube::Error> {
        let request = kube::core::Request::new(api.resource_url());
        let request = request.delete_collection(&DeleteParams::background(), &ListParams::default());
        let request = request.map_err(kube::Error::BuildRequest)?;
        let response = self.client.send(request.map(Body::from)).await?;
        let code = response.status();
        if code.is_success() {
            return Ok(());
        }
        let refusal = Limited::new(response.into_body(), MAX_REFUSAL_BYTES).collect().await;
        let refusal = refusal.map(Collected::to_bytes).unwrap_or_default();
        let status = serde_json::from_slice(&refusal).unwrap_or_else(|_| {
            Status::failure(&format!("the server answered {code}"), "Unknown").with_code(code.as_u16())
        });
        Err(kube::Error::Api(Box::new(status)))
    }

    /// That conditions could not be written holds up nothing.
    async fn write_conditions(&self, namespace: &Namespace, found: &Found) {
        let old = namespace.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let Some(conditions) = plan::conditions(old, found, Timestamp::now()) else { return };
        let name = namespace.name_any();
        let patch = json!({"metadata": {"uid": namespace.metadata.uid},
            "status": {"phase": "Terminating", "conditions": conditions}});
        let api: Api<Namespace> = Api::all(self.client.clone());
        match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(error) if !is_not_found(&error) => {
                warn!(namespace = name, %error, "cannot write what holds up the deletion of a namespace");
            }
            _ => {}
        }
    }

    async fn finalize(&self, namespace: &Namespace) -> Result<(), kube::Error> {
        let name = namespace.name_any();
        let api: Api<Namespace> = Api::all(self.client.clone());
        // Its conditions may just have been written.
        let Some(mut done) = api.get_opt(&name).await? else { return Ok(()) };
        if done.metadata.uid != namespace.metadata.uid {
            return Ok(());
        }
        if let Some(finalizers) = done.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
            finalizers.retain(|f| f != FINALIZER);
        }
        let finalized: Result<Namespace, _> =
            api.replace_subresource("finalize", &name, &PostParams::default(), &done).await;
        gone_is_fine(finalized)
    }
}

impl Controller for Namespaces {
    const NAME: &'static str = "namespace";
    const WORKERS: usize = 4;
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.namespaces.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(namespace) = self.namespaces.get(key) else { return Ok(Outcome::Done) };
        let finalizers = namespace.spec.iter().flat_map(|s| s.finalizers.iter().flatten());
        let is_ours = finalizers.into_iter().any(|f| f == FINALIZER);
        if namespace.metadata.deletion_timestamp.is_none() || !is_ours {
            return Ok(Outcome::Done);
        }
        let began = Instant::now();
        let (found, failure) = self.empty(&key.name).await;
        self.write_conditions(&namespace, &found).await;
        if let Some(error) = failure {
            return Err(error);
        }
        if !found.is_empty() {
            return Ok(Outcome::After(LOOK_AGAIN.max(began.elapsed().saturating_mul(RESTS))));
        }
        if found.is_unknown() {
            return Ok(Outcome::After(DISCOVER_AGAIN.max(began.elapsed().saturating_mul(RESTS))));
        }
        self.finalize(&namespace).await?;
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::Method;
    use k8s_openapi::api::core::v1::Pod;
    use parking_lot::Mutex;
    use skiff_client::Informers;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::testing::{Asked, ScriptedApi, discovery};

    fn list(names: &[&str]) -> serde_json::Value {
        let items: Vec<_> = names.iter().map(|n| json!({"metadata": {"name": n}})).collect();
        json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "items": items})
    }

    /// Paths of collections that were deleted, while these are the pods.
    async fn deleted_with(pods: &'static [&'static str]) -> (Vec<String>, Found) {
        let deleted: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = deleted.clone();
        let api = ScriptedApi::new(move |asked: &Asked| {
            if asked.method == Method::DELETE {
                log.lock().push(asked.path.clone());
                return Some(json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}));
            }
            match asked.path.as_str() {
                "/api/v1/namespaces/gone/pods" => Some(list(pods)),
                "/api/v1/namespaces/gone/secrets" => Some(list(&["s"])),
                path if path.contains("/namespaces/gone/") => Some(list(&[])),
                _ => None,
            }
        });
        let shutdown = CancellationToken::new();
        let context =
            Context::new(api.credentials(), Informers::new(api.client(), shutdown.clone()), discovery());
        let (found, _) = Namespaces::new(&context).empty("gone").await;
        shutdown.cancel();
        let deleted = deleted.lock().clone();
        (deleted, found)
    }

    #[tokio::test]
    async fn while_pods_are_left_nothing_else_of_the_namespace_is_deleted() {
        let (deleted, found) = deleted_with(&["p"]).await;
        assert_eq!(deleted, ["/api/v1/namespaces/gone/pods"]);
        assert!(!found.is_empty());
        let (deleted, _) = deleted_with(&[]).await;
        assert_eq!(deleted, ["/api/v1/namespaces/gone/secrets"]);
    }

    #[tokio::test]
    async fn what_nobody_can_tell_of_is_said_and_holds_up_nothing_but_the_end() {
        let api = ScriptedApi::new(|asked: &Asked| match asked.method {
            Method::GET => Some(list(&[])),
            _ => Some(json!({"metadata": {"name": "gone"}})),
        });
        let all = discovery().known().await;
        let served = all.preferred().map(|resource| (**resource).clone()).collect();
        let resources = skiff_client::Resources::new(served).with_stale(vec!["example.com/v1".into()]);
        let shutdown = CancellationToken::new();
        let informers = Informers::new(api.client(), shutdown.clone());
        let namespaces =
            Namespaces::new(&Context::new(api.credentials(), informers, Discovery::of(resources)));
        let (found, failure) = namespaces.empty("gone").await;
        assert!(found.is_empty() && found.is_unknown() && failure.is_none(), "{found:?}");
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some("gone".into());
        namespaces.write_conditions(&namespace, &found).await;
        shutdown.cancel();
        let written = api.written();
        assert_eq!(written[0].path, "/api/v1/namespaces/gone/status");
        let condition = &written[0].body["status"]["conditions"][0];
        assert_eq!((&condition["reason"], &condition["status"]), (&json!("DiscoveryFailed"), &json!("True")));
    }

    #[tokio::test]
    async fn a_collection_that_cannot_be_deleted_is_said_in_the_servers_words() {
        // What it does not know the scripted server answers with 404.
        let api = ScriptedApi::new(|_: &Asked| None);
        let shutdown = CancellationToken::new();
        let context =
            Context::new(api.credentials(), Informers::new(api.client(), shutdown.clone()), discovery());
        let namespaces = Namespaces::new(&context);
        let pods = Api::namespaced_with(api.client(), "gone", &ApiResource::erase::<Pod>(&()));
        let refused = namespaces.delete_all(&pods).await.unwrap_err();
        shutdown.cancel();
        assert!(is_not_found(&refused), "{refused}");
    }
}
