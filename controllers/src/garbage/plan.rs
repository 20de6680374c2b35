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

/// What is to become of an object's references to its owners.
#[derive(Debug)]
pub(super) enum Change {
    /// These are taken off, whatever others it has been given since.
    LetGo(Vec<String>),
    /// It holds up none of its owners.
    Unblock,
}

impl Change {
    /// As a strategic patch, of an object with these owners.
    pub(super) fn strategic(&self, uid: &str, owners: &[OwnerReference]) -> Value {
        let references: Vec<Value> = match self {
            Change::LetGo(gone) => {
                gone.iter().map(|owner| json!({"$patch": "delete", "uid": owner})).collect()
            }
            Change::Unblock => {
                owners.iter().filter(|owner| blocks(owner)).map(|owner| json!(unblocked(owner))).collect()
            }
        };
        json!({"metadata": {"uid": uid, "ownerReferences": references}})
    }

    /// As a merge patch, for kinds that have no strategic ones. It says all owners, so that it holds for the version of the object
    /// that has these only.
    pub(super) fn merged(&self, uid: &str, version: Option<&str>, owners: &[OwnerReference]) -> Value {
        let left: Vec<OwnerReference> = match self {
            Change::LetGo(gone) => {
                owners.iter().filter(|owner| !gone.contains(&owner.uid)).cloned().collect()
            }
            Change::Unblock => owners.iter().map(unblocked).collect(),
        };
        json!({"metadata": {"uid": uid, "resourceVersion": version, "ownerReferences": left}})
    }
}

fn blocks(owner: &OwnerReference) -> bool {
    owner.block_owner_deletion == Some(true)
}

fn unblocked(owner: &OwnerReference) -> OwnerReference {
    let block_owner_deletion = if blocks(owner) { Some(false) } else { owner.block_owner_deletion };
    OwnerReference { block_owner_deletion, ..owner.clone() }
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
        let owner = |uid: &str, blocks: Option<bool>| OwnerReference {
            uid: uid.into(),
            block_owner_deletion: blocks,
            ..OwnerReference::default()
        };
        let owners = [owner("a", Some(true)), owner("b", None)];
        let change = Change::LetGo(vec!["a".into()]);
        assert_eq!(
            change.strategic("me", &owners),
            json!({"metadata": {"uid": "me", "ownerReferences": [{"$patch": "delete", "uid": "a"}]}})
        );
        let merged = change.merged("me", Some("7"), &owners);
        assert_eq!(merged["metadata"]["resourceVersion"], "7");
        assert_eq!(merged["metadata"]["ownerReferences"], json!([owner("b", None)]));
        let unblocked = Change::Unblock.merged("me", Some("7"), &owners);
        assert_eq!(
            unblocked["metadata"]["ownerReferences"],
            json!([owner("a", Some(false)), owner("b", None)])
        );
        let unblocked = Change::Unblock.strategic("me", &owners);
        assert_eq!(unblocked["metadata"]["ownerReferences"], json!([owner("a", Some(false))]));
    }
}
