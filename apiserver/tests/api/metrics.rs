//! `/metrics`: what happened is counted, under upstream's names.

use http::Method;
use serde_json::json;

use crate::fixture::{Client, Cluster, config_map};

pub(crate) async fn page(admin: &Client) -> String {
    let answer = admin.get("/metrics").await;
    assert_eq!(
        answer.headers["content-type"],
        "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"
    );
    String::from_utf8_lossy(&answer.bytes).into_owned()
}

/// The value of a sample that has all of these labels, whatever others.
pub(crate) fn sample(page: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let has = |line: &str| {
        let labels_of = line.strip_prefix(name).and_then(|rest| rest.strip_prefix('{'));
        labels_of.is_some_and(|line| labels.iter().all(|(k, v)| line.contains(&format!("{k}=\"{v}\""))))
    };
    let line = page
        .lines()
        .find(|line| has(line) || (labels.is_empty() && line.starts_with(&format!("{name} "))))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn requests_are_counted_by_verb_scope_and_code() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let maps = "/api/v1/namespaces/a/configmaps";
    admin.post(maps, config_map("m", "1")).await.created();
    admin.post(&format!("{maps}?dryRun=All"), config_map("n", "1")).await.created();
    admin.post(maps, config_map("m", "1")).await.refused(409, "AlreadyExists");
    let applied = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"m"},"data":{"k":"2"}}"#;
    let headers = [("content-type", "application/apply-patch+yaml")];
    admin.send(Method::PATCH, &format!("{maps}/m?fieldManager=t&force=true"), &headers, applied).await.ok();
    admin.get(maps).await.ok();
    admin.get("/api/v1/namespaces/a/nothings/x").await.refused(404, "NotFound");
    let page = page(&admin).await;
    let requests = |labels: &[(&str, &str)]| sample(&page, "apiserver_request_total", labels);
    let map = ("resource", "configmaps");
    let created = |dry_run, code| {
        requests(&[("verb", "POST"), map, ("scope", "resource"), ("dry_run", dry_run), ("code", code)])
    };
    assert_eq!(
        (created("", "201"), created("All", "201"), created("", "409")),
        (Some(1.0), Some(1.0), Some(1.0))
    );
    assert_eq!(requests(&[("verb", "APPLY"), map, ("component", "apiserver"), ("code", "200")]), Some(1.0));
    assert_eq!(requests(&[("verb", "LIST"), map, ("scope", "namespace"), ("version", "v1")]), Some(1.0));
    assert!(!page.contains("nothings"), "what a client makes up is no label");
    let took = sample(&page, "apiserver_request_duration_seconds_count", &[("verb", "APPLY"), map]);
    assert_eq!(took, Some(1.0));
    let wrote =
        |operation| sample(&page, "etcd_request_duration_seconds_count", &[("operation", operation), map]);
    // With the server's own, and the one that the store refused.
    assert_eq!((wrote("create"), wrote("update")), (Some(3.0), Some(1.0)));
    assert_eq!(
        sample(&page, "apiserver_resource_objects", &[map, ("group", "")]),
        Some(1.0 + trusted(&admin).await)
    );
    assert!(
        sample(&page, "authorization_attempts_total", &[("result", "allowed")]).is_some_and(|n| n >= 6.0)
    );
    assert!(
        sample(&page, "authentication_attempts_total", &[("result", "success")]).is_some_and(|n| n >= 6.0)
    );
    assert_eq!(
        sample(&page, "kubernetes_build_info", &[("major", "1"), ("git_tree_state", "clean")]),
        Some(1.0)
    );
    for of_process in ["process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"] {
        assert!(sample(&page, of_process, &[]).is_some_and(|value| value > 0.0), "{of_process}");
    }
    let this = ("request_kind", "readOnly");
    assert_eq!(
        sample(&page, "apiserver_current_inflight_requests", &[this]),
        Some(1.0),
        "the one for this page"
    );
}

/// The config maps of other namespaces, which the server makes.
async fn trusted(admin: &Client) -> f64 {
    let all = admin.get("/api/v1/configmaps").await.ok();
    all["items"].as_array().map_or(0.0, |items| items.len() as f64) - 1.0
}

#[tokio::test]
async fn a_watch_is_counted_while_it_goes_on_and_so_are_its_events() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let maps = "/api/v1/namespaces/a/configmaps";
    let mut watch = admin.watch(&format!("{maps}?watch=1&resourceVersion=0&allowWatchBookmarks=false")).await;
    admin.post(maps, config_map("m", "1")).await.created();
    assert_eq!(watch.named().await, ("ADDED".to_owned(), "m".to_owned()));
    let labels = [("verb", "WATCH"), ("resource", "configmaps"), ("scope", "namespace")];
    let before = page(&admin).await;
    assert_eq!(sample(&before, "apiserver_longrunning_requests", &labels), Some(1.0));
    assert_eq!(sample(&before, "apiserver_watch_events_total", &[("resource", "configmaps")]), Some(1.0));
    drop(watch);
    let after = page(&admin).await;
    assert_eq!(sample(&after, "apiserver_longrunning_requests", &labels), Some(0.0));
    let verb = [("verb", "WATCH"), ("resource", "configmaps")];
    assert_eq!(
        sample(&after, "apiserver_request_duration_seconds_count", &verb),
        None,
        "its time says nothing"
    );
}

#[tokio::test]
async fn policies_are_timed_and_open_metrics_are_given_to_who_asks() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let group = "/apis/admissionregistration.k8s.io/v1";
    let rule = json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]});
    let policy = json!({
        "metadata": {"name": "p"},
        "spec": {"matchConstraints": {"resourceRules": [rule]}, "validations": [{"expression": "object.data.k != '2'"}]},
    });
    admin.post(&format!("{group}/validatingadmissionpolicies"), policy).await.created();
    let binding =
        json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Deny"]}});
    admin.post(&format!("{group}/validatingadmissionpolicybindings"), binding).await.created();
    let maps = "/api/v1/namespaces/a/configmaps";
    admin.post(maps, json!({"metadata": {"name": "m"}, "data": {"k": "1"}})).await.created();
    admin.post(maps, json!({"metadata": {"name": "n"}, "data": {"k": "2"}})).await.refused(422, "Invalid");
    let answer = admin.get_as("/metrics", "application/openmetrics-text;version=1.0.0,*/*;q=0.1").await;
    let text = String::from_utf8_lossy(&answer.bytes).into_owned();
    assert!(text.ends_with("# EOF\n"), "{text}");
    let timed = |rejected| {
        let labels = [("name", "ValidatingAdmissionPolicy"), ("type", "validate"), ("rejected", rejected)];
        sample(&text, "apiserver_admission_controller_admission_duration_seconds_count", &labels)
    };
    assert_eq!(timed("true"), Some(1.0));
    assert!(timed("false").is_some_and(|n| n >= 1.0), "{text}");
}
