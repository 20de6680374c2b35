//! Makes, repairs and deletes the pods of a StatefulSet and their claims, and tells of it.
//!
//! Source: upstream's `StatefulPodControl`.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{self as core, PersistentVolumeClaim};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use skiff_client::view::Pod;
use skiff_client::{EventRecorder, EventType, Informer, ObjectKey, WorkQueue};
use thiserror::Error;

use super::identity::{
    claim_names, has_identity, has_storage, name, new_claims, ordinal, set_identity, set_storage,
};
use super::plan::Step;
use super::{claims, identity};
use crate::Context;
use crate::driver::{is_not_found, is_terminating, text};
use crate::owned_pods::OwnedPods;

/// Why a step came to nothing, in the words of its event.
#[derive(Debug, Error)]
pub(super) enum StepError {
    #[error("{}", text(.0))]
    Api(kube::Error),
    #[error("failed to create PVC {claim}: {}", text(.error))]
    Make { claim: String, error: kube::Error },
    #[error("could not update claim {claim} for delete policy ownerRefs: {}", text(.error))]
    Own { claim: String, error: kube::Error },
    #[error("pvc {0} is being deleted")]
    Going(String),
    #[error("[{}]", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Several(Vec<StepError>),
}

impl StepError {
    fn of(mut errors: Vec<StepError>) -> Result<(), StepError> {
        match errors.pop() {
            None => Ok(()),
            Some(error) if errors.is_empty() => Err(error),
            Some(error) => {
                errors.push(error);
                Err(StepError::Several(errors))
            }
        }
    }

    /// Whether a claim has to go first.
    pub(super) fn awaits_claim(&self) -> bool {
        match self {
            StepError::Going(_) => true,
            StepError::Several(errors) => errors.iter().any(StepError::awaits_claim),
            _ => false,
        }
    }

    /// What to try again for. What waits for a claim to go is woken when it has, and nothing helps in a namespace that
    /// is on its way out.
    pub(super) fn retry(self) -> Option<kube::Error> {
        match self {
            StepError::Going(_) => None,
            StepError::Several(errors) => errors.into_iter().find_map(StepError::retry),
            StepError::Api(error) | StepError::Make { error, .. } | StepError::Own { error, .. } => {
                Some(error).filter(|error| !is_terminating(error))
            }
        }
    }
}

/// Whether something else has the name.
fn is_taken(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.reason == "AlreadyExists")
}

#[derive(Clone, Copy)]
enum Verb {
    Create,
    Update,
    Delete,
}

impl Verb {
    fn text(self) -> &'static str {
        match self {
            Verb::Create => "Create",
            Verb::Update => "Update",
            Verb::Delete => "Delete",
        }
    }
}

pub(super) struct StatefulPods {
    client: Client,
    pods: OwnedPods<StatefulSet>,
    claims: Informer<PersistentVolumeClaim>,
}

impl StatefulPods {
    pub(super) fn new(
        context: &Context,
        sets: &Informer<StatefulSet>,
        claims: &Informer<PersistentVolumeClaim>,
        queue: &WorkQueue<ObjectKey>,
    ) -> StatefulPods {
        let pods = OwnedPods::new(context, sets, queue);
        StatefulPods { client: context.client.clone(), pods, claims: claims.clone() }
    }

    pub(super) fn owned(&self) -> &OwnedPods<StatefulSet> {
        &self.pods
    }

    fn events(&self) -> &EventRecorder {
        self.pods.events()
    }

    fn api<K>(&self, set: &StatefulSet) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), set.metadata.namespace.as_deref().unwrap_or_default())
    }

    pub(super) fn claim(&self, set: &StatefulSet, claim: &str) -> Option<Arc<PersistentVolumeClaim>> {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        self.claims.get(&ObjectKey::new(namespace, claim))
    }

    pub(super) async fn take(&self, set: &StatefulSet, step: &Step) -> Result<(), StepError> {
        match step {
            Step::Make(pod) => self.make(set, pod).await,
            Step::Delete(pod) => self.delete(set, pod).await,
            Step::Claims(pod) => self.complete_claims(set, pod).await,
            Step::Repair(pod) => self.repair(set, pod).await,
        }
    }

    /// Tells of what was tried with a pod, and answers what came of it.
    fn told(
        &self,
        set: &StatefulSet,
        pod: &Pod,
        verb: Verb,
        result: Result<(), StepError>,
    ) -> Result<(), StepError> {
        let what =
            format!("{} Pod {} in StatefulSet {}", verb.text(), name(&pod.metadata), name(&set.metadata));
        self.tell(set, verb, &format!("{what} successful"), &format!("{what} failed error: "), &result);
        result
    }

    fn tell(
        &self,
        set: &StatefulSet,
        verb: Verb,
        success: &str,
        failure: &str,
        result: &Result<(), impl ToString>,
    ) {
        let (type_, outcome, message) = match result {
            Ok(()) => (EventType::Normal, "Successful", success.to_owned()),
            Err(error) => (EventType::Warning, "Failed", format!("{failure}{}", error.to_string())),
        };
        self.events().event(set, type_, &format!("{outcome}{}", verb.text()), &message);
    }

    async fn make(&self, set: &StatefulSet, new: &core::Pod) -> Result<(), StepError> {
        let pod = &Pod::of(new.metadata.clone());
        let claims = match self.make_claims(set, pod).await {
            Ok(claims) => claims,
            Err(error) => return self.told(set, pod, Verb::Create, Err(error)),
        };
        let made = match self.pods.make_one(set, new).await {
            // The informer is behind, or somebody else has the name.
            Err(error) if is_taken(&error) => return Err(StepError::Api(error)),
            made => made.map_err(StepError::Api),
        };
        if let Err(error) = self.own_claims(set, pod, &claims).await {
            return self.told(set, pod, Verb::Update, Err(error));
        }
        self.told(set, pod, Verb::Create, made)
    }

    pub(super) async fn delete(&self, set: &StatefulSet, pod: &Pod) -> Result<(), StepError> {
        let deleted = match self.pods.end(set, pod).await {
            Err(error) if is_not_found(&error) => Ok(()),
            deleted => deleted.map_err(StepError::Api),
        };
        self.told(set, pod, Verb::Delete, deleted)
    }

    async fn complete_claims(&self, set: &StatefulSet, pod: &Pod) -> Result<(), StepError> {
        let claims = self.make_claims(set, pod).await?;
        match self.own_claims(set, pod, &claims).await {
            Ok(()) => Ok(()),
            failed => self.told(set, pod, Verb::Update, failed),
        }
    }

    /// Writes the pod, so that a watcher sees it, even if only its claims had to change.
    async fn repair(&self, set: &StatefulSet, pod: &Pod) -> Result<(), StepError> {
        let repaired = self.try_repair(set, pod).await;
        self.told(set, pod, Verb::Update, repaired)
    }

    async fn try_repair(&self, set: &StatefulSet, pod: &Pod) -> Result<(), StepError> {
        let has_storage = has_storage(set, pod);
        if !has_storage {
            self.make_claims(set, pod).await?;
        }
        self.settle_claims(set, pod).await?;
        let api: Api<core::Pod> = self.api(set);
        let ordinal = ordinal(pod).unwrap_or(0);
        let mut meta = pod.metadata.clone();
        let mut spec = json!({});
        if !has_storage {
            // The list of volumes is replaced as a whole, and the copy has the claims' alone.
            let whole = api.get(name(&meta)).await.map_err(StepError::Api)?;
            if whole.metadata.uid != meta.uid {
                // The informer is behind; what it hears next is looked at then.
                return Ok(());
            }
            meta = whole.metadata;
            let mut whole = whole.spec.unwrap_or_default();
            set_storage(set, &mut whole, ordinal);
            spec = json!({"volumes": whole.volumes});
        }
        if !has_identity(set, pod) {
            set_identity(set, &mut meta, ordinal);
        }
        let patch = json!({
            "metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version, "labels": meta.labels},
            "spec": spec});
        let patched = api.patch(name(&meta), &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.map(drop).map_err(StepError::Api)
    }

    /// Makes the pod's claims that are missing; answers all of them.
    async fn make_claims(
        &self,
        set: &StatefulSet,
        pod: &Pod,
    ) -> Result<Vec<Arc<PersistentVolumeClaim>>, StepError> {
        let (mut claims, mut errors) = (Vec::new(), Vec::new());
        for new in ordinal(pod).map(|ordinal| new_claims(set, ordinal)).unwrap_or_default() {
            match self.claim(set, name(&new.metadata)) {
                Some(claim) if claim.metadata.deletion_timestamp.is_some() => {
                    errors.push(StepError::Going(name(&new.metadata).to_owned()));
                }
                Some(claim) => claims.push(claim),
                None => match self.make_claim(set, pod, &new).await {
                    Ok(claim) => claims.push(claim),
                    Err(error) => errors.push(error),
                },
            }
        }
        StepError::of(errors).map(|()| claims)
    }

    async fn make_claim(
        &self,
        set: &StatefulSet,
        pod: &Pod,
        new: &PersistentVolumeClaim,
    ) -> Result<Arc<PersistentVolumeClaim>, StepError> {
        let (claim, owner) = (name(&new.metadata), name(&set.metadata));
        let api: Api<PersistentVolumeClaim> = self.api(set);
        let made = api.create(&PostParams::default(), new).await;
        // Another pass may have made it, of which the informer does not know yet.
        if !made.as_ref().is_err_and(is_taken) {
            let pod = name(&pod.metadata);
            let success = format!("Create Claim {claim} Pod {pod} in StatefulSet {owner} success");
            let failure = format!("Create Claim {claim} for Pod {pod} in StatefulSet {owner} failed error: ");
            self.tell(set, Verb::Create, &success, &failure, &made.as_ref().map(|_| ()).map_err(text));
        }
        made.map(Arc::new).map_err(|error| StepError::Make { claim: claim.to_owned(), error })
    }

    /// Gives those of the pod's claims that are known the owners that they are to have.
    pub(super) async fn settle_claims(&self, set: &StatefulSet, pod: &Pod) -> Result<(), StepError> {
        let names = ordinal(pod).into_iter().flat_map(|ordinal| claim_names(set, ordinal));
        let known: Vec<_> = names.filter_map(|claim| self.claim(set, &claim)).collect();
        match known.iter().all(|claim| claims::is_settled(claim, set, pod)) {
            true => Ok(()),
            false => self.own_claims(set, pod, &known).await,
        }
    }

    async fn own_claims(
        &self,
        set: &StatefulSet,
        pod: &Pod,
        claims: &[Arc<PersistentVolumeClaim>],
    ) -> Result<(), StepError> {
        let api: Api<PersistentVolumeClaim> = self.api(set);
        for claim in claims {
            let claim_name = identity::name(&claim.metadata);
            if claims::is_contested(claim, set, pod) {
                let message = format!(
                    "PersistentVolumeClaim {claim_name} has a conflicting OwnerReference that acts as a manging \
                     controller, the retention policy is ignored for this claim"
                );
                self.events().event(set, EventType::Warning, "ConflictingController", &message);
            }
            if claims::is_settled(claim, set, pod) {
                continue;
            }
            let meta = &claim.metadata;
            let patch = json!({"metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version,
                "ownerReferences": claims::settled(claim, set, pod)}});
            let owned = api.patch(claim_name, &PatchParams::default(), &Patch::Merge(patch)).await;
            owned.map_err(|error| StepError::Own { claim: claim_name.to_owned(), error })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
