//! The kubelets of nodes: where each is, and requests to one.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use parking_lot::RwLock;
use serde_json::Value;
use skiff_api::meta::Meta;
use skiff_api::{Object, Status};

use super::allowed::is_allowed;
use super::connect::Backend;

/// How much of a kubelet's error is passed on.
const MAX_ERROR_BYTES: usize = 4 << 10;
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// What the server needs in order to reach kubelets.
pub struct KubeletConfig {
    /// The server's client certificate, its key, and the CA that signed the kubelets' certificates, in PEM.
    pub certificate_pem: Vec<u8>,
    pub key_pem: Vec<u8>,
    pub ca_pem: Vec<u8>,
    /// Lets a node's or pod's address be a loopback one: for tests, and for a host that has no other.
    pub allow_loopback: bool,
}

pub(crate) struct Kubelet {
    tls: Arc<rustls::ClientConfig>,
    allow_loopback: bool,
    /// Where each node's connections come from.
    origins: RwLock<HashMap<String, IpAddr>>,
}

/// More nodes than a cluster has; past them all are heard of anew.
const MAX_ORIGINS: usize = 10_000;

/// Where a node's kubelet listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeAddress {
    pub(super) ip: IpAddr,
    pub(super) port: u16,
    /// Where the node's own connections come from, if that is somewhere else.
    origin: Option<IpAddr>,
}

impl Kubelet {
    pub(crate) fn new(tls: Arc<rustls::ClientConfig>, allow_loopback: bool) -> Kubelet {
        Kubelet { tls, allow_loopback, origins: RwLock::default() }
    }

    /// Notes where a node has sent a request from.
    pub(crate) fn heard_from(&self, node: &str, origin: IpAddr) {
        if self.origins.read().get(node) == Some(&origin) {
            return;
        }
        let mut origins = self.origins.write();
        if origins.len() >= MAX_ORIGINS {
            origins.clear();
        }
        origins.insert(node.to_owned(), origin);
    }

    /// The address of a node's kubelet, as its status says. Checked here, and dialled as it was checked.
    pub(crate) fn address_of(&self, node: &Object) -> Result<NodeAddress, Status> {
        let name = node.name();
        let addresses = node["status"]["addresses"].as_array();
        let internal = addresses.into_iter().flatten().find(|a| a["type"] == "InternalIP");
        let ip: Option<IpAddr> = internal.and_then(|a| a["address"].as_str()?.parse().ok());
        let Some(ip) = ip else {
            return Err(Status::internal(format!(
                "no preferred addresses found for node {name:?}; known addresses: []"
            )));
        };
        if !is_allowed(ip, self.allow_loopback) {
            let why = format!("address {ip} of node {name} is not one that requests may be sent to");
            return Err(Status::bad_request(why));
        }
        let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
        let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0).unwrap_or(10250);
        let origin = self.origins.read().get(name).copied().filter(|origin| *origin != ip);
        Ok(NodeAddress { ip, port, origin })
    }

    pub(super) fn backend(&self, to: NodeAddress) -> Backend {
        Backend {
            address: SocketAddr::new(to.ip, to.port),
            tls: Some(self.tls.clone()),
            response_timeout: RESPONSE_TIMEOUT,
            origin: to.origin,
        }
    }

    pub(crate) async fn send(
        &self,
        to: NodeAddress,
        mut request: http::Request<Body>,
    ) -> Result<http::Response<Incoming>, Status> {
        let backend = self.backend(to);
        let host = http::HeaderValue::from_str(&backend.address.to_string()).map_err(Status::internal)?;
        request.headers_mut().insert(http::header::HOST, host);
        let answer = backend.send(request).await;
        answer
            .map_err(|error| Status::internal(format!("error dialing backend: {}", backend.explain(&error))))
    }
}

/// A kubelet's refusal: its own words where it is a `Status` or plain text.
pub(super) async fn kubelet_error(answer: http::Response<hyper::body::Incoming>) -> Status {
    let code = answer.status().as_u16();
    let body = http_body_util::Limited::new(answer.into_body(), MAX_ERROR_BYTES).collect().await;
    let text = body.map(|b| String::from_utf8_lossy(&b.to_bytes()).trim().to_owned()).unwrap_or_default();
    let message = match serde_json::from_str::<Value>(&text) {
        Ok(document) => document["message"].as_str().unwrap_or(&text).to_owned(),
        Err(_) => text,
    };
    match code {
        400 => Status::bad_request(message),
        401 | 403 => Status::internal(format!("the kubelet refused the server: {message}")),
        404 => Status::new(404, "NotFound", message),
        429 => Status::too_many_requests(message, 1),
        503 => Status::unavailable(message),
        _ => Status::internal(message),
    }
}
