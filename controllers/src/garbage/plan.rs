//! What becomes of an object, given how its owners are. Pure.
//!
//! Source: upstream's `attemptToDeleteItem`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PropagationPolicy;
use serde_json::{Value, json};

pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Solid,
    /// Being deleted in the foreground.
    WaitsForDependents,
    Gone,
}

#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    Keep,
    /// It has other owners: those of these uids are let go of, also where they wait for it.
    LetGo(Vec<String>),
    Delete(PropagationPolicy),
    /// The same, in the foreground, once it no longer blocks its owners: they may wait for each other in a circle.
    UnblockAndDelete,
}

pub(super) fn verdict(
    owners: &[(&OwnerReference, Owner)],
    finalizers: &[String],
    has_dependents: bool,
    dependent_waits: bool,
) -> Verdict {
    let any = |state: Owner| owners.iter().any(|(_, s)| *s == state);
    if owners.is_empty() || owners.iter().all(|(_, state)| *state == Owner::Solid) {
        return Verdict::Keep;
    }
    if any(Owner::Solid) {
        let others = owners.iter().filter(|(_, state)| *state != Owner::Solid);
        return Verdict::LetGo(others.map(|(owner, _)| owner.uid.clone()).collect());
    }
    if any(Owner::WaitsForDependents) && has_dependents {
        return if dependent_waits {
            Verdict::UnblockAndDelete
        } else {
            Verdict::Delete(PropagationPolicy::Foreground)
        };
    }
    // What its finalizers already ask for is kept to.
    let has = |finalizer: &str| finalizers.iter().any(|f| f == finalizer);
    Verdict::Delete(match () {
        () if has(ORPHAN) => PropagationPolicy::Orphan,
        () if has(FOREGROUND) => PropagationPolicy::Foreground,
        () => PropagationPolicy::Background,
    })
}

/// The strategic patch that takes owners off an object, whatever others it has been given since.
pub(super) fn without_owners(uid: &str, owners: &[String]) -> Value {
    let gone: Vec<Value> = owners.iter().map(|owner| json!({"$patch": "delete", "uid": owner})).collect();
    json!({"metadata": {"uid": uid, "ownerReferences": gone}})
}

/// The strategic patch by which an object holds up none of its owners.
pub(super) fn unblocked(uid: &str, owners: &[OwnerReference]) -> Value {
    let blocking = owners.iter().filter(|o| o.block_owner_deletion == Some(true));
    let free = |owner: &OwnerReference| OwnerReference { block_owner_deletion: Some(false), ..owner.clone() };
    let owners: Vec<OwnerReference> = blocking.map(free).collect();
    json!({"metadata": {"uid": uid, "ownerReferences": owners}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(owners: &[Owner], finalizers: &[&str], dependents: (bool, bool), wanted: &Verdict) {
        let references: Vec<OwnerReference> = (0..owners.len())
            .map(|at| OwnerReference { uid: at.to_string(), ..OwnerReference::default() })
            .collect();
        let owners: Vec<_> = references.iter().zip(owners.iter().copied()).collect();
        let finalizers: Vec<String> = finalizers.iter().map(|f| (*f).to_owned()).collect();
        assert_eq!(verdict(&owners, &finalizers, dependents.0, dependents.1), *wanted, "{owners:?}");
    }

    #[test]
    fn an_object_with_one_solid_owner_stays_and_lets_go_of_those_that_wait_for_it() {
        use Owner::{Gone, Solid, WaitsForDependents as Waits};
        check(&[Solid, Waits], &[], (true, false), &Verdict::LetGo(vec!["1".into()]));
        check(&[Gone, Solid, Waits], &[], (false, false), &Verdict::LetGo(vec!["0".into(), "2".into()]));
        check(&[Solid, Solid], &[], (true, false), &Verdict::Keep);
        check(&[], &[], (true, false), &Verdict::Keep);
    }

    #[test]
    fn an_object_goes_with_the_last_of_its_owners() {
        use Owner::{Gone, WaitsForDependents as Waits};
        let delete = |policy| Verdict::Delete(policy);
        check(&[Gone], &[], (true, false), &delete(PropagationPolicy::Background));
        check(&[Gone], &[ORPHAN], (true, false), &delete(PropagationPolicy::Orphan));
        check(&[Gone], &[FOREGROUND], (true, false), &delete(PropagationPolicy::Foreground));
        check(&[Gone, Waits], &[], (false, false), &delete(PropagationPolicy::Background));
        check(&[Gone, Waits], &[], (true, false), &delete(PropagationPolicy::Foreground));
        check(&[Waits], &[], (true, true), &Verdict::UnblockAndDelete);
    }

    #[test]
    fn owners_are_taken_off_by_their_uid_alone() {
        let patch = without_owners("me", &["a".into()]);
        assert_eq!(
            patch,
            json!({"metadata": {"uid": "me", "ownerReferences": [{"$patch": "delete", "uid": "a"}]}})
        );
    }
}
