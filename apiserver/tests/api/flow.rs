//! Flow schemas and priority levels: those that every cluster has, and what they do to requests.

use std::time::Duration;

use serde_json::{Value, json};

use crate::custom::until;
use crate::fixture::{Client, Cluster, config_map};
use crate::webhooks::{Hook, VALIDATING};

const GROUP: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/a/configmaps";

fn level(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"type": "Limited", "limited": {
        "nominalConcurrencyShares": 1, "lendablePercent": 0, "borrowingLimitPercent": 0, "limitResponse": {"type": "Reject"},
    }}})
}

fn schema(name: &str, level: &str, user: &str) -> Value {
    let rule = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true});
    json!({"metadata": {"name": name}, "spec": {
        "priorityLevelConfiguration": {"name": level}, "matchingPrecedence": 500, "distinguisherMethod": {"type": "ByUser"},
        "rules": [{"subjects": [{"kind": "User", "user": {"name": user}}], "resourceRules": [rule]}],
    }})
}

fn dangles(schema: &Value) -> (&str, &str) {
    let condition = &schema["status"]["conditions"][0];
    (condition["status"].as_str().unwrap_or_default(), condition["reason"].as_str().unwrap_or_default())
}

async fn names(client: &Client, plural: &str) -> Vec<String> {
    let list = client.get(&format!("{GROUP}/{plural}")).await.ok();
    let items = list["items"].as_array().expect("items").iter();
    items.map(|item| item["metadata"]["name"].as_str().expect("a name").to_owned()).collect()
}

#[tokio::test]
async fn every_cluster_has_upstreams_and_keeps_them() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let levels = [
        "catch-all",
        "exempt",
        "global-default",
        "leader-election",
        "node-high",
        "system",
        "workload-high",
        "workload-low",
    ];
    let schemas = [
        "catch-all",
        "exempt",
        "global-default",
        "kube-controller-manager",
        "kube-scheduler",
        "kube-system-service-accounts",
        "probes",
        "service-accounts",
        "system-leader-election",
        "system-node-high",
        "system-nodes",
    ];
    assert_eq!(names(&admin, "prioritylevelconfigurations").await, levels);
    assert_eq!(names(&admin, "flowschemas").await, schemas);
    let list = format!("{GROUP}/flowschemas");
    for name in schemas {
        until(&admin, &list, name, |_, schema| dangles(schema) == ("False", "Found")).await;
    }

    // What somebody has made his own stays as he wants it; what must be there is as it was.
    let own = json!({"metadata": {"annotations": {"apf.kubernetes.io/autoupdate-spec": "false"}}, "spec": {"matchingPrecedence": 8}});
    admin.patch(&format!("{list}/global-default"), "merge", own).await.ok();
    admin
        .patch(&format!("{list}/service-accounts"), "merge", json!({"spec": {"matchingPrecedence": 9}}))
        .await
        .ok();
    let shares = json!({"spec": {"limited": {"nominalConcurrencyShares": 77}}});
    let catch_all = format!("{GROUP}/prioritylevelconfigurations/catch-all");
    admin.patch(&catch_all, "merge", shares).await.ok();
    admin.delete(&format!("{list}/probes")).await.ok();
    let mut old = schema("old", "exempt", "nobody");
    old["metadata"]["annotations"] = json!({"apf.kubernetes.io/autoupdate-spec": "true"});
    admin.post(&list, old).await.created();
    let cluster = cluster.restart().await;
    let admin = cluster.admin();
    assert_eq!(names(&admin, "flowschemas").await, schemas);
    let precedence = async |name: &str| {
        admin.get(&format!("{list}/{name}")).await.ok()["spec"]["matchingPrecedence"].clone()
    };
    assert_eq!(
        (precedence("global-default").await, precedence("service-accounts").await),
        (json!(8), json!(9000))
    );
    assert_eq!(admin.get(&catch_all).await.ok()["spec"]["limited"]["nominalConcurrencyShares"], 5);
}

#[tokio::test]
async fn a_schema_says_whether_its_level_is_there() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let list = format!("{GROUP}/flowschemas");
    admin.post(&list, schema("jane", "tiny", "jane")).await.created();
    let told = until(&admin, &list, "jane", |_, schema| dangles(schema) == ("True", "NotFound")).await;
    assert_eq!(
        told["status"]["conditions"][0]["message"],
        "This FlowSchema references the PriorityLevelConfiguration object named \"tiny\" but there is no such object"
    );
    admin.post(&format!("{GROUP}/prioritylevelconfigurations"), level("tiny")).await.created();
    until(&admin, &list, "jane", |_, schema| dangles(schema) == ("False", "Found")).await;
}

/// Reads the metrics until a line is there.
async fn metric(admin: &Client, line: &str) {
    let seen = async {
        loop {
            let text = admin.get("/metrics").await;
            let text = String::from_utf8_lossy(&text.bytes).into_owned();
            if text.lines().any(|one| one == line) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), seen).await.unwrap_or_else(|_| panic!("no {line}"));
}

#[tokio::test]
async fn a_level_that_is_full_refuses_its_own_and_no_others() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let tiny = admin.post(&format!("{GROUP}/prioritylevelconfigurations"), level("tiny")).await.created();
    let list = format!("{GROUP}/flowschemas");
    let of_jane = admin.post(&list, schema("jane", "tiny", "jane")).await.created();
    until(&admin, &list, "jane", |_, schema| dangles(schema) == ("False", "Found")).await;

    // A webhook that never answers has requests keep their seats.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let hook =
        Hook { port: silent.local_addr().expect("an address").port(), asked: std::sync::Arc::default() };
    let more = json!({"failurePolicy": "Ignore", "timeoutSeconds": 30});
    hook.register(&cluster, VALIDATING, ("", "configmaps"), &["CREATE"], more).await;
    let jane = cluster.client("jane", &[]);
    let role = json!({"metadata": {"name": "maps"}, "rules": [{"verbs": ["*"], "apiGroups": [""], "resources": ["configmaps"]}]});
    const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1";
    admin.post(&format!("{ROLES}/clusterroles"), role).await.created();
    for user in ["jane", "joe"] {
        let binding = crate::rbac::binding(user, "ClusterRole", "maps", &crate::rbac::user(user));
        admin.post(&format!("{ROLES}/clusterrolebindings"), binding).await.created();
    }
    crate::rbac::settle(&admin).await;
    let held: Vec<_> = (0..3)
        .map(|n| {
            let jane = cluster.client("jane", &[]);
            tokio::spawn(async move { jane.post(MAPS, config_map(&format!("m{n}"), "v")).await })
        })
        .collect();
    metric(
        &admin,
        "apiserver_flowcontrol_current_executing_requests{priority_level=\"tiny\",flow_schema=\"jane\"} 3",
    )
    .await;

    let refused = jane.get(MAPS).await;
    assert_eq!(refused.refused(429, "TooManyRequests"), "Too many requests, please try again later.");
    assert_eq!(refused.headers["retry-after"], "1");
    let told = |answer: &crate::fixture::Answer| {
        let of = |name: &str| answer.headers[name].to_str().expect("text").to_owned();
        (of("x-kubernetes-pf-flowschema-uid"), of("x-kubernetes-pf-prioritylevel-uid"))
    };
    let uid = |object: &Value| object["metadata"]["uid"].as_str().expect("a UID").to_owned();
    assert_eq!(told(&refused), (uid(&of_jane), uid(&tiny)));
    let joe = cluster.client("joe", &[]).get(MAPS).await;
    joe.ok();
    assert_ne!(told(&joe).1, uid(&tiny));
    let levels = admin.get("/debug/api_priority_and_fairness/dump_priority_levels").await;
    let levels = String::from_utf8_lossy(&levels.bytes).into_owned();
    let row = levels.lines().find(|line| line.starts_with("tiny,")).expect("a row");
    assert_eq!(
        row.split_whitespace().collect::<Vec<_>>(),
        ["tiny,", "0,", "false,", "false,", "0,", "3,", "3,", "1,", "0,", "0,"]
    );

    drop(silent);
    for held in held {
        held.await.expect("no panic").created();
    }
    jane.get(MAPS).await.ok();
    let refusals = "apiserver_flowcontrol_rejected_requests_total{priority_level=\"tiny\",flow_schema=\"jane\",reason=\"concurrency-limit\"} 1";
    metric(&admin, refusals).await;
}
