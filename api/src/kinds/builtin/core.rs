//! The core group, without pods, services, nodes and events, which have files of their own.

use serde_json::{Value, json};

use super::{events, kind, limits, node, pod, service};
use crate::strategy::Strategy;
use crate::table::Column;
use crate::table::cell::{
    self, access_modes, containers, count, int, int_at, items_at, joined, labels, str_at, text, text_or,
};
use crate::volumes::{CLAIM_PROTECTION, VOLUME_PROTECTION};
use crate::{Cause, Kind, Object};

pub(super) fn kinds() -> Vec<Kind> {
    vec![
        kind("", "v1", "Binding", "bindings").unstored(),
        kind("", "v1", "ComponentStatus", "componentstatuses").cluster().short(&["cs"]).unstored().columns(
            vec![
                Column::name(),
                Column::new("Status", "string", |o, _| match condition_of_health(o)["status"].as_str() {
                    None => "Unknown".into(),
                    Some(status) => if status == "True" { "Healthy" } else { "Unhealthy" }.into(),
                }),
                Column::new("Message", "string", |o, _| str_at(condition_of_health(o), "/message").into()),
                Column::new("Error", "string", |o, _| str_at(condition_of_health(o), "/error").into()),
            ],
        ),
        kind("", "v1", "ConfigMap", "configmaps").short(&["cm"]).strategy(&ConfigMaps).columns(vec![
            Column::name(),
            Column::new("Data", "string", |o, _| (count(o, "/data") + count(o, "/binaryData")).into()),
            Column::age(),
        ]),
        kind("", "v1", "Endpoints", "endpoints").short(&["ep"]).folder("services/endpoints").columns(vec![
            Column::name(),
            Column::new("Endpoints", "string", |o, _| endpoints(o)),
            Column::age(),
        ]),
        events::core(),
        kind("", "v1", "LimitRange", "limitranges")
            .short(&["limits"])
            .strategy(&limits::LimitRanges)
            .columns(vec![Column::name(), Column::created_at()]),
        kind("", "v1", "Namespace", "namespaces")
            .cluster()
            .short(&["ns"])
            .subresources(&["finalize", "status"])
            .fields(&["status.phase"])
            .strategy(&Namespaces)
            .columns(vec![
                Column::name(),
                Column::new("Status", "string", |o, _| text(o, "/status/phase")),
                Column::age(),
            ]),
        node::kind(),
        kind("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims")
            .short(&["pvc"])
            .subresources(&["status"])
            .strategy(&Volumes)
            .columns(claim_columns()),
        kind("", "v1", "PersistentVolume", "persistentvolumes")
            .cluster()
            .short(&["pv"])
            .subresources(&["status"])
            .strategy(&Volumes)
            .columns(volume_columns()),
        pod::kind(),
        kind("", "v1", "PodTemplate", "podtemplates").strategy(&PodTemplates).columns(vec![
            Column::name(),
            Column::new("Containers", "string", |o, _| containers(o, "/template/spec", "name")),
            Column::new("Images", "string", |o, _| containers(o, "/template/spec", "image")),
            Column::new("Pod Labels", "string", |o, _| labels(o, "/template/metadata/labels")),
        ]),
        replication_controllers(),
        kind("", "v1", "ResourceQuota", "resourcequotas")
            .short(&["quota"])
            .subresources(&["status"])
            .strategy(&limits::ResourceQuotas)
            .columns(vec![
                Column::name(),
                Column::new("Request", "string", |o, _| quota(o, Side::Request)),
                Column::new("Limit", "string", |o, _| quota(o, Side::Limit)),
                Column::age(),
            ]),
        kind("", "v1", "Secret", "secrets").fields(&["type"]).strategy(&Secrets).columns(vec![
            Column::name(),
            Column::new("Type", "string", |o, _| text(o, "/type")),
            Column::new("Data", "string", |o, _| count(o, "/data").into()),
            Column::age(),
        ]),
        kind("", "v1", "ServiceAccount", "serviceaccounts")
            .short(&["sa"])
            .subresources(&["token"])
            .strategy(&ServiceAccounts)
            .columns(vec![Column::name(), Column::age()]),
        service::kind(),
    ]
}

/// A component has its conditions beside its metadata.
fn condition_of_health(component: &Object) -> &Value {
    let conditions = items_at(component, "/conditions");
    conditions.iter().find(|condition| condition["type"] == "Healthy").unwrap_or(&Value::Null)
}

fn replication_controllers() -> Kind {
    kind("", "v1", "ReplicationController", "replicationcontrollers")
        .short(&["rc"])
        .category("all")
        .folder("controllers")
        .subresources(&["scale", "status"])
        .fields(&["status.replicas"])
        .strategy(&ReplicationControllers)
        .columns(vec![
            Column::name(),
            Column::new("Desired", "integer", |o, _| int(o, "/spec/replicas")),
            Column::new("Current", "integer", |o, _| int(o, "/status/replicas")),
            Column::new("Ready", "integer", |o, _| int(o, "/status/readyReplicas")),
            Column::age(),
            Column::new("Containers", "string", |o, _| containers(o, "/spec/template/spec", "name")).wide(),
            Column::new("Images", "string", |o, _| containers(o, "/spec/template/spec", "image")).wide(),
            Column::new("Selector", "string", |o, _| labels(o, "/spec/selector")).wide(),
        ])
}

/// A phase that gives way to `Terminating`.
fn phase(object: &Object) -> Value {
    if object["metadata"]["deletionTimestamp"].is_null() {
        text(object, "/status/phase")
    } else {
        "Terminating".into()
    }
}

fn claim_columns() -> Vec<Column> {
    vec![
        Column::name(),
        Column::new("Status", "string", |o, _| phase(o)),
        Column::new("Volume", "string", |o, _| text(o, "/spec/volumeName")),
        // Both are of the volume, while there is one.
        Column::new("Capacity", "string", |o, _| match str_at(o, "/spec/volumeName") {
            "" => "".into(),
            _ => text_or(o, "/status/capacity/storage", "0"),
        }),
        Column::new("Access Modes", "string", |o, _| match str_at(o, "/spec/volumeName") {
            "" => "".into(),
            _ => access_modes(o, "/status/accessModes"),
        }),
        Column::new("StorageClass", "string", |o, _| text(o, "/spec/storageClassName")),
        attributes_class(),
        Column::age(),
        volume_mode(),
    ]
}

fn volume_columns() -> Vec<Column> {
    vec![
        Column::name(),
        Column::new("Capacity", "string", |o, _| text(o, "/spec/capacity/storage")),
        Column::new("Access Modes", "string", |o, _| access_modes(o, "/spec/accessModes")),
        Column::new("Reclaim Policy", "string", |o, _| text(o, "/spec/persistentVolumeReclaimPolicy")),
        Column::new("Status", "string", |o, _| phase(o)),
        Column::new("Claim", "string", |o, _| match &o["spec"]["claimRef"] {
            Value::Null => "".into(),
            claim => format!("{}/{}", str_at(claim, "/namespace"), str_at(claim, "/name")).into(),
        }),
        Column::new("StorageClass", "string", |o, _| text(o, "/spec/storageClassName")),
        attributes_class(),
        Column::new("Reason", "string", |o, _| text(o, "/status/reason")),
        Column::age(),
        volume_mode(),
    ]
}

fn attributes_class() -> Column {
    Column::new("VolumeAttributesClass", "string", |o, _| {
        text_or(o, "/spec/volumeAttributesClassName", cell::UNSET)
    })
}

fn volume_mode() -> Column {
    Column::new("VolumeMode", "string", |o, _| text_or(o, "/spec/volumeMode", cell::UNSET)).wide()
}

/// The first three addresses with their ports, and how many more there are.
fn endpoints(object: &Object) -> Value {
    const SHOWN: usize = 3;
    let mut all = Vec::new();
    for subset in items_at(object, "/subsets") {
        let ports = items_at(subset, "/ports");
        for address in items_at(subset, "/addresses") {
            let ip = str_at(address, "/ip");
            if ports.is_empty() {
                all.push(ip.to_owned());
            }
            all.extend(ports.iter().map(|port| format!("{ip}:{}", int_at(port, "/port"))));
        }
    }
    let more = all.len().saturating_sub(SHOWN);
    all.truncate(SHOWN);
    let shown = joined(all.iter().map(String::as_str), cell::NONE);
    if more > 0 { format!("{shown} + {more} more...").into() } else { shown.into() }
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Request,
    Limit,
}

fn quota(object: &Object, side: Side) -> Value {
    let hard = object["status"]["hard"].as_object();
    let parts: Vec<String> = hard
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.starts_with("limits.") == (side == Side::Limit))
        .map(|(name, hard)| {
            let used = object["status"]["used"][name].as_str().unwrap_or("0");
            format!("{name}: {used}/{}", hard.as_str().unwrap_or_default())
        })
        .collect();
    parts.join(", ").into()
}

/// ConfigMaps: `immutable: true` freezes them.
struct ConfigMaps;

impl Strategy for ConfigMaps {
    fn validate(&self, object: &Object) -> Vec<Cause> {
        let mut causes = config_keys(object, &["data", "binaryData"]);
        if content_bytes(object, "data", Content::Text) + content_bytes(object, "binaryData", Content::Base64)
            > MAX_CONTENT_BYTES
        {
            causes.push(Cause::too_long("", MAX_CONTENT_BYTES));
        }
        causes
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<Cause> {
        frozen(new, old, &["data", "binaryData"])
    }
}

/// Of a ConfigMap or Secret: what a node can hold in memory of many of them.
const MAX_CONTENT_BYTES: usize = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    Text,
    Base64,
}

/// How many bytes the values of a map have.
fn content_bytes(object: &Object, field: &str, content: Content) -> usize {
    let values = object[field].as_object().into_iter().flatten().filter_map(|(_, value)| value.as_str());
    let bytes = |text: &str| match content {
        Content::Text => text.len(),
        Content::Base64 => text.trim_end_matches('=').len() * 3 / 4,
    };
    values.map(bytes).sum()
}

/// What is wrong with the keys of the maps that pods mount as files, each key at most once over all of them.
fn config_keys(object: &Object, fields: &[&str]) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (n, field) in fields.iter().enumerate() {
        for (key, _) in object[*field].as_object().into_iter().flatten() {
            let path = format!("{field}[{key}]");
            let invalid = |why: &str| Cause::invalid(path.clone(), &key.as_str().into(), why);
            causes.extend(config_key_faults(key).iter().map(|why| invalid(why)));
            if let Some(other) = fields[n + 1..].iter().find(|other| object[**other].get(key).is_some()) {
                causes.push(invalid(&format!("duplicate of key present in {other}")));
            }
        }
    }
    causes
}

pub(super) fn config_key_faults(key: &str) -> Vec<String> {
    const MAX_BYTES: usize = 253;
    let mut faults = Vec::new();
    if key.len() > MAX_BYTES {
        faults.push(format!("must be no more than {MAX_BYTES} characters"));
    }
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if key.is_empty() || !key.bytes().all(is_plain) {
        faults.push(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
             'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
                .to_owned(),
        );
    }
    match key {
        "." => faults.push("must not be '.'".to_owned()),
        ".." => faults.push("must not be '..'".to_owned()),
        _ if key.starts_with("..") => faults.push("must not start with '..'".to_owned()),
        _ => {}
    }
    faults
}

fn frozen(new: &Object, old: &Object, fields: &[&str]) -> Vec<Cause> {
    const WHY: &str = "field is immutable when `immutable` is set";
    if old["immutable"] != true {
        return Vec::new();
    }
    let mut causes = Vec::new();
    if new["immutable"] != true {
        causes.push(Cause::forbidden("immutable", WHY));
    }
    causes.extend(fields.iter().filter(|f| new[**f] != old[**f]).map(|f| Cause::forbidden(*f, WHY)));
    causes
}

struct ServiceAccounts;

impl Strategy for ServiceAccounts {
    fn prepare_create(&self, object: &mut Object) {
        keep_names(object);
    }

    fn prepare_update(&self, new: &mut Object, _old: &Object) {
        keep_names(new);
    }
}

/// Of the secrets of an account no more than their names is kept.
fn keep_names(account: &mut Object) {
    for secret in account.get_mut("secrets").and_then(Value::as_array_mut).into_iter().flatten() {
        _ = secret.as_object_mut().map(|secret| secret.retain(|field, _| field == "name"));
    }
}

struct Secrets;

impl Strategy for Secrets {
    /// `stringData` is written once, into `data`.
    fn default(&self, object: &mut Object) {
        use base64::Engine as _;
        let Some(Value::Object(strings)) = object.as_object_mut().and_then(|o| o.remove("stringData")) else {
            return;
        };
        for (key, value) in strings {
            let bytes = value.as_str().unwrap_or_default().as_bytes();
            object["data"][key] = base64::engine::general_purpose::STANDARD.encode(bytes).into();
        }
    }

    fn validate(&self, object: &Object) -> Vec<Cause> {
        let mut causes = config_keys(object, &["data"]);
        if content_bytes(object, "data", Content::Base64) > MAX_CONTENT_BYTES {
            causes.push(Cause::too_long("data", MAX_CONTENT_BYTES));
        }
        causes.extend(secret_type_faults(object));
        causes
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<Cause> {
        let mut causes = frozen(new, old, &["data"]);
        if new["type"] != old["type"] {
            causes.push(Cause::invalid("type", &new["type"], "field is immutable"));
        }
        causes
    }
}

/// What a Secret of a type that Kubernetes knows must hold.
fn secret_type_faults(object: &Object) -> Vec<Cause> {
    const ACCOUNT: &str = "kubernetes.io/service-account.name";
    let data = &object["data"];
    let has = |key: &str| data.get(key).is_some();
    let required = |key: &str| Cause::required(format!("data[{key}]"), "");
    let missing = |keys: &[&str]| -> Vec<Cause> {
        keys.iter().filter(|key| !has(key)).map(|key| required(key)).collect()
    };
    match str_at(object, "/type") {
        "kubernetes.io/tls" => missing(&["tls.crt", "tls.key"]),
        "kubernetes.io/dockerconfigjson" => json_fault(data, ".dockerconfigjson"),
        "kubernetes.io/dockercfg" => json_fault(data, ".dockercfg"),
        "kubernetes.io/ssh-auth" if data["ssh-privatekey"].as_str().is_none_or(str::is_empty) => {
            vec![required("ssh-privatekey")]
        }
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            missing(&["username", "password"])
        }
        "kubernetes.io/service-account-token"
            if object["metadata"]["annotations"][ACCOUNT].as_str().is_none_or(str::is_empty) =>
        {
            vec![Cause::required(format!("metadata.annotations[{ACCOUNT}]"), "")]
        }
        _ => Vec::new(),
    }
}

/// Credentials of registries are a JSON object, which is not shown if it is none.
fn json_fault(data: &Value, key: &str) -> Vec<Cause> {
    use base64::Engine as _;
    let path = format!("data[{key}]");
    let Some(text) = data[key].as_str() else { return vec![Cause::required(path, "")] };
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
    match serde_json::from_slice::<Option<serde_json::Map<String, Value>>>(&bytes) {
        Ok(_) => Vec::new(),
        Err(error) => vec![Cause::invalid(path, &"<secret contents redacted>".into(), &error.to_string())],
    }
}

/// Of volumes and of claims.
struct Volumes;

impl Strategy for Volumes {
    fn prepare_create(&self, object: &mut Object) {
        object["status"] = json!({"phase": "Pending"});
        protect(object);
        if object["kind"] == "PersistentVolume" {
            object["status"]["lastPhaseTransitionTime"] = object["metadata"]["creationTimestamp"].clone();
        }
        if object["kind"] == "PersistentVolumeClaim" {
            drop_foreign_source(&mut object["spec"]);
            mirror_source(&mut object["spec"]);
        }
    }

    fn prepare_update(&self, new: &mut Object, old: &Object) {
        if new["kind"] == "PersistentVolumeClaim" {
            if old["spec"]["dataSourceRef"].is_null() {
                drop_foreign_source(&mut new["spec"]);
            }
            mirror_source(&mut new["spec"]);
        }
    }

    fn counts_generations(&self) -> bool {
        false
    }
}

/// `StorageObjectInUseProtection`: what is new is not gone before whoever uses it is through with it.
fn protect(object: &mut Object) {
    let own = if object["kind"] == "PersistentVolume" { VOLUME_PROTECTION } else { CLAIM_PROTECTION };
    let finalizers = &mut object["metadata"]["finalizers"];
    match finalizers.as_array_mut() {
        Some(all) if all.iter().any(|one| one == own) => {}
        Some(all) => all.push(own.into()),
        None => *finalizers = json!([own]),
    }
}

/// Sources of other namespaces are a feature that is off.
fn drop_foreign_source(spec: &mut Value) {
    if !str_at(spec, "/dataSourceRef/namespace").is_empty() {
        _ = spec.as_object_mut().map(|spec| spec.remove("dataSourceRef"));
    }
}

/// A source is named by the old field and the new one alike, unless it is in another namespace.
fn mirror_source(spec: &mut Value) {
    let Some(spec) = spec.as_object_mut() else { return };
    let is_there =
        |spec: &serde_json::Map<String, Value>, field: &str| spec.get(field).is_some_and(|s| !s.is_null());
    match (is_there(spec, "dataSource"), is_there(spec, "dataSourceRef")) {
        (true, false) => {
            // Only claims and what has a group of its own can be a source; the old field drops others.
            let source = spec["dataSource"].clone();
            let is_known = source["kind"] == "PersistentVolumeClaim"
                && str_at(&source, "/apiGroup").is_empty()
                || source["kind"] == "VolumeSnapshot" && source["apiGroup"] == "snapshot.storage.k8s.io";
            if is_known {
                spec.insert("dataSourceRef".into(), source);
            } else {
                spec.remove("dataSource");
            }
        }
        (false, true) if str_at(&spec["dataSourceRef"], "/namespace").is_empty() => {
            let mut source = spec["dataSourceRef"].clone();
            _ = source.as_object_mut().map(|source| source.remove("namespace"));
            spec.insert("dataSource".into(), source);
        }
        _ => {}
    }
}

struct Namespaces;

impl Strategy for Namespaces {
    fn default(&self, object: &mut Object) {
        let name = str_at(object, "/metadata/name").to_owned();
        if !name.is_empty() {
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name.into();
        }
    }

    fn prepare_create(&self, object: &mut Object) {
        object["status"] = json!({"phase": "Active"});
        let finalizers = &mut object["spec"]["finalizers"];
        if !finalizers.is_array() {
            *finalizers = json!([]);
        }
        if let Value::Array(list) = finalizers
            && !list.iter().any(|f| f == "kubernetes")
        {
            list.push("kubernetes".into());
        }
    }

    /// Only the `finalize` subresource takes finalizers away.
    fn prepare_update(&self, new: &mut Object, old: &Object) {
        new["spec"]["finalizers"] = old["spec"]["finalizers"].clone();
    }

    fn counts_generations(&self) -> bool {
        false
    }
}

struct ReplicationControllers;

impl Strategy for ReplicationControllers {
    fn default(&self, object: &mut Object) {
        let labels = object["spec"]["template"]["metadata"]["labels"].clone();
        if labels.as_object().is_some_and(|l| !l.is_empty()) {
            if !object["spec"]["selector"].is_object() {
                object["spec"]["selector"] = labels.clone();
            }
            if object["metadata"]["labels"].as_object().is_none_or(|own| own.is_empty()) {
                object["metadata"]["labels"] = labels;
            }
        }
    }

    fn validate(&self, object: &Object) -> Vec<Cause> {
        let template = &object["spec"]["template"];
        if template.is_null() { Vec::new() } else { pod::validate_template(template, "spec.template") }
    }
}

struct PodTemplates;

impl Strategy for PodTemplates {
    fn validate(&self, object: &Object) -> Vec<Cause> {
        pod::validate_template(&object["template"], "template")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_no_file_names_are_refused() {
        let faults = |object: Value| -> Vec<String> {
            config_keys(&object, &["data", "binaryData"]).into_iter().map(|cause| cause.field).collect()
        };
        assert!(faults(json!({"data": {"key.name": "", "..a_b-C": ""}})).len() == 1);
        assert_eq!(faults(json!({"data": {"": ""}})), ["data[]"]);
        assert_eq!(faults(json!({"data": {"a/b": "", ".": ""}, "binaryData": {"..": ""}})).len(), 3);
        assert_eq!(faults(json!({"data": {"a": ""}, "binaryData": {"a": ""}})), ["data[a]"]);
        assert_eq!(faults(json!({"data": {"a".repeat(254): ""}})).len(), 1);
        assert!(faults(json!({})).is_empty());
    }
}
