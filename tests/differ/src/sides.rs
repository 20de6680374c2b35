//! The two servers.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use skiff_apiserver::store::{SqliteOptions, SqliteStore, Store};
use skiff_apiserver::{ApiServer, ApiService, Config, KubeletConfig, ServiceAccountConfig, UserInfo};
use skiff_load::client::{Connection, Server};
use skiff_load::kubeconfig::Access;
use tower::Service as _;

use crate::answer::Answer;
use crate::case::{Case, Operation, Scope};
use crate::objects::{LIMITS_NAMESPACE, NAMESPACE, Subject};

const JSON: &str = "application/json";
const READY_TIMEOUT: Duration = Duration::from_secs(120);
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// One of them, with the objects as it stores them.
pub struct Side {
    link: Link,
    stored: HashMap<String, Value>,
    /// Of those that have one.
    scales: HashMap<String, Value>,
}

#[derive(Clone)]
enum Link {
    Skiff(Arc<InProcess>),
    Upstream(Connection),
}

/// Skiff's API server with nothing around it: no controller changes what it holds.
struct InProcess {
    service: ApiService,
    _server: ApiServer,
    _folder: tempfile::TempDir,
}

fn certificate() -> Result<(String, String)> {
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])?.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

impl InProcess {
    async fn start() -> Result<InProcess> {
        let folder = tempfile::tempdir()?;
        let store: Arc<dyn Store> =
            Arc::new(SqliteStore::open(SqliteOptions::new(folder.path().join("state.db")))?);
        let signing = rcgen::KeyPair::generate()?;
        let (certificate_pem, key_pem) = certificate()?;
        let config = Config {
            store,
            tls: None,
            front_proxy: None,
            advertise: "192.0.2.1".parse()?,
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
                ca_pem: certificate_pem.clone().into(),
                certificate_pem: certificate_pem.into(),
                key_pem: key_pem.into(),
                allow_loopback: false,
            },
        };
        let server = ApiServer::start(config).await.context("starting Skiff's API server")?;
        let service = server.service_for(UserInfo::new("admin", &["system:masters", "system:authenticated"]));
        Ok(InProcess { service, _server: server, _folder: folder })
    }
}

impl Link {
    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: &Value,
    ) -> Result<(u16, HeaderMap, Bytes)> {
        let bytes = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        match self {
            Link::Skiff(server) => {
                let request =
                    Request::builder().method(method).uri(path).header("content-type", content_type);
                let Ok(response) = server.service.clone().call(request.body(Body::from(bytes))?).await;
                let (parts, body) = response.into_parts();
                let bytes = body.collect().await.context("reading Skiff's answer")?.to_bytes();
                Ok((parts.status.as_u16(), parts.headers, bytes))
            }
            Link::Upstream(connection) => {
                let response = connection.send(method, path, content_type, bytes).await?;
                let (parts, body) = response.into_parts();
                let bytes = body.collect().await.context("reading upstream's answer")?.to_bytes();
                Ok((parts.status.as_u16(), parts.headers, bytes))
            }
        }
    }
}

/// A connection to a server that has just been started, once it says that it is ready.
async fn ready(server: &Server) -> Link {
    loop {
        if let Ok(connection) = server.connect().await {
            let link = Link::Upstream(connection);
            let answer = link.send(Method::GET, "/readyz", JSON, &Value::Null).await;
            if answer.is_ok_and(|(code, _, _)| code == 200) {
                return link;
            }
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

impl Side {
    pub async fn skiff(subjects: &[Subject]) -> Result<(Side, Vec<String>)> {
        Side::prepared(Link::Skiff(Arc::new(InProcess::start().await?)), subjects).await
    }

    pub async fn upstream(access: &Access, subjects: &[Subject]) -> Result<(Side, Vec<String>)> {
        let server = Server::new(access)?;
        let link = tokio::time::timeout(READY_TIMEOUT, ready(&server)).await;
        Side::prepared(link.context("upstream's API server is not ready")?, subjects).await
    }

    /// Makes the namespaces and the objects; answers what was refused of them.
    async fn prepared(link: Link, subjects: &[Subject]) -> Result<(Side, Vec<String>)> {
        for namespace in [NAMESPACE, LIMITS_NAMESPACE] {
            let body = json!({"metadata": {"name": namespace}});
            let (code, _, bytes) = link.send(Method::POST, "/api/v1/namespaces", JSON, &body).await?;
            ensure!(code == 201, "making {namespace}: {}", String::from_utf8_lossy(&bytes));
            let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
            let (code, _, bytes) =
                link.send(Method::POST, &path, JSON, &json!({"metadata": {"name": "default"}})).await?;
            ensure!(code == 201, "making its account: {}", String::from_utf8_lossy(&bytes));
        }
        let (mut stored, mut refused) = (HashMap::new(), Vec::new());
        for subject in subjects {
            let (code, _, bytes) =
                link.send(Method::POST, &subject.collection(), JSON, &subject.object).await?;
            if code != 201 {
                refused.push(format!("{}: {}", subject.id, String::from_utf8_lossy(&bytes)));
                continue;
            }
            let mut object: Value = serde_json::from_slice(&bytes)?;
            if let Some(meta) = object["metadata"].as_object_mut() {
                meta.remove("managedFields");
            }
            stored.insert(subject.id.clone(), object);
        }
        // What no longer changes by itself.
        for subject in subjects {
            if !stored.contains_key(&subject.id) {
                continue;
            }
            let (code, _, bytes) = link.send(Method::GET, &subject.path(), JSON, &Value::Null).await?;
            if code == 200
                && let Ok(object) = serde_json::from_slice::<Value>(&bytes)
            {
                let mut object = object;
                if let Some(meta) = object["metadata"].as_object_mut() {
                    meta.remove("managedFields");
                }
                stored.insert(subject.id.clone(), object);
            }
        }
        let mut scales = HashMap::new();
        for subject in subjects.iter().filter(|subject| subject.kind.has_subresource("scale")) {
            let path = format!("{}/scale", subject.path());
            let (code, _, bytes) = link.send(Method::GET, &path, JSON, &Value::Null).await?;
            if code == 200 {
                scales.insert(subject.id.clone(), serde_json::from_slice(&bytes)?);
            }
        }
        Ok((Side { link, stored, scales }, refused))
    }

    pub fn stored(&self, subject: &str) -> Option<&Value> {
        self.stored.get(subject)
    }

    pub async fn ask(&self, subject: &Subject, case: &Case) -> Result<Answer> {
        let known = if case.scope == Scope::Scale { &self.scales } else { &self.stored };
        let stored = known.get(&subject.id).unwrap_or(&Value::Null);
        let body = case.body(&subject.object, stored);
        let path = format!("{}{}", subject.path(), case.scope.subresource());
        let (method, path) = match case.operation {
            Operation::Create => (Method::POST, subject.collection()),
            Operation::Update => (Method::PUT, path),
            _ => (Method::PATCH, path),
        };
        // A create of a name that is taken would be refused for that.
        let mut body = body;
        if case.operation == Operation::Create
            && let Some(name) = body.pointer_mut("/metadata/name")
            && name == subject.name()
            && is_free_to_name(subject)
        {
            *name = format!("{}-1", subject.name()).into();
        }
        if case.scope == Scope::Real {
            return self.write_and_read(subject, case, body).await;
        }
        let path = format!("{path}?dryRun=All");
        let sent = self.link.send(method, &path, case.operation.content_type(), &body).await;
        let (code, headers, bytes) = match (sent, &self.link) {
            (Ok(answer), _) => answer,
            // Upstream's handlers panic on some objects, which resets the stream.
            (Err(_), Link::Upstream(_)) => return Ok(Answer::default()),
            (Err(error), Link::Skiff(_)) => return Err(error),
        };
        Answer::read(code, warnings(&headers), &bytes).with_context(|| case.text())
    }

    /// Creates an object of a name that nobody else has, answers what is read of it then, and deletes it.
    async fn write_and_read(&self, subject: &Subject, case: &Case, mut body: Value) -> Result<Answer> {
        let name = format!("{}-{}", subject.name(), case.id());
        body["metadata"]["name"] = name.as_str().into();
        let sent = self.link.send(Method::POST, &subject.collection(), JSON, &body).await;
        let (code, headers, bytes) = match (sent, &self.link) {
            (Ok(answer), _) => answer,
            (Err(_), Link::Upstream(_)) => return Ok(Answer::default()),
            (Err(error), Link::Skiff(_)) => return Err(error),
        };
        let created = Answer::read(code, warnings(&headers), &bytes).with_context(|| case.text())?;
        if !created.is_accepted() {
            return Ok(created);
        }
        let path = format!("{}/{name}", subject.collection());
        let (code, _, bytes) = self.link.send(Method::GET, &path, JSON, &Value::Null).await?;
        let read = Answer::read(code, created.warnings.clone(), &bytes).with_context(|| case.text())?;
        let options = json!({"gracePeriodSeconds": 0, "propagationPolicy": "Background"});
        self.link.send(Method::DELETE, &path, JSON, &options).await?;
        // What is read must be what was answered, whoever is asked.
        if read.object != created.object {
            return Ok(Answer {
                message: "what was read is not what was answered".into(),
                ..Answer::default()
            });
        }
        Ok(read)
    }
}

fn warnings(headers: &HeaderMap) -> BTreeSet<String> {
    let texts = headers.get_all("warning").iter().filter_map(|value| value.to_str().ok());
    texts.map(|text| text.trim_start_matches("299 - ").trim_matches('"').to_owned()).collect()
}

/// Names that say something about the rest of the object stay.
fn is_free_to_name(subject: &Subject) -> bool {
    !matches!(subject.kind.kind.as_str(), "IPAddress" | "APIService")
}
