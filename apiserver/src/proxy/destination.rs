//! Which address a proxied request goes to: a pod's own, that of a pod behind a Service, or a node's kubelet.
//!
//! Source: upstream's `ResourceLocation` of pods, services and nodes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rand::Rng;
use serde_json::Value;
use skiff_api::{Object, Status};
use skiff_webhook::{DialError, Resolver, Stream, dial};

use super::allowed::is_allowed;
use super::connect::Backend;
use super::kubelet::Kubelet;
use crate::call::Call;
use crate::lister::Lister;

/// Upstream waits without end for the head of an answer; this is for backends that never will.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(600);

/// What the server needs in order to reach pods.
pub(crate) struct PodProxy {
    /// Pods are reached by address, and their certificates are of no authority that is known here: nothing of
    /// them is verified, as upstream.
    tls: Arc<rustls::ClientConfig>,
    allow_loopback: bool,
}

impl PodProxy {
    pub(crate) fn new(tls: Arc<rustls::ClientConfig>, allow_loopback: bool) -> PodProxy {
        PodProxy { tls, allow_loopback }
    }

    fn backend(&self, scheme: Scheme, ip: &str, port: u16) -> Result<Backend, Status> {
        let ip = ip.parse::<IpAddr>().ok().filter(|ip| is_allowed(*ip, self.allow_loopback));
        let ip = ip.ok_or_else(|| Status::bad_request("address not allowed"))?;
        Ok(Backend {
            address: SocketAddr::new(ip, port),
            tls: (scheme == Scheme::Https).then(|| self.tls.clone()),
            response_timeout: RESPONSE_TIMEOUT,
            origin: None,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

/// What is named in the path: `name`, `name:port` or `scheme:name:port`.
#[derive(Debug, PartialEq, Eq)]
struct Target<'i> {
    scheme: Scheme,
    name: &'i str,
    /// Empty if unset.
    port: &'i str,
}

impl<'i> Target<'i> {
    fn parse(id: &'i str) -> Option<Target<'i>> {
        let parts: Vec<&str> = id.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => return None,
        };
        let scheme = match scheme {
            "" | "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        (!name.is_empty()).then_some(Target { scheme, name, port })
    }
}

/// Knows where requests for pods, Services and nodes go.
pub(crate) struct Destinations {
    pub(crate) lister: Lister,
    pub(crate) kubelet: Arc<Kubelet>,
    pub(crate) pods: PodProxy,
}

impl Destinations {
    /// Where a request for the call's `proxy` goes.
    ///
    /// # Errors
    /// 404 for what is not there, 503 for a Service with nothing behind it, 400 for an address that nothing is
    /// sent to.
    pub(super) async fn of(&self, call: &Call) -> Result<Backend, Status> {
        let (kind, id) = (call.kind.singular.as_str(), call.info.name.as_str());
        let target =
            Target::parse(id).ok_or_else(|| Status::bad_request(format!("invalid {kind} request {id:?}")))?;
        self.lister.caches.wait_for_newest().await?;
        match call.kind.plural.as_str() {
            "pods" => self.pod_destination(&call.info.namespace, &target),
            "services" => self.service_destination(&call.info.namespace, id, &target),
            _ => self.node_destination(&target),
        }
    }

    /// Where a port of a Service is served at the moment: one of the ready pods behind it.
    async fn service_address(&self, namespace: &str, name: &str, port: u16) -> Result<SocketAddr, Status> {
        self.lister.caches.wait_for_newest().await?;
        let (id, port) = (format!("{name}:{port}"), port.to_string());
        let target = Target { scheme: Scheme::Http, name, port: &port };
        let backend =
            self.service_destination(namespace, &id, &target).map_err(|status| match status.code {
                404 => Status::unavailable(format!("service {name:?} not found")),
                _ => status,
            })?;
        Ok(backend.address)
    }

    fn named(&self, plural: &str, namespace: &str, name: &str) -> Result<Object, Status> {
        let key = if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") };
        let entry = self.lister.cached(plural, &key)?.ok_or_else(|| Status::not_found("", plural, name))?;
        Ok(entry.parse())
    }

    fn pod_destination(&self, namespace: &str, target: &Target<'_>) -> Result<Backend, Status> {
        let pod = self.named("pods", namespace, target.name)?;
        let port = if target.port.is_empty() {
            first_port(&pod).unwrap_or(if target.scheme == Scheme::Https { 443 } else { 80 })
        } else {
            let unknown = || {
                let port = target.port;
                let why = format!("error trying to reach service: dial tcp: lookup tcp/{port}: unknown port");
                Status::unavailable(why)
            };
            target.port.parse().map_err(|_| unknown())?
        };
        let ip = pod["status"]["podIPs"][0]["ip"].as_str().unwrap_or_default();
        self.pods.backend(target.scheme, ip, port)
    }

    /// One of the ready pods behind the Service, at random.
    fn service_destination(&self, namespace: &str, id: &str, target: &Target<'_>) -> Result<Backend, Status> {
        let service = self.named("services", namespace, target.name)?;
        let name = target.name;
        let port = port_name(&service, target.port).ok_or_else(|| {
            let port = target.port;
            Status::unavailable(format!("no service port {port} found for service {name:?}"))
        })?;
        let endpoints = self.named("endpoints", namespace, name)?;
        let none = |of: &str| Status::unavailable(format!("no endpoints available for service {of:?}"));
        let subsets = endpoints["subsets"].as_array().filter(|subsets| !subsets.is_empty());
        let mut found = addresses(subsets.ok_or_else(|| none(name))?, &port);
        // Endpoints may be written by their users: only what is a pod's own address is dialled.
        while !found.is_empty() {
            let (address, port) = found.swap_remove(rand::rng().random_range(..found.len()));
            if self.is_of_pod(namespace, address) {
                let ip = address["ip"].as_str().unwrap_or_default();
                return self.pods.backend(target.scheme, ip, port);
            }
        }
        Err(none(id))
    }

    fn is_of_pod(&self, namespace: &str, address: &Value) -> bool {
        let target = &address["targetRef"];
        if target["namespace"] != namespace {
            return false;
        }
        let pod = self.named("pods", namespace, target["name"].as_str().unwrap_or_default());
        let ips = pod.map(|pod| pod["status"]["podIPs"].clone()).unwrap_or_default();
        ips.as_array().into_iter().flatten().any(|ip| ip["ip"] == address["ip"])
    }

    /// Only the kubelet's own port: any other would make the server's network everybody's.
    fn node_destination(&self, target: &Target<'_>) -> Result<Backend, Status> {
        let address = self.kubelet.address_of(&self.named("nodes", "", target.name)?)?;
        if !target.port.is_empty() && target.port.parse() != Ok(address.port) {
            return Err(Status::bad_request(format!(
                "requests to node {:?} may only be sent to its kubelet's port {}",
                target.name, address.port
            )));
        }
        Ok(self.kubelet.backend(address))
    }
}

/// Services are dialled where one of the pods behind them is.
#[async_trait]
impl Resolver for Destinations {
    async fn dial_service(
        &self,
        namespace: &str,
        name: &str,
        port: u16,
    ) -> Result<Box<dyn Stream>, DialError> {
        let address = self.service_address(namespace, name, port).await;
        dial(address.map_err(|status| DialError::Unresolved(status.message))?).await
    }
}

fn first_port(pod: &Object) -> Option<u16> {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut ports = containers.filter_map(|container| container["ports"][0]["containerPort"].as_u64());
    ports.next().and_then(|port| u16::try_from(port).ok())
}

/// The name of a Service's port that was given by its number; a name stays as it is.
fn port_name(service: &Object, port: &str) -> Option<String> {
    let Ok(number) = port.parse::<u64>() else { return Some(port.to_owned()) };
    let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let found = ports.find(|port| port["port"] == number)?;
    Some(found["name"].as_str().unwrap_or_default().to_owned())
}

/// The ready addresses that have a port of this name, each with its number.
fn addresses<'s>(subsets: &'s [Value], port: &str) -> Vec<(&'s Value, u16)> {
    let mut found = Vec::new();
    for subset in subsets {
        let mut ports = subset["ports"].as_array().into_iter().flatten();
        let number = ports.find(|p| p["name"].as_str().unwrap_or_default() == port);
        let number = number.and_then(|p| p["port"].as_u64()).and_then(|p| u16::try_from(p).ok());
        if let Some(number) = number {
            let ready = subset["addresses"].as_array().into_iter().flatten();
            found.extend(ready.map(|address| (address, number)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_target_may_say_its_scheme_and_port() {
        let target = |scheme, name, port| Some(Target { scheme, name, port });
        assert_eq!(Target::parse("a"), target(Scheme::Http, "a", ""));
        assert_eq!(Target::parse("a:80"), target(Scheme::Http, "a", "80"));
        assert_eq!(Target::parse("https:a:web"), target(Scheme::Https, "a", "web"));
        assert_eq!(Target::parse("https:a:"), target(Scheme::Https, "a", ""));
        for refused in ["", ":80", "ftp:a:21", "a:b:c:d"] {
            assert_eq!(Target::parse(refused), None, "{refused}");
        }
    }

    #[test]
    fn a_services_port_is_found_by_number_and_by_name() {
        let service = json!({"spec": {"ports": [{"name": "web", "port": 80}, {"port": 81}]}});
        assert_eq!(port_name(&service, "80").as_deref(), Some("web"));
        assert_eq!(port_name(&service, "81").as_deref(), Some(""));
        assert_eq!(port_name(&service, "82"), None);
        assert_eq!(port_name(&service, "other").as_deref(), Some("other"));
        let subsets = [
            json!({"addresses": [{"ip": "10.0.0.1"}], "ports": [{"name": "web", "port": 8080}]}),
            json!({"notReadyAddresses": [{"ip": "10.0.0.2"}], "ports": [{"name": "web", "port": 8080}]}),
            json!({"addresses": [{"ip": "10.0.0.3"}], "ports": [{"port": 9}]}),
        ];
        let found: Vec<(String, u16)> =
            addresses(&subsets, "web").iter().map(|(a, p)| (a["ip"].to_string(), *p)).collect();
        assert_eq!(found, [("\"10.0.0.1\"".to_owned(), 8080)]);
        assert_eq!(addresses(&subsets, "")[0].1, 9);
    }

    #[test]
    fn a_pods_first_port_is_its_default() {
        let pod = json!({"spec": {"containers": [{}, {"ports": [{"containerPort": 9376}]}]}});
        assert_eq!(first_port(&pod), Some(9376));
        assert_eq!(first_port(&json!({"spec": {"containers": [{}]}})), None);
    }
}
