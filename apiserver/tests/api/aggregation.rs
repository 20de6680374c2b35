//! API servers that stand behind this one, which this test plays, and proxies that stand before it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use futures::future::BoxFuture;
use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use skiff_apiserver::store::{Expect, Write};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::custom::{DEFINITIONS, FOOS, definition, establish, foo};
use crate::fixture::{Client, Cluster, Pair};
use crate::network::{client_tls, exchange, listen};
use crate::proxy::read_until;

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const NAME: &str = "v1alpha1.wardle.example.com";
const METRICS: &str = "v1beta1.metrics.k8s.io";
const GROUP: &str = "wardle.example.com";
const ROOT: &str = "/apis/wardle.example.com/v1alpha1";
const FLUNDERS: &str = "/apis/wardle.example.com/v1alpha1/namespaces/a/flunders";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

type Handler = dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<Body>> + Send + Sync;

/// An API server that lets in nobody but front proxies.
struct Behind {
    port: u16,
    /// The paths that it was asked for.
    asked: Arc<Mutex<Vec<String>>>,
    /// Ends it, with its connections.
    stop: CancellationToken,
}

impl Behind {
    async fn start<F>(
        cluster: &Cluster,
        answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) -> Behind
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        Behind::named(cluster, "s.a.svc", answer).await
    }

    /// One whose certificate is for this name.
    async fn named<F>(
        cluster: &Cluster,
        name: &str,
        answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) -> Behind
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let serving = cluster.pki.issue_server(name);
        let acceptor = tls(&serving, &cluster.pki.front_proxy_ca_pem());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = asked.clone();
        let handler: Arc<Handler> = Arc::new(move |request: Request<Incoming>| {
            noted.lock().push(request.uri().path().to_owned());
            let answered = answer(request);
            Box::pin(answered)
        });
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let accept = async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, handler) = (acceptor.clone(), handler.clone());
                let served = async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = hyper::service::service_fn(move |request| {
                        let answered = handler(request);
                        async move { Ok::<_, Infallible>(answered.await) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service);
                    _ = connection.with_upgrades().await;
                };
                tokio::spawn(stopped.clone().run_until_cancelled_owned(served));
            }
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept));
        Behind { port, asked, stop }
    }

    /// One that has flunders, and answers anything else with what it was asked.
    async fn with_flunders(cluster: &Cluster) -> Behind {
        Behind::start(cluster, |request| async move {
            match request.uri().path() {
                "/apis" => aggregated(GROUP, "v1alpha1", &["flunders"]),
                "/openapi/v3" => document(&json!({"paths": {
                    "apis/wardle.example.com/v1alpha1":
                        {"serverRelativeURL": "/openapi/v3/apis/wardle.example.com/v1alpha1?hash=A1"},
                    "api/v1": {"serverRelativeURL": "/openapi/v3/api/v1?hash=B2"},
                }})),
                "/openapi/v2" => document(&json!({
                    "paths": {"/apis/wardle.example.com/v1alpha1/flunders": {"get": {"schema": {"$ref": "#/definitions/Flunder"}}}},
                    "definitions": {"Flunder": {"type": "object"}, "Unused": {"type": "object"}},
                })),
                _ => echo(request).await,
            }
        })
        .await
    }

    /// Has the endpoints of the Service `s` lead here: below the API, which takes no address of this host.
    async fn is_behind(&self, cluster: &Cluster) {
        endpoints(cluster, Some(self.port)).await;
    }
}

fn tls(serving: &Pair, client_ca_pem: &str) -> tokio_rustls::TlsAcceptor {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(client_ca_pem.as_bytes()).expect("PEM")).expect("a root");
    let clients =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(clients.build().expect("a verifier"))
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(serving.certificate_pem.as_bytes()).expect("PEM")],
            PrivateKeyDer::from_pem_slice(serving.key_pem.as_bytes()).expect("PEM"),
        )
        .expect("a certificate");
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

fn document(document: &Value) -> Response<Body> {
    Response::builder()
        .header("content-type", "application/json")
        .body(Body::from(document.to_string()))
        .expect("a response")
}

fn code(code: u16) -> Response<Body> {
    Response::builder().status(code).body(Body::empty()).expect("a response")
}

fn aggregated(group: &str, version: &str, resources: &[&str]) -> Response<Body> {
    let resource = |name: &&str| {
        json!({
            "resource": name, "responseKind": {"group": group, "version": version, "kind": "Flunder"},
            "scope": "Namespaced", "singularResource": "flunder", "verbs": ["get", "list", "watch", "delete", "deletecollection"],
        })
    };
    let resources: Vec<Value> = resources.iter().map(resource).collect();
    let mut response = document(&json!({"kind": "APIGroupDiscoveryList", "items": [
        {"metadata": {"name": "apps"}, "versions": [{"version": "v1", "resources": []}]},
        {"metadata": {"name": group}, "versions": [{"version": version, "resources": resources}]},
    ]}));
    response.headers_mut().insert("content-type", AGGREGATED.parse().expect("a value"));
    response
}

async fn echo(mut request: Request<Incoming>) -> Response<Body> {
    let mut headers = serde_json::Map::new();
    for name in request.headers().keys() {
        let values: Vec<&str> =
            request.headers().get_all(name).iter().map(|v| v.to_str().unwrap_or_default()).collect();
        headers.insert(name.to_string(), values.join("|").into());
    }
    let (method, url) = (request.method().to_string(), request.uri().to_string());
    let body = request.body_mut().collect().await.expect("a body").to_bytes();
    document(
        &json!({"method": method, "url": url, "headers": headers, "body": String::from_utf8_lossy(&body)}),
    )
}

async fn endpoints(cluster: &Cluster, port: Option<u16>) {
    let ready = port.is_some();
    let slice = json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
        "metadata": {"name": "s-1", "namespace": "a", "uid": "1", "labels": {"kubernetes.io/service-name": "s"}},
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": ready}}],
        "ports": [{"name": "https", "port": port.unwrap_or(1)}],
    });
    let key = "/registry/endpointslices/a/s-1";
    cluster.store.write(Write::put(key, slice.to_string(), Expect::Any)).await.expect("writes");
}

fn service(port: u16) -> Value {
    json!({"metadata": {"name": "s"}, "spec": {"ports": [{"name": "https", "port": port}]}})
}

fn api_service(cluster: &Cluster, name: &str, priority: u16) -> Value {
    let (version, group) = name.split_once('.').expect("a name");
    let bundle = base64::engine::general_purpose::STANDARD.encode(cluster.pki.ca_pem());
    json!({
        "metadata": {"name": name},
        "spec": {
            "group": group, "version": version, "groupPriorityMinimum": priority, "versionPriority": 200,
            "service": {"namespace": "a", "name": "s", "port": 7443}, "caBundle": bundle,
        },
    })
}

fn condition(service: &Value) -> (String, String) {
    let conditions = service["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|c| c["type"] == "Available");
    let text = |field: &str| found.and_then(|c| c[field].as_str()).unwrap_or_default().to_owned();
    (text("reason"), text("message"))
}

/// What is said of the availability of an APIService, once it is for this reason.
async fn until_available(client: &Client, name: &str, reason: &str) -> String {
    let mut watch = client
        .watch(&format!("{SERVICES}?watch=true&resourceVersion=0&fieldSelector=metadata.name%3D{name}"))
        .await;
    loop {
        let (_, service) = watch.next().await.expect("an event");
        let (found, message) = condition(&service);
        if found == reason {
            return message;
        }
    }
}

/// Asks again until the answer is as it should be: what is known of servers is published soon after it is known.
async fn until<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asked = async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asked).await.expect("it comes about in time")
}

/// The version of a group as aggregated discovery has it.
async fn discovered(client: &Client, group: &str, version: &str) -> Option<Value> {
    let list = client.get_as("/apis", AGGREGATED).await.ok();
    let groups = list["items"].as_array().expect("groups").clone();
    let found = groups.into_iter().find(|of| of["metadata"]["name"] == group)?;
    found["versions"].as_array().expect("versions").iter().find(|of| of["version"] == version).cloned()
}

/// A cluster with a server behind it that is available.
async fn with(cluster: &Cluster, behind: &Behind) -> Client {
    let admin = cluster.namespace("a").await;
    admin.post("/api/v1/namespaces/a/services", service(7443)).await.created();
    behind.is_behind(cluster).await;
    admin.post(SERVICES, api_service(cluster, NAME, 2000)).await.created();
    assert_eq!(until_available(&admin, NAME, "Passed").await, "all checks passed");
    // The condition is read back before requests are sent on.
    until(async || (admin.get(ROOT).await.code != 503).then_some(())).await;
    admin
}

#[tokio::test]
async fn the_servers_own_groups_are_registered_and_those_of_custom_resources_come_and_go() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let list = admin.get(SERVICES).await.ok();
    let items = list["items"].as_array().expect("items");
    let names: Vec<&str> = items.iter().filter_map(|i| i["metadata"]["name"].as_str()).collect();
    assert!(
        names.contains(&"v1.") && names.contains(&"v1.apps") && names.contains(&"v2.autoscaling"),
        "{names:?}"
    );
    assert!(!names.contains(&"v1.apiregistration.k8s.io"), "{names:?}");
    for item in items {
        let (reason, message) = condition(item);
        assert_eq!((reason.as_str(), message.as_str()), ("Local", "Local APIServices are always available"));
        if item["metadata"]["name"] == METRICS {
            assert_eq!(item["metadata"]["labels"], Value::Null, "anybody may change it");
            continue;
        }
        assert_eq!(
            item["metadata"]["labels"],
            json!({"kube-aggregator.kubernetes.io/automanaged": "onstart"})
        );
    }
    let core = admin.get(&format!("{SERVICES}/v1.")).await.ok();
    assert_eq!(core["spec"], json!({"version": "v1", "groupPriorityMinimum": 18000, "versionPriority": 1}));
    let table = admin
        .get_as(&format!("{SERVICES}/v1.apps"), "application/json;as=Table;v=v1;g=meta.k8s.io")
        .await
        .ok();
    assert_eq!(table["rows"][0]["cells"].as_array().expect("cells")[..3], ["v1.apps", "Local", "True"]);

    // A person may delete one until the next start.
    admin.delete(&format!("{SERVICES}/v1.apps")).await.ok();
    let custom = format!("{SERVICES}/v1.example.com");
    establish(&admin, &definition()).await;
    let made = until(async || Some(admin.get(&custom).await).filter(|answer| answer.code == 200)).await.ok();
    assert_eq!(made["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "true");
    assert_eq!(
        (&made["spec"]["groupPriorityMinimum"], &made["spec"]["versionPriority"]),
        (&json!(1000), &json!(100))
    );
    admin.delete(&custom).await.ok();
    until(async || (admin.get(&custom).await.code == 200).then_some(())).await;
    admin.post(FOOS, foo("one", json!({}))).await.created();
    admin.delete(&format!("{DEFINITIONS}/foos.example.com")).await.ok();
    until(async || (admin.get(&custom).await.code == 404).then_some(())).await;
    assert_eq!(admin.get(&format!("{SERVICES}/v1.apps")).await.code, 404);

    let before = admin.get(&format!("{SERVICES}/v1.batch")).await.ok();
    let again = cluster.restart().await.admin();
    again.get(&format!("{SERVICES}/v1.apps")).await.ok();
    assert_eq!(again.get(&format!("{SERVICES}/v1.batch")).await.ok(), before, "nothing is written twice");
}

#[tokio::test]
async fn a_request_goes_on_with_who_asks_and_without_what_is_for_this_server() {
    let cluster = Cluster::start().await;
    let behind = Behind::with_flunders(&cluster).await;
    let admin = with(&cluster, &behind).await;
    let headers = [
        ("authorization", "Bearer t"),
        ("x-remote-user", "forged"),
        ("x-remote-group", "system:masters"),
        ("x-remote-extra-scope", "forged"),
        ("impersonate-user", "jane"),
        ("impersonate-group", "a"),
        ("impersonate-extra-scope", "x"),
        ("impersonate-uid", "u"),
        ("connection", "close, X-Private"),
        ("x-private", "1"),
        ("x-mine", "1"),
        ("content-type", "application/json"),
    ];
    let rule = json!({"apiGroups": [GROUP], "resources": ["*"], "verbs": ["*"]});
    let role = json!({"metadata": {"name": "flunders"}, "rules": [rule]});
    admin.post("/apis/rbac.authorization.k8s.io/v1/clusterroles", role).await.created();
    let binding = json!({
        "metadata": {"name": "flunders"}, "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "flunders", "apiGroup": "rbac.authorization.k8s.io"},
    });
    admin.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await.created();
    for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::GET] {
        let url = format!("{FLUNDERS}/x%20y?dryRun=All&x=%2F");
        let said = admin.send(method.clone(), &url, &headers, "payload").await.ok();
        assert_eq!(
            (&said["method"], &said["url"], &said["body"]),
            (&json!(method.as_str()), &json!(url), &json!("payload"))
        );
        let told = &said["headers"];
        assert_eq!(
            [
                &told["x-remote-user"],
                &told["x-remote-uid"],
                &told["x-remote-group"],
                &told["x-remote-extra-scope"]
            ],
            ["jane", "u", "a|system:authenticated", "x"]
        );
        for ours in
            ["authorization", "impersonate-user", "impersonate-extra-scope", "x-private", "connection"]
        {
            assert!(told[ours].is_null(), "{ours}: {told}");
        }
        assert_eq!((&told["x-mine"], &told["x-forwarded-proto"]), (&json!("1"), &json!("https")));
    }
    let (nobody, before) = (cluster.client("john", &[]), behind.asked.lock().len());
    let message = nobody.get(FLUNDERS).await.refused(403, "Forbidden");
    assert!(
        message.contains("cannot list resource \"flunders\" in API group \"wardle.example.com\""),
        "{message}"
    );
    let hidden = format!("{ROOT}/namespaces/a%2Fflunders");
    admin.get(&hidden).await.refused(400, "BadRequest");
    admin.get(&format!("{ROOT}/../../apps/v1/deployments")).await.refused(400, "BadRequest");
    let asked = behind.asked.lock()[before..].to_vec();
    assert!(asked.iter().all(|path| !path.contains("flunders") || path == "/openapi/v3"), "{asked:?}");
}

#[tokio::test]
async fn what_keeps_a_server_away_is_said_as_upstream_says_it_and_costs_a_503() {
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let is_well = Arc::new(Mutex::new(false));
    let well = is_well.clone();
    let behind = Behind::start(&cluster, move |request| {
        let is_well = *well.lock();
        async move { if is_well { echo(request).await } else { code(500) } }
    })
    .await;
    admin.post(SERVICES, api_service(&cluster, NAME, 2000)).await.created();
    assert_eq!(until_available(&admin, NAME, "ServiceNotFound").await, "service/s in \"a\" is not present");
    let refused = admin.get(FLUNDERS).await;
    assert_eq!((refused.code, &refused.bytes[..]), (503, b"service unavailable\n".as_slice()));
    assert_eq!(refused.headers["content-type"], "text/plain; charset=utf-8");

    admin.post("/api/v1/namespaces/a/services", service(443)).await.created();
    let message = until_available(&admin, NAME, "ServicePortError").await;
    assert_eq!(message, "service/s in \"a\" is not listening on port 7443");
    let port = json!([{"op": "replace", "path": "/spec/ports/0/port", "value": 7443}]);
    admin.patch("/api/v1/namespaces/a/services/s", "json", port).await.ok();
    let message = until_available(&admin, NAME, "EndpointsNotFound").await;
    assert_eq!(message, "cannot find endpointslices for service/s in \"a\"");
    endpoints(&cluster, None).await;
    let message = until_available(&admin, NAME, "MissingEndpoints").await;
    assert_eq!(message, "endpointslices for service/s in \"a\" have no addresses with port name \"https\"");
    behind.is_behind(&cluster).await;
    let message = until_available(&admin, NAME, "FailedDiscoveryCheck").await;
    let ip = admin.get("/api/v1/namespaces/a/services/s").await.ok()["spec"]["clusterIP"].clone();
    let url = format!("https://{}:7443{ROOT}", ip.as_str().expect("an address"));
    assert_eq!(message, format!("failing or missing response from {url}: bad status from {url}: 500"));
    *is_well.lock() = true;
    assert_eq!(until_available(&admin, NAME, "Passed").await, "all checks passed");
    until(async || (admin.get(FLUNDERS).await.code == 200).then_some(())).await;
    // What was available and is not there any more is found out by who asks for it.
    behind.stop.cancel();
    let port = behind.port;
    let is_closed = async || TcpStream::connect(("127.0.0.1", port)).await.is_err().then_some(());
    until(is_closed).await;
    behind.is_behind(&cluster).await;
    let message = until_available(&admin, NAME, "FailedDiscoveryCheck").await;
    assert!(
        message.ends_with(&format!("dial tcp 127.0.0.1:{port}: connect: connection refused")),
        "{message}"
    );
    let status = json!({"status": {"conditions": [{"type": "Available", "status": "True"}]}});
    admin.patch(&format!("{SERVICES}/{NAME}/status"), "merge", status).await.ok();
    let refused = until(async || {
        Some(admin.get(FLUNDERS).await).filter(|answer| !answer.bytes.starts_with(b"service"))
    })
    .await;
    let text = String::from_utf8_lossy(&refused.bytes);
    assert!(
        refused.code == 503 && text.starts_with("error trying to reach service: dial tcp 127.0.0.1:"),
        "{text}"
    );
}

#[tokio::test]
async fn a_server_is_believed_only_if_its_bundle_vouches_for_the_name_of_its_service() {
    let cluster = Cluster::start().await;
    let behind = Behind::named(&cluster, "other.a.svc", echo).await;
    let admin = cluster.namespace("a").await;
    admin.post("/api/v1/namespaces/a/services", service(7443)).await.created();
    behind.is_behind(&cluster).await;
    admin.post(SERVICES, api_service(&cluster, NAME, 2000)).await.created();
    let message = until_available(&admin, NAME, "FailedDiscoveryCheck").await;
    assert!(
        message.ends_with(
            "tls: failed to verify certificate: x509: certificate is valid for other.a.svc, not s.a.svc"
        ),
        "{message}"
    );
    let anybody = json!([
        {"op": "remove", "path": "/spec/caBundle"}, {"op": "add", "path": "/spec/insecureSkipTLSVerify", "value": true},
    ]);
    admin.patch(&format!("{SERVICES}/{NAME}"), "json", anybody).await.ok();
    until_available(&admin, NAME, "Passed").await;
    let bundle = base64::engine::general_purpose::STANDARD.encode(cluster.pki.front_proxy_ca_pem());
    let others = json!([
        {"op": "remove", "path": "/spec/insecureSkipTLSVerify"}, {"op": "add", "path": "/spec/caBundle", "value": bundle},
    ]);
    admin.patch(&format!("{SERVICES}/{NAME}"), "json", others).await.ok();
    let message = until_available(&admin, NAME, "FailedDiscoveryCheck").await;
    assert!(message.ends_with("x509: certificate signed by unknown authority"), "{message}");
}

#[tokio::test]
async fn discovery_has_what_servers_tell_of_their_own_group_and_marks_what_it_does_not_know_as_stale() {
    let cluster = Cluster::start().await;
    let behind = Behind::with_flunders(&cluster).await;
    let admin = with(&cluster, &behind).await;
    let apps = discovered(&admin, "apps", "v1").await.expect("apps");
    let told = until(async || {
        discovered(&admin, GROUP, "v1alpha1").await.filter(|version| version["freshness"] == "Current")
    })
    .await;
    assert_eq!(
        told["resources"],
        json!([{
            "resource": "flunders", "responseKind": {"group": GROUP, "version": "v1alpha1", "kind": "Flunder"},
            "scope": "Namespaced", "singularResource": "flunder",
            "verbs": ["get", "list", "watch", "delete", "deletecollection"],
        }])
    );
    assert_eq!(discovered(&admin, "apps", "v1").await.expect("apps"), apps, "what is ours is ours to tell");

    // One more version of the group, of a server that is away, and a group before those of custom resources.
    establish(&admin, &definition()).await;
    let mut second = api_service(&cluster, "v1.wardle.example.com", 3000);
    second["spec"]["service"]["name"] = "none".into();
    admin.post(SERVICES, second).await.created();
    let stale = until(async || discovered(&admin, GROUP, "v1").await).await;
    assert_eq!(stale, json!({"version": "v1", "freshness": "Stale"}));
    let names = |list: &Value| -> Vec<String> {
        let groups = list["groups"].as_array().expect("groups").iter();
        groups.map(|of| of["name"].as_str().expect("a name").to_owned()).collect()
    };
    let list = admin.get("/apis").await.ok();
    let all = names(&list);
    let place = |name: &str| all.iter().position(|known| known == name).expect("it is listed");
    assert!(
        place("flowcontrol.apiserver.k8s.io") < place(GROUP) && place(GROUP) < place("example.com"),
        "{all:?}"
    );
    let group = admin.get(&format!("/apis/{GROUP}")).await.ok();
    assert_eq!((&group["kind"], &group["preferredVersion"]["version"]), (&json!("APIGroup"), &json!("v1")));
    let versions: Vec<&Value> =
        group["versions"].as_array().expect("versions").iter().map(|of| &of["version"]).collect();
    assert_eq!(versions, ["v1", "v1alpha1"]);
    let paths = admin.get("/").await.ok()["paths"].clone();
    assert!(paths.as_array().expect("paths").contains(&json!(ROOT)), "{paths}");

    admin.delete(&format!("{SERVICES}/{NAME}")).await.ok();
    until(async || discovered(&admin, GROUP, "v1alpha1").await.is_none().then_some(())).await;
    assert_eq!(
        admin.get(FLUNDERS).await.refused(404, "NotFound"),
        "the server could not find the requested resource"
    );
}

#[tokio::test]
async fn a_server_with_the_older_discovery_only_is_asked_by_its_paths() {
    let cluster = Cluster::start().await;
    let behind = Behind::start(&cluster, |request| async move {
        match request.uri().path() {
            "/apis" => document(&json!({"kind": "APIGroupList", "groups": []})),
            ROOT => document(&json!({"kind": "APIResourceList", "groupVersion": "wardle.example.com/v1alpha1", "resources": [
                {"name": "flunders", "singularName": "", "namespaced": true, "kind": "Flunder", "verbs": ["list"]},
                {"name": "flunders/status", "singularName": "", "namespaced": true, "kind": "Flunder", "verbs": ["get"]},
            ]})),
            _ => code(404),
        }
    })
    .await;
    let admin = with(&cluster, &behind).await;
    let told =
        until(async || discovered(&admin, GROUP, "v1alpha1").await.filter(|of| of["resources"].is_array()))
            .await;
    assert_eq!(told["resources"][0]["subresources"][0]["subresource"], "status");
    assert_eq!(admin.get(ROOT).await.ok()["kind"], "APIResourceList", "and so is it by clients");
}

#[tokio::test]
async fn a_server_that_lies_or_answers_without_end_is_stale_and_costs_nobody_else() {
    let cluster = Cluster::start().await;
    let how: Arc<Mutex<&'static str>> = Arc::new(Mutex::new("endless"));
    let now = how.clone();
    let behind = Behind::start(&cluster, move |request| {
        let how = *now.lock();
        async move {
            match (request.uri().path(), how) {
                ("/apis", "endless") => {
                    let piece = futures::stream::repeat_with(|| {
                        Ok::<_, Infallible>(bytes::Bytes::from(vec![b' '; 64 << 10]))
                    });
                    let mut response = Response::new(Body::from_stream(piece));
                    response.headers_mut().insert("content-type", AGGREGATED.parse().expect("a value"));
                    response
                }
                ("/apis", "deep") => {
                    let mut response = Response::new(Body::from("[".repeat(100_000)));
                    response.headers_mut().insert("content-type", AGGREGATED.parse().expect("a value"));
                    response
                }
                ("/apis", _) => aggregated("other.example.com", "v1", &["flunders"]),
                _ => echo(request).await,
            }
        }
    })
    .await;
    let admin = with(&cluster, &behind).await;
    let stale = async |freshness: &str| {
        until(async || discovered(&admin, GROUP, "v1alpha1").await.filter(|of| of["freshness"] == freshness))
            .await
    };
    assert_eq!(stale("Stale").await["resources"], Value::Null);
    *how.lock() = "deep";
    stale("Stale").await;
    admin.get(FLUNDERS).await.ok();
    // It tells of what is not its own: that is nobody's.
    *how.lock() = "lying";
    assert_eq!(stale("Current").await, json!({"version": "v1alpha1", "freshness": "Current"}));
    assert_eq!(discovered(&admin, "other.example.com", "v1").await, None);
    admin.get("/api/v1/namespaces").await.ok();
}

#[tokio::test]
async fn a_watch_is_streamed_and_redirects_go_nowhere() {
    let cluster = Cluster::start().await;
    let go_on = Arc::new(Notify::new());
    let waits = go_on.clone();
    let behind = Behind::start(&cluster, move |request| {
        let waits = waits.clone();
        async move {
            match request.uri().path() {
                FLUNDERS => {
                    let events = futures::stream::unfold(0, move |n| {
                        let waits = waits.clone();
                        async move {
                            if n > 0 {
                                waits.notified().await;
                            }
                            let event =
                                json!({"type": "ADDED", "object": {"metadata": {"name": format!("f{n}")}}});
                            (n < 3).then(|| (Ok::<_, Infallible>(format!("{event}\n")), n + 1))
                        }
                    });
                    Response::new(Body::from_stream(events))
                }
                path if path.ends_with("/moved") => Response::builder()
                    .status(302)
                    .header("location", "/api/v1/secrets")
                    .body(Body::empty())
                    .expect("a response"),
                _ => echo(request).await,
            }
        }
    })
    .await;
    let admin = with(&cluster, &behind).await;
    let mut watch = admin.watch(&format!("{FLUNDERS}?watch=true")).await;
    assert_eq!((watch.code, watch.named().await), (200, ("ADDED".into(), "f0".into())));
    // The next is made only now.
    go_on.notify_one();
    assert_eq!(watch.named().await.1, "f1");
    go_on.notify_one();
    assert_eq!(watch.named().await.1, "f2");
    go_on.notify_one();
    assert!(watch.try_next().await.is_none());
    let moved = admin.get(&format!("{FLUNDERS}/moved")).await;
    assert_eq!(moved.code, 502);
    assert_eq!(&moved.bytes[..], b"the backend attempted to redirect this request, which is not permitted");
    assert!(!moved.headers.contains_key("location"));
}

#[tokio::test]
async fn a_connection_is_given_away_once_the_server_agrees() {
    let cluster = Cluster::start().await;
    let behind = Behind::start(&cluster, |mut request| async move {
        match request.uri().path() {
            path if path.ends_with("/refuse") => {
                Response::builder().status(403).body(Body::from("not you")).expect("a response")
            }
            path if path.ends_with("/ignore") => code(200),
            path if path.ends_with("/stream") => {
                assert_eq!(request.headers()["x-remote-user"], "admin");
                assert!(request.headers().get("authorization").is_none());
                let upgrade = hyper::upgrade::on(&mut request);
                tokio::spawn(async move {
                    let mut stream = TokioIo::new(upgrade.await.expect("upgrades"));
                    let mut buffer = [0; 64];
                    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                        stream.write_all(&buffer[..read]).await.expect("echoes");
                    }
                });
                let switching = Response::builder()
                    .status(101)
                    .header("connection", "Upgrade")
                    .header("upgrade", "websocket");
                switching.body(Body::empty()).expect("a response")
            }
            _ => echo(request).await,
        }
    })
    .await;
    with(&cluster, &behind).await;
    let (address, shutdown, task) = listen(&cluster).await;
    let identity = cluster.pki.issue("admin", &["system:masters"]);
    let connect = async |path: &str| {
        let connector = tokio_rustls::TlsConnector::from(client_tls(&cluster, Some(&identity), "http/1.1"));
        let tcp = TcpStream::connect(address).await.expect("connects");
        let mut stream =
            connector.connect(ServerName::IpAddress(address.ip().into()), tcp).await.expect("TLS");
        let head = format!(
            "GET {FLUNDERS}/x/{path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Authorization: Bearer x\r\nX-Remote-User: forged\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("writes");
        stream
    };
    let mut stream = connect("stream").await;
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    stream.write_all(b"hello").await.expect("writes");
    assert_eq!(read_until(&mut stream, "hello").await, "hello");
    drop(stream);
    let answer = read_until(&mut connect("refuse").await, "not you").await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    let answer = read_until(&mut connect("ignore").await, "status code 200").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    shutdown.cancel();
    task.await.expect("ends");
}

#[tokio::test]
async fn a_server_that_never_answers_has_its_own_places_and_takes_nobody_elses() {
    let cluster = Cluster::start().await;
    let (begun, end) = (Arc::new(tokio::sync::Semaphore::new(0)), Arc::new(tokio::sync::Semaphore::new(0)));
    let (tells, waits) = (begun.clone(), end.clone());
    let behind = Behind::start(&cluster, move |request| {
        let (tells, waits) = (tells.clone(), waits.clone());
        async move {
            if request.uri().path() == FLUNDERS {
                tells.add_permits(1);
                waits.acquire().await.expect("it is open").forget();
            }
            echo(request).await
        }
    })
    .await;
    let admin = with(&cluster, &behind).await;
    let slow: Vec<_> = (0..100)
        .map(|_| {
            let admin = admin.clone();
            tokio::spawn(async move { admin.get(FLUNDERS).await.code })
        })
        .collect();
    let all = begun.acquire_many(100).await.expect("it is open");
    let refused = admin.get(FLUNDERS).await;
    refused.refused(429, "TooManyRequests");
    assert_eq!(refused.headers["retry-after"], "1");
    // Who is of another level, and what is asked for elsewhere, goes on.
    admin.get("/api/v1/namespaces").await.ok();
    let rule = json!({"apiGroups": [GROUP], "resources": ["*"], "verbs": ["*"]});
    let role = json!({"metadata": {"name": "all"}, "rules": [rule]});
    admin.post("/apis/rbac.authorization.k8s.io/v1/clusterroles", role).await.created();
    let binding = json!({
        "metadata": {"name": "all"}, "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "all", "apiGroup": "rbac.authorization.k8s.io"},
    });
    admin.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await.created();
    cluster.client("jane", &[]).get(&format!("{ROOT}/namespaces/a/others")).await.ok();
    end.add_permits(100);
    for ended in slow {
        assert_eq!(ended.await.expect("ends"), 200);
    }
    drop(all);
    end.add_permits(1);
    admin.get(FLUNDERS).await.ok();
}

#[tokio::test]
async fn openapi_is_proxied_in_version_3_and_merged_in_version_2() {
    let cluster = Cluster::start().await;
    let behind = Behind::with_flunders(&cluster).await;
    let admin = with(&cluster, &behind).await;
    let of = "apis/wardle.example.com/v1alpha1";
    let ours = admin.get("/openapi/v3").await.ok()["paths"]["api/v1"].clone();
    let root = until(async || {
        Some(admin.get("/openapi/v3").await.ok()["paths"].clone()).filter(|paths| paths[of].is_object())
    })
    .await;
    let url = root[of]["serverRelativeURL"].as_str().expect("a URL");
    assert_eq!(url, "/openapi/v3/apis/wardle.example.com/v1alpha1?hash=A1");
    assert_eq!(root["api/v1"], ours, "of the core group it is not believed");
    assert_eq!(admin.get(url).await.ok()["url"], url);
    let v2 = admin.get("/openapi/v2").await.ok();
    assert!(v2["paths"]["/apis/wardle.example.com/v1alpha1/flunders"].is_object());
    assert!(v2["definitions"]["Flunder"].is_object() && v2["definitions"]["Unused"].is_null());
    assert!(v2["definitions"]["io.k8s.api.core.v1.Pod"].is_object());
    admin.delete(&format!("{SERVICES}/{NAME}")).await.ok();
    until(async || admin.get("/openapi/v2").await.ok()["definitions"]["Flunder"].is_null().then_some(()))
        .await;
}

#[tokio::test]
async fn only_a_front_proxy_of_the_right_name_says_who_asks() {
    let cluster = Cluster::start().await;
    let (address, shutdown, task) = listen(&cluster).await;
    let review = async |identity: Option<&Pair>, headers: &[(&str, &str)]| {
        let mut request =
            Request::post(format!("https://{address}/apis/authentication.k8s.io/v1/selfsubjectreviews"))
                .header("host", address.to_string())
                .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = json!({"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1"}).to_string();
        let request = request.body(Body::from(body)).expect("a request");
        let (status, answer) = exchange(&cluster, address, identity, "http/1.1", request).await;
        (status.as_u16(), answer["status"]["userInfo"].clone())
    };
    let proxy = cluster.pki.issue_front_proxy("front-proxy-client");
    let jane = [
        ("x-remote-user", "jane"),
        ("x-remote-group", "a"),
        ("x-remote-extra-scope", "x"),
        ("x-remote-uid", "u"),
    ];
    let told = json!({"username": "jane", "uid": "u", "groups": ["a", "system:authenticated"], "extra": {"scope": ["x"]}});
    assert_eq!(review(Some(&proxy), &jane).await, (201, told));
    assert_eq!(review(Some(&proxy), &[]).await.0, 401, "a front proxy is nobody itself");
    let other = cluster.pki.issue_front_proxy("system:masters");
    assert_eq!(review(Some(&other), &jane).await.0, 401, "its name is not one of those that may");
    let client = cluster.pki.issue("front-proxy-client", &[]);
    assert_eq!(
        review(Some(&client), &jane).await.1["username"],
        "front-proxy-client",
        "a client is no front proxy"
    );
    let (code, _) = review(None, &jane).await;
    assert!(code == 401 || code == 403, "who shows nothing says nothing: {code}");
    shutdown.cancel();
    task.await.expect("ends");
}

#[tokio::test]
async fn another_server_takes_over_the_resource_metrics_and_gives_them_back() {
    let cluster = Cluster::start().await;
    let behind = Behind::start(&cluster, |request| async move {
        match request.uri().path() {
            "/apis" => aggregated("metrics.k8s.io", "v1beta1", &["nodes"]),
            _ => echo(request).await,
        }
    })
    .await;
    let url = "/apis/metrics.k8s.io/v1beta1/nodes";
    let admin = cluster.namespace("a").await;
    admin.post("/api/v1/namespaces/a/services", service(7443)).await.created();
    behind.is_behind(&cluster).await;
    let own = admin.get(&format!("{SERVICES}/{METRICS}")).await.ok();
    assert_eq!((own["spec"]["service"].clone(), condition(&own).0), (Value::Null, "Local".to_owned()));
    assert_eq!(admin.get(url).await.ok()["kind"], "NodeMetricsList");

    // What stands in between is no JSON.
    let answered = |field: &'static str, wanted: &'static str| {
        let admin = &admin;
        async move || {
            let answer = admin.get(url).await;
            (answer.code == 200 && answer.json()[field] == wanted).then_some(())
        }
    };
    // As `kubectl apply` does it with the manifest of metrics-server.
    let theirs = json!({"spec": api_service(&cluster, METRICS, 100)["spec"]});
    admin.patch(&format!("{SERVICES}/{METRICS}"), "merge", theirs).await.ok();
    until_available(&admin, METRICS, "Passed").await;
    until(answered("url", url)).await;
    // What it has is heard of a little later.
    let resources =
        async || Some(discovered(&admin, "metrics.k8s.io", "v1beta1").await?["resources"].clone());
    until(async || resources().await.filter(|of| of[0]["responseKind"]["kind"] == "Flunder")).await;
    let again = cluster.restart().await.admin();
    let kept = again.get(&format!("{SERVICES}/{METRICS}")).await.ok();
    assert_eq!(kept["spec"]["service"]["name"], "s", "a start takes nothing back");

    admin.delete(&format!("{SERVICES}/{METRICS}")).await.ok();
    until_available(&admin, METRICS, "Local").await;
    until(answered("kind", "NodeMetricsList")).await;
    until(async || resources().await.filter(|of| of.as_array().map(Vec::len) == Some(2))).await;
}
