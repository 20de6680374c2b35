//! A container's environment: `env`, `envFrom`, the downward API, service variables, and `$(VAR)`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod, ResourceFieldSelector, Secret,
    Service,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::pod::{PodExt, find_container, optional};
use crate::resources;
use crate::status::generate::primary_family_first;

/// A reason for `CreateContainerConfigError`, or for a volume that cannot be filled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct EnvError(pub(crate) String);

/// The objects that one container's environment refers to, fetched before. `None` is "not found".
#[derive(Default)]
pub(crate) struct EnvSources {
    pub(crate) config_maps: HashMap<String, Option<std::sync::Arc<ConfigMap>>>,
    pub(crate) secrets: HashMap<String, Option<std::sync::Arc<Secret>>>,
}

/// Names of config maps and secrets that a container's environment refers to.
pub(crate) fn references(container: &Container) -> (Vec<String>, Vec<String>) {
    let (mut config_maps, mut secrets) = (Vec::new(), Vec::new());
    for from in container.env_from.iter().flatten() {
        config_maps.extend(from.config_map_ref.iter().map(|r| r.name.clone()));
        secrets.extend(from.secret_ref.iter().map(|r| r.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        config_maps.extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
        secrets.extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
    }
    (config_maps, secrets)
}

/// What the downward API knows of this node and pod.
pub(crate) struct Downward<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) pod_ips: &'a [String],
    pub(crate) node_ips: &'a [IpAddr],
    /// The node's allocatable amounts: the limits of a container that has none.
    pub(crate) allocatable: &'a BTreeMap<String, Quantity>,
}

/// The whole environment, in a stable order: the container's own variables, then the services'.
pub(crate) fn environment(
    container: &Container,
    sources: &EnvSources,
    downward: &Downward<'_>,
    services: &BTreeMap<String, String>,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut env = Environment::default();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        for (key, value) in env_from(from, sources, downward.pod)? {
            env.set(format!("{prefix}{key}"), value);
        }
    }
    for var in container.env.iter().flatten() {
        if let Some(value) = variable(var, container, sources, downward, services, &env)? {
            env.set(var.name.clone(), value);
        }
    }
    for (name, value) in services {
        if !env.values.contains_key(name) {
            env.set(name.clone(), value.clone());
        }
    }
    Ok(env.order.iter().filter_map(|name| Some((name.clone(), env.values.get(name)?.clone()))).collect())
}

#[derive(Default)]
struct Environment {
    order: Vec<String>,
    values: HashMap<String, String>,
}

impl Environment {
    fn set(&mut self, name: String, value: String) {
        if self.values.insert(name.clone(), value).is_none() {
            self.order.push(name);
        }
    }
}

fn env_from(
    from: &k8s_openapi::api::core::v1::EnvFromSource,
    sources: &EnvSources,
    pod: &Pod,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut pairs = Vec::new();
    if let Some(reference) = &from.config_map_ref {
        match sources.config_maps.get(&reference.name).and_then(Option::as_ref) {
            Some(map) => pairs.extend(map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone()))),
            None if optional(reference.optional) => {}
            None => return Err(not_found("configmap", &reference.name)),
        }
    }
    if let Some(reference) = &from.secret_ref {
        match sources.secrets.get(&reference.name).and_then(Option::as_ref) {
            Some(secret) => {
                for (key, value) in secret.data.iter().flatten() {
                    pairs.push((key.clone(), text(&value.0, "Secret", &reference.name, pod)?));
                }
            }
            None if optional(reference.optional) => {}
            None => return Err(not_found("secret", &reference.name)),
        }
    }
    Ok(pairs)
}

pub(crate) fn not_found(kind: &str, name: &str) -> EnvError {
    EnvError(format!("{kind} {name:?} not found"))
}

fn text(bytes: &[u8], kind: &str, name: &str, pod: &Pod) -> Result<String, EnvError> {
    String::from_utf8(bytes.to_vec())
        .map_err(|_| EnvError(format!("{kind} {}/{name} holds a value that is not text", pod.namespace())))
}

/// The variable's value; `None` if what it refers to is missing and optional.
fn variable(
    var: &EnvVar,
    container: &Container,
    sources: &EnvSources,
    downward: &Downward<'_>,
    services: &BTreeMap<String, String>,
    env: &Environment,
) -> Result<Option<String>, EnvError> {
    match (var.value.as_deref().filter(|v| !v.is_empty()), &var.value_from) {
        (Some(value), _) => {
            Ok(Some(expand(value, |name| env.values.get(name).or_else(|| services.get(name)).cloned())))
        }
        (None, Some(source)) => from_source(source, container, sources, downward),
        (None, None) => Ok(Some(String::new())),
    }
}

fn from_source(
    source: &EnvVarSource,
    container: &Container,
    sources: &EnvSources,
    downward: &Downward<'_>,
) -> Result<Option<String>, EnvError> {
    let pod = downward.pod;
    if let Some(field) = &source.field_ref {
        return downward.field(field).map(Some);
    }
    if let Some(field) = &source.resource_field_ref {
        return downward.resource(field, container).map(Some);
    }
    if let Some(key) = &source.config_map_key_ref {
        let Some(map) = sources.config_maps.get(&key.name).and_then(Option::as_ref) else {
            return if optional(key.optional) { Ok(None) } else { Err(not_found("configmap", &key.name)) };
        };
        return match map.data.as_ref().and_then(|d| d.get(&key.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional(key.optional) => Ok(None),
            None => Err(EnvError(format!(
                "couldn't find key {} in ConfigMap {}/{}",
                key.key,
                pod.namespace(),
                key.name
            ))),
        };
    }
    if let Some(key) = &source.secret_key_ref {
        let Some(secret) = sources.secrets.get(&key.name).and_then(Option::as_ref) else {
            return if optional(key.optional) { Ok(None) } else { Err(not_found("secret", &key.name)) };
        };
        return match secret.data.as_ref().and_then(|d| d.get(&key.key)) {
            Some(value) => text(&value.0, "Secret", &key.name, pod).map(Some),
            None if optional(key.optional) => Ok(None),
            None => Err(EnvError(format!(
                "couldn't find key {} in Secret {}/{}",
                key.key,
                pod.namespace(),
                key.name
            ))),
        };
    }
    Err(EnvError("the variable's source is of a kind that this node does not offer (fileKeyRef)".to_owned()))
}

impl Downward<'_> {
    /// The value of a pod field.
    pub(crate) fn field(&self, selector: &ObjectFieldSelector) -> Result<String, EnvError> {
        let pod = self.pod;
        let spec = pod.spec.as_ref();
        let owned = |s: Option<&String>| s.cloned().unwrap_or_default();
        let ips = || primary_family_first(self.pod_ips.to_vec(), self.node_ips);
        Ok(match selector.field_path.as_str() {
            "metadata.name" => pod.name().to_owned(),
            "metadata.namespace" => pod.namespace().to_owned(),
            "metadata.uid" => pod.uid().to_owned(),
            "metadata.labels" => format_map(pod.metadata.labels.as_ref()),
            "metadata.annotations" => format_map(pod.metadata.annotations.as_ref()),
            "spec.nodeName" => owned(spec.and_then(|s| s.node_name.as_ref())),
            "spec.serviceAccountName" => owned(spec.and_then(|s| s.service_account_name.as_ref())),
            "status.hostIP" => self.node_ips.first().map(IpAddr::to_string).unwrap_or_default(),
            "status.hostIPs" => self.node_ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(","),
            "status.podIP" => ips().into_iter().next().unwrap_or_default(),
            "status.podIPs" => ips().join(","),
            path => {
                self.subscripted(path).ok_or_else(|| EnvError(format!("unsupported fieldPath: {path}")))?
            }
        })
    }

    fn subscripted(&self, path: &str) -> Option<String> {
        let (field, key) = path.strip_suffix("']")?.split_once("['")?;
        let map = match field {
            "metadata.labels" => self.pod.metadata.labels.as_ref(),
            "metadata.annotations" => self.pod.metadata.annotations.as_ref(),
            _ => return None,
        };
        Some(map.and_then(|m| m.get(key)).cloned().unwrap_or_default())
    }

    /// An amount that a container asks for or is limited to.
    pub(crate) fn resource(
        &self,
        selector: &ResourceFieldSelector,
        container: &Container,
    ) -> Result<String, EnvError> {
        let container = match selector.container_name.as_deref().filter(|n| !n.is_empty()) {
            Some(name) => find_container(self.pod, name)
                .ok_or_else(|| EnvError(format!("container {name} not found")))?,
            None => Cow::Borrowed(container),
        };
        let container = &*container;
        let unsupported = || EnvError(format!("unsupported container resource: {}", selector.resource));
        let (kind, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
        let known = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
        let amount = match kind {
            _ if !known => return Err(unsupported()),
            "limits" => resources::limit(container, name).or_else(|| self.allocatable.get(name)),
            // A request that is not given is its limit; both missing is zero.
            "requests" => resources::request(container, name).or_else(|| resources::limit(container, name)),
            _ => return Err(unsupported()),
        };
        let one = Quantity("1".to_owned());
        let divisor = selector.divisor.as_ref().filter(|d| !d.0.is_empty()).unwrap_or(&one);
        let zero = Quantity("0".to_owned());
        let value = resources::divided(amount.unwrap_or(&zero), divisor).ok_or_else(unsupported)?;
        Ok(value.to_string())
    }
}

/// A map as the downward API's files hold it: one `key="value"` a line, sorted.
pub(crate) fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    map.into_iter().flatten().map(|(k, v)| format!("{k}={}", quote(v))).collect::<Vec<_>>().join("\n")
}

/// A string quoted as Go's `%q` does, for the characters that text holds.
fn quote(value: &str) -> String {
    let mut quoted = String::from("\"");
    for c in value.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => quoted.push_str(&format!("\\x{:02x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Replaces `$(NAME)`; `$$(NAME)` stays as `$(NAME)`, and what is not known stays as it is.
pub(crate) fn expand(input: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut output = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        output.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            output.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix("$(").and_then(|r| r.split_once(')')) {
            match lookup(name) {
                Some(value) => output.push_str(&value),
                None => output.push_str(&rest[..name.len() + 3]),
            }
            rest = after;
        } else {
            output.push('$');
            rest = &rest[1..];
        }
    }
    output.push_str(rest);
    output
}

/// The variables that tell a pod in `namespace` about services: always the API server's, and, with
/// service links, those of its own namespace.
pub(crate) fn service_environment<'a>(
    services: impl Iterator<Item = &'a Service>,
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    // The API server's variables must not be hidden by a service of that name in the pod's namespace.
    let (mut masters, mut own) = (Vec::new(), Vec::new());
    for service in services {
        let (name, ns) = (service.metadata.name.as_deref(), service.metadata.namespace.as_deref());
        if ns == Some("default") && name == Some("kubernetes") {
            masters.push(service);
        } else if ns == Some(namespace) && links {
            own.push(service);
        }
    }
    for service in masters.into_iter().chain(own.into_iter().rev()) {
        add_service(&mut env, service);
    }
    env
}

fn add_service(env: &mut BTreeMap<String, String>, service: &Service) {
    let Some(spec) = &service.spec else { return };
    let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { return };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return };
    let upper = |s: &str| s.replace('-', "_").to_uppercase();
    let prefix = upper(service.metadata.name.as_deref().unwrap_or_default());
    let mut set = |name: String, value: String| {
        env.entry(name).or_insert(value);
    };
    set(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
    set(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    for (index, port) in ports.iter().enumerate() {
        if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            set(format!("{prefix}_SERVICE_PORT_{}", upper(name)), port.port.to_string());
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            set(format!("{prefix}_PORT"), url.clone());
        }
        let port_prefix = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        set(port_prefix.clone(), url);
        set(format!("{port_prefix}_PROTO"), protocol.to_lowercase());
        set(format!("{port_prefix}_PORT"), port.port.to_string());
        set(format!("{port_prefix}_ADDR"), ip.to_owned());
    }
}

#[cfg(test)]
#[path = "env_tests.rs"]
mod tests;
