//! What pods a namespace takes by its labels.

use serde_json::{Value, json};

use crate::fixture::{Answer, Client, Cluster, pod};

const LABEL: &str = "pod-security.kubernetes.io/";
const PODS: &str = "/api/v1/namespaces/a/pods";

fn privileged(name: &str) -> Value {
    let mut pod = pod(name);
    pod["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    pod
}

async fn label(admin: &Client, mode: &str, level: &str) -> Answer {
    let labels = json!({"metadata": {"labels": {format!("{LABEL}{mode}"): level}}});
    admin.patch("/api/v1/namespaces/a", "merge", labels).await
}

fn warnings(answer: &Answer) -> Vec<String> {
    let all = answer.headers.get_all("warning").iter();
    all.map(|value| value.to_str().expect("text").replace("\\\"", "\"")).collect()
}

#[tokio::test]
async fn a_pod_is_refused_by_what_its_namespace_enforces() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    admin.post(PODS, privileged("before")).await.created();
    assert_eq!(
        warnings(&label(&admin, "enforce", "baseline").await),
        [
            "299 - \"existing pods in namespace \"a\" violate the new PodSecurity enforce level \"baseline:latest\"\"",
            "299 - \"before: privileged\"",
        ]
    );
    assert_eq!(
        admin.post(PODS, privileged("after")).await.refused(403, "Forbidden"),
        "pods \"after\" is forbidden: violates PodSecurity \"baseline:latest\": privileged (container \"c\" must not set securityContext.privileged=true)"
    );
    admin.post(&format!("{PODS}?dryRun=All"), privileged("after")).await.refused(403, "Forbidden");
    let plain = admin.post(PODS, pod("plain")).await;
    assert_eq!((plain.code, warnings(&plain)), (201, Vec::new()));
    // What there is may still be labelled, and not be given another image.
    admin.patch(&format!("{PODS}/before"), "merge", json!({"metadata": {"labels": {"a": "b"}}})).await.ok();
    let image = json!({"spec": {"containers": [{"name": "c", "image": "other"}]}});
    admin.patch(&format!("{PODS}/before"), "strategic-merge", image).await.refused(403, "Forbidden");
    label(&admin, "enforce", "privileged").await.ok();
    admin.post(PODS, privileged("after")).await.created();
}

#[tokio::test]
async fn templates_are_warned_of() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    label(&admin, "enforce", "baseline").await.ok();
    let mut template = privileged("");
    template["metadata"] = json!({"labels": {"app": "web"}});
    let deployment = json!({
        "metadata": {"name": "web"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template},
    });
    let expected = [
        "299 - \"would violate PodSecurity \"baseline:latest\": privileged (container \"c\" must not set securityContext.privileged=true)\"",
    ];
    let url = "/apis/apps/v1/namespaces/a/deployments";
    let made = admin.post(url, deployment.clone()).await;
    assert_eq!((made.code, warnings(&made)), (201, expected.map(str::to_owned).to_vec()));
    let again = admin.put(&format!("{url}/web"), deployment).await;
    assert_eq!((again.code, warnings(&again)), (200, expected.map(str::to_owned).to_vec()));
}

#[tokio::test]
async fn labels_that_say_nothing_known_are_refused() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    assert_eq!(
        label(&admin, "enforce", "strict").await.refused(422, "Invalid"),
        "Namespace \"a\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": must be one of privileged, baseline, restricted"
    );
    label(&admin, "warn-version", "v1.99").await.ok();
    let refused = label(&admin, "audit-version", "1.30").await.refused(422, "Invalid");
    assert!(refused.ends_with("must be \"latest\" or \"v1.x\""), "{refused}");
}
