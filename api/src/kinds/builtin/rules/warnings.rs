//! What is allowed and most likely not meant.

use std::collections::HashMap;

use serde_json::Value;

use super::format::{parse_cidr, parse_ip};
use super::path::{Path, entries, has, list, number, text};
use super::table::quantity;
use crate::{Kind, Object};

/// No client reads more, and headers have their bounds.
const MAX_WARNINGS: usize = 64;

/// The warnings for an object that was written; `old` is what it replaces.
pub(crate) fn of(kind: &Kind, object: &Object, old: Option<&Object>) -> Vec<String> {
    let mut found = Found::default();
    let spec = &object["spec"];
    let has_changed = old.is_none_or(|old| old["spec"] != *spec || old["template"] != object["template"]);
    if old.is_none() {
        name(&mut found, kind, object);
    }
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Endpoints") => {
            found.push("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".into());
            endpoints(&mut found, object);
        }
        ("", "PersistentVolume") => volume(&mut found, spec),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => {
            crate::kinds::definition::warnings(object, old)
                .into_iter()
                .for_each(|warning| found.push(warning));
        }
        ("", "PersistentVolumeClaim") => claim(&mut found, spec, &Path::ROOT.child("spec")),
        ("resource.k8s.io", "ResourceSlice") => {
            let driver = text(spec, "driver");
            if driver != driver.to_lowercase() {
                let why = "driver names should be lowercase";
                found.push(format!("spec.driver: {why}; {driver:?} contains uppercase characters"));
            }
        }
        ("", "Node") if !text(spec, "externalID").is_empty() => {
            found.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".into());
        }
        ("", "Service") => service(&mut found, object),
        ("", "Pod") if has_changed => pod(&mut found, object, &Path::ROOT),
        ("", "PodTemplate") if has_changed => {
            pod(&mut found, &object["template"], &Path::ROOT.child("template"))
        }
        ("", "ReplicationController")
        | ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet")
        | ("batch", "Job")
            if has_changed =>
        {
            let path = Path::ROOT.child("spec");
            pod(&mut found, &spec["template"], &path.child("template"));
            let field = path.child("volumeClaimTemplates");
            for (at, template) in list(spec, "volumeClaimTemplates").iter().enumerate() {
                claim(&mut found, &template["spec"], &field.index(at));
            }
        }
        ("batch", "CronJob") if has_changed => {
            let path = Path::ROOT.child("spec");
            let path = path.child("jobTemplate");
            let path = path.child("spec");
            pod(&mut found, &spec["jobTemplate"]["spec"]["template"], &path.child("template"));
        }
        ("discovery.k8s.io", "EndpointSlice") if text(object, "addressType") == "FQDN" && old.is_none() => {
            found.push("spec.addressType: FQDN endpoints are deprecated".into());
        }
        ("storage.k8s.io", "CSIDriver")
            if !list(spec, "tokenRequests").is_empty()
                && !has(spec, "serviceAccountTokenInSecrets")
                && old.is_none_or(|old| old["spec"]["tokenRequests"] != spec["tokenRequests"]) =>
        {
            found.push(
                "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent \
                 possible logging of tokens in volume attributes"
                    .into(),
            );
        }
        _ => {}
    }
    found.0
}

#[derive(Default)]
struct Found(Vec<String>);

impl Found {
    fn push(&mut self, warning: String) {
        if self.0.len() < MAX_WARNINGS {
            self.0.push(warning);
        }
    }

    /// An address that some programs read otherwise than others.
    fn address(&mut self, given: &Value, path: &Path<'_>) {
        let given = given.as_str().unwrap_or_default();
        let Some(ip) = parse_ip(given) else { return };
        if given.parse::<std::net::IpAddr>().ok() != Some(ip) {
            self.push(format!("{path}: non-standard IP address {given:?} is invalid: use \"{ip}\""));
        } else if given.contains(':') && ip.to_string() != given {
            self.push(format!(
                "{path}: IPv6 address {given:?} should be in RFC 5952 canonical format (\"{ip}\")"
            ));
        }
    }
}

/// Names that pods have as their hosts', whole or as its beginning.
fn name(found: &mut Found, kind: &Kind, object: &Object) {
    let of = match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => "the Pod's hostname",
        ("", "ReplicationController")
        | ("apps", "Deployment" | "ReplicaSet")
        | ("batch", "Job" | "CronJob") => "Pod names and hostnames",
        _ => return,
    };
    let name = text(&object["metadata"], "name");
    let Some(fault) = crate::name::dns_label_fault(name) else { return };
    // Subdomains are no labels for two reasons only.
    let is_long = (name.len() > MAX_LABEL_BYTES).then_some("must be no more than 63 characters");
    let has_dots = name.contains('.').then_some("must not contain dots");
    let faults: Vec<&str> = has_dots.into_iter().chain(is_long).collect();
    let shown = if faults.is_empty() { fault } else { faults.join(" ") };
    found.push(format!(
        "metadata.name: this is used in {of}, which can result in surprising behavior; a DNS label is recommended: [{shown}]"
    ));
}

const MAX_LABEL_BYTES: usize = 63;

fn endpoints(found: &mut Found, object: &Object) {
    let subsets = Path::ROOT.child("subsets");
    for (at, subset) in list(object, "subsets").iter().enumerate() {
        for field in ["addresses", "notReadyAddresses"] {
            let path = subsets.index(at);
            let path = path.child(field);
            for (at, address) in list(subset, field).iter().enumerate() {
                found.address(&address["ip"], &path.index(at).child("ip"));
            }
        }
    }
}

fn claim(found: &mut Found, spec: &Value, path: &Path<'_>) {
    let resources = path.child("resources");
    for side in ["requests", "limits"] {
        let (amount, field) = (&spec["resources"][side]["storage"], resources.child(side));
        fraction(found, amount, &field.key("storage"));
    }
}

/// Kinds of volumes that no longer work, of those of the cluster.
fn volume(found: &mut Found, spec: &Value) {
    const OLD: [&str; 6] = ["cephfs", "photonPersistentDisk", "scaleIO", "storageos", "glusterfs", "rbd"];
    for (_, shown, why) in OLD_VOLUMES.iter().filter(|(field, ..)| OLD.contains(field) && has(spec, field)) {
        found.push(format!("spec.{shown}: {why}"));
    }
    if text(spec, "persistentVolumeReclaimPolicy") == "Recycle" {
        found.push(
            "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended \
             approach is to use dynamic provisioning."
                .into(),
        );
    }
}

fn service(found: &mut Found, object: &Object) {
    let spec = &object["spec"];
    let (type_, path) = (text(spec, "type"), Path::ROOT.child("spec"));
    let is_headless = text(spec, "clusterIP") == "None";
    if is_headless {
        for (field, is_set) in [
            ("loadBalancerIP", !text(spec, "loadBalancerIP").is_empty()),
            ("externalIPs", !list(spec, "externalIPs").is_empty()),
            ("SessionAffinity", text(spec, "sessionAffinity") != "None"),
        ] {
            if is_set {
                found.push(format!("spec.{field} is ignored for headless services"));
            }
        }
    }
    let field = path.child("externalIPs");
    list(spec, "externalIPs").iter().enumerate().for_each(|(at, ip)| found.address(ip, &field.index(at)));
    if !list(spec, "externalIPs").is_empty() && !is_headless && type_ != "ExternalName" {
        found.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".into());
    }
    found.address(&spec["loadBalancerIP"], &path.child("loadBalancerIP"));
    for (at, range) in list(spec, "loadBalancerSourceRanges").iter().enumerate() {
        let given = range.as_str().unwrap_or_default();
        let Some((network, bits)) = parse_cidr(given) else { continue };
        let address = given.split('/').next().and_then(parse_ip);
        if address.is_some_and(|address| address != network) {
            let field = path.child("loadBalancerSourceRanges");
            found.push(format!(
                "{}: CIDR value {given:?} is ambiguous in this context (should be \"{network}/{bits}\" or \"{}/{}\"?)",
                field.index(at),
                address.map(|address| address.to_string()).unwrap_or_default(),
                if network.is_ipv4() { 32 } else { 128 },
            ));
        }
    }
    if type_ != "ExternalName" && !text(spec, "externalName").is_empty() {
        found.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".into());
    }
    if text(spec, "trafficDistribution") == "PreferClose" {
        found.push("spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".into());
    }
}

/// Of a pod or a template: both have `metadata` and `spec`.
fn pod(found: &mut Found, pod: &Value, path: &Path<'_>) {
    let (spec, at) = (&pod["spec"], path.child("spec"));
    node_labels(found, spec, &at);
    deprecated_volumes(found, spec, &at.child("volumes"));
    repeated(found, list(spec, "hostAliases"), "ip", &at.child("hostAliases"));
    repeated(found, list(spec, "imagePullSecrets"), "name", &at.child("imagePullSecrets"));
    let secrets = at.child("imagePullSecrets");
    for (n, _) in
        list(spec, "imagePullSecrets").iter().enumerate().filter(|(_, s)| text(s, "name").is_empty())
    {
        found.push(format!("{}: invalid empty name \"\"", secrets.index(n).child("name")));
    }
    fractions(found, &spec["overhead"], &at.child("overhead"));
    let mut ports = Ports::default();
    for field in ["initContainers", "containers", "ephemeralContainers"] {
        let path = at.child(field);
        for (n, container) in list(spec, field).iter().enumerate() {
            container_warnings(found, container, &mut ports, &path.index(n));
        }
    }
    if number(spec, "terminationGracePeriodSeconds") < 0 {
        let field = at.child("terminationGracePeriodSeconds");
        found.push(format!("{field}: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    null_selectors(found, spec, &at);
    let dns = at.child("dnsConfig");
    let servers = dns.child("nameservers");
    for (n, server) in list(&spec["dnsConfig"], "nameservers").iter().enumerate() {
        found.address(server, &servers.index(n));
    }
    let aliases = at.child("hostAliases");
    for (n, alias) in list(spec, "hostAliases").iter().enumerate() {
        found.address(&alias["ip"], &aliases.index(n).child("ip"));
    }
}

const OLD_LABELS: [(&str, &str); 4] = [
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
];

fn node_labels(found: &mut Found, spec: &Value, path: &Path<'_>) {
    let old = |label: &str| OLD_LABELS.iter().find(|(old, _)| *old == label).map(|(_, why)| *why);
    let field = path.child("nodeSelector");
    for (key, why) in entries(spec, "nodeSelector").filter_map(|(key, _)| Some((key, old(key)?))) {
        found.push(format!("{}: {why}", field.key(key)));
    }
    let field = path.child("topologySpreadConstraints");
    for (n, constraint) in list(spec, "topologySpreadConstraints").iter().enumerate() {
        let (path, key) = (field.index(n), text(constraint, "topologyKey"));
        if let Some(why) = old(key) {
            found.push(format!("{}: {key} is {why}", path.child("topologyKey")));
        }
        if !has(constraint, "labelSelector") {
            found.push(format!("{}: {NO_SELECTOR}", path.child("labelSelector")));
        }
    }
}

const NO_SELECTOR: &str = "a null labelSelector results in matching no pod";

fn null_selectors(found: &mut Found, spec: &Value, path: &Path<'_>) {
    let affinity = path.child("affinity");
    for which in ["podAffinity", "podAntiAffinity"] {
        let (terms, path) = (&spec["affinity"][which], affinity.child(which));
        let required = path.child("requiredDuringSchedulingIgnoredDuringExecution");
        for (n, term) in list(terms, "requiredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
            if !has(term, "labelSelector") {
                found.push(format!("{}: {NO_SELECTOR}", required.index(n).child("labelSelector")));
            }
        }
        let preferred = path.child("preferredDuringSchedulingIgnoredDuringExecution");
        for (n, term) in list(terms, "preferredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
            if !has(&term["podAffinityTerm"], "labelSelector") {
                let path = preferred.index(n);
                let path = path.child("podAffinityTerm");
                found.push(format!("{}: {NO_SELECTOR}", path.child("labelSelector")));
            }
        }
    }
}

const OLD_VOLUMES: [(&str, &str, &str); 9] = [
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

fn deprecated_volumes(found: &mut Found, spec: &Value, path: &Path<'_>) {
    for (n, volume) in list(spec, "volumes").iter().enumerate() {
        for (field, shown, why) in OLD_VOLUMES.iter().filter(|(field, ..)| has(volume, field)) {
            debug_assert!(!field.is_empty());
            found.push(format!("{}: {why}", path.index(n).child(shown)));
        }
        overlaps(found, volume);
    }
}

/// Files of one volume that would lie at one path, or one of them where another needs a folder.
fn overlaps(found: &mut Found, volume: &Value) {
    let name = text(volume, "name");
    let items = |holder: &Value, of: &str| -> Vec<(String, String)> {
        let path = |item: &Value| text(item, "path").trim_end_matches('/').to_owned();
        list(holder, "items").iter().map(|item| (path(item), of.to_owned())).collect()
    };
    let config_map = text(&volume["configMap"], "name");
    let secret = text(&volume["secret"], "secretName");
    for (files, what) in [
        (items(&volume["configMap"], ""), format!("ConfigMap {config_map:?}")),
        (items(&volume["secret"], ""), format!("Secret {secret:?}")),
        (items(&volume["downwardAPI"], ""), "DownwardAPI".to_owned()),
    ] {
        overlapping(found, name, &what, files);
    }
    let mut files = Vec::new();
    for source in list(&volume["projected"], "sources") {
        if source.as_object().is_none_or(|source| source.values().all(Value::is_null)) {
            found.push(format!("volume {name:?} (Projected) has no sources provided"));
        }
        let (config_map, secret) = (text(&source["configMap"], "name"), text(&source["secret"], "name"));
        files.extend(items(&source["configMap"], &format!("ConfigMap {config_map:?}")));
        files.extend(items(&source["secret"], &format!("Secret {secret:?}")));
        files.extend(items(&source["downwardAPI"], "DownwardAPI"));
        if has(source, "serviceAccountToken") {
            let path = text(&source["serviceAccountToken"], "path").trim_end_matches('/').to_owned();
            files.push((path, "ServiceAccountToken".to_owned()));
        }
    }
    overlapping(found, name, "Projected", files);
}

/// Sorted, so that what overlaps lies side by side.
fn overlapping(found: &mut Found, name: &str, what: &str, mut files: Vec<(String, String)>) {
    files.sort();
    let shown = |(path, of): &(String, String)| match of.as_str() {
        "" => format!("{path:?}"),
        of => format!("{path:?} ({of})"),
    };
    for pair in files.windows(2) {
        let (first, second) = (&pair[0], &pair[1]);
        if first.0 == second.0 || second.0.strip_prefix(&first.0).is_some_and(|rest| rest.starts_with('/')) {
            found.push(format!(
                "volume {name:?} ({what}): overlapping paths: {} with {}",
                shown(second),
                shown(first)
            ));
        }
    }
}

fn repeated(found: &mut Found, items: &[Value], field: &str, path: &Path<'_>) {
    let mut seen = std::collections::HashSet::new();
    for (n, item) in items.iter().enumerate() {
        let value = text(item, field);
        if !seen.insert(value) {
            found.push(format!("{}: duplicate {field} {value:?}", path.index(n).child(field)));
        }
    }
}

fn fractions(found: &mut Found, amounts: &Value, path: &Path<'_>) {
    for name in ["memory", "ephemeral-storage"] {
        fraction(found, &amounts[name], &path.key(name));
    }
}

fn fraction(found: &mut Found, amount: &Value, path: &Path<'_>) {
    if let Some(amount) = quantity(amount).filter(|amount| !amount.is_whole()) {
        found.push(format!("{path}: fractional byte value \"{amount}\" is invalid, must be an integer"));
    }
}

/// The ports of a pod's containers: by number and protocol, and by name.
#[derive(Default)]
struct Ports<'v> {
    by_number: HashMap<(i64, &'v str), Vec<(String, &'v Value)>>,
    by_name: HashMap<&'v str, String>,
}

/// More of one number are not compared with each other.
const MAX_PORTS_OF_ONE_NUMBER: usize = 16;

fn container_warnings<'v>(found: &mut Found, container: &'v Value, ports: &mut Ports<'v>, path: &Path<'_>) {
    let resources = path.child("resources");
    for side in ["limits", "requests"] {
        fractions(found, &container["resources"][side], &resources.child(side));
    }
    let (field, mut seen) = (path.child("env"), std::collections::HashSet::new());
    for (n, variable) in list(container, "env").iter().enumerate() {
        let (name, value) = (text(variable, "name"), text(variable, "value"));
        let reference = format!("$({name})");
        let extends = !has(variable, "valueFrom") && value != reference && value.contains(&reference);
        if !seen.insert(name) && !extends {
            found.push(format!(
                "{}: hides previous definition of {name:?}, which may be dropped when using apply",
                field.index(n)
            ));
        }
    }
    let field = path.child("ports");
    for (n, port) in list(container, "ports").iter().enumerate() {
        let (path, key) = (field.index(n), (number(port, "containerPort"), text(port, "protocol")));
        if !text(port, "hostIP").is_empty() && number(port, "hostPort") == 0 {
            found.push(format!(
                "{path}: hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{} Protocol:{} HostIP:{}}}",
                text(port, "name"),
                key.0,
                key.1,
                text(port, "hostIP")
            ));
        }
        let others = ports.by_number.entry(key).or_default();
        for (other_path, other) in others.iter() {
            let same = |field: &str| port.get(field) == other.get(field);
            if same("hostIP") && same("hostPort") {
                found.push(format!("{path}: duplicate port definition with {other_path}"));
            } else if number(port, "hostPort") == 0 || number(other, "hostPort") == 0 {
                found.push(format!("{path}: overlapping port definition with {other_path}"));
            } else if same("hostPort")
                && (text(port, "hostIP").is_empty() != text(other, "hostIP").is_empty())
            {
                found.push(format!("{path}: dangerously ambiguous port definition with {other_path}"));
            }
        }
        if others.len() < MAX_PORTS_OF_ONE_NUMBER {
            others.push((path.to_string(), port));
        }
        let name = text(port, "name");
        match ports.by_name.get(name) {
            _ if name.is_empty() => {}
            Some(other) => found.push(format!(
                "{path}: duplicate port name {name:?} with {other}, services and probes that select ports by name will \
                 use {other}"
            )),
            None => _ = ports.by_name.insert(name, path.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod_warnings(spec: Value) -> Vec<String> {
        let mut found = Found::default();
        pod(&mut found, &json!({"spec": spec}), &Path::ROOT);
        found.0
    }

    #[test]
    fn a_variable_that_hides_another_is_pointed_out_and_one_that_extends_it_is_not() {
        let env = json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "A", "value": "x$(A)"}]);
        assert_eq!(
            pod_warnings(json!({"containers": [{"env": env}]})),
            [
                "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply"
            ]
        );
    }

    #[test]
    fn parts_of_bytes_are_pointed_out() {
        let resources = json!({"limits": {"memory": "100m", "cpu": "100m"}});
        assert_eq!(
            pod_warnings(json!({"containers": [{"resources": resources}]})),
            [
                "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer"
            ]
        );
    }

    #[test]
    fn files_that_overlap_are_pointed_out() {
        let items = json!([{"key": "k", "path": "a/b"}, {"key": "l", "path": "a"}]);
        let volumes = json!([{"name": "v", "configMap": {"name": "c", "items": items}}]);
        assert_eq!(
            pod_warnings(json!({"volumes": volumes})),
            ["volume \"v\" (ConfigMap \"c\"): overlapping paths: \"a/b\" with \"a\""]
        );
    }

    #[test]
    fn ports_that_are_given_twice_are_pointed_out() {
        let ports = json!([{"containerPort": 80, "protocol": "TCP", "name": "a"}, {"containerPort": 80, "protocol": "TCP"}]);
        assert_eq!(
            pod_warnings(json!({"containers": [{"ports": ports}]})),
            ["spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]"]
        );
    }
}
