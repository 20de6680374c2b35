//! What of a pod every node may see: what network policies need of other nodes' pods. Neither their environment nor their arguments,
//! images, volumes or annotations.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

macro_rules! parts {
    ($($(#[$attribute:meta])* $name:ident { $($(#[$of_field:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$attribute])*
        #[derive(Deserialize, Serialize)]
        #[serde(rename_all = "camelCase")]
        struct $name<'d> {
            $($(#[$of_field])* #[serde(borrow, default, skip_serializing_if = "Option::is_none")] $field: Option<$type>,)*
        }
    )*};
}

parts! {
    Pod {
        kind: &'d RawValue,
        #[serde(rename = "apiVersion")]
        api_version: &'d RawValue,
        metadata: Metadata<'d>,
        spec: Spec<'d>,
        status: Status<'d>,
    }
    Metadata {
        name: &'d RawValue,
        namespace: &'d RawValue,
        uid: &'d RawValue,
        #[serde(rename = "resourceVersion")]
        resource_version: &'d RawValue,
        deletion_timestamp: &'d RawValue,
        labels: &'d RawValue,
    }
    Spec {
        init_containers: Vec<Container<'d>>,
        containers: Vec<Container<'d>>,
        node_name: &'d RawValue,
        host_network: &'d RawValue,
    }
    /// Of one that runs before the others, whether it goes on beside them.
    Container {
        ports: Vec<Port<'d>>,
        restart_policy: &'d RawValue,
    }
    Port {
        name: &'d RawValue,
        container_port: &'d RawValue,
        protocol: &'d RawValue,
    }
    Status {
        phase: &'d RawValue,
        #[serde(rename = "podIPs")]
        pod_ips: &'d RawValue,
    }
}

/// A pod's document with nothing else in it.
pub(super) fn for_nodes(document: &Bytes) -> Bytes {
    let cut = serde_json::from_slice::<Pod<'_>>(document).and_then(|pod| serde_json::to_vec(&pod));
    cut.map_or_else(
        |error| {
            // What cannot be cut is not shown: a client takes it for damage.
            tracing::error!(%error, "a pod cannot be cut to what nodes may see");
            Bytes::from_static(b"null")
        },
        Bytes::from,
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_pod_is_cut_to_what_nodes_may_see() {
        let secret = json!([{"name": "PASSWORD", "value": "secret"}]);
        let pod = json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": "a", "namespace": "d", "uid": "u", "resourceVersion": "7", "labels": {"l": "1"},
                "deletionTimestamp": "2026-01-01T00:00:00Z",
                "annotations": {"a": "secret"}, "managedFields": [{"manager": "secret"}], "ownerReferences": []},
            "spec": {"nodeName": "n", "hostNetwork": true, "serviceAccountName": "secret", "volumes": [{"name": "secret"}],
                "initContainers": [{"name": "i", "restartPolicy": "Always", "ports": [{"containerPort": 1}], "env": secret}],
                "containers": [{"name": "c", "image": "secret", "args": ["secret"], "env": secret,
                    "ports": [{"name": "web", "containerPort": 80, "protocol": "TCP", "hostPort": 81}]}, {"name": "e"}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "message": "secret"},
        });
        let cut = for_nodes(&serde_json::to_vec(&pod).unwrap().into());
        let cut: Value = serde_json::from_slice(&cut).unwrap();
        assert_eq!(
            cut,
            json!({
                "kind": "Pod", "apiVersion": "v1",
                "metadata": {"name": "a", "namespace": "d", "uid": "u", "resourceVersion": "7", "labels": {"l": "1"},
                    "deletionTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"nodeName": "n", "hostNetwork": true,
                    "initContainers": [{"restartPolicy": "Always", "ports": [{"containerPort": 1}]}],
                    "containers": [{"ports": [{"name": "web", "containerPort": 80, "protocol": "TCP"}]}, {}]},
                "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
            })
        );
    }

    #[test]
    fn what_is_no_pod_shows_nothing() {
        assert_eq!(for_nodes(&Bytes::from_static(b"{\"metadata\":\"secret\"}")), "null");
    }
}
