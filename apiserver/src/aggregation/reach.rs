//! How a server that stands behind an APIService is reached: through its Service, over TLS, with the front proxy's certificate.
//!
//! ```text
//! Peer ─ idle connections ─ Connector ─▶ endpoints of the Service, as the cache has them ─ TLS, name of the Service ─▶ server
//! ```
//!
//! Connections are HTTP/1.1: each request has its own, so that what one does holds up no other, and any may be upgraded.
//!
//! Source: `ResolveCluster` and `ResolveEndpoint` of `k8s.io/apiserver/pkg/util/proxy`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rand::seq::SliceRandom as _;
use rustls::RootCertStore;
use serde_json::Value;
use skiff_api::{Object, Status};
use skiff_webhook::{Connector, DialError, Resolver, Stream, dial};

use super::peer::{Peer, ServicePort, Trust};
use crate::lister::Lister;
use crate::proxy::allowed::is_allowed;
use crate::tls::{self, Shown};

/// What label of an EndpointSlice names its Service.
pub(super) const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// As many endpoints of a Service are tried for one connection.
const MAX_TRIES: usize = 3;
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// The way to servers behind APIServices: what this server shows to them, and which Services there are.
pub(crate) struct Outward {
    /// The front proxy's certificate, if there is one.
    shown: Option<Arc<Shown>>,
    pub(super) endpoints: Arc<Endpoints>,
}

impl Outward {
    pub(crate) fn new(shown: Option<Arc<Shown>>, endpoints: Arc<Endpoints>) -> Outward {
        Outward { shown, endpoints }
    }

    /// The way to a server, or why there is none.
    pub(super) fn peer(&self, to: ServicePort, trust: Trust) -> Peer {
        let connector = self.connector(&to, &trust);
        Peer::new(to, trust, connector)
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
pub(crate) struct Endpoints {
    pub(crate) lister: Lister,
    pub(crate) allow_loopback: bool,
}

#[async_trait]
impl Resolver for Endpoints {
    async fn dial_service(
        &self,
        namespace: &str,
        name: &str,
        port: u16,
    ) -> Result<Box<dyn Stream>, DialError> {
        let to = ServicePort { namespace: namespace.to_owned(), name: name.to_owned(), port };
        let unresolved = |status: Status| DialError::Unresolved(status.message);
        let service = self.service_of(&to).map_err(unresolved)?;
        let found = match external_name(&service) {
            Some(host) => look_up(host, port).await?,
            None => self.endpoints_of(&to, &service).map_err(unresolved)?,
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

impl Endpoints {
    /// The Service of an APIService.
    ///
    /// # Errors
    /// 404 if there is none.
    pub(super) fn service_of(&self, to: &ServicePort) -> Result<Object, Status> {
        let entry = self.lister.cached("services", &to.key())?;
        Ok(entry.ok_or_else(|| Status::not_found("", "services", &to.name))?.parse())
    }

    /// The slices of a Service.
    pub(super) fn slices_of(&self, to: &ServicePort) -> Result<Vec<Object>, Status> {
        let slices = self.lister.cache("discovery.k8s.io", "v1", "endpointslices")?;
        let (_, slices) = slices.snapshot_of(Some(&to.namespace))?;
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
}
