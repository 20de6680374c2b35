//! The templates that a workload has had, kept as ControllerRevisions.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use skiff_client::{Informer, key_of};

use crate::Context;
use crate::claiming::claim;
use crate::driver::{gone_is_fine, is_conflict};
use crate::lookup::Owned;
use crate::objects::{Selector, controller_reference, template_hash, uid};
use crate::owned_pods::PodOwner;

/// Of a pod: the revision that it is of. DaemonSets give it the revision's hash, and so label the revision too;
/// StatefulSets the revision's name.
pub(crate) const REVISION_HASH: &str = "controller-revision-hash";

/// What a revision holds: a patch that brings the template back.
pub(crate) fn snapshot(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

/// The label by which a revision's pods are known.
pub(crate) fn hash_of(revision: &ControllerRevision) -> &str {
    let labels = revision.metadata.labels.as_ref();
    labels.and_then(|l| l.get(REVISION_HASH)).map(String::as_str).unwrap_or_default()
}

/// The template that a revision brings back.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let template = revision.data.0.pointer("/spec/template")?;
    serde_json::from_value(template.clone()).ok()
}

pub(crate) fn is_of(revision: &ControllerRevision, snapshot: &Value) -> bool {
    revision.data.0 == *snapshot
}

/// What came of making a revision.
pub(crate) enum Made {
    Revision(Arc<ControllerRevision>),
    /// Another template has the name: count one collision more, and try again.
    Collision(kube::Error),
}

pub(crate) struct Histories {
    client: Client,
    all: Informer<ControllerRevision>,
    owned: Owned<ControllerRevision>,
}

impl Histories {
    pub(crate) fn new(context: &Context) -> Self {
        let all = context.informers.of::<ControllerRevision>();
        Histories { client: context.client.clone(), owned: Owned::new(&all), all }
    }

    pub(crate) async fn synced(&self) {
        self.all.synced().await;
    }

    fn api<K: PodOwner>(&self, owner: &K) -> Api<ControllerRevision> {
        Api::namespaced(self.client.clone(), owner.meta().namespace.as_deref().unwrap_or_default())
    }

    /// The owner's revisions, oldest first. Where pods are known by the label of their revision, every one has it.
    pub(crate) async fn of<K: PodOwner>(
        &self,
        owner: &K,
    ) -> Result<Vec<Arc<ControllerRevision>>, kube::Error> {
        let Some(asked) = owner.selector() else { return Ok(Vec::new()) };
        let key = key_of(owner);
        let known = self.owned.of_controller(&K::kind(&()), &key);
        let candidates = known.into_iter().chain(self.owned.orphans(&key.namespace, &asked));
        let selector = Selector::new(&asked);
        let adopts = |revision: &ControllerRevision| revision.metadata.deletion_timestamp.is_none();
        let selects = |revision: &ControllerRevision| selector.selects(&revision.metadata);
        let mut revisions = claim(&self.client, owner, candidates, selects, adopts).await?;
        let lacks_label = |revision: &Arc<ControllerRevision>| {
            K::REVISION_LABEL == REVISION_HASH && hash_of(revision).is_empty()
        };
        for revision in revisions.iter_mut().filter(|revision| lacks_label(revision)) {
            let name = revision.metadata.name.clone().unwrap_or_default();
            let label = json!({"metadata": {"uid": revision.metadata.uid, "labels": {REVISION_HASH: name}}});
            let patched = self.api(owner).patch(&name, &PatchParams::default(), &Patch::Merge(label)).await?;
            *revision = Arc::new(patched);
        }
        revisions.sort_by(|a, b| (a.revision, &a.metadata.name).cmp(&(b.revision, &b.metadata.name)));
        Ok(revisions)
    }

    /// A revision of the template, which no revision that is known is of.
    pub(crate) async fn make<K: PodOwner>(
        &self,
        owner: &K,
        template: &PodTemplateSpec,
        n_collisions: i32,
        revision: i64,
    ) -> Result<Made, kube::Error> {
        let data = snapshot(template);
        let hash = template_hash(&serde_json::to_value(template).unwrap_or_default(), n_collisions);
        let name = format!("{}-{hash}", owner.meta().name.as_deref().unwrap_or_default());
        let mut labels = template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
        labels.insert(K::REVISION_LABEL.into(), hash);
        let new = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: owner.meta().namespace.clone(),
                labels: Some(labels),
                annotations: owner.meta().annotations.clone(),
                owner_references: Some(vec![controller_reference(owner)]),
                ..ObjectMeta::default()
            },
            data: RawExtension(data.clone()),
            revision: Some(revision),
        };
        let api = self.api(owner);
        match api.create(&PostParams::default(), &new).await {
            Ok(made) => Ok(Made::Revision(Arc::new(made))),
            // The informer is behind, or two templates share a hash.
            Err(error) if is_conflict(&error) => {
                let there = api.get(&name).await?;
                Ok(if is_of(&there, &data) {
                    Made::Revision(Arc::new(there))
                } else {
                    Made::Collision(error)
                })
            }
            Err(error) => Err(error),
        }
    }

    /// Gives a revision another number: its template is current again.
    pub(crate) async fn renumber<K: PodOwner>(
        &self,
        owner: &K,
        revision: &ControllerRevision,
        number: i64,
    ) -> Result<Arc<ControllerRevision>, kube::Error> {
        let name = revision.metadata.name.as_deref().unwrap_or_default();
        let patch = json!({"metadata": {"uid": uid(&revision.metadata)}, "revision": number});
        self.api(owner).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(Arc::new)
    }

    pub(crate) async fn delete<K: PodOwner>(
        &self,
        owner: &K,
        revision: &ControllerRevision,
    ) -> Result<(), kube::Error> {
        let name = revision.metadata.name.as_deref().unwrap_or_default();
        gone_is_fine(self.api(owner).delete(name, &DeleteParams::default()).await)
    }
}
