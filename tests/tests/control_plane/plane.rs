//! One throw-away control plane.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Event, Node, Pod, ServiceAccount};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use skiff_apiserver::store::{SqliteOptions, SqliteStore, Store};
use skiff_apiserver::{ApiServer, Config, Kinds, KubeletConfig, ServiceAccountConfig, UserInfo};
use skiff_client::{Candidate, Informers};
use skiff_controllers::Selection;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::autoscaling::FakeMetrics;
use crate::clients::Access;
use crate::volumes::FakeNodes;

/// How long a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// An API server over a store of its own, with the scheduler, the controllers and one node, `n1`.
pub(crate) struct ControlPlane {
    client: Client,
    server: ApiServer,
    /// Below the API: for what only a disk does.
    pub(crate) store: Arc<dyn Store>,
    leading: Option<Leading>,
    /// What serves it, and its end.
    running: JoinSet<()>,
    shutdown: CancellationToken,
    _folder: tempfile::TempDir,
}

impl ControlPlane {
    pub(crate) async fn start() -> Result<ControlPlane> {
        ControlPlane::start_with(Selection::default()).await
    }

    /// Only these controllers run.
    pub(crate) async fn start_with(selection: Selection) -> Result<ControlPlane> {
        let folder = tempfile::tempdir()?;
        let plane = ControlPlane::begin(config(&folder)?, folder, selection, Played::Nothing).await?;
        plane.add_node(node("n1")).await?;
        Ok(plane)
    }

    /// One whose autoscalers are told what these metrics say.
    pub(crate) async fn start_with_metrics(metrics: &FakeMetrics) -> Result<ControlPlane> {
        let folder = tempfile::tempdir()?;
        let played = Played::Metrics(metrics.clone());
        let plane = ControlPlane::begin(config(&folder)?, folder, Selection::default(), played).await?;
        plane.add_node(node("n1")).await?;
        Ok(plane)
    }

    /// One without a node, whose server reaches kubelets that show this certificate, at the loopback address.
    pub(crate) async fn start_trusting(certificate_pem: &str, key_pem: &str) -> Result<ControlPlane> {
        let folder = tempfile::tempdir()?;
        let kubelet = KubeletConfig {
            ca_pem: certificate_pem.into(),
            certificate_pem: certificate_pem.into(),
            key_pem: key_pem.into(),
            allow_loopback: true,
        };
        let config = Config { kubelet, ..config(&folder)? };
        ControlPlane::begin(config, folder, Selection::default(), Played::Nothing).await
    }

    /// One with the storage class `local`, whose nodes answer for their volumes as these do.
    pub(crate) async fn start_with_volumes(nodes: &FakeNodes) -> Result<ControlPlane> {
        let folder = tempfile::tempdir()?;
        let played = Played::Nodes(nodes.clone());
        let plane = ControlPlane::begin(config(&folder)?, folder, Selection::default(), played).await?;
        plane.add_node(node("n1")).await?;
        Ok(plane)
    }

    /// One whose server has these kinds built in.
    pub(crate) async fn start_knowing(kinds: Kinds) -> Result<ControlPlane> {
        let folder = tempfile::tempdir()?;
        let config = Config { kinds, ..config(&folder)? };
        ControlPlane::begin(config, folder, Selection::default(), Played::Nothing).await
    }

    /// One that clients reach over TLS, on the loopback, and that has no node. Answers with it the administrator's kubeconfig.
    pub(crate) async fn start_served() -> Result<(ControlPlane, Access)> {
        let folder = tempfile::tempdir()?;
        let (listener, access) = Access::open(folder.path()).await?;
        let config = Config { tls: Some(access.tls()?), port: access.port, ..config(&folder)? };
        let mut plane = ControlPlane::begin(config, folder, Selection::default(), Played::Nothing).await?;
        plane.server.publish_authorities(&access.ca_pem(), None).await?;
        let (server, shutdown) = (plane.server.clone(), plane.shutdown.clone());
        plane
            .running
            .spawn(async move { server.serve(listener, shutdown).await.expect("the server serves") });
        Ok((plane, access))
    }

    async fn begin(
        config: Config,
        folder: tempfile::TempDir,
        selection: Selection,
        played: Played,
    ) -> Result<ControlPlane> {
        // Where several providers are linked, none is the default.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let store = config.store.clone();
        let server = ApiServer::start(config).await?;
        let client = Client::new(server.service_for(UserInfo::new("admin", &["system:masters"])), "default");
        let leading = Some(lead(&server, selection, played));
        let (running, shutdown) = (JoinSet::new(), CancellationToken::new());
        let plane = ControlPlane { client, server, store, leading, running, shutdown, _folder: folder };
        plane.has_account("default").await?;
        Ok(plane)
    }

    /// Scheduler and controllers end, and give back what they hold.
    pub(crate) async fn stop_leading(&mut self) -> Result<()> {
        let Some(leading) = self.leading.take() else { return Ok(()) };
        leading.shutdown.cancel();
        ended(leading.running).await
    }

    /// Scheduler and controllers wait for their turn.
    pub(crate) fn lead(&mut self) {
        self.leading = Some(lead(&self.server, Selection::default(), Played::Nothing));
    }

    /// Ends all of it; none of it may have failed, or take its time.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.stop_leading().await?;
        self.shutdown.cancel();
        ended(self.running).await?;
        self.server.close().await;
        Ok(())
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// What is in no namespace, or in all of them.
    pub(crate) fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// What is in the namespace `default`.
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        self.api_in("default")
    }

    pub(crate) fn api_in<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Adds a node, with what its kubelet says of it, that the scheduler knows when this returns.
    pub(crate) async fn add_node(&self, node: Value) -> Result<()> {
        let nodes = self.all::<Node>();
        let own_taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        let name = create(&nodes, node.clone()).await?.metadata.name.context("no name")?;
        nodes.patch_status(&name, &PatchParams::default(), &Patch::Merge(node)).await?;
        // Every node comes with a taint, which it loses when it is ready; a pod that came before would have to wait.
        until(&format!("{name} without the taint of new nodes"), async || {
            let taints = nodes.get(&name).await?.spec.and_then(|s| s.taints).unwrap_or_default();
            Ok((!taints.iter().any(|taint| taint.key == "node.kubernetes.io/not-ready")).then_some(()))
        })
        .await?;
        let bears: Vec<Value> =
            own_taints.iter().map(|taint| json!({"key": taint["key"], "operator": "Exists"})).collect();
        let only_here = json!({"nodeSelector": {"kubernetes.io/hostname": name}, "tolerations": bears});
        create(&self.api::<Pod>(), pod("probe", "probe", only_here)).await?;
        self.node_of("probe").await?;
        self.end_pod("probe").await
    }

    /// No pod can be made in a namespace before it has its account.
    pub(crate) async fn has_account(&self, namespace: &str) -> Result<()> {
        let accounts = self.api_in::<ServiceAccount>(namespace);
        until("the default account", async || Ok(accounts.get_opt("default").await?.map(drop))).await
    }

    pub(crate) async fn pods(&self) -> Result<Vec<Pod>> {
        list(&self.api()).await
    }

    /// Waits until the scheduler has bound a pod; answers its node.
    pub(crate) async fn node_of(&self, pod: &str) -> Result<String> {
        let pods = self.api::<Pod>();
        until(&format!("the node of {pod}"), async || Ok(pods.get(pod).await?.spec.and_then(|s| s.node_name)))
            .await
    }

    /// What a kubelet does for the pods that are bound and not on their way out: runs them.
    pub(crate) async fn run_pods(&self) -> Result<()> {
        let is_started = |p: &Pod| p.status.as_ref().is_some_and(|s| s.pod_ip.is_some());
        for (n, pod) in self.pods().await?.iter().enumerate() {
            if !is_bound(pod) || is_started(pod) || is_ending(pod) {
                continue;
            }
            self.report_pod(pod, &format!("10.1.0.{}", n + 1), true).await?;
        }
        Ok(())
    }

    /// Says of a pod that it runs, and whether it is ready.
    pub(crate) async fn report_pod(&self, pod: &Pod, ip: &str, ready: bool) -> Result<()> {
        let ready = if ready { "True" } else { "False" };
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        let name = pod.metadata.name.as_deref().context("no name")?;
        self.api::<Pod>().patch_status(name, &PatchParams::default(), &Patch::Strategic(status)).await?;
        Ok(())
    }

    /// What a kubelet does for the pods that are on their way out: ends them.
    pub(crate) async fn end_pods(&self) -> Result<()> {
        for pod in self.pods().await?.iter().filter(|p| is_ending(*p)) {
            self.end_pod(pod.metadata.name.as_deref().context("no name")?).await?;
        }
        Ok(())
    }

    pub(crate) async fn end_pod(&self, name: &str) -> Result<()> {
        self.api::<Pod>().delete(name, &DeleteParams::default().grace_period(0)).await?;
        Ok(())
    }

    /// Waits for an event; answers its message.
    pub(crate) async fn event(&self, about: &str, reason: &str) -> Result<String> {
        let events = self.api::<Event>();
        until(&format!("{reason} of {about}"), async || {
            let is_it = |e: &Event| {
                e.involved_object.name.as_deref() == Some(about) && e.reason.as_deref() == Some(reason)
            };
            Ok(list(&events).await?.into_iter().find(is_it).and_then(|e| e.message))
        })
        .await
    }
}

/// What controllers are answered by a test in place of the server.
enum Played {
    Nothing,
    Nodes(FakeNodes),
    Metrics(FakeMetrics),
}

/// What works while it holds a Lease.
struct Leading {
    running: JoinSet<()>,
    shutdown: CancellationToken,
}

/// As whom they run in a cluster, so that a right they lack shows.
fn lead(server: &ApiServer, selection: Selection, played: Played) -> Leading {
    let client = |name| Client::new(server.service_for(UserInfo::new(name, &[])), "default");
    let (shutdown, mut running) = (CancellationToken::new(), JoinSet::new());
    let informers = Informers::new(client("system:kube-controller-manager"), shutdown.clone());
    let scheduler = client("system:kube-scheduler");
    let candidate =
        |client: &Client, name| Candidate { client: client.clone(), name, identity: "n1_1".into() };
    let (candidacy, seen) = (candidate(&scheduler, "kube-scheduler"), informers.clone());
    running.spawn(skiff_client::lead(candidacy, shutdown.clone(), move |term| {
        skiff_scheduler::run(scheduler.clone(), seen.clone(), "host".into(), term)
    }));
    let candidacy = candidate(informers.client(), "kube-controller-manager");
    let controllers = skiff_controllers::Config {
        local_storage_class: matches!(played, Played::Nodes(_)).then(|| "local".to_owned()),
        credentials: credentials(server, played),
        service_lb: true,
        selection,
    };
    running.spawn(skiff_client::lead(candidacy, shutdown.clone(), move |term| {
        skiff_controllers::run(controllers.clone(), None, "the CA".into(), informers.clone(), term)
    }));
    Leading { running, shutdown }
}

/// Returns when all of it has ended, which none may do by failing, or take its time over.
async fn ended(mut running: JoinSet<()>) -> Result<()> {
    let ended = async {
        while let Some(ended) = running.join_next().await {
            ended?;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, ended).await.context("what runs beside the server does not end")?
}

fn config(folder: &tempfile::TempDir) -> Result<Config> {
    let signing = rcgen::KeyPair::generate()?;
    let kubelet = rcgen::generate_simple_self_signed(["kubelet".to_owned()])?;
    let certificate_pem: Vec<u8> = kubelet.cert.pem().into();
    Ok(Config {
        store: Arc::new(SqliteStore::open(SqliteOptions::new(folder.path().join("state.db")))?),
        tls: None,
        front_proxy: None,
        advertise: NODE_IP.parse()?,
        port: API_PORT,
        service_cidr: "10.96.0.0/16".parse()?,
        cluster_domain: "cluster.local".into(),
        event_ttl: skiff_apiserver::EVENT_TTL,
        kinds: Kinds::builtin(),
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
}

/// All nodes have it: no test goes there.
const NODE_IP: &str = "10.0.0.1";
const API_PORT: u16 = 6443;

/// A node of four CPUs that is ready.
pub(crate) fn node(name: &str) -> Value {
    let resources = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
    json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "status": {
        "allocatable": resources, "capacity": resources, "conditions": [{"type": "Ready", "status": "True"}],
        "addresses": [{"type": "InternalIP", "address": NODE_IP}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}}}})
}

/// A pod with the label `app`, whose spec is that of one container and `more`.
pub(crate) fn pod(name: &str, app: &str, more: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "c", "image": "image:1"}]});
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    json!({"metadata": {"name": name, "labels": {"app": app}}, "spec": spec})
}

pub(crate) fn is_bound(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|s| s.node_name.is_some())
}

pub(crate) fn is_ending<K: Resource>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_some()
}

pub(crate) async fn create<K>(api: &Api<K>, object: Value) -> Result<K>
where
    K: Clone + Debug + DeserializeOwned + Serialize,
{
    let object: K = serde_json::from_value(object)?;
    Ok(api.create(&PostParams::default(), &object).await?)
}

pub(crate) async fn list<K: Clone + Debug + DeserializeOwned>(api: &Api<K>) -> Result<Vec<K>> {
    Ok(api.list(&ListParams::default()).await?.items)
}

/// Looks until `look` finds what it is looking for.
pub(crate) async fn until<T>(what: &str, look: impl AsyncFn() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let last = look().await;
        if let Ok(Some(found)) = last {
            return Ok(found);
        }
        if Instant::now() > deadline {
            let why = last.err().map(|e| format!(" ({e:#})")).unwrap_or_default();
            bail!("{what} has not come true{why}");
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Each controller as itself, so that a right it lacks shows.
fn credentials(server: &ApiServer, played: Played) -> skiff_controllers::Credentials {
    let server = server.clone();
    skiff_controllers::Credentials::new(move |user, groups| {
        let service = server.service_for(UserInfo::new(user, groups));
        match &played {
            Played::Nodes(nodes) => nodes.client_over(service),
            Played::Metrics(metrics) => metrics.client_over(service),
            Played::Nothing => Client::new(service, "default"),
        }
    })
}
