//! Whether a server behind an APIService is there, as the condition `Available` says it.
//!
//! Source: kube-aggregator's `pkg/controllers/status`, to the reason and message.

use std::time::Duration;

use axum::body::Body;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::header::{HOST, HeaderMap};
use http::{HeaderValue, Request};
use serde_json::{Value, json};
use skiff_api::meta::Meta;
use skiff_api::{Kind, Object, Status};

use super::identity::{self, aggregator};
use super::peer::{Peer, ServicePort};
use super::reach::{Endpoints, port_of};
use crate::clock::now;
use crate::objects::{Next, Objects};

pub(super) const AVAILABLE: &str = "Available";
/// One that answers at all does so at once.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is asked at the same time, if the first answer is none: of several endpoints one may be gone.
const FURTHER_PROBES: usize = 4;

/// What the condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) status: &'static str,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Finding {
    fn unavailable(reason: &'static str, message: String) -> Finding {
        Finding { status: "False", reason, message }
    }

    /// Of what this server serves itself.
    pub(super) fn local() -> Finding {
        let message = "Local APIServices are always available".to_owned();
        Finding { status: "True", reason: "Local", message }
    }

    fn passed() -> Finding {
        Finding { status: "True", reason: "Passed", message: "all checks passed".to_owned() }
    }

    pub(super) fn is_available(&self) -> bool {
        self.status == "True"
    }

    /// Whether the status of an APIService says this already.
    pub(super) fn is_told_by(&self, service: &Object) -> bool {
        let told = condition(service);
        told["status"] == self.status
            && told["reason"] == self.reason
            && told["message"].as_str() == Some(self.message.as_str())
    }

    fn tell(&self, service: &mut Object) {
        let mut new = json!({
            "type": AVAILABLE, "status": self.status, "lastTransitionTime": now(), "reason": self.reason,
            "message": self.message,
        });
        if !service["status"]["conditions"].is_array() {
            service["status"]["conditions"] = json!([]);
        }
        let Some(conditions) = service["status"]["conditions"].as_array_mut() else { return };
        match conditions.iter_mut().find(|condition| condition["type"] == AVAILABLE) {
            Some(old) => {
                if old["status"] == self.status {
                    new["lastTransitionTime"] = old["lastTransitionTime"].clone();
                }
                *old = new;
            }
            None => conditions.push(new),
        }
    }
}

fn condition(service: &Object) -> &Value {
    let conditions = service["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().find(|condition| condition["type"] == AVAILABLE).unwrap_or(&Value::Null)
}

/// Whether requests are sent on: by what the object says, as upstream.
pub(super) fn is_available(service: &Object) -> bool {
    condition(service)["status"] == "True"
}

/// What is wrong with the way to a server, by the objects alone.
fn look(to: &ServicePort, service: Option<&Object>, slices: &[Object]) -> Option<Finding> {
    let (name, namespace, port) = (&to.name, &to.namespace, to.port);
    let Some(service) = service else {
        let why = format!("service/{name} in {namespace:?} is not present");
        return Some(Finding::unavailable("ServiceNotFound", why));
    };
    if service["spec"]["type"] != "ClusterIP" {
        return None;
    }
    let Some(found) = port_of(service, port) else {
        let why = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return Some(Finding::unavailable("ServicePortError", why));
    };
    if slices.is_empty() {
        let why = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return Some(Finding::unavailable("EndpointsNotFound", why));
    }
    let port_name = found["name"].as_str().unwrap_or_default();
    if slices.iter().any(|slice| has_endpoint(slice, port_name)) {
        return None;
    }
    let why = format!(
        "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
    );
    Some(Finding::unavailable("MissingEndpoints", why))
}

fn has_endpoint(slice: &Object, port_name: &str) -> bool {
    let items = |field: &str| slice[field].as_array().map(Vec::as_slice).unwrap_or_default().iter();
    items("endpoints").any(|endpoint| endpoint["conditions"]["ready"] != false)
        && items("ports")
            .any(|port| port["name"].as_str().unwrap_or_default() == port_name && port["port"].is_u64())
}

/// Whether a server is there.
///
/// # Errors
/// If its Service cannot be looked at.
pub(super) async fn check_peer(endpoints: &Endpoints, peer: &Peer, path: &str) -> Result<Finding, Status> {
    let service = match endpoints.service_of(&peer.to) {
        Ok(service) => Some(service),
        Err(status) if status.code == 404 => None,
        Err(status) => return Err(status),
    };
    if let Some(finding) = look(&peer.to, service.as_ref(), &endpoints.slices_of(&peer.to)?) {
        return Ok(finding);
    }
    let address = match endpoints.shown_address(&peer.to) {
        Ok(address) => address,
        Err(status) => return Ok(Finding::unavailable("FailedDiscoveryCheck", status.message)),
    };
    let url = format!("https://{address}{path}");
    let failed = |why: &str| format!("failing or missing response from {url}: {why}");
    let mut last = match probe(peer, &url, &address).await {
        Ok(()) => return Ok(Finding::passed()),
        Err(why) => why,
    };
    let mut probes: FuturesUnordered<_> = (0..FURTHER_PROBES).map(|_| probe(peer, &url, &address)).collect();
    while let Some(answered) = probes.next().await {
        match answered {
            Ok(()) => return Ok(Finding::passed()),
            Err(why) => last = why,
        }
    }
    Ok(Finding::unavailable("FailedDiscoveryCheck", failed(&last)))
}

/// Writes what was found, if the object does not say it already.
pub(super) async fn tell_available(
    objects: &Objects,
    kind: &Kind,
    service: &Object,
    finding: &Finding,
) -> Result<(), Status> {
    if finding.is_told_by(service) {
        return Ok(());
    }
    let written = objects
        .modify(kind, "", service.name(), false, |current| {
            let mut object = current.object.clone();
            // Of another one, or of another spec, nothing was found.
            if object.uid() == service.uid() && object["spec"]["service"] == service["spec"]["service"] {
                finding.tell(&mut object);
            }
            Ok(Next::Put(object))
        })
        .await;
    match written {
        Err(status) if status.code != 404 => Err(status),
        _ => Ok(()),
    }
}

/// One question, of which only the code of the answer counts. What is wrong, in upstream's words.
async fn probe(peer: &Peer, url: &str, address: &str) -> Result<(), String> {
    let client = peer.client().map_err(str::to_owned)?;
    let mut headers = HeaderMap::new();
    identity::tell(&aggregator(), &mut headers);
    let mut request = Request::get(url).body(Body::empty()).map_err(|error| error.to_string())?;
    headers.insert(HOST, HeaderValue::from_str(address).map_err(|error| error.to_string())?);
    *request.headers_mut() = headers;
    let answer = tokio::time::timeout(PROBE_TIMEOUT, client.request(request)).await;
    let answer = answer.map_err(|_| {
        format!("Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)")
    })?;
    let answer = answer.map_err(|error| format!("Get {url:?}: {}", skiff_webhook::of_request(&error)))?;
    if answer.status().is_success() {
        return Ok(());
    }
    Err(format!("bad status from {url}: {}", answer.status().as_u16()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Object {
        json!({"spec": {"type": "ClusterIP", "ports": [{"name": "web", "port": 443}]}})
    }

    fn slice(ready: Value, port: &str) -> Object {
        json!({"endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}], "ports": [{"name": port, "port": 8443}]})
    }

    fn said(service: Option<&Object>, slices: &[Object]) -> Option<(&'static str, String)> {
        let to = ServicePort { namespace: "a".into(), name: "s".into(), port: 443 };
        look(&to, service, slices).map(|finding| (finding.reason, finding.message))
    }

    #[test]
    fn what_is_missing_on_the_way_is_said_as_upstream_says_it() {
        let of = |reason, message: &str| Some((reason, message.to_owned()));
        assert_eq!(said(None, &[]), of("ServiceNotFound", "service/s in \"a\" is not present"));
        let other = json!({"spec": {"type": "ClusterIP", "ports": [{"port": 80}]}});
        let listening = "service/s in \"a\" is not listening on port 443";
        assert_eq!(said(Some(&other), &[]), of("ServicePortError", listening));
        let none = "cannot find endpointslices for service/s in \"a\"";
        assert_eq!(said(Some(&service()), &[]), of("EndpointsNotFound", none));
        let missing = "endpointslices for service/s in \"a\" have no addresses with port name \"web\"";
        for slices in [slice(json!(false), "web"), slice(Value::Null, "other")] {
            assert_eq!(said(Some(&service()), &[slices]), of("MissingEndpoints", missing));
        }
        let slices = [slice(json!(false), "web"), slice(Value::Null, "web")];
        assert_eq!(said(Some(&service()), &slices), None);
        let external = json!({"spec": {"type": "ExternalName", "externalName": "a.example"}});
        assert_eq!(said(Some(&external), &[]), None);
    }

    #[test]
    fn a_condition_keeps_its_time_for_as_long_as_its_status_and_others_their_place() {
        let mut service = json!({"status": {"conditions": [
            {"type": "Other", "status": "True"},
            {"type": "Available", "status": "False", "lastTransitionTime": "then", "reason": "ServiceNotFound", "message": "m"},
        ]}});
        assert!(!is_available(&service));
        Finding::unavailable("MissingEndpoints", "n".into()).tell(&mut service);
        let told = condition(&service).clone();
        assert_eq!(
            (&told["reason"], &told["lastTransitionTime"]),
            (&json!("MissingEndpoints"), &json!("then"))
        );
        assert!(!Finding::passed().is_told_by(&service));
        Finding::passed().tell(&mut service);
        assert!(Finding::passed().is_told_by(&service) && is_available(&service));
        assert_ne!(condition(&service)["lastTransitionTime"], "then");
        assert_eq!(service["status"]["conditions"][0]["type"], "Other");
    }
}
