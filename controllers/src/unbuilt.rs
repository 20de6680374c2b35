//! What this version stores and does nothing with says so at once, where people look: an event of a claim, conditions of a
//! CustomResourceDefinition. Whoever waits for either would otherwise wait without a word.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use skiff_client::{EventType, Informer, ObjectKey, WorkQueue, key_of};

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine};

const NOT_BUILT: &str = "NotSupported";

/// Tells of claims that nothing will bind.
pub(crate) fn tell_of_claims(context: &Context) {
    let events = context.events("persistentvolume-controller");
    context.informers.of::<PersistentVolumeClaim>().on_change(move |change| {
        let (None, Some(claim)) = (&change.old, &change.new) else { return };
        if waits(claim) {
            let message =
                "no volume is bound to a claim by this version of Skiff: pods that use it stay pending; use emptyDir or hostPath";
            events.event(&**claim, EventType::Warning, "FailedBinding", message);
        }
    });
}

fn waits(claim: &PersistentVolumeClaim) -> bool {
    let bound = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
    bound.is_empty() && claim.metadata.deletion_timestamp.is_none()
}

/// Tells of definitions whose objects are not served.
pub(crate) struct Definitions {
    client: Client,
    definitions: Informer<CustomResourceDefinition>,
    queue: WorkQueue<ObjectKey>,
}

impl Definitions {
    pub(crate) fn new(context: &Context) -> Self {
        let (definitions, queue) = (context.informers.of::<CustomResourceDefinition>(), WorkQueue::default());
        let wake = queue.clone();
        definitions.on_change(move |change| {
            if let Some(definition) = &change.new {
                wake.add(key_of(&**definition));
            }
        });
        Definitions { client: context.client.clone(), definitions, queue }
    }
}

impl Controller for Definitions {
    const NAME: &'static str = "unbuilt-definitions";
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.definitions.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(definition) = self.definitions.get(key) else { return Ok(Outcome::Done) };
        let Some(status) =
            status(&definition, &jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        else {
            return Ok(Outcome::Done);
        };
        let api: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let patch = json!({"metadata": {"uid": definition.metadata.uid}, "status": status});
        gone_is_fine(api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
        Ok(Outcome::Done)
    }
}

/// What a definition's status is to be, if it does not say so yet.
fn status(definition: &CustomResourceDefinition, now: &str) -> Option<Value> {
    let conditions = definition.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    if conditions.iter().any(|condition| condition.reason.as_deref() == Some(NOT_BUILT)) {
        return None;
    }
    let condition = |type_: &str| {
        json!({
            "type": type_, "status": "False", "reason": NOT_BUILT, "lastTransitionTime": now,
            "message": "custom resources are not served by this version of Skiff",
        })
    };
    let names = &definition.spec.names;
    Some(json!({
        "conditions": [condition("NamesAccepted"), condition("Established")],
        "acceptedNames": {"kind": names.kind, "plural": names.plural}, "storedVersions": [],
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_is_told_of_once() {
        let mut definition: CustomResourceDefinition = serde_json::from_value(json!({
            "metadata": {"name": "as.example.com"},
            "spec": {"group": "example.com", "scope": "Cluster", "names": {"kind": "A", "plural": "as"}, "versions": []},
        }))
        .unwrap();
        let told = status(&definition, "2026-01-01T00:00:00Z").expect("nothing is said yet");
        assert_eq!(told["conditions"][1]["type"], "Established");
        assert_eq!(told["conditions"][1]["status"], "False");
        definition.status = Some(serde_json::from_value(told).unwrap());
        assert_eq!(status(&definition, "2026-01-02T00:00:00Z"), None);
    }

    #[test]
    fn a_claim_waits_unless_somebody_bound_it() {
        let mut claim: PersistentVolumeClaim =
            serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": {}})).unwrap();
        assert!(waits(&claim));
        claim.spec.as_mut().unwrap().volume_name = Some("v".into());
        assert!(!waits(&claim));
    }
}
