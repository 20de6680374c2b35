//! A server and a client that is as small as the protocol allows.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use skiff_apiserver::store::{SqliteOptions, SqliteStore, Store};
use skiff_apiserver::{
    ApiServer, ApiService, AuthorizationOptions, Config, FrontProxyConfig, KubeletConfig,
    ServiceAccountConfig, TlsConfig, UserInfo,
};
use tower::Service;

type Authority = rcgen::CertifiedIssuer<'static, rcgen::KeyPair>;

pub(crate) struct Pki {
    ca: Authority,
    front_proxies: Authority,
}

pub(crate) struct Pair {
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
}

impl Pki {
    pub(crate) fn new() -> Pki {
        Pki { ca: Pki::authority("test-ca"), front_proxies: Pki::authority("test-front-proxy-ca") }
    }

    fn authority(name: &str) -> Authority {
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().expect("a key");
        rcgen::CertifiedIssuer::self_signed(params, key).expect("a CA")
    }

    /// Of who vouches for front proxies.
    pub(crate) fn front_proxy_ca_pem(&self) -> String {
        self.front_proxies.pem()
    }

    /// A certificate for a front proxy.
    pub(crate) fn issue_front_proxy(&self, name: &str) -> Pair {
        Pki::sign(&self.front_proxies, "127.0.0.1", name, &[], 1975, 4096)
    }

    /// A certificate for a server of this name.
    pub(crate) fn issue_server(&self, name: &str) -> Pair {
        Pki::sign(&self.ca, name, "server", &[], 1975, 4096)
    }

    pub(crate) fn ca_pem(&self) -> String {
        self.ca.pem()
    }

    /// A certificate for a user of groups, or for a server at the loopback address.
    pub(crate) fn issue(&self, name: &str, groups: &[&str]) -> Pair {
        self.issue_between(name, groups, 1975, 4096)
    }

    /// The same, valid from the beginning of one year to that of another.
    pub(crate) fn issue_between(&self, name: &str, groups: &[&str], from: i32, to: i32) -> Pair {
        Pki::sign(&self.ca, "127.0.0.1", name, groups, from, to)
    }

    fn sign(by: &Authority, host: &str, name: &str, groups: &[&str], from: i32, to: i32) -> Pair {
        let mut params = rcgen::CertificateParams::new(vec![host.to_owned()]).expect("parameters");
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(to, 1, 1);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        for group in groups {
            params.distinguished_name.push(rcgen::DnType::OrganizationName, *group);
        }
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, by).expect("a certificate");
        Pair { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() }
    }
}

pub(crate) struct Cluster {
    pub(crate) server: ApiServer,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) pki: Arc<Pki>,
    _folder: Arc<tempfile::TempDir>,
}

fn config(pki: &Pki, store: Arc<dyn Store>) -> Config {
    let serving = pki.issue("skiff-apiserver", &[]);
    let kubelet = pki.issue("skiff-apiserver-kubelet-client", &["system:masters"]);
    let front_proxy = pki.issue_front_proxy("front-proxy-client");
    let signing = rcgen::KeyPair::generate().expect("a key");
    Config {
        store,
        tls: Some(TlsConfig {
            certificate_chain_pem: serving.certificate_pem.into(),
            key_pem: serving.key_pem.into(),
            client_ca_pem: pki.ca_pem().into(),
        }),
        front_proxy: Some(FrontProxyConfig {
            certificate_pem: front_proxy.certificate_pem.into(),
            key_pem: front_proxy.key_pem.into(),
            ca_pem: pki.front_proxy_ca_pem().into(),
            allowed_names: vec!["front-proxy-client".into()],
        }),
        advertise: "192.0.2.1".parse().expect("an address"),
        port: 6443,
        service_cidr: "10.96.0.0/16".parse().expect("a range"),
        cluster_domain: "cluster.local".into(),
        event_ttl: skiff_apiserver::EVENT_TTL,
        kinds: skiff_apiserver::Kinds::builtin(),
        node_certificate_grace: std::time::Duration::ZERO,
        disabled_admission: Vec::new(),
        authorization: AuthorizationOptions::default(),
        on_long_thread: || (),
        service_account: ServiceAccountConfig {
            private_key_pem: signing.serialize_pem().into(),
            public_key_pem: signing.public_key_pem().into(),
            issuer: None,
        },
        kubelet: KubeletConfig {
            certificate_pem: kubelet.certificate_pem.into(),
            key_pem: kubelet.key_pem.into(),
            ca_pem: pki.ca_pem().into(),
            allow_loopback: true,
        },
    }
}

impl Cluster {
    pub(crate) async fn start() -> Cluster {
        Cluster::keeping_events(skiff_apiserver::EVENT_TTL).await
    }

    /// A server that keeps events so long, and looks often for what has expired.
    pub(crate) async fn keeping_events(event_ttl: Duration) -> Cluster {
        let folder = tempfile::tempdir().expect("a folder");
        let mut options = SqliteOptions::new(folder.path().join("state.db"));
        options.expiry_interval = options.expiry_interval.min(event_ttl / 10);
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(options).expect("the store opens"));
        let pki = Arc::new(Pki::new());
        let config = Config { event_ttl, ..config(&pki, store.clone()) };
        let server = ApiServer::start(config).await.expect("the server starts");
        Cluster { server, store, pki, _folder: Arc::new(folder) }
    }

    /// A server that asks whom `authorization` names, of files in the folder that it is given.
    pub(crate) async fn authorizing(
        pki: Pki,
        authorization: impl FnOnce(&std::path::Path) -> AuthorizationOptions,
    ) -> Cluster {
        let folder = tempfile::tempdir().expect("a folder");
        let options = SqliteOptions::new(folder.path().join("state.db"));
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(options).expect("the store opens"));
        let authorization = authorization(folder.path());
        let config = Config { authorization, ..config(&pki, store.clone()) };
        let server = ApiServer::start(config).await.expect("the server starts");
        Cluster { server, store, pki: Arc::new(pki), _folder: Arc::new(folder) }
    }

    /// One of several servers over a store, with a signing key of its own.
    pub(crate) async fn over(pki: Arc<Pki>, store: Arc<dyn Store>, advertise: &str) -> Cluster {
        let advertise = advertise.parse().expect("an address");
        let config = Config { advertise, ..config(&pki, store.clone()) };
        let server = ApiServer::start(config).await.expect("the server starts");
        let folder = Arc::new(tempfile::tempdir().expect("a folder"));
        Cluster { server, store, pki, _folder: folder }
    }

    /// A second server over the same store, with grace for nodes whose certificate has ended.
    pub(crate) async fn restart_with_grace(&self, grace: Duration) -> Cluster {
        let config = Config { node_certificate_grace: grace, ..config(&self.pki, self.store.clone()) };
        let server = ApiServer::start(config).await.expect("the server starts again");
        Cluster { server, store: self.store.clone(), pki: self.pki.clone(), _folder: self._folder.clone() }
    }

    /// A second server over the same store, as after a restart.
    pub(crate) async fn restart(&self) -> Cluster {
        let config = config(&self.pki, self.store.clone());
        let server = ApiServer::start(config).await.expect("the server starts again");
        Cluster { server, store: self.store.clone(), pki: self.pki.clone(), _folder: self._folder.clone() }
    }

    /// A server over the same file, after `change` did something to it while nobody had it open.
    pub(crate) async fn reopened(self, change: impl FnOnce(&std::path::Path)) -> Cluster {
        let Cluster { server, store, pki, _folder } = self;
        server.close().await;
        drop((server, store));
        let database = _folder.path().join("state.db");
        change(&database);
        let store: Arc<dyn Store> =
            Arc::new(SqliteStore::open(SqliteOptions::new(&database)).expect("the store opens again"));
        let server = ApiServer::start(config(&pki, store.clone())).await.expect("the server starts again");
        Cluster { server, store, pki, _folder }
    }

    pub(crate) fn admin(&self) -> Client {
        self.client("admin", &["system:masters"])
    }

    pub(crate) fn client(&self, name: &str, groups: &[&str]) -> Client {
        Client { service: self.server.service_for(UserInfo::new(name, groups)) }
    }

    /// Who sends no credentials that count, but a header that might.
    pub(crate) fn anonymous(&self) -> Client {
        let user = UserInfo {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            ..UserInfo::default()
        };
        Client { service: self.server.service_for(user) }
    }

    /// A namespace with its default service account, as controllers would make it.
    pub(crate) async fn namespace(&self, name: &str) -> Client {
        let admin = self.admin();
        admin.post("/api/v1/namespaces", json!({"metadata": {"name": name}})).await.created();
        let account = json!({"metadata": {"name": "default"}});
        admin.post(&format!("/api/v1/namespaces/{name}/serviceaccounts"), account).await.created();
        admin
    }
}

#[derive(Clone)]
pub(crate) struct Client {
    service: ApiService,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.code, 200, "{}", String::from_utf8_lossy(&self.bytes));
        self.json()
    }

    #[track_caller]
    pub(crate) fn created(&self) -> Value {
        assert_eq!(self.code, 201, "{}", String::from_utf8_lossy(&self.bytes));
        self.json()
    }

    /// A `Status` of this code and reason; its message.
    #[track_caller]
    pub(crate) fn refused(&self, code: u16, reason: &str) -> String {
        let status = self.json();
        assert_eq!((self.code, status["kind"].as_str()), (code, Some("Status")), "{status}");
        assert_eq!(status["reason"].as_str().unwrap_or_default(), reason, "{status}");
        status["message"].as_str().unwrap_or_default().to_owned()
    }
}

impl Client {
    /// As informers in the process ask.
    pub(crate) fn without_managers(self) -> Client {
        Client { service: self.service.without_managers() }
    }

    pub(crate) async fn raw(&self, request: Request<Body>) -> http::Response<Body> {
        let Ok(response) = self.service.clone().call(request).await;
        response
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.raw(request.body(body.into()).expect("a request")).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        Answer { code: parts.status.as_u16(), headers: parts.headers, bytes }
    }

    pub(crate) async fn get(&self, url: &str) -> Answer {
        self.send(Method::GET, url, &[], Body::empty()).await
    }

    pub(crate) async fn get_as(&self, url: &str, accept: &str) -> Answer {
        self.send(Method::GET, url, &[("accept", accept)], Body::empty()).await
    }

    pub(crate) async fn post(&self, url: &str, body: Value) -> Answer {
        self.send(Method::POST, url, &[], body.to_string()).await
    }

    pub(crate) async fn put(&self, url: &str, body: Value) -> Answer {
        self.send(Method::PUT, url, &[], body.to_string()).await
    }

    pub(crate) async fn delete(&self, url: &str) -> Answer {
        self.send(Method::DELETE, url, &[], Body::empty()).await
    }

    /// `how` is `json`, `merge` or `strategic-merge`.
    pub(crate) async fn patch(&self, url: &str, how: &str, body: Value) -> Answer {
        let content_type = format!("application/{how}-patch+json");
        self.send(Method::PATCH, url, &[("content-type", &content_type)], body.to_string()).await
    }

    pub(crate) async fn watch(&self, url: &str) -> Events {
        self.watch_as(url, "application/json").await
    }

    pub(crate) async fn watch_as(&self, url: &str, accept: &str) -> Events {
        let request =
            Request::builder().uri(url).header("accept", accept).body(Body::empty()).expect("a request");
        let response = self.raw(request).await;
        Events { code: response.status().as_u16(), body: response.into_body(), rest: Vec::new() }
    }
}

pub(crate) struct Events {
    pub(crate) code: u16,
    body: Body,
    rest: Vec<u8>,
}

impl Events {
    /// The next event: its type and object. `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                let event: Value = serde_json::from_slice(&line).expect("an event");
                return Some((
                    event["type"].as_str().unwrap_or_default().to_owned(),
                    event["object"].clone(),
                ));
            }
            let frame = tokio::time::timeout(Duration::from_secs(20), self.body.frame());
            let frame = frame.await.expect("an event in time")?.expect("the stream goes on");
            self.rest.extend_from_slice(frame.data_ref().expect("data"));
        }
    }

    /// The next event; `None` once the stream has ended.
    pub(crate) async fn try_next(&mut self) -> Option<(String, Value)> {
        while !self.rest.contains(&b'\n') {
            let frame = self.body.frame().await?.expect("the stream goes on");
            self.rest.extend_from_slice(frame.data_ref().expect("data"));
        }
        self.next().await
    }

    /// The next event's type and the object's name.
    pub(crate) async fn named(&mut self) -> (String, String) {
        let (kind, object) = self.next().await.expect("an event");
        (kind, object["metadata"]["name"].as_str().unwrap_or_default().to_owned())
    }
}

pub(crate) fn config_map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": value}})
}

pub(crate) fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "nginx"}]},
    })
}
