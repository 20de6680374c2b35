//! HorizontalPodAutoscalers: up, down, to zero and not at all. What is measured is played by [`FakeMetrics`], and once by a kubelet.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use http::{Request, Response, StatusCode};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use kube::client::Body;
use kube::{Api, Client};
use serde_json::{Value, json};
use skiff_apiserver::ApiService;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tower::Service as _;

use crate::{ControlPlane, create, is_bound, node, until};

/// A pass comes every 15 s, and so do figures of nodes.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What is measured, as an adapter would tell it.
#[derive(Clone, Default)]
pub(crate) struct FakeMetrics(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    /// What all pods with a label use together, in thousandths of a processor.
    load: i64,
    /// Lists of values by path.
    values: BTreeMap<String, Value>,
    /// The paths that were asked for, with their queries.
    asked: Vec<String>,
}

impl FakeMetrics {
    /// Everything but metrics is asked of the server.
    pub(crate) fn client_over(&self, server: ApiService) -> Client {
        let metrics = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (mut server, metrics) = (server.clone(), metrics.clone());
            async move {
                let path = request.uri().path().to_owned();
                if !path.contains("metrics.k8s.io/") {
                    return server.call(request).await;
                }
                let query = request.uri().query().unwrap_or_default().to_owned();
                metrics.told().asked.push(format!("{path}?{query}"));
                let answer = match path.strip_prefix("/apis/metrics.k8s.io/v1beta1/namespaces/") {
                    Some(rest) => Some(metrics.of_pods(&server, rest).await),
                    None => metrics.told().values.get(&path).cloned(),
                };
                let refusal = json!({"kind": "Status", "code": 404, "reason": "NotFound",
                    "message": "the server could not find the metric"});
                let status = if answer.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
                let mut response = Response::new(answer.unwrap_or(refusal).to_string().into());
                *response.status_mut() = status;
                Ok(response)
            }
        });
        Client::new(service, "default")
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self, millis: i64) {
        self.told().load = millis;
    }

    fn value(&self, path: &str, values: &[&str]) {
        let item = |value: &&str| {
            json!({"describedObject": {"name": "web"}, "metricName": "m", "metric": {"name": "m"},
            "timestamp": "2026-01-01T00:00:00Z", "value": value})
        };
        let items: Vec<Value> = values.iter().map(item).collect();
        self.told().values.insert(path.to_owned(), json!({"items": items}));
    }

    /// The load, shared by the pods that run.
    async fn of_pods(&self, server: &ApiService, rest: &str) -> Value {
        let namespace = rest.split('/').next().unwrap_or_default();
        let pods: Api<Pod> = Api::namespaced(Client::new(server.clone(), "default"), namespace);
        let pods = pods.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default();
        let running =
            |pod: &&Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
        let names: Vec<&str> =
            pods.iter().filter(running).filter_map(|pod| pod.metadata.name.as_deref()).collect();
        let each = self.told().load / i64::try_from(names.len()).unwrap_or(1).max(1);
        let used = json!([{"name": "c", "usage": {"cpu": format!("{each}m"), "memory": "8Mi"}}]);
        let item = |name: &&str| {
            json!({"metadata": {"name": name}, "timestamp": "2026-01-02T00:00:00Z",
            "window": "15s", "containers": used})
        };
        json!({"items": names.iter().map(item).collect::<Vec<_>>()})
    }
}

/// Pods that ask for 100m.
fn deployment(name: &str, replicas: i32) -> Value {
    let container = json!({"name": "c", "image": "image:1", "resources": {"requests": {"cpu": "100m"}}});
    json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}},
        },
    })
}

/// One of the Deployment of its name, whose pods go as fast as they come.
fn autoscaler(name: &str, (min, max): (i32, i32), metrics: Value) -> Value {
    let policies = json!([{"type": "Pods", "value": 100, "periodSeconds": 15}]);
    let rules = json!({"stabilizationWindowSeconds": 0, "policies": policies});
    json!({
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": min, "maxReplicas": max, "metrics": metrics,
            "behavior": {"scaleUp": rules, "scaleDown": {"stabilizationWindowSeconds": 0}},
        },
    })
}

fn half_of_the_cpu() -> Value {
    json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}])
}

fn external(target: Value) -> Value {
    json!([{"type": "External", "external": {"metric": {"name": "queue"}, "target": target}}])
}

const QUEUE: &str = "/apis/external.metrics.k8s.io/v1beta1/namespaces/default/queue";

/// What a kubelet says of the pods that are bound: they have been ready for long.
async fn run_pods(plane: &ControlPlane) -> Result<()> {
    for pod in plane.pods().await? {
        let runs = pod.status.as_ref().is_some_and(|status| status.start_time.is_some());
        if runs || !is_bound(&pod) {
            continue;
        }
        let status = json!({"status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z", "podIP": "10.1.0.9",
            "podIPs": [{"ip": "10.1.0.9"}],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        let name = pod.metadata.name.as_deref().context("no name")?;
        plane.api::<Pod>().patch_status(name, &PatchParams::default(), &Patch::Strategic(status)).await?;
    }
    Ok(())
}

/// Plays the node until a Deployment is to have so many pods, all of which run.
async fn until_scaled(plane: &ControlPlane, name: &str, replicas: i32) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        run_pods(plane).await?;
        plane.end_pods().await?;
        let found = plane.api::<Deployment>().get(name).await?;
        let (wanted, ready) =
            (found.spec.replicas, found.status.and_then(|status| status.ready_replicas).unwrap_or(0));
        if (wanted, ready) == (Some(replicas), replicas) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let hpa = plane.api::<HorizontalPodAutoscaler>().get(name).await?;
            bail!("{name} has {wanted:?}, of which {ready} are ready, and not {replicas}: {:?}", hpa.status);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Has an autoscaler looked at now: its spec changes.
async fn look(plane: &ControlPlane, name: &str, max: i32) -> Result<()> {
    let patch = Patch::Merge(json!({"spec": {"maxReplicas": max}}));
    plane.api::<HorizontalPodAutoscaler>().patch(name, &PatchParams::default(), &patch).await?;
    Ok(())
}

/// Waits until a condition has this reason; answers its status and message.
async fn condition(plane: &ControlPlane, name: &str, type_: &str, reason: &str) -> Result<(String, String)> {
    let api = plane.api::<HorizontalPodAutoscaler>();
    until(&format!("{type_} of {name} to be {reason}"), async || {
        let conditions = api.get(name).await?.status.and_then(|status| status.conditions);
        let found = conditions.into_iter().flatten().find(|of| of.type_ == type_);
        let found = found.filter(|of| of.reason.as_deref() == Some(reason));
        Ok(found.map(|of| (of.status, of.message.unwrap_or_default())))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_follow_the_load_up_and_down() -> Result<()> {
    let metrics = FakeMetrics::default();
    let plane = ControlPlane::start_with_metrics(&metrics).await?;
    create(&plane.api::<Deployment>(), deployment("web", 1)).await?;
    until_scaled_without(&plane, "web", 1).await?;
    metrics.load(300);
    create(&plane.api::<HorizontalPodAutoscaler>(), autoscaler("web", (1, 4), half_of_the_cpu())).await?;
    until_scaled(&plane, "web", 4).await?;
    let message = plane.event("web", "SuccessfulRescale").await?;
    ensure!(
        message == "New size: 4; reason: cpu resource utilization (percentage of request) above target",
        "{message}"
    );
    let limited = condition(&plane, "web", "ScalingLimited", "TooManyReplicas").await?;
    ensure!(
        limited == ("True".into(), "the desired replica count is more than the maximum replica count".into())
    );
    let active = condition(&plane, "web", "ScalingActive", "ValidMetricFound").await?;
    ensure!(
        active.1
            == "the HPA was able to successfully calculate a replica count from cpu resource utilization (percentage \
                of request)",
        "{active:?}"
    );

    metrics.load(80);
    look(&plane, "web", 5).await?;
    until_scaled(&plane, "web", 2).await?;
    let status = until("the status of two pods", async || {
        let status = plane.api::<HorizontalPodAutoscaler>().get("web").await?.status;
        Ok(status.filter(|status| status.desired_replicas == 2))
    })
    .await?;
    let current = serde_json::to_value(&status)?;
    ensure!(current["currentMetrics"][0]["resource"]["current"]["averageUtilization"] == 20, "{current}");
    ensure!(current["lastScaleTime"].is_string() && current["observedGeneration"].is_i64(), "{current}");
    let asked = metrics.told().asked.clone();
    let url = "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods?labelSelector=app%3Dweb";
    ensure!(asked.iter().all(|asked| asked == url), "{asked:?}");
    plane.stop().await
}

/// Plays the node until so many pods are ready, without an autoscaler.
async fn until_scaled_without(plane: &ControlPlane, name: &str, replicas: i32) -> Result<()> {
    until(&format!("{replicas} pods of {name}"), async || {
        run_pods(plane).await?;
        let status = plane.api::<Deployment>().get(name).await?.status;
        Ok((status.and_then(|status| status.ready_replicas) == Some(replicas)).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_an_autoscaler_from_scaling_is_said_in_its_conditions_and_events() -> Result<()> {
    let plane = ControlPlane::start_with_metrics(&FakeMetrics::default()).await?;
    let hpas = plane.api::<HorizontalPodAutoscaler>();
    create(&hpas, autoscaler("none", (1, 4), half_of_the_cpu())).await?;
    let (status, message) = condition(&plane, "none", "AbleToScale", "FailedGetScale").await?;
    let why = "deployments.apps \"none\" not found";
    ensure!(status == "False" && message.ends_with(&format!("target's current scale: {why}")), "{message}");
    ensure!(plane.event("none", "FailedGetScale").await? == why);
    let mut odd = autoscaler("odd", (1, 4), half_of_the_cpu());
    odd["spec"]["scaleTargetRef"] = json!({"apiVersion": "example.com/v1", "kind": "Nothing", "name": "odd"});
    create(&hpas, odd).await?;
    let why = "no matches for kind \"Nothing\" in group \"example.com\"";
    ensure!(plane.event("odd", "FailedGetScale").await? == why);

    let mut bare = deployment("bare", 1);
    bare["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({});
    create(&plane.api::<Deployment>(), bare).await?;
    until_scaled_without(&plane, "bare", 1).await?;
    create(&hpas, autoscaler("bare", (1, 4), half_of_the_cpu())).await?;
    let (status, message) = condition(&plane, "bare", "ScalingActive", "FailedGetResourceMetric").await?;
    let start = "the HPA was unable to compute the replica count: failed to get cpu utilization: missing request for cpu \
                 in container c of Pod bare-";
    ensure!(status == "False" && message.starts_with(start), "{message}");
    let message = plane.event("bare", "FailedComputeMetricsReplicas").await?;
    let start = "invalid metrics (1 invalid out of 1), first error is: failed to get cpu resource metric value: failed to \
                 get cpu utilization: missing request";
    ensure!(message.starts_with(start), "{message}");

    // Two of the same pods, of which none may have its way.
    create(&plane.api::<Deployment>(), deployment("shared", 1)).await?;
    until_scaled_without(&plane, "shared", 1).await?;
    for name in ["a", "b"] {
        let mut one = autoscaler(name, (1, 4), half_of_the_cpu());
        one["spec"]["scaleTargetRef"]["name"] = "shared".into();
        create(&hpas, one).await?;
    }
    look(&plane, "a", 5).await?;
    let (_, message) = condition(&plane, "a", "ScalingActive", "AmbiguousSelector").await?;
    ensure!(
        message
            == "pods by selector app=shared are controlled by more than one HPA (e.g. [{a default} {b default}])",
        "{message}"
    );
    hpas.delete("b", &Default::default()).await?;
    until("b to be gone", async || Ok(hpas.get_opt("b").await?.is_none().then_some(()))).await?;
    look(&plane, "a", 6).await?;
    condition(&plane, "a", "ScalingActive", "ValidMetricFound").await?;
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_outside_of_min_and_max_is_brought_back_and_zero_turns_an_autoscaler_off() -> Result<()> {
    let metrics = FakeMetrics::default();
    let plane = ControlPlane::start_with_metrics(&metrics).await?;
    let deployments = plane.api::<Deployment>();
    // As much as three pods are to have.
    metrics.load(150);
    create(&deployments, deployment("web", 5)).await?;
    create(&plane.api::<HorizontalPodAutoscaler>(), autoscaler("web", (2, 3), half_of_the_cpu())).await?;
    until_scaled(&plane, "web", 3).await?;
    let message = plane.event("web", "SuccessfulRescale").await?;
    ensure!(message == "New size: 3; reason: Current number of replicas above Spec.MaxReplicas", "{message}");
    let to_zero = Patch::Merge(json!({"spec": {"replicas": 0}}));
    deployments.patch("web", &PatchParams::default(), &to_zero).await?;
    look(&plane, "web", 4).await?;
    let (status, message) = condition(&plane, "web", "ScalingActive", "ScalingDisabled").await?;
    ensure!(status == "False", "{status}");
    ensure!(message == "scaling is disabled since the replica count of the target is zero", "{message}");
    ensure!(deployments.get("web").await?.spec.replicas == Some(0));
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_outside_of_the_cluster_scales_to_zero_and_back() -> Result<()> {
    let metrics = FakeMetrics::default();
    let plane = ControlPlane::start_with_metrics(&metrics).await?;
    create(&plane.api::<Deployment>(), deployment("web", 1)).await?;
    until_scaled_without(&plane, "web", 1).await?;
    metrics.value(QUEUE, &["20", "5"]);
    let target = json!({"type": "AverageValue", "averageValue": "10"});
    create(&plane.api::<HorizontalPodAutoscaler>(), autoscaler("web", (0, 9), external(target))).await?;
    until_scaled(&plane, "web", 3).await?;
    let message = plane.event("web", "SuccessfulRescale").await?;
    ensure!(message == "New size: 3; reason: external metric queue(nil) above target", "{message}");
    metrics.value(QUEUE, &["0"]);
    look(&plane, "web", 8).await?;
    until_scaled(&plane, "web", 0).await?;
    let (status, _) = condition(&plane, "web", "ScaledToZero", "ScaledToZero").await?;
    ensure!(status == "True", "{status}");
    metrics.value(QUEUE, &["11"]);
    look(&plane, "web", 7).await?;
    until_scaled(&plane, "web", 2).await?;
    condition(&plane, "web", "ScaledToZero", "NotScaledToZero").await?;
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_of_pods_and_objects_are_asked_of_an_adapter_in_the_version_it_has() -> Result<()> {
    let metrics = FakeMetrics::default();
    let plane = ControlPlane::start_with_metrics(&metrics).await?;
    create(&plane.api::<Deployment>(), deployment("web", 1)).await?;
    until_scaled_without(&plane, "web", 1).await?;
    let name = plane.pods().await?.pop().and_then(|pod| pod.metadata.name).context("a pod")?;
    let custom = "/apis/custom.metrics.k8s.io/v1beta1/namespaces/default";
    let item = json!({"describedObject": {"name": name}, "metricName": "requests", "timestamp": "2026-01-01T00:00:00Z",
        "window": 60, "value": "30"});
    metrics.told().values.insert(format!("{custom}/pods/*/requests"), json!({"items": [item]}));
    metrics.value(&format!("{custom}/services/web/backlog"), &["8"]);
    let of_pods = json!({"metric": {"name": "requests", "selector": {"matchLabels": {"verb": "GET"}}},
        "target": {"type": "AverageValue", "averageValue": "10"}});
    let of_object = json!({"metric": {"name": "backlog"}, "describedObject": {"apiVersion": "v1", "kind": "Service", "name": "web"},
        "target": {"type": "Value", "value": "4"}});
    let both = json!([{"type": "Pods", "pods": of_pods}, {"type": "Object", "object": of_object}]);
    create(&plane.api::<HorizontalPodAutoscaler>(), autoscaler("web", (1, 9), both)).await?;
    // Of two, the one that asks for more.
    let message = plane.event("web", "SuccessfulRescale").await?;
    ensure!(message == "New size: 3; reason: pods metric requests above target", "{message}");
    let status = until("both metrics in the status", async || {
        let status = plane.api::<HorizontalPodAutoscaler>().get("web").await?.status;
        Ok(status.filter(|status| status.current_metrics.as_ref().is_some_and(|all| all.len() == 2)))
    })
    .await?;
    let told = serde_json::to_value(&status)?;
    ensure!(told["currentMetrics"][0]["pods"]["current"]["averageValue"] == "30", "{told}");
    ensure!(told["currentMetrics"][1]["object"]["current"]["value"] == "8", "{told}");
    let asked = metrics.told().asked.clone();
    let selected = "pods/*/requests?labelSelector=app%3Dweb&metricLabelSelector=verb%20in%20%28GET%29";
    ensure!(asked.iter().any(|url| url.contains("v1beta2") && url.ends_with(selected)), "{asked:?}");
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_custom_resource_with_a_scale_is_scaled_like_any_other() -> Result<()> {
    let metrics = FakeMetrics::default();
    let plane = ControlPlane::start_with_metrics(&metrics).await?;
    let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let definition = json!({
        "metadata": {"name": "farms.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "farms", "kind": "Farm"},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": any, "status": any}}},
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
                    "labelSelectorPath": ".status.selector",
                }},
            }],
        },
    });
    create(&plane.all::<CustomResourceDefinition>(), definition).await?;
    let resource = ApiResource {
        group: "example.com".into(),
        version: "v1".into(),
        api_version: "example.com/v1".into(),
        kind: "Farm".into(),
        plural: "farms".into(),
    };
    let farms: Api<DynamicObject> = Api::namespaced_with(plane.client().clone(), "default", &resource);
    let farm = json!({"apiVersion": "example.com/v1", "kind": "Farm", "metadata": {"name": "farm"}, "spec": {"replicas": 2}});
    let farm: DynamicObject = serde_json::from_value(farm)?;
    until("the kind", async || Ok(farms.create(&Default::default(), &farm).await.ok().map(drop))).await?;
    let status = Patch::Merge(json!({"status": {"replicas": 2, "selector": "app=farm"}}));
    farms.patch_status("farm", &PatchParams::default(), &status).await?;
    metrics.value(QUEUE, &["50"]);
    let target = json!({"type": "AverageValue", "averageValue": "10"});
    let mut hpa = autoscaler("farm", (1, 9), external(target));
    hpa["spec"]["scaleTargetRef"] = json!({"apiVersion": "example.com/v1", "kind": "Farm", "name": "farm"});
    create(&plane.api::<HorizontalPodAutoscaler>(), hpa).await?;
    let max = Cell::new(9);
    until("five of it", async || {
        // A look before discovery has told of the kind finds nothing.
        max.set(max.get() + 1);
        look(&plane, "farm", max.get()).await?;
        Ok((farms.get_scale("farm").await?.spec.and_then(|spec| spec.replicas) == Some(5)).then_some(()))
    })
    .await?;
    plane.stop().await
}

/// A kubelet whose pods use this many thousandths of a processor each.
async fn kubelet(pods: Arc<Mutex<Vec<String>>>, millis: u64) -> Result<(u16, String, String)> {
    let pair = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    let (certificate, key) = (pair.cert.der().clone(), pair.signing_key.serialize_der());
    let key = rustls::pki_types::PrivateKeyDer::try_from(key).map_err(anyhow::Error::msg)?;
    let tls =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (port, began) = (listener.local_addr()?.port(), Instant::now());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = [0; 4096];
            let Ok(1..) = stream.read(&mut head).await else { continue };
            let at_ms = jiff::Timestamp::now().as_millisecond();
            let used = (began.elapsed().as_millis() as f64 + 1000.0) / 1000.0 * millis as f64 / 1000.0;
            let mut page = String::new();
            for pod in pods.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                let labels = format!("{{container=\"c\",namespace=\"default\",pod=\"{pod}\"}}");
                page += &format!("container_cpu_usage_seconds_total{labels} {used} {at_ms}\n");
                page += &format!("container_memory_working_set_bytes{labels} 1048576 {at_ms}\n");
                page += &format!("container_start_time_seconds{labels} 1\n");
            }
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{page}",
                page.len()
            );
            _ = stream.write_all(answer.as_bytes()).await;
            _ = stream.shutdown().await;
        }
    });
    Ok((port, pair.cert.pem(), pair.signing_key.serialize_pem()))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_nodes_pods_use_reaches_the_autoscaler_through_the_servers_own_metrics() -> Result<()> {
    let pods: Arc<Mutex<Vec<String>>> = Arc::default();
    let (port, certificate_pem, key_pem) = kubelet(pods.clone(), 150).await?;
    let plane = ControlPlane::start_trusting(&certificate_pem, &key_pem).await?;
    let mut own = node("n1");
    own["status"]["addresses"] = json!([{"type": "InternalIP", "address": "127.0.0.1"}]);
    own["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"] = port.into();
    create(&plane.all::<Node>(), own.clone()).await?;
    plane.all::<Node>().patch_status("n1", &PatchParams::default(), &Patch::Merge(own)).await?;
    create(&plane.api::<Deployment>(), deployment("web", 1)).await?;
    until_scaled_without(&plane, "web", 1).await?;
    let name = plane.pods().await?.pop().and_then(|pod| pod.metadata.name).context("a pod")?;
    pods.lock().unwrap_or_else(PoisonError::into_inner).push(name);
    // 150 % of what the pod asks for, and half is wanted.
    create(&plane.api::<HorizontalPodAutoscaler>(), autoscaler("web", (1, 9), half_of_the_cpu())).await?;
    let message = plane.event("web", "SuccessfulRescale").await?;
    ensure!(
        message == "New size: 3; reason: cpu resource utilization (percentage of request) above target"
            || message
                == "New size: 4; reason: cpu resource utilization (percentage of request) above target",
        "{message}"
    );
    plane.stop().await
}
