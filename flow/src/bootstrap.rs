//! The objects that every cluster has.
//!
//! Source: upstream's `apis/flowcontrol/bootstrap`.

use serde_json::{Value, json};

/// Objects of both kinds, without a kind and version.
pub struct Bootstrap {
    pub levels: Vec<Value>,
    pub schemas: Vec<Value>,
}

impl Bootstrap {
    /// Whether the object is the server's whatever anybody writes into it.
    pub fn is_mandatory(name: &str) -> bool {
        matches!(name, "exempt" | "catch-all")
    }
}

pub const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

fn object(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "annotations": {AUTO_UPDATE: "true"}}, "spec": spec})
}

/// `queues`: their number and the size of a hand.
fn level(name: &str, shares: u32, lendable_percent: u32, queues: Option<(u32, u32)>) -> Value {
    let response = match queues {
        Some((queues, hand)) => json!({
            "type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": 50},
        }),
        None => json!({"type": "Reject"}),
    };
    let limited = json!({
        "nominalConcurrencyShares": shares, "lendablePercent": lendable_percent, "limitResponse": response,
    });
    object(name, json!({"type": "Limited", "limited": limited}))
}

fn schema(name: &str, level: &str, precedence: u32, distinguisher: &str, rule: &Value) -> Value {
    let mut spec = json!({
        "priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence, "rules": [rule],
    });
    if !distinguisher.is_empty() {
        spec["distinguisherMethod"] = json!({"type": distinguisher});
    }
    object(name, spec)
}

fn groups(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"kind": "Group", "group": {"name": name}})).collect()
}

fn users(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"kind": "User", "user": {"name": name}})).collect()
}

fn system_accounts() -> Value {
    json!({"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": "kube-system"}})
}

fn resources(verbs: &[&str], group: &str, resources: &[&str], has_cluster_scope: bool) -> Value {
    let mut rule = json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"]});
    if has_cluster_scope {
        rule["clusterScope"] = true.into();
    }
    rule
}

fn everything(subjects: &Value) -> Value {
    json!({
        "subjects": subjects,
        "resourceRules": [resources(&["*"], "*", &["*"], true)],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
    })
}

pub fn bootstrap() -> Bootstrap {
    const LEASES: &str = "coordination.k8s.io";
    let everybody = groups(&["system:unauthenticated", "system:authenticated"]);
    let nodes = groups(&["system:nodes"]);
    let accounts = json!([system_accounts()]);
    let mut electing = users(&["system:kube-controller-manager", "system:kube-scheduler"]);
    if let Some(electing) = electing.as_array_mut() {
        electing.push(system_accounts());
    }
    let probes = json!({
        "subjects": everybody,
        "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}],
    });
    let election = json!({
        "subjects": electing,
        "resourceRules": [resources(&["get", "create", "update"], LEASES, &["leases"], false)],
    });
    let heartbeats = json!({
        "subjects": nodes,
        "resourceRules": [
            resources(&["*"], "", &["nodes", "nodes/status"], true),
            resources(&["*"], LEASES, &["leases"], false),
        ],
    });
    let exempt = json!({
        "type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0},
    });
    let (user, namespace) = ("ByUser", "ByNamespace");
    let manager = users(&["system:kube-controller-manager"]);
    let scheduler = users(&["system:kube-scheduler"]);
    Bootstrap {
        levels: vec![
            object("exempt", exempt),
            level("catch-all", 5, 0, None),
            level("system", 30, 33, Some((64, 6))),
            level("node-high", 40, 25, Some((64, 6))),
            level("leader-election", 10, 0, Some((16, 4))),
            level("workload-high", 40, 50, Some((128, 6))),
            level("workload-low", 100, 90, Some((128, 6))),
            level("global-default", 20, 50, Some((128, 6))),
        ],
        schemas: vec![
            schema("exempt", "exempt", 1, "", &everything(&groups(&["system:masters"]))),
            schema("probes", "exempt", 2, "", &probes),
            schema("system-leader-election", "leader-election", 100, user, &election),
            schema("system-node-high", "node-high", 400, user, &heartbeats),
            schema("system-nodes", "system", 500, user, &everything(&nodes)),
            schema("kube-controller-manager", "workload-high", 800, namespace, &everything(&manager)),
            schema("kube-scheduler", "workload-high", 800, namespace, &everything(&scheduler)),
            schema("kube-system-service-accounts", "workload-high", 900, namespace, &everything(&accounts)),
            schema(
                "service-accounts",
                "workload-low",
                9000,
                user,
                &everything(&groups(&["system:serviceaccounts"])),
            ),
            schema("global-default", "global-default", 9900, user, &everything(&everybody)),
            schema("catch-all", "catch-all", 10_000, user, &everything(&everybody)),
        ],
    }
}
