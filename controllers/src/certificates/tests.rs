//! A node that joins, against a real API server in this process.

use std::collections::BTreeMap;

use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;
use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::api::core::v1::{ConfigMap, NodeAddress, NodeStatus, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::runtime::wait::await_condition;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair};
use skiff_apiserver::store::{SqliteOptions, SqliteStore};
use skiff_apiserver::{ApiServer, KubeletConfig, ServiceAccountConfig, UserInfo};
use skiff_client::Informers;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{Joining, JoiningOptions, Reached};

struct Cluster {
    server: ApiServer,
    shutdown: CancellationToken,
    controllers: tokio::task::JoinHandle<()>,
    reached: watch::Sender<Reached>,
    ca_pem: String,
    _folder: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Cluster {
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "test-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = params.self_signed(&ca_key).unwrap().pem();
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(SqliteOptions::new(folder.path().join("state.db"))).unwrap();
        let server = ApiServer::start(skiff_apiserver::Config {
            store: Arc::new(store),
            tls: None,
            front_proxy: None,
            advertise: "192.0.2.1".parse().unwrap(),
            port: 6443,
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            cluster_domain: "cluster.local".into(),
            event_ttl: skiff_apiserver::EVENT_TTL,
            kinds: skiff_apiserver::Kinds::builtin(),
            node_certificate_grace: std::time::Duration::ZERO,
            disabled_admission: Vec::new(),
            authorization: skiff_apiserver::AuthorizationOptions::default(),
            on_long_thread: || (),
            service_account: ServiceAccountConfig {
                private_key_pem: ca_key.serialize_pem().into(),
                public_key_pem: ca_key.public_key_pem().into(),
                issuer: None,
            },
            kubelet: KubeletConfig {
                certificate_pem: ca_pem.clone().into(),
                key_pem: ca_key.serialize_pem().into(),
                ca_pem: ca_pem.clone().into(),
                allow_loopback: true,
            },
        })
        .await
        .unwrap();
        let reached = watch::Sender::new(reached_at("192.0.2.1"));
        let joining = Joining::new(JoiningOptions {
            reached: reached.subscribe(),
            ca_pem: &ca_pem,
            ca_key_pem: &ca_key.serialize_pem(),
            reserved_names: Vec::new(),
            cluster_cidr: "10.244.0.0/16",
            node_prefix: 24,
            service_cidr: None,
        })
        .unwrap();
        let shutdown = CancellationToken::new();
        let user = UserInfo::new("system:kube-controller-manager", &[]);
        let client = Client::new(server.service_for(user), "default");
        let informers = Informers::new(client, shutdown.clone());
        let api = server.clone();
        let credentials = crate::Credentials::new(move |user, groups| {
            Client::new(api.service_for(UserInfo::new(user, groups)), "default")
        });
        let config = crate::Config {
            credentials,
            service_lb: false,
            local_storage_class: None,
            selection: Default::default(),
        };
        let controllers = crate::run(config, Some(joining), ca_pem.clone(), informers, shutdown.clone());
        let controllers = tokio::spawn(controllers);
        Cluster { server, shutdown, controllers, reached, ca_pem, _folder: folder }
    }

    fn client(&self, user: &str, groups: &[&str]) -> Client {
        Client::new(self.server.service_for(UserInfo::new(user, groups)), "default")
    }

    fn node(&self, name: &str) -> Client {
        self.client(&format!("system:node:{name}"), &["system:nodes"])
    }

    /// Asks for a certificate and waits until that is decided, and issued if it was approved.
    async fn ask(&self, client: Client, node: &str, signer: &str, auth: &str, sans: &[&str]) -> Answer {
        let sans: Vec<String> = sans.iter().map(|s| (*s).to_owned()).collect();
        let mut params = CertificateParams::new(sans).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
        let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let spec = CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: signer.into(),
            usages: Some(vec!["digital signature".into(), auth.into()]),
            ..CertificateSigningRequestSpec::default()
        };
        let metadata = ObjectMeta { generate_name: Some("csr-".into()), ..ObjectMeta::default() };
        let csr = CertificateSigningRequest { metadata, spec, status: None };
        let api: Api<CertificateSigningRequest> = Api::all(client);
        let name = api.create(&PostParams::default(), &csr).await.unwrap().metadata.name.unwrap();
        let settled = |csr: Option<&CertificateSigningRequest>| {
            csr.is_some_and(|c| {
                plan::is_issued(c) || plan::has_condition(c, "Denied") || plan::has_condition(c, "Failed")
            })
        };
        let waiting = await_condition(api, &name, settled);
        let csr = tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("decided in time");
        let status = csr.unwrap().unwrap().status.unwrap();
        Answer {
            pem: status.certificate.map(|c| String::from_utf8(c.0).unwrap()),
            condition: status.conditions.unwrap_or_default().remove(0),
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.controllers.await.unwrap();
        self.server.close().await;
    }
}

struct Answer {
    pem: Option<String>,
    condition: CertificateSigningRequestCondition,
}

#[tokio::test]
async fn a_node_joins_with_a_token_and_then_stands_for_itself() {
    let cluster = Cluster::start().await;
    let joining = cluster.client("system:bootstrap:abcdef", &["system:bootstrappers"]);
    let answer = cluster.ask(joining, "a", plan::KUBELET_CLIENT, "client auth", &[]).await;
    assert_eq!(answer.condition.type_, "Approved");
    assert_eq!(answer.condition.reason.as_deref(), Some("AutoApproved"));
    let message = "Auto approving kubelet client certificate after SubjectAccessReview.";
    assert_eq!(answer.condition.message.as_deref(), Some(message));
    let pem = answer.pem.expect("a certificate");
    check(&pem, &cluster.ca_pem, "client auth");

    // It registers, is given a range, and gets its serving certificate and its next client certificate.
    let nodes: Api<Node> = Api::all(cluster.node("a"));
    let address = NodeAddress { type_: "InternalIP".into(), address: "192.0.2.7".into() };
    let status = NodeStatus { addresses: Some(vec![address]), ..NodeStatus::default() };
    let metadata = ObjectMeta { name: Some("a".into()), ..ObjectMeta::default() };
    let node = Node { metadata, status: Some(status), ..Node::default() };
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let has_range =
        |node: Option<&Node>| node.is_some_and(|n| n.spec.as_ref().is_some_and(|s| s.pod_cidr.is_some()));
    let waiting = await_condition(nodes, "a", has_range);
    let node = tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("a range in time");
    let spec = node.unwrap().unwrap().spec.unwrap();
    assert_eq!(spec.pod_cidr.as_deref(), Some("10.244.0.0/24"));
    assert_eq!(spec.pod_cidrs, Some(vec!["10.244.0.0/24".to_owned()]));
    let own = cluster.node("a");
    let serving =
        cluster.ask(own.clone(), "a", plan::KUBELET_SERVING, "server auth", &["a", "192.0.2.7"]).await;
    check(&serving.pem.expect("a certificate"), &cluster.ca_pem, "server auth");
    let next = cluster.ask(own, "a", plan::KUBELET_CLIENT, "client auth", &[]).await;
    let message = "Auto approving self kubelet client certificate after SubjectAccessReview.";
    assert_eq!(next.condition.message.as_deref(), Some(message));
    cluster.stop().await;
}

#[tokio::test]
async fn nobody_joins_under_the_name_of_a_node_that_lives() {
    let cluster = Cluster::start().await;
    let metadata = |name: &str| ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
    for (name, ago_s) in [("living", 1), ("dead", 3600)] {
        let nodes: Api<Node> = Api::all(cluster.node(name));
        let node = Node { metadata: metadata(name), ..Node::default() };
        nodes.create(&PostParams::default(), &node).await.unwrap();
        let renewed = Timestamp::now().checked_sub(jiff::SignedDuration::from_secs(ago_s)).unwrap();
        let spec = LeaseSpec { renew_time: Some(MicroTime(renewed)), ..LeaseSpec::default() };
        let leases: Api<Lease> = Api::namespaced(cluster.node(name), LEASES);
        let lease = Lease { metadata: metadata(name), spec: Some(spec) };
        leases.create(&PostParams::default(), &lease).await.unwrap();
    }
    let joining = || cluster.client("system:bootstrap:abcdef", &["system:bootstrappers"]);
    let refused = cluster.ask(joining(), "living", plan::KUBELET_CLIENT, "client auth", &[]).await;
    assert_eq!(refused.condition.type_, "Denied");
    assert_eq!(refused.condition.reason.as_deref(), Some("NodeNameInUse"));
    let message = refused.condition.message.unwrap();
    assert!(message.starts_with("a node named \"living\" is a living member of this cluster"), "{message}");
    assert!(refused.pem.is_none());
    let again = cluster.ask(joining(), "dead", plan::KUBELET_CLIENT, "client auth", &[]).await;
    assert!(again.pem.is_some(), "a node that is gone may come back");
    cluster.stop().await;
}

#[tokio::test]
async fn cluster_info_is_signed_for_each_token_and_expired_tokens_are_deleted() {
    let cluster = Cluster::start().await;
    let admin = cluster.client("admin", &["system:masters"]);
    let secrets: Api<Secret> = Api::namespaced(admin.clone(), "kube-system");
    for (id, expiration) in [("expire", "2020-01-01T00:00:00Z"), ("abcdef", "2999-01-01T00:00:00Z")] {
        let fields = [
            ("token-id", id),
            ("token-secret", "0123456789abcdef"),
            ("expiration", expiration),
            ("usage-bootstrap-signing", "true"),
        ];
        let data = fields.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect::<BTreeMap<_, _>>();
        let metadata = ObjectMeta { name: Some(format!("bootstrap-token-{id}")), ..ObjectMeta::default() };
        let type_ = Some("bootstrap.kubernetes.io/token".to_owned());
        let secret = Secret { metadata, type_, string_data: Some(data), ..Secret::default() };
        secrets.create(&PostParams::default(), &secret).await.unwrap();
    }
    let maps: Api<ConfigMap> = Api::namespaced(admin, "kube-public");
    let signed = |map: Option<&ConfigMap>| {
        map.and_then(|m| m.data.as_ref()).is_some_and(|d| d.contains_key("jws-kubeconfig-abcdef"))
    };
    let waiting = await_condition(maps, "cluster-info", signed);
    let map = tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("signed in time");
    let data = map.unwrap().unwrap().data.unwrap();
    assert!(data["kubeconfig"].contains("server: https://192.0.2.1:6443\n"), "{data:?}");
    assert!(!data.contains_key("jws-kubeconfig-expire"), "an expired token signs nothing");
    let gone = await_condition(secrets.clone(), "bootstrap-token-expire", |s: Option<&Secret>| s.is_none());
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("deleted in time").unwrap();
    secrets.get("bootstrap-token-abcdef").await.unwrap();
    cluster.stop().await;
}

#[tokio::test]
async fn a_server_that_is_renumbered_says_where_it_is_reached_and_gives_its_last_address_free() {
    let cluster = Cluster::start().await;
    let (admin, node) = (cluster.client("admin", &["system:masters"]), cluster.node("a"));
    let addresses = vec![NodeAddress { type_: "InternalIP".into(), address: "192.0.2.1".into() }];
    let status = Some(NodeStatus { addresses: Some(addresses), ..NodeStatus::default() });
    let metadata = ObjectMeta { name: Some("a".into()), ..ObjectMeta::default() };
    let nodes: Api<Node> = Api::all(node.clone());
    nodes.create(&PostParams::default(), &Node { metadata, status, ..Node::default() }).await.unwrap();
    cluster.reached.send_replace(reached_at("198.51.100.7"));
    let maps: Api<ConfigMap> = Api::namespaced(admin, "kube-public");
    let says = |map: Option<&ConfigMap>| {
        let kubeconfig = map.and_then(|m| m.data.as_ref()?.get("kubeconfig").cloned());
        kubeconfig.is_some_and(|text| text.contains("server: https://198.51.100.7:6443\n"))
    };
    let waiting = await_condition(maps, "cluster-info", says);
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("said in time").unwrap();
    let answer = cluster.ask(node, "a", plan::KUBELET_SERVING, "server auth", &["a", "192.0.2.1"]).await;
    assert!(
        answer.pem.is_some(),
        "the address is refused to the node that has it now: {:?}",
        answer.condition
    );
    cluster.stop().await;
}

fn reached_at(ip: &str) -> Reached {
    Reached { server: format!("https://{ip}:6443"), ips: vec![ip.parse().unwrap()] }
}

/// That a certificate is signed by the authority, for one use, and no authority itself.
fn check(pem: &str, ca_pem: &str, auth: &str) {
    let read =
        |pem: &str| x509_parser::pem::Pem::read(std::io::Cursor::new(pem.as_bytes().to_vec())).unwrap().0;
    let (pem, ca_pem) = (read(pem), read(ca_pem));
    let (certificate, ca) = (pem.parse_x509().unwrap(), ca_pem.parse_x509().unwrap());
    certificate.verify_signature(Some(ca.public_key())).unwrap();
    assert_eq!(certificate.subject().to_string(), "O=system:nodes, CN=system:node:a");
    assert_eq!(certificate.issuer(), ca.subject());
    assert!(!certificate.is_ca() && certificate.validity().is_valid());
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert_eq!((usage.client_auth, usage.server_auth), (auth == "client auth", auth == "server auth"));
    assert!(certificate.key_usage().unwrap().unwrap().value.digital_signature());
    let names = certificate.subject_alternative_name().unwrap();
    assert_eq!(names.map_or(0, |n| n.value.general_names.len()), if auth == "server auth" { 2 } else { 0 });
}
