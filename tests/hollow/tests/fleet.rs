//! A fleet against the real API server, scheduler and controllers, in this process.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use skiff_apiserver::store::{SqliteOptions, SqliteStore};
use skiff_apiserver::{ApiServer, Config, KubeletConfig, ServiceAccountConfig, UserInfo};
use skiff_client::Informers;
use skiff_hollow::api::Caller;
use skiff_hollow::census::{Census, Counts};
use skiff_hollow::fleet::{FLEET_LABEL, Fleet, FleetOptions, Machine, WatchMode};
use skiff_hollow::latency::Latencies;
use skiff_hollow::scale::{Cleanup, ScaleOptions};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A control plane without a node.
struct Plane {
    server: ApiServer,
    running: JoinSet<()>,
    shutdown: CancellationToken,
    _folder: tempfile::TempDir,
}

impl Plane {
    async fn start() -> Result<Plane> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir()?;
        let signing = rcgen::KeyPair::generate()?;
        let kubelet = rcgen::generate_simple_self_signed(["kubelet".to_owned()])?;
        let certificate_pem: Vec<u8> = kubelet.cert.pem().into();
        let server = ApiServer::start(Config {
            store: Arc::new(SqliteStore::open(SqliteOptions::new(folder.path().join("state.db")))?),
            tls: None,
            front_proxy: None,
            advertise: [10, 0, 0, 1].into(),
            port: 6443,
            service_cidr: "10.96.0.0/16".parse()?,
            cluster_domain: "cluster.local".into(),
            event_ttl: skiff_apiserver::EVENT_TTL,
            kinds: skiff_apiserver::Kinds::builtin(),
            node_certificate_grace: std::time::Duration::ZERO,
            disabled_admission: Vec::new(),
            authorization: skiff_apiserver::AuthorizationOptions::default(),
            on_long_thread: || (),
            service_account: ServiceAccountConfig {
                private_key_pem: signing.serialize_pem().into(),
                public_key_pem: signing.public_key_pem().into(),
                issuer: None,
            },
            kubelet: KubeletConfig {
                ca_pem: certificate_pem.clone(),
                certificate_pem,
                key_pem: kubelet.signing_key.serialize_pem().into(),
                allow_loopback: true,
            },
        })
        .await?;
        let (shutdown, mut running) = (CancellationToken::new(), JoinSet::new());
        let client = |name| Client::new(server.service_for(UserInfo::new(name, &[])), "default");
        let informers = Informers::new(client("system:kube-controller-manager"), shutdown.clone());
        running.spawn(skiff_scheduler::run(
            client("system:kube-scheduler"),
            informers.clone(),
            "host".into(),
            shutdown.clone(),
        ));
        let controllers = skiff_controllers::Config {
            credentials: credentials(&server),
            service_lb: true,
            local_storage_class: None,
            selection: Default::default(),
        };
        running.spawn(skiff_controllers::run(
            controllers,
            None,
            "the CA".into(),
            informers,
            shutdown.clone(),
        ));
        Ok(Plane { server, running, shutdown, _folder: folder })
    }

    fn client(&self) -> Client {
        Client::new(self.server.service_for(UserInfo::new("admin", &["system:masters"])), "default")
    }

    async fn stop(mut self) -> Result<()> {
        self.shutdown.cancel();
        while let Some(ended) = self.running.join_next().await {
            ended?;
        }
        self.server.close().await;
        Ok(())
    }
}

fn options(n_nodes: u32, n_pods: u8, watch: WatchMode) -> FleetOptions {
    let machine = Machine { cpu: "4".into(), memory: "8Gi".into(), n_pods };
    FleetOptions {
        n_nodes,
        prefix: "hollow".into(),
        machine,
        watch,
        heartbeat_spread: Duration::from_secs(10),
    }
}

fn caller(plane: &Plane) -> Caller {
    Caller::new(plane.client(), 16, Arc::new(Latencies::default()))
}

/// Looks until `look` finds what it is looking for.
async fn until<T>(what: &str, look: impl AsyncFn() -> Result<Option<T>>) -> Result<T> {
    let looking = async {
        loop {
            if let Some(found) = look().await? {
                return Ok(found);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.with_context(|| format!("{what} has not come true"))?
}

async fn create_pod(pods: &Api<Pod>, name: &str) -> Result<()> {
    let pod = serde_json::from_value(json!({"metadata": {"name": name}, "spec": {
        "nodeSelector": {FLEET_LABEL: "hollow"}, "automountServiceAccountToken": false,
        "initContainers": [{"name": "first", "image": "i:1"}],
        "containers": [{"name": "c", "image": "i:1"}]}}))?;
    // The namespace's account comes within moments of the cluster's start.
    until("a pod to be taken", async || Ok(pods.create(&PostParams::default(), &pod).await.ok())).await?;
    Ok(())
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_hollow_nodes_run_until_they_are_deleted_however_they_are_watched() -> Result<()> {
    for watch in [WatchMode::Shared, WatchMode::PerNode] {
        let plane = Plane::start().await?;
        let fleet = Fleet::start(&options(3, 110, watch), caller(&plane), None).await?;
        let nodes: Api<Node> = Api::all(plane.client());
        ensure!(nodes.list(&ListParams::default()).await?.items.len() == 3);
        let leases: Api<Lease> = Api::namespaced(plane.client(), "kube-node-lease");
        ensure!(leases.list(&ListParams::default()).await?.items.len() == 3);

        let pods: Api<Pod> = Api::default_namespaced(plane.client());
        create_pod(&pods, "a").await?;
        let pod = until("a ready pod", async || Ok(Some(pods.get("a").await?).filter(is_ready))).await?;
        let (spec, status) = (pod.spec.context("no spec")?, pod.status.context("no status")?);
        ensure!(status.phase.as_deref() == Some("Running"), "{status:?}");
        ensure!(status.pod_ip.is_some_and(|ip| ip.starts_with("10.128.")), "{spec:?}");
        ensure!(status.container_statuses.is_some_and(|s| s[0].ready && s[0].container_id.is_some()));
        ensure!(status.init_container_statuses.is_some_and(|s| s[0].ready));

        pods.delete("a", &DeleteParams::default()).await?;
        until("the pod's end", async || Ok(pods.get_opt("a").await?.is_none().then_some(()))).await?;
        fleet.remove().await?;
        ensure!(nodes.list(&ListParams::default()).await?.items.is_empty());
        ensure!(leases.list(&ListParams::default()).await?.items.is_empty());
        plane.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_takes_up_the_pods_of_the_one_before_it_and_a_node_that_was_deleted_comes_back() -> Result<()>
{
    let plane = Plane::start().await?;
    let mut options = options(1, 110, WatchMode::Shared);
    let fleet = Fleet::start(&options, caller(&plane), None).await?;
    let pods: Api<Pod> = Api::default_namespaced(plane.client());
    create_pod(&pods, "a").await?;
    let before = until("a ready pod", async || Ok(Some(pods.get("a").await?).filter(is_ready))).await?;
    fleet.stop().await?;
    // While nobody is there, the pod is deleted, and another is made.
    pods.delete("a", &DeleteParams::default()).await?;
    create_pod(&pods, "b").await?;
    ensure!(pods.get_opt("a").await?.is_some(), "who has removed it?");

    options.heartbeat_spread = Duration::ZERO;
    let fleet = Fleet::start(&options, caller(&plane), None).await?;
    until("the first pod's end", async || Ok(pods.get_opt("a").await?.is_none().then_some(()))).await?;
    let after = until("the other pod", async || Ok(Some(pods.get("b").await?).filter(is_ready))).await?;
    let ip = |pod: &Pod| pod.status.as_ref().and_then(|s| s.pod_ip.clone());
    ensure!(ip(&before).is_some() && ip(&after).is_some());

    let nodes: Api<Node> = Api::all(plane.client());
    let uid = nodes.get("hollow-00000").await?.metadata.uid;
    nodes.delete("hollow-00000", &DeleteParams::default()).await?;
    until("the node to register again", async || {
        Ok(nodes.get_opt("hollow-00000").await?.filter(|node| node.metadata.uid != uid))
    })
    .await?;
    fleet.remove().await?;
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_census_sees_every_pod_of_its_run_and_a_scale_run_leaves_nothing() -> Result<()> {
    let plane = Plane::start().await?;
    let census = Census::new("nobody");
    ensure!(*census.counts().borrow() == Counts::default());
    for watch in [WatchMode::Shared, WatchMode::PerNode] {
        let scale = ScaleOptions {
            fleet: options(8, 20, watch),
            n_pods: 120,
            per_deployment: 50,
            n_namespaces: 2,
            image: "registry.k8s.io/pause:3.10.1".into(),
            n_places: 16,
            timeout: PATIENCE,
            steady: Duration::from_secs(1),
            cleanup: Cleanup::Remove,
            processes: vec![("me".into(), std::process::id())],
        };
        let report = skiff_hollow::scale::run(plane.client(), &scale).await?;
        let document = report.document();
        ensure!(document["failure"].is_null(), "{document}");
        ensure!(document["scheduling"]["seen_to_running"]["n"] == 120, "{document}");
        let verbs: Vec<&str> = document["by_verb"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|line| line["verb"].as_str())
            .collect();
        ensure!(verbs == ["DELETE", "GET", "LIST", "PATCH", "POST", "PUT", "WATCH"], "{verbs:?}");
        ensure!(report.table().contains("scheduling: "), "{}", report.table());
        let pods: Api<Pod> = Api::all(plane.client());
        let nodes: Api<Node> = Api::all(plane.client());
        ensure!(pods.list(&ListParams::default()).await?.items.is_empty());
        ensure!(nodes.list(&ListParams::default()).await?.items.is_empty());
    }
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scale_run_that_does_not_come_to_its_end_reports_why_and_what_it_has_measured() -> Result<()> {
    let plane = Plane::start().await?;
    // By their number all pods fit, by the CPU that each asks for one does not.
    let mut fleet = options(1, 20, WatchMode::Shared);
    fleet.machine.cpu = "190m".into();
    let scale = ScaleOptions {
        fleet,
        n_pods: 20,
        per_deployment: 20,
        n_namespaces: 1,
        image: "registry.k8s.io/pause:3.10.1".into(),
        n_places: 16,
        timeout: Duration::from_secs(10),
        steady: Duration::from_secs(1),
        cleanup: Cleanup::Keep,
        processes: Vec::new(),
    };
    let report = skiff_hollow::scale::run(plane.client(), &scale).await?;
    let failure = report.failure.clone().unwrap_or_default();
    ensure!(failure.contains("in the phase \"pods\": not done after 10 s"), "{failure}");
    ensure!(failure.contains("pending: 1, bound: 0, running: 19"), "{failure}");
    let document = report.document();
    ensure!(document["scheduling"]["seen_to_running"]["n"] == 19, "{document}");
    ensure!(document["by_verb"].as_array().is_some_and(|verbs| verbs.len() == 7), "{document}");
    plane.stop().await
}

/// Each controller as itself, so that a right it lacks shows.
fn credentials(server: &ApiServer) -> skiff_controllers::Credentials {
    let server = server.clone();
    skiff_controllers::Credentials::new(move |user, groups| {
        Client::new(server.service_for(UserInfo::new(user, groups)), "default")
    })
}
