//! Writes that say only that somebody is still there.
//!
//! A node renews its Lease every ten seconds, and writes its status every five minutes though nothing changed; components
//! that lead renew theirs every two. Whoever judges by them measures from when it saw them itself, so that one that a crash
//! lost costs nothing: the next comes soon, and a server that starts gives everybody the whole time.

use serde_json::Value;
use skiff_api::kinds::Beat;
use skiff_api::{Kind, Object};

use crate::store::Durability;

/// When an update of `old` to `new` has to be durable. A node's status is told anew within seconds where it was lost; on a
/// disk that is full it is heard all the same, for it may be what says so.
pub(super) fn durability(kind: &Kind, new: &Object, old: &Object) -> Durability {
    let beat: fn(&mut Object) = match kind.traits.beat {
        Beat::Renewal => |lease| take(lease.get_mut("spec"), "renewTime"),
        Beat::Conditions => take_heartbeats,
        Beat::None => return Durability::Now,
    };
    let rest = |object: &Object| {
        let mut object = object.clone();
        take(object.get_mut("metadata"), "resourceVersion");
        // It tells when the beat was.
        take(object.get_mut("metadata"), "managedFields");
        beat(&mut object);
        object
    };
    let (mut new, mut old) = (rest(new), rest(old));
    if new == old {
        return Durability::Soon;
    }
    take(Some(&mut new), "status");
    take(Some(&mut old), "status");
    if kind.traits.beat == Beat::Conditions && new == old { Durability::Preferably } else { Durability::Now }
}

fn take_heartbeats(node: &mut Object) {
    let conditions = node.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten() {
        take(Some(condition), "lastHeartbeatTime");
    }
}

fn take(within: Option<&mut Value>, field: &str) {
    if let Some(within) = within.and_then(Value::as_object_mut) {
        within.remove(field);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skiff_api::Kinds;

    use super::*;

    fn check(resource: (&str, &str, &str), old: Value, new: Value, expected: Durability) {
        let kinds = Kinds::builtin();
        let (group, version, plural) = resource;
        let kind = kinds.by_resource(group, version, plural).expect("a kind");
        assert_eq!(durability(kind, &new, &old), expected, "{old} to {new}");
    }

    #[test]
    fn only_what_says_nothing_but_i_am_here_need_not_be_durable_at_once() {
        let lease = ("coordination.k8s.io", "v1", "leases");
        let held = |holder: &str, at: &str, version: &str| json!({"metadata": {"name": "n", "resourceVersion": version}, "spec": {"holderIdentity": holder, "renewTime": at}});
        check(lease, held("a", "1", "7"), held("a", "2", "8"), Durability::Soon);
        check(lease, held("a", "1", "7"), held("b", "2", "7"), Durability::Now);
        check(lease, json!({"metadata": {"name": "n"}}), held("a", "1", "7"), Durability::Now);
        let node = ("", "v1", "nodes");
        let at = |beat: &str, status: &str| {
            let ready = json!({"type": "Ready", "status": status, "lastHeartbeatTime": beat});
            json!({"metadata": {"name": "n"}, "status": {"conditions": [ready]}})
        };
        check(node, at("1", "True"), at("2", "True"), Durability::Soon);
        check(node, at("1", "True"), at("2", "Unknown"), Durability::Preferably);
        check(node, at("1", "True"), json!({"metadata": {"name": "n"}}), Durability::Preferably);
        check(
            node,
            at("1", "True"),
            json!({"metadata": {"name": "n", "labels": {"a": "b"}}}),
            Durability::Now,
        );
        check(("", "v1", "pods"), at("1", "True"), at("2", "True"), Durability::Now);
        // Stored by who knows whom; it is no reason to end.
        check(
            lease,
            json!({"metadata": {}, "spec": "text"}),
            json!({"metadata": {}, "spec": "text"}),
            Durability::Soon,
        );
    }
}
