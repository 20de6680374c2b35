//! The controllers against a real API server in this process. Pods are run to their ends by the tests themselves.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, ReplicationController, ResourceQuota};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::serde::Serialize;
use k8s_openapi::serde::de::DeserializeOwned;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde_json::{Value, json};
use skiff_apiserver::store::{SqliteOptions, SqliteStore};
use skiff_apiserver::{ApiServer, Config, KubeletConfig, ServiceAccountConfig, UserInfo};
use skiff_client::Informers;
use tokio_util::sync::CancellationToken;

mod nodes;

const PATIENCE: Duration = Duration::from_secs(30);

struct Plane {
    server: ApiServer,
    client: Client,
    shutdown: CancellationToken,
    controllers: tokio::task::JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Plane {
    async fn start() -> Plane {
        Plane::start_with(None).await
    }

    async fn start_with(joining: Option<skiff_controllers::Joining>) -> Plane {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        let folder = tempfile::tempdir().expect("a folder");
        let options = SqliteOptions::new(folder.path().join("state.db"));
        let server = ApiServer::start(Config {
            store: Arc::new(SqliteStore::open(options).expect("the store opens")),
            tls: None,
            front_proxy: None,
            advertise: "192.0.2.1".parse().expect("an address"),
            port: 6443,
            service_cidr: "10.96.0.0/16".parse().expect("a range"),
            cluster_domain: "cluster.local".into(),
            event_ttl: skiff_apiserver::EVENT_TTL,
            kinds: skiff_apiserver::Kinds::builtin(),
            node_certificate_grace: std::time::Duration::ZERO,
            disabled_admission: Vec::new(),
            authorization: skiff_apiserver::AuthorizationOptions::default(),
            on_long_thread: || (),
            service_account: ServiceAccountConfig {
                private_key_pem: key.serialize_pem().into(),
                public_key_pem: key.public_key_pem().into(),
                issuer: None,
            },
            kubelet: KubeletConfig {
                certificate_pem: certificate.clone().into(),
                key_pem: key.serialize_pem().into(),
                ca_pem: certificate.into(),
                allow_loopback: true,
            },
        })
        .await
        .expect("the server starts");
        let client =
            |name, groups: &[&str]| Client::new(server.service_for(UserInfo::new(name, groups)), "default");
        let shutdown = CancellationToken::new();
        let config = skiff_controllers::Config {
            credentials: credentials(&server),
            service_lb: false,
            local_storage_class: None,
            selection: Default::default(),
        };
        // As whom they run in a cluster, so that a right they lack shows.
        let informers = Informers::new(client("system:kube-controller-manager", &[]), shutdown.clone());
        let (stop, ca) = (shutdown.clone(), "the CA".to_owned());
        let controllers = tokio::spawn(skiff_controllers::run(config, joining, ca, informers, stop));
        let client = client("admin", &["system:masters"]);
        let plane = Plane { server, client, shutdown, controllers, _folder: folder };
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = plane.api();
        until("the default account", || async { accounts.get_opt("default").await.ok()? }).await;
        plane
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.controllers).await.expect("they end").expect("none panics");
        self.server.close().await;
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + Serialize
            + DeserializeOwned,
    {
        let object: K = serde_json::from_value(object).expect("an object of its kind");
        self.api::<K>().create(&PostParams::default(), &object).await.expect("it is created")
    }

    /// The pods with a label that have not ended, once there are so many.
    async fn pods(&self, labels: &str, count: usize) -> Vec<Pod> {
        let api: Api<Pod> = self.api();
        until(&format!("{count} pods {labels}"), || async {
            let pods = api.list(&ListParams::default().labels(labels)).await.ok()?.items;
            let live: Vec<Pod> = pods.into_iter().filter(is_live).collect();
            (live.len() == count).then_some(live)
        })
        .await
    }

    async fn set_status(&self, pod: &Pod, status: Value) {
        let patch = Patch::Merge(json!({"status": status}));
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        self.api::<Pod>().patch_status(name, &PatchParams::default(), &patch).await.expect("a status");
    }

    async fn used(&self, name: &str) -> Value {
        let quota = self.api::<ResourceQuota>().get(name).await.expect("the quota");
        serde_json::to_value(quota.status.and_then(|status| status.used)).unwrap_or_default()
    }
}

fn is_live(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Succeeded" | "Failed"))
}

/// Looks until there is something, for a bounded time.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, look: impl Fn() -> F) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

fn template(app: &str, policy: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}},
        "spec": {"restartPolicy": policy, "containers": [{"name": "c", "image": "x"}]}})
}

fn conditions(job: &Job) -> Vec<(String, String)> {
    let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().map(|c| (c.type_.clone(), c.reason.clone().unwrap_or_default())).collect()
}

async fn job_with(plane: &Plane, name: &str, condition: &str) -> Job {
    let jobs: Api<Job> = plane.api();
    until(&format!("job {name} to be {condition}"), || async {
        let job = jobs.get(name).await.ok()?;
        conditions(&job).iter().any(|(kind, _)| kind == condition).then_some(job)
    })
    .await
}

#[tokio::test]
async fn an_indexed_job_runs_each_index_to_its_end_and_counts_it_once() {
    let plane = Plane::start().await;
    let spec = json!({"completions": 3, "parallelism": 2, "completionMode": "Indexed",
        "template": template("j", "Never")});
    plane.create::<Job>(json!({"metadata": {"name": "j"}, "spec": spec})).await;
    for left in [2, 2, 1] {
        let pods = plane.pods("app=j", left).await;
        let pod = &pods[0];
        assert!(pod.spec.as_ref().is_some_and(|s| s.hostname.as_ref().is_some_and(|h| h.starts_with("j-"))));
        plane.set_status(pod, json!({"phase": "Succeeded"})).await;
        // Counted pods have lost their finalizer.
        let name = pod.metadata.name.clone().unwrap_or_default();
        let pods: Api<Pod> = plane.api();
        until("the pod to be counted", || async {
            pods.get(&name).await.ok()?.metadata.finalizers.is_none().then_some(())
        })
        .await;
    }
    let job = job_with(&plane, "j", "Complete").await;
    let status = job.status.clone().expect("a status");
    assert_eq!((status.succeeded, status.completed_indexes.as_deref()), (Some(3), Some("0-2")));
    assert_eq!(conditions(&job)[0], ("SuccessCriteriaMet".to_owned(), "CompletionsReached".to_owned()));
    let background = DeleteParams::background();
    plane.api::<Job>().delete("j", &background).await.expect("it is deleted");
    let pods: Api<Pod> = plane.api();
    until("its pods to be gone", || async {
        pods.list(&ListParams::default()).await.ok()?.items.is_empty().then_some(())
    })
    .await;
    plane.stop().await;
}

#[tokio::test]
async fn a_job_that_fails_for_good_ends_its_other_pods() {
    let plane = Plane::start().await;
    let rule = json!({"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}});
    let spec = json!({"completions": 2, "parallelism": 2, "podFailurePolicy": {"rules": [rule]},
        "template": template("f", "Never")});
    plane.create::<Job>(json!({"metadata": {"name": "f"}, "spec": spec})).await;
    let pods = plane.pods("app=f", 2).await;
    let ended = json!({"name": "c", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": 42}}});
    plane.set_status(&pods[0], json!({"phase": "Failed", "containerStatuses": [ended]})).await;
    let job = job_with(&plane, "f", "Failed").await;
    let reasons: Vec<String> = conditions(&job).into_iter().map(|(_, reason)| reason).collect();
    assert_eq!(reasons, ["PodFailurePolicy", "PodFailurePolicy"]);
    assert_eq!(job.status.and_then(|status| status.failed), Some(2));
    plane.pods("app=f", 0).await;
    plane.stop().await;
}

#[tokio::test]
async fn a_quota_stops_a_replication_controller_until_there_is_room() {
    let plane = Plane::start().await;
    let hard = json!({"pods": "1", "count/replicationcontrollers": "2", "count/replicasets.apps": "5"});
    plane.create::<ResourceQuota>(json!({"metadata": {"name": "q"}, "spec": {"hard": hard}})).await;
    let counted = json!({"pods": "0", "count/replicationcontrollers": "0", "count/replicasets.apps": "0"});
    until("the quota to be counted", || async { (plane.used("q").await == counted).then_some(()) }).await;
    let spec = json!({"replicas": 2, "selector": {"app": "rc"}, "template": template("rc", "Always")});
    plane.create::<ReplicationController>(json!({"metadata": {"name": "rc"}, "spec": spec})).await;
    let controllers: Api<ReplicationController> = plane.api();
    until("the failure to be said", || async {
        let status = controllers.get("rc").await.ok()?.status?;
        let conditions = status.conditions.unwrap_or_default();
        let said = conditions.iter().any(|c| {
            c.type_ == "ReplicaFailure" && c.message.as_ref().is_some_and(|m| m.contains("exceeded quota: q"))
        });
        (said && status.replicas == 1).then_some(())
    })
    .await;
    assert_eq!(plane.used("q").await["pods"], "1");
    let fewer = Patch::Merge(json!({"spec": {"replicas": 1}}));
    controllers.patch("rc", &PatchParams::default(), &fewer).await.expect("it is scaled");
    until("the failure to be over", || async {
        let status = controllers.get("rc").await.ok()?.status?;
        status.conditions.is_none().then_some(())
    })
    .await;
    controllers.delete("rc", &DeleteParams::background()).await.expect("it is deleted");
    until("the quota to be free again", || async { (plane.used("q").await == counted).then_some(()) }).await;
    plane.stop().await;
}

#[tokio::test]
async fn a_budget_lets_go_of_as_many_pods_as_it_can_spare() {
    let plane = Plane::start().await;
    let spec = json!({"replicas": 2, "selector": {"app": "web"}, "template": template("web", "Always")});
    plane.create::<ReplicationController>(json!({"metadata": {"name": "web"}, "spec": spec})).await;
    let spec = json!({"maxUnavailable": "50%", "selector": {"matchLabels": {"app": "web"}}});
    plane.create::<PodDisruptionBudget>(json!({"metadata": {"name": "b"}, "spec": spec})).await;
    let pods = plane.pods("app=web", 2).await;
    for pod in &pods {
        let ready = json!([{"type": "Ready", "status": "True"}]);
        plane.set_status(pod, json!({"phase": "Running", "conditions": ready})).await;
    }
    let budgets: Api<PodDisruptionBudget> = plane.api();
    let status = until("a disruption to be allowed", || async {
        budgets.get("b").await.ok()?.status.filter(|status| status.disruptions_allowed == Some(1))
    })
    .await;
    assert_eq!((status.expected_pods, status.desired_healthy), (Some(2), Some(1)));
    let api: Api<Pod> = plane.api();
    let name = |at: usize| pods[at].metadata.name.clone().unwrap_or_default();
    api.evict(&name(0), &kube::api::EvictParams::default()).await.expect("one may go");
    let refused = api.evict(&name(1), &kube::api::EvictParams::default()).await.expect_err("not both");
    assert!(refused.to_string().contains("disruption budget"), "{refused}");
    plane.stop().await;
}

/// Each controller as itself, so that a right it lacks shows.
fn credentials(server: &ApiServer) -> skiff_controllers::Credentials {
    let server = server.clone();
    skiff_controllers::Credentials::new(move |user, groups| {
        Client::new(server.service_for(UserInfo::new(user, groups)), "default")
    })
}
