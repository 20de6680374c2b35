//! How a server that stands behind an APIService is reached: through its Service, over TLS, with the front proxy's certificate.
//!
//! ```text
//! Peer ─ idle connections ─ Connector ─▶ endpoints of the Service, as the cache has them ─ TLS, name of the Service ─▶ server
//! ```
//!
//! Connections are HTTP/1.1: each request has its own, so that what one does holds up no other, and any may be upgraded.
//!
//! Source: `ResolveCluster` and `ResolveEndpoint` of `k8s.io/apiserver/pkg/util/proxy`.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use base64::Engine as _;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use rand::seq::SliceRandom as _;
use rustls::RootCertStore;
use serde_json::Value;
use skiff_api::{Object, Status};
use skiff_webhook::{Connector, DialError, IDLE_TIMEOUT, Resolver, Stream, dial};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api::Api;
use crate::proxy::is_allowed;
use crate::tls::{self, Shown};

/// What label of an EndpointSlice names its Service.
pub(super) const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const DEFAULT_PORT: u16 = 443;
/// Requests of each level to one server at once: who finds no place is told to come again.
const IN_FLIGHT: usize = 100;
/// Watches and streams of each level to one server at once.
const LONG_RUNNING: usize = 2000;
const MAX_IDLE_CONNECTIONS: usize = 25;
/// Levels that places are remembered of.
const MAX_LEVELS: usize = 64;
/// As many endpoints of a Service are tried for one connection.
const MAX_TRIES: usize = 3;
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Which port of which Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ServicePort {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) port: u16,
}

impl ServicePort {
    /// Of an APIService; `None` if this server serves it itself.
    pub(super) fn of(service: &Object) -> Option<ServicePort> {
        let reference = &service["spec"]["service"];
        let text = |field: &str| reference[field].as_str().unwrap_or_default().to_owned();
        let port = match reference["port"].as_u64() {
            None => DEFAULT_PORT,
            Some(port) => u16::try_from(port).unwrap_or_default(),
        };
        reference.is_object().then(|| ServicePort { namespace: text("namespace"), name: text("name"), port })
    }

    /// `<namespace>/<name>`
    pub(super) fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Who vouches for a server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// PEM; empty where nobody is named.
    Bundle(Vec<u8>),
    Anybody,
}

impl Trust {
    pub(super) fn of(service: &Object) -> Trust {
        if service["spec"]["insecureSkipTLSVerify"] == true {
            return Trust::Anybody;
        }
        let bundle = service["spec"]["caBundle"].as_str().unwrap_or_default();
        Trust::Bundle(base64::engine::general_purpose::STANDARD.decode(bundle).unwrap_or_default())
    }
}

/// A server behind an APIService.
pub(crate) struct Peer {
    pub(super) to: ServicePort,
    pub(super) trust: Trust,
    /// Why there is none: what its APIService says of TLS cannot be used.
    http: Result<HttpClient<Connector, Body>, String>,
    places: Places,
}

/// Places for requests: no level takes those of another, and no server those of another.
#[derive(Default)]
struct Places(Mutex<HashMap<String, Level>>);

/// The places of one level, by its name.
struct Level {
    short: Arc<Semaphore>,
    long: Arc<Semaphore>,
}

impl Places {
    fn take(&self, level: &str, is_long: bool) -> Option<OwnedSemaphorePermit> {
        let mut levels = self.0.lock();
        if levels.len() >= MAX_LEVELS && !levels.contains_key(level) {
            // Levels come and go; what nobody is in is nobody's.
            levels.retain(|_, level| {
                level.short.available_permits() < IN_FLIGHT || level.long.available_permits() < LONG_RUNNING
            });
        }
        let places = |n| Arc::new(Semaphore::new(n));
        let level = levels
            .entry(level.to_owned())
            .or_insert_with(|| Level { short: places(IN_FLIGHT), long: places(LONG_RUNNING) });
        let places = if is_long { &level.long } else { &level.short };
        places.clone().try_acquire_owned().ok()
    }
}

impl Peer {
    pub(super) fn new(to: ServicePort, trust: Trust, outward: &Outward) -> Peer {
        let http = outward.connector(&to, &trust).map(|connector| {
            HttpClient::builder(TokioExecutor::new())
                .timer(TokioTimer::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_TIMEOUT)
                .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
                .build(connector)
        });
        Peer { to, trust, http, places: Places::default() }
    }

    /// Why no request can be sent, whoever is there.
    pub(super) fn client(&self) -> Result<&HttpClient<Connector, Body>, &str> {
        self.http.as_ref().map_err(String::as_str)
    }

    /// A place for a request.
    ///
    /// # Errors
    /// 429 if the level has all of its places.
    pub(super) fn admit(&self, level: &str, is_long: bool) -> Result<OwnedSemaphorePermit, Status> {
        self.places.take(level, is_long).ok_or_else(|| {
            Status::too_many_requests("too many requests to this API server, please try again later", 1)
        })
    }
}

/// The way to servers behind APIServices: what this server shows to them, and which Services there are.
pub(crate) struct Outward {
    /// The front proxy's certificate, if there is one.
    shown: Option<Arc<Shown>>,
    endpoints: Arc<Endpoints>,
}

impl Outward {
    pub(super) fn new(shown: Option<Arc<Shown>>, allow_loopback: bool) -> Outward {
        let endpoints = Endpoints { api: std::sync::OnceLock::new(), allow_loopback };
        Outward { shown, endpoints: Arc::new(endpoints) }
    }

    pub(super) fn lead_to(&self, api: &Arc<Api>) {
        _ = self.endpoints.api.set(Arc::downgrade(api));
    }

    fn connector(&self, to: &ServicePort, trust: &Trust) -> Result<Connector, String> {
        let verifier = match trust {
            Trust::Anybody => tls::any_certificate(),
            Trust::Bundle(bundle) => {
                // There are no roots of the host: a server without a bundle is nobody's.
                let none = Arc::new(RootCertStore::empty());
                skiff_webhook::verifier(bundle, &none, &tls::provider()).map_err(|error| error.to_string())?
            }
        };
        let client =
            tls::front_proxy_client(verifier, self.shown.clone()).map_err(|error| error.to_string())?;
        Connector::to_service(self.endpoints.clone(), &to.namespace, &to.name, to.port, client)
            .map_err(|error| error.to_string())
    }
}

/// Where the endpoints of Services are, by the caches.
struct Endpoints {
    api: std::sync::OnceLock<Weak<Api>>,
    allow_loopback: bool,
}

#[async_trait]
impl Resolver for Endpoints {
    async fn dial_service(
        &self,
        namespace: &str,
        name: &str,
        port: u16,
    ) -> Result<Box<dyn Stream>, DialError> {
        let api = self.api.get().and_then(Weak::upgrade);
        let api = api.ok_or_else(|| DialError::Unresolved("the server is shutting down".to_owned()))?;
        let to = ServicePort { namespace: namespace.to_owned(), name: name.to_owned(), port };
        let unresolved = |status: Status| DialError::Unresolved(status.message);
        let service = api.service_of(&to).map_err(unresolved)?;
        let found = match external_name(&service) {
            Some(host) => look_up(host, port).await?,
            None => api.endpoints_of(&to, &service).map_err(unresolved)?,
        };
        let mut allowed: Vec<SocketAddr> =
            found.into_iter().filter(|at| is_allowed(at.ip(), self.allow_loopback)).collect();
        allowed.shuffle(&mut rand::rng());
        let mut last = DialError::Unresolved(format!("no endpoints available for service {name:?}"));
        for address in allowed.into_iter().take(MAX_TRIES) {
            match tokio::time::timeout(DIAL_TIMEOUT, dial(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(_) => last = DialError::Unresolved(format!("dial tcp {address}: i/o timeout")),
            }
        }
        Err(last)
    }
}

async fn look_up(host: &str, port: u16) -> Result<Vec<SocketAddr>, DialError> {
    let found = tokio::time::timeout(DIAL_TIMEOUT, tokio::net::lookup_host((host, port))).await;
    let unknown = || DialError::Unresolved(format!("dial tcp: lookup {host}: no such host"));
    Ok(found.map_err(|_| unknown())?.map_err(|_| unknown())?.collect())
}

fn external_name(service: &Object) -> Option<&str> {
    (service["spec"]["type"] == "ExternalName").then(|| service["spec"]["externalName"].as_str()).flatten()
}

/// The port of a Service with a number.
pub(super) fn port_of(service: &Object, port: u16) -> Option<&Value> {
    service["spec"]["ports"].as_array().into_iter().flatten().find(|known| known["port"] == port)
}

impl Api {
    /// The Service of an APIService.
    ///
    /// # Errors
    /// 404 if there is none.
    pub(super) fn service_of(&self, to: &ServicePort) -> Result<Object, Status> {
        let entry = self.cached("services", &to.key())?;
        Ok(entry.ok_or_else(|| Status::not_found("", "services", &to.name))?.parse())
    }

    /// The slices of a Service.
    pub(super) fn slices_of(&self, to: &ServicePort) -> Result<Vec<Object>, Status> {
        let kind = self.kind("discovery.k8s.io", "v1", "endpointslices")?;
        let (_, slices) = self.caches.of(&kind)?.snapshot_of(Some(&to.namespace))?;
        let of_service = slices.values().filter(|entry| entry.label(SERVICE_LABEL) == Some(to.name.as_str()));
        Ok(of_service.map(|entry| entry.parse()).collect())
    }

    /// The address that upstream asks the server at: this one goes to the endpoints behind it.
    ///
    /// # Errors
    /// If no request could go there, in upstream's words.
    pub(super) fn shown_address(&self, to: &ServicePort) -> Result<String, Status> {
        let service = self.service_of(to)?;
        let spec = &service["spec"];
        let authority = |host: &str| match host.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, to.port).to_string(),
            Err(_) => format!("{host}:{}", to.port),
        };
        if let Some(host) = external_name(&service) {
            return Ok(authority(host));
        }
        if port_of(&service, to.port).is_none() {
            let why = format!("no service port {} found for service {:?}", to.port, to.name);
            return Err(Status::unavailable(why));
        }
        match spec["clusterIP"].as_str().unwrap_or_default() {
            // Upstream cannot send anything to one without an address of its own; its endpoints can be reached all the same.
            "" | "None" => Ok(authority(&format!("{}.{}.svc", to.name, to.namespace))),
            ip => Ok(authority(ip)),
        }
    }

    /// The addresses of the ready endpoints of a Service's port.
    fn endpoints_of(&self, to: &ServicePort, service: &Object) -> Result<Vec<SocketAddr>, Status> {
        let port = port_of(service, to.port).ok_or_else(|| {
            let why = format!("no service port {} found for service {:?}", to.port, to.name);
            Status::unavailable(why)
        })?;
        let name = port["name"].as_str().unwrap_or_default();
        Ok(self.slices_of(to)?.iter().flat_map(|slice| ready(slice, name)).collect())
    }
}

/// Of one slice.
fn ready(slice: &Object, port_name: &str) -> Vec<SocketAddr> {
    let mut ports = slice["ports"].as_array().into_iter().flatten();
    let port = ports.find(|port| port["name"].as_str().unwrap_or_default() == port_name);
    let Some(port) = port.and_then(|port| u16::try_from(port["port"].as_u64()?).ok()) else {
        return Vec::new();
    };
    let endpoints = slice["endpoints"].as_array().into_iter().flatten();
    endpoints
        .filter(|endpoint| endpoint["conditions"]["ready"] != false)
        .filter_map(|endpoint| Some(SocketAddr::new(endpoint["addresses"][0].as_str()?.parse().ok()?, port)))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_ready_endpoints_of_the_port_are_dialled() {
        let slice = json!({
            "ports": [{"name": "web", "port": 80}, {"port": 8443}],
            "endpoints": [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
                {"addresses": ["10.0.0.3"]},
                {"addresses": ["a.example"]},
            ],
        });
        let found = |port| ready(&slice, port).iter().map(SocketAddr::to_string).collect::<Vec<_>>();
        assert_eq!(found(""), ["10.0.0.1:8443", "10.0.0.3:8443"]);
        assert_eq!(found("web"), ["10.0.0.1:80", "10.0.0.3:80"]);
        assert_eq!(found("other"), [] as [&str; 0]);
    }

    #[test]
    fn no_level_takes_the_places_of_another_and_levels_that_are_gone_take_no_room() {
        let places = Places::default();
        let held: Vec<_> = std::iter::from_fn(|| places.take("a", false)).collect();
        assert_eq!(held.len(), IN_FLIGHT);
        assert!(places.take("a", true).is_some(), "what goes on for long has places of its own");
        let other = places.take("b", false).expect("a place");
        for n in 0..2 * MAX_LEVELS {
            drop(places.take(&n.to_string(), false).expect("a place"));
        }
        assert!(places.0.lock().len() <= MAX_LEVELS);
        assert!(places.take("a", false).is_none(), "what is held is not forgotten");
        drop((held, other));
        assert!(places.take("a", false).is_some());
    }

    #[test]
    fn an_api_service_says_where_it_is_and_who_vouches_for_it() {
        let service = json!({"spec": {"service": {"namespace": "a", "name": "s"}, "caBundle": "eA=="}});
        let to = ServicePort::of(&service).expect("a Service");
        assert_eq!((to.key().as_str(), to.port), ("a/s", 443));
        assert_eq!(Trust::of(&service), Trust::Bundle(b"x".to_vec()));
        assert_eq!(Trust::of(&json!({"spec": {"insecureSkipTLSVerify": true}})), Trust::Anybody);
        assert_eq!(ServicePort::of(&json!({"spec": {}})), None);
    }
}
