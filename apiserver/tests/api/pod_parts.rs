//! What is written of a pod that runs: containers to look into it with, and what its containers are given.

use serde_json::{Value, json};

use crate::fixture::{Client, Cluster, pod};

const PODS: &str = "/api/v1/namespaces/a/pods";

fn sized(name: &str, cpu: &str) -> Value {
    let mut pod = pod(name);
    pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": cpu}, "limits": {"cpu": "2"}});
    pod
}

async fn resize(admin: &Client, name: &str, resources: Value) -> crate::fixture::Answer {
    let containers = json!([{"name": "c", "resources": resources}]);
    admin
        .patch(
            &format!("{PODS}/{name}/resize"),
            "strategic-merge",
            json!({"spec": {"containers": containers}}),
        )
        .await
}

#[tokio::test]
async fn ephemeral_containers_are_added_through_their_subresource_alone() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let mut early = pod("early");
    early["spec"]["ephemeralContainers"] = json!([{"name": "d", "image": "i"}]);
    admin.post(PODS, early).await.refused(422, "Invalid");
    let created = admin.post(PODS, pod("p")).await.created();
    let debug = json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "i", "targetContainerName": "c"}]},
        "metadata": {"labels": {"x": "y"}}});
    let message =
        admin.patch(&format!("{PODS}/p"), "strategic-merge", debug.clone()).await.refused(422, "Invalid");
    assert!(message.contains("pod updates may not change fields other than"), "{message}");
    let part = format!("{PODS}/p/ephemeralcontainers");
    let added = admin.patch(&part, "strategic-merge", debug).await.ok();
    let container = &added["spec"]["ephemeralContainers"][0];
    assert_eq!((&container["name"], &container["terminationMessagePolicy"]), (&json!("d"), &json!("File")));
    assert!(added["metadata"]["labels"].get("x").is_none(), "labels are another part");
    assert_eq!(
        added["metadata"]["generation"],
        created["metadata"]["generation"].as_i64().map(|g| g + 1).unwrap()
    );
    let managers = added["metadata"]["managedFields"].as_array().unwrap();
    assert!(managers.iter().any(|m| m["subresource"] == "ephemeralcontainers"));
    assert_eq!(admin.get(&part).await.ok()["spec"], added["spec"]);

    let mut gone = added.clone();
    gone["spec"]["ephemeralContainers"] = json!([]);
    let message = admin.put(&part, gone).await.refused(422, "Invalid");
    assert!(message.contains("existing ephemeral containers \"d\" may not be removed"), "{message}");
    for (fault, container) in [
        ("Duplicate value: \"c\"", json!({"name": "c", "image": "i"})),
        ("Not found: \"none\"", json!({"name": "e", "image": "i", "targetContainerName": "none"})),
        (
            "ports: Forbidden: cannot be set",
            json!({"name": "e", "image": "i", "ports": [{"containerPort": 1}]}),
        ),
    ] {
        let add = json!({"spec": {"ephemeralContainers": [container]}});
        let message = admin.patch(&part, "strategic-merge", add).await.refused(422, "Invalid");
        assert!(message.contains(fault), "{message}");
    }
}

#[tokio::test]
async fn what_a_namespace_forbids_no_ephemeral_container_brings() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}});
    admin.patch("/api/v1/namespaces/a", "merge", labels).await.ok();
    admin.post(PODS, pod("p")).await.created();
    let privileged = json!([{"name": "d", "image": "i", "securityContext": {"privileged": true}}]);
    let add = json!({"spec": {"ephemeralContainers": privileged}});
    let refused = admin.patch(&format!("{PODS}/p/ephemeralcontainers"), "strategic-merge", add).await;
    let message = refused.refused(403, "Forbidden");
    assert!(message.contains("violates PodSecurity \"baseline:latest\": privileged"), "{message}");
}

#[tokio::test]
async fn processors_are_given_through_resize_and_not_otherwise() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let created = admin.post(PODS, sized("p", "1")).await.created();
    let same = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "500m"}}}]}});
    admin.patch(&format!("{PODS}/p"), "strategic-merge", same).await.refused(422, "Invalid");
    let resized = resize(&admin, "p", json!({"requests": {"cpu": "1500m"}})).await.ok();
    assert_eq!(resized["spec"]["containers"][0]["resources"]["requests"]["cpu"], "1500m");
    assert_eq!(
        resized["metadata"]["generation"],
        created["metadata"]["generation"].as_i64().map(|g| g + 1).unwrap()
    );
    let mut whole = resized.clone();
    whole["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "3".into();
    whole["spec"]["containers"][0]["image"] = "other".into();
    let replaced = admin.put(&format!("{PODS}/p/resize"), whole).await.ok();
    let container = &replaced["spec"]["containers"][0];
    assert_eq!(
        (&container["resources"]["limits"]["cpu"], &container["image"]),
        (&json!("3"), &created["spec"]["containers"][0]["image"])
    );
    for (fault, resources) in [
        (
            "spec: Forbidden: only cpu and memory resources are mutable",
            json!({"limits": {"ephemeral-storage": "1Gi"}}),
        ),
        ("must be less than or equal to cpu limit", json!({"requests": {"cpu": "9"}})),
        (
            "spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed",
            json!({"limits": null}),
        ),
    ] {
        let message = resize(&admin, "p", resources).await.refused(422, "Invalid");
        assert!(message.contains(fault), "{message}");
    }
}

#[tokio::test]
async fn a_resize_is_charged_to_quotas_and_kept_within_limit_ranges() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    const QUOTAS: &str = "/api/v1/namespaces/a/resourcequotas";
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"requests.cpu": "2"}}});
    admin.post(QUOTAS, quota).await.created();
    let nothing = json!({"status": {"hard": {"requests.cpu": "2"}, "used": {"requests.cpu": "0"}}});
    admin.patch(&format!("{QUOTAS}/q/status"), "merge", nothing).await.ok();
    let range =
        json!({"metadata": {"name": "r"}, "spec": {"limits": [{"type": "Container", "max": {"cpu": "4"}}]}});
    admin.post("/api/v1/namespaces/a/limitranges", range).await.created();
    admin.post(PODS, sized("p", "1")).await.created();
    let used = async || {
        admin.get(&format!("{QUOTAS}/q")).await.ok()["status"]["used"]["requests.cpu"]
            .as_str()
            .map(str::to_owned)
    };
    assert_eq!(used().await.as_deref(), Some("1"));
    resize(&admin, "p", json!({"requests": {"cpu": "1500m"}})).await.ok();
    assert_eq!(used().await.as_deref(), Some("1500m"));
    let message = resize(&admin, "p", json!({"requests": {"cpu": "3"}, "limits": {"cpu": "3"}}))
        .await
        .refused(403, "Forbidden");
    assert!(
        message.contains("exceeded quota: q, requested: requests.cpu=1500m, used: requests.cpu=1500m"),
        "{message}"
    );
    let message = resize(&admin, "p", json!({"limits": {"cpu": "5"}})).await.refused(403, "Forbidden");
    assert!(message.contains("maximum cpu usage per Container is 4, but limit is 5"), "{message}");
    assert_eq!(used().await.as_deref(), Some("1500m"));
}
