//! `metrics.k8s.io`, read from kubelets that this test plays.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::fixture::{Client, Cluster};
use crate::proxy::tls_of;

const NODES: &str = "/apis/metrics.k8s.io/v1beta1/nodes";
const PODS: &str = "/apis/metrics.k8s.io/v1beta1/pods";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

/// A kubelet whose node and containers use 100m and 50m, by its own clock, which goes on by 15 s with each question.
struct Kubelet {
    port: u16,
    asked: Arc<AtomicU64>,
}

impl Kubelet {
    /// One that tells of these containers: namespace, pod, container.
    async fn of(cluster: &Cluster, containers: &'static [[&'static str; 3]]) -> Kubelet {
        Kubelet::answering(cluster, move |n| {
            let (at_ms, ms) = (1_700_000_000_000 + n * 15_000, (n + 1) * 1500);
            let mut page = format!("node_cpu_usage_seconds_total {} {at_ms}\n", ms as f64 / 1000.0);
            page += &format!("node_memory_working_set_bytes 1.073741824e+09 {at_ms}\n");
            for [namespace, pod, container] in containers {
                let labels = format!("{{container=\"{container}\",namespace=\"{namespace}\",pod=\"{pod}\"}}");
                let cpu = ms as f64 / 2000.0;
                page += &format!("container_cpu_usage_seconds_total{labels} {cpu} {at_ms}\n");
                page += &format!("container_memory_working_set_bytes{labels} 2097152 {at_ms}\n");
                page += &format!("container_start_time_seconds{labels} 1600000000\n");
            }
            Body::from(page)
        })
        .await
    }

    /// One whose page is this, at the nth question.
    async fn answering(
        cluster: &Cluster,
        page: impl Fn(u64) -> Body + Clone + Send + Sync + 'static,
    ) -> Kubelet {
        let pair = cluster.pki.issue("system:node:any", &["system:nodes"]);
        let acceptor = tls_of(&pair.certificate_pem, &pair.key_pem);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let asked = Arc::<AtomicU64>::default();
        let counted = asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, page, counted) = (acceptor.clone(), page.clone(), counted.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                        assert_eq!(request.uri().path(), "/metrics/resource");
                        let response = Response::new(page(counted.fetch_add(1, Ordering::SeqCst)));
                        async move { Ok::<_, Infallible>(response) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new();
                    _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Kubelet { port, asked }
    }

    async fn joins(&self, admin: &Client, name: &str) {
        let status = json!({
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.port}},
        });
        let node = json!({"metadata": {"name": name, "labels": {"node": name}}, "status": status});
        admin.post("/api/v1/nodes", node).await.created();
    }
}

async fn bound_pod(admin: &Client, name: &str, node: &str) {
    let pod = json!({
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]},
    });
    admin.post("/api/v1/namespaces/a/pods", pod).await.created();
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().expect("items").iter();
    items.map(|item| item["metadata"]["name"].as_str().expect("a name")).collect()
}

#[tokio::test]
async fn what_nodes_and_pods_use_is_read_once_somebody_asks_and_told_as_metrics_server_tells_it() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let (one, two) = tokio::join!(
        Kubelet::of(&cluster, &[["a", "web", "a"], ["a", "web", "b"], ["a", "other", "a"]]),
        // A node that tells of a pod that is another's.
        Kubelet::of(&cluster, &[["a", "other", "a"], ["a", "web", "a"]])
    );
    one.joins(&admin, "one").await;
    two.joins(&admin, "two").await;
    bound_pod(&admin, "web", "one").await;
    bound_pod(&admin, "other", "two").await;
    bound_pod(&admin, "fresh", "two").await;
    assert_eq!(one.asked.load(Ordering::SeqCst), 0, "nobody has asked");

    let nodes = admin.get(NODES).await.ok();
    assert_eq!((&nodes["kind"], names(&nodes)), (&json!("NodeMetricsList"), vec!["one", "two"]));
    let node = &nodes["items"][0];
    assert_eq!(node["usage"], json!({"cpu": "100m", "memory": "1Gi"}));
    assert_eq!((&node["timestamp"], &node["window"]), (&json!("2023-11-14T22:13:35Z"), &json!("15s")));
    assert_eq!(node["metadata"]["labels"]["node"], "one");
    assert_eq!(one.asked.load(Ordering::SeqCst), 2, "two points have a rate");

    let pods = admin.get(PODS).await.ok();
    assert_eq!(names(&pods), ["other", "web"], "of one that is fresh nothing is known");
    let used = json!({"cpu": "50m", "memory": "2Mi"});
    assert_eq!(
        pods["items"][1]["containers"],
        json!([{"name": "a", "usage": used}, {"name": "b", "usage": used}])
    );
    assert_eq!(names(&admin.get(&format!("{PODS}?labelSelector=app%3Dweb")).await.ok()), ["web"]);
    let by_name = format!("{PODS}?fieldSelector=metadata.name%3Dother");
    assert_eq!(names(&admin.get(&by_name).await.ok()), ["other"]);
    admin.get(&format!("{PODS}?fieldSelector=spec.nodeName%3Done")).await.refused(400, "BadRequest");
    let in_namespace = "/apis/metrics.k8s.io/v1beta1/namespaces/a/pods";
    assert_eq!(names(&admin.get(in_namespace).await.ok()), ["other", "web"]);
    let elsewhere = "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods";
    assert_eq!(admin.get(elsewhere).await.ok()["items"], json!([]));
    assert_eq!(one.asked.load(Ordering::SeqCst), 2, "the figures of one round are for everybody");

    let web = admin.get(&format!("{in_namespace}/web")).await.ok();
    assert_eq!((&web["kind"], &web["apiVersion"]), (&json!("PodMetrics"), &json!("metrics.k8s.io/v1beta1")));
    let missing = admin.get(&format!("{in_namespace}/fresh")).await.refused(404, "NotFound");
    assert_eq!(missing, "podmetrics.metrics.k8s.io \"a/fresh\" not found");
    assert_eq!(
        admin.get(&format!("{in_namespace}/none")).await.refused(404, "NotFound"),
        "pods \"none\" not found"
    );
    let table = admin.get_as(in_namespace, TABLE).await.ok();
    let columns = table["columnDefinitions"].as_array().expect("columns").iter();
    let columns: Vec<_> = columns.map(|c| (c["name"].as_str(), c["format"].as_str())).collect();
    let column = |name, format| (Some(name), Some(format));
    assert_eq!(
        columns,
        [
            column("Name", "name"),
            column("cpu", "quantity"),
            column("memory", "quantity"),
            column("Window", "duration")
        ]
    );
    assert_eq!(table["rows"][1]["cells"], json!(["web", "100m", "4Mi", "15s"]));
    let node = admin.get_as(&format!("{NODES}/two"), TABLE).await.ok();
    assert_eq!(node["rows"][0]["cells"], json!(["two", "100m", "1Gi", "15s"]));
    let message = admin.get_as(in_namespace, "application/vnd.kubernetes.protobuf").await;
    assert_eq!((message.code, &message.bytes[..4]), (200, &b"k8s\0"[..]));
    for (method, url) in [(http::Method::DELETE, in_namespace), (http::Method::POST, in_namespace)] {
        assert_eq!(admin.send(method, url, &[], "{}").await.code, 405);
    }
    assert_eq!(admin.get(&format!("{in_namespace}?watch=true")).await.code, 405);
}

#[tokio::test]
async fn metrics_are_for_who_may_view_the_pods_of_a_namespace_and_no_others() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let url = "/apis/metrics.k8s.io/v1beta1/namespaces/a/pods";
    let jane = cluster.client("jane", &[]);
    assert_eq!(
        jane.get(url).await.refused(403, "Forbidden"),
        "pods.metrics.k8s.io is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"metrics.k8s.io\" in the namespace \"a\""
    );
    let role = admin
        .get("/apis/rbac.authorization.k8s.io/v1/clusterroles/system:aggregated-metrics-reader")
        .await
        .ok();
    assert_eq!(role["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"], "true");
    let binding = json!({
        "metadata": {"name": "jane"}, "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "system:aggregated-metrics-reader", "apiGroup": "rbac.authorization.k8s.io"},
    });
    admin.post("/apis/rbac.authorization.k8s.io/v1/namespaces/a/rolebindings", binding).await.created();
    jane.get(url).await.ok();
    jane.get(NODES).await.refused(403, "Forbidden");
}

#[tokio::test]
async fn a_node_that_is_endless_silent_or_away_costs_the_others_nothing() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let line = "node_cpu_usage_seconds_total 7 1\n".repeat(1000);
    let endless = move |_| {
        let line = bytes::Bytes::from(line.clone());
        Body::from_stream(futures::stream::repeat_with(move || Ok::<_, Infallible>(line.clone())))
    };
    let silent = |_| Body::from_stream(futures::stream::pending::<Result<bytes::Bytes, Infallible>>());
    let (good, endless, silent) = tokio::join!(
        Kubelet::of(&cluster, &[]),
        Kubelet::answering(&cluster, endless),
        Kubelet::answering(&cluster, silent)
    );
    good.joins(&admin, "good").await;
    endless.joins(&admin, "endless").await;
    silent.joins(&admin, "silent").await;
    admin.post("/api/v1/nodes", json!({"metadata": {"name": "nowhere"}})).await.created();
    assert_eq!(names(&admin.get(NODES).await.ok()), ["good"]);
    assert_eq!(
        admin.get(&format!("{NODES}/silent")).await.refused(404, "NotFound"),
        "nodemetrics.metrics.k8s.io \"silent\" not found"
    );
}
