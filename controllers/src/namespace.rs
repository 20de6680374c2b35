//! Namespaces that are being deleted: everything in them goes first, then the finalizer.

use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::{Api, Client};
use skiff_api::kinds::Storage;
use skiff_api::{Kind, Kinds};
use skiff_client::{Informer, ObjectKey, WorkQueue, key_of};

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine};

/// The finalizer that this controller takes off.
const FINALIZER: &str = "kubernetes";
/// Pods end in their own time; this is how often we look whether they have.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

pub(crate) struct Namespaces {
    client: Client,
    namespaces: Informer<Namespace>,
    /// Every kind that lives in a namespace.
    resources: Vec<ApiResource>,
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
        let kinds = Kinds::builtin();
        let resources = kinds
            .iter()
            .filter(|k| k.is_namespaced() && k.storage == Storage::Stored)
            .map(|k| resource(k))
            .collect();
        Namespaces { client: context.client.clone(), namespaces, resources, queue }
    }

    /// Deletes what there is of every kind; answers whether anything is left.
    async fn empty(&self, namespace: &str) -> Result<bool, kube::Error> {
        let mut left = false;
        for resource in &self.resources {
            let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, resource);
            if api.list_metadata(&ListParams::default().limit(1)).await?.items.is_empty() {
                continue;
            }
            let params = DeleteParams::background();
            gone_is_fine(api.delete_collection(&params, &ListParams::default()).await)?;
            left |= !api.list_metadata(&ListParams::default().limit(1)).await?.items.is_empty();
        }
        Ok(left)
    }

    async fn finalize(&self, namespace: &Namespace) -> Result<(), kube::Error> {
        let mut done = namespace.clone();
        if let Some(finalizers) = done.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
            finalizers.retain(|f| f != FINALIZER);
        }
        let name = namespace.metadata.name.clone().unwrap_or_default();
        let api: Api<Namespace> = Api::all(self.client.clone());
        let finalized: Result<Namespace, _> =
            api.replace_subresource("finalize", &name, &PostParams::default(), &done).await;
        gone_is_fine(finalized)
    }
}

/// How the client addresses a kind.
pub(crate) fn resource(kind: &Kind) -> ApiResource {
    ApiResource {
        group: kind.group.clone(),
        version: kind.version.clone(),
        api_version: kind.api_version(),
        kind: kind.kind.clone(),
        plural: kind.plural.clone(),
    }
}

impl Controller for Namespaces {
    const NAME: &'static str = "namespace";
    const WORKERS: usize = 4;

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
        if self.empty(&key.name).await? {
            return Ok(Outcome::After(LOOK_AGAIN));
        }
        self.finalize(&namespace).await?;
        Ok(Outcome::Done)
    }
}
