//! What this version stores and does nothing with says so at once, where people look: an event of a claim. Whoever waits for it
//! would otherwise wait without a word.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use skiff_client::EventType;

use crate::Context;

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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_waits_unless_somebody_bound_it() {
        let mut claim: PersistentVolumeClaim =
            serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": {}})).unwrap();
        assert!(waits(&claim));
        claim.spec.as_mut().unwrap().volume_name = Some("v".into());
        assert!(!waits(&claim));
    }
}
