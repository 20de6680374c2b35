//! `pods/log`, `pods/exec`, `pods/attach` and `pods/portforward`: which container, which node, which URL of its kubelet.

use std::sync::Arc;

use axum::body::Body;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use http_body_util::BodyExt;
use serde_json::json;
use skiff_api::meta::Meta;
use skiff_api::{Cause, Object, Status};

use super::kubelet::{NodeAddress, kubelet_error};
use super::tunnel::Tunnel;
use super::{Proxies, upgrade};
use crate::call::Call;
use crate::request::{Query, encode};
use crate::respond::Response;
use crate::websocket::Socket;

/// Parameters of `PodLogOptions` that are passed on to the kubelet.
const LOG_PARAMETERS: &[&str] =
    &["follow", "previous", "timestamps", "sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream"];

impl Proxies {
    pub(crate) async fn pod_log(&self, mut call: Call) -> Result<Response, Status> {
        check_log_options(&call)?;
        let socket = Socket::asked_for(&mut call, &self.shutdown).await?;
        let pod = self.newest_pod(&call).await?;
        let container = choose_container(&pod, call.query.get("container").unwrap_or_default())?;
        let Some(node) = node_of(&pod) else {
            // Nothing runs yet.
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            return Ok(response);
        };
        let address = self.node_address(node)?;
        let mut parameters = Vec::new();
        for name in LOG_PARAMETERS {
            if let Some(value) = call.query.non_empty(name) {
                parameters.push(format!("{name}={}", encode(value)));
            }
        }
        let path = format!(
            "/containerLogs/{}/{}/{}?{}",
            encode(pod.namespace()),
            encode(pod.name()),
            encode(&container),
            parameters.join("&")
        );
        let request = http::Request::get(path).body(Body::empty()).map_err(Status::internal)?;
        let answer = self.destinations.kubelet.send(address, request).await?;
        if !answer.status().is_success() {
            return Err(kubelet_error(answer).await);
        }
        if let Some(socket) = socket {
            return socket.log(answer.into_body().into_data_stream());
        }
        let mut response = Response::new(Body::new(answer.into_body()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        Ok(response)
    }

    pub(crate) async fn pod_exec(&self, mut call: Call) -> Result<Response, Status> {
        let pod = self.newest_pod(&call).await?;
        let container = choose_container(&pod, call.query.get("container").unwrap_or_default())?;
        if call.query.all("command").all(str::is_empty) {
            return Err(Status::bad_request("you must specify at least 1 command to exec"));
        }
        if !["stdin", "stdout", "stderr"].iter().any(|stream| flag(&call.query, stream)) {
            return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
        }
        if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
            let phase = pod["status"]["phase"].as_str().unwrap_or_default();
            return Err(Status::bad_request(format!(
                "cannot exec into a container in a completed pod; current phase is {phase}"
            )));
        }
        let address = self.address_of_host(&pod)?;
        let path = format!("/exec/{}?{}", path_of(&pod, &container), stream_parameters(&call.query));
        upgrade::pass_through(&self.destinations.kubelet, address, &path, &mut call, self.shutdown.clone())
            .await
    }

    pub(crate) async fn pod_attach(&self, mut call: Call) -> Result<Response, Status> {
        let pod = self.newest_pod(&call).await?;
        let container = choose_container(&pod, call.query.get("container").unwrap_or_default())?;
        if !["stdin", "stdout", "stderr"].iter().any(|stream| flag(&call.query, stream)) {
            return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
        }
        let address = self.address_of_host(&pod)?;
        let path = format!("/attach/{}?{}", path_of(&pod, &container), stream_parameters(&call.query));
        upgrade::pass_through(&self.destinations.kubelet, address, &path, &mut call, self.shutdown.clone())
            .await
    }

    /// Over SPDY as it is, and over a WebSocket that carries SPDY. A WebSocket with channels, as other clients open it, is
    /// passed through.
    pub(crate) async fn pod_port_forward(&self, mut call: Call) -> Result<Response, Status> {
        let pod = self.newest_pod(&call).await?;
        let address = self.address_of_host(&pod)?;
        let ports: Vec<String> =
            call.query.all("ports").map(|ports| format!("port={}", encode(ports))).collect();
        let path = format!("/portForward/{}/{}", encode(pod.namespace()), encode(pod.name()));
        if let Some(tunnel) = Tunnel::asked_for(&mut call, &self.shutdown).await? {
            return tunnel.open(&self.destinations.kubelet, address, &path).await;
        }
        let path = if ports.is_empty() { path } else { format!("{path}?{}", ports.join("&")) };
        upgrade::pass_through(&self.destinations.kubelet, address, &path, &mut call, self.shutdown.clone())
            .await
    }

    fn address_of_host(&self, pod: &Object) -> Result<NodeAddress, Status> {
        match node_of(pod) {
            Some(node) => self.node_address(node),
            None => Err(Status::bad_request(format!("pod {} does not have a host assigned", pod.name()))),
        }
    }

    async fn newest_pod(&self, call: &Call) -> Result<Object, Status> {
        self.destinations.lister.caches.wait_for_newest().await?;
        let entry = self
            .destinations
            .lister
            .caches
            .of(&call.kind)?
            .get(&call.key())?
            .ok_or_else(|| call.not_found())?;
        Ok(entry.parse())
    }

    fn node_address(&self, name: &str) -> Result<NodeAddress, Status> {
        let node: Arc<_> = self
            .destinations
            .lister
            .cached("nodes", name)?
            .ok_or_else(|| Status::not_found("", "nodes", name))?;
        self.destinations.kubelet.address_of(&node.parse())
    }
}

fn node_of(pod: &Object) -> Option<&str> {
    pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty())
}

fn flag(query: &Query, name: &str) -> bool {
    // As upstream's defaults of `PodExecOptions`: all streams are off unless asked for.
    query.flag(name)
}

fn path_of(pod: &Object, container: &str) -> String {
    format!("{}/{}/{}", encode(pod.namespace()), encode(pod.name()), encode(container))
}

/// The kubelet's own names of the same parameters.
fn stream_parameters(query: &Query) -> String {
    let mut parameters: Vec<String> =
        query.all("command").map(|command| format!("command={}", encode(command))).collect();
    for (ours, theirs) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
        // A terminal has no separate error stream.
        if flag(query, ours) && !(ours == "stderr" && flag(query, "tty")) {
            parameters.push(format!("{theirs}=1"));
        }
    }
    parameters.join("&")
}

fn names<'p>(pod: &'p Object, field: &'static str) -> impl Iterator<Item = &'p str> {
    let list = pod["spec"][field].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(|container| container["name"].as_str())
}

/// The container asked for, or the only one, or the one that an annotation names.
fn choose_container(pod: &Object, asked: &str) -> Result<String, Status> {
    let pod_name = pod.name();
    if !asked.is_empty() {
        let mut all = ["containers", "initContainers", "ephemeralContainers"]
            .into_iter()
            .flat_map(|field| names(pod, field));
        return if all.any(|name| name == asked) {
            Ok(asked.to_owned())
        } else {
            Err(Status::bad_request(format!("container {asked} is not valid for pod {pod_name}")))
        };
    }
    let containers: Vec<&str> = names(pod, "containers").collect();
    if let [only] = containers.as_slice() {
        return Ok((*only).to_owned());
    }
    if let Some(default) = pod.meta()["annotations"]["kubectl.kubernetes.io/default-container"].as_str()
        && containers.contains(&default)
    {
        return Ok(default.to_owned());
    }
    let init: Vec<&str> = names(pod, "initContainers").collect();
    let choices = format!("[{}]", containers.join(" "));
    let message = if init.is_empty() {
        format!("a container name must be specified for pod {pod_name}, choose one of: {choices}")
    } else {
        format!(
            "a container name must be specified for pod {pod_name}, choose one of: {choices} or one of the init containers: [{}]",
            init.join(" ")
        )
    };
    Err(Status::bad_request(message))
}

fn check_log_options(call: &Call) -> Result<(), Status> {
    let mut causes = Vec::new();
    let query = &call.query;
    for (name, least) in [("tailLines", 0), ("sinceSeconds", 1), ("limitBytes", 1)] {
        let Some(text) = query.non_empty(name) else { continue };
        match text.parse::<i64>() {
            Ok(number) if number >= least => {}
            Ok(number) => {
                let why = format!("must be greater than {}", if least == 0 { "or equal to 0" } else { "0" });
                causes.push(Cause::invalid(name, &json!(number), &why));
            }
            Err(_) => {
                return Err(Status::bad_request(format!(
                    "strconv.ParseInt: parsing {text:?}: invalid syntax"
                )));
            }
        }
    }
    if query.non_empty("sinceSeconds").is_some() && query.non_empty("sinceTime").is_some() {
        let why = "at most one of `sinceTime` or `sinceSeconds` may be specified";
        causes.push(Cause::forbidden("sinceSeconds", why));
    }
    if let Some(time) = query.non_empty("sinceTime")
        && time.parse::<jiff::Timestamp>().is_err()
    {
        return Err(Status::bad_request(format!("parsing time {time:?}: not a time of RFC 3339")));
    }
    if causes.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid("", "PodLogOptions", &call.info.name, causes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Object {
        json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]},
        })
    }

    #[test]
    fn a_container_must_be_named_where_there_are_several() {
        let message = choose_container(&pod(), "").expect_err("ambiguous").message;
        assert_eq!(
            message,
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
        assert_eq!(choose_container(&pod(), "i").as_deref(), Ok("i"));
        let message = choose_container(&pod(), "x").expect_err("unknown").message;
        assert_eq!(message, "container x is not valid for pod p");
        let mut annotated = pod();
        annotated["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/default-container": "b"});
        assert_eq!(choose_container(&annotated, "").as_deref(), Ok("b"));
    }

    #[test]
    fn parameters_of_streams_are_the_kubelets() {
        let query =
            Query::parse("command=sh&command=-c&command=a%20b&stdin=true&stdout=true&stderr=true&tty=true");
        assert_eq!(stream_parameters(&query), "command=sh&command=-c&command=a%20b&input=1&output=1&tty=1");
    }
}
