//! Volumes of pods, and sources that volumes of pods and of clusters share.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::certificates;
use super::container::{field_ref, resource_ref};
use super::format::Format;
use super::path::{Faults, Path, entries, has, is_true, list, number, text};
use super::walk::{Below, Walk};

/// In upstream's order: the first that is set counts, all others are too many. Some are called otherwise when they are.
const SOURCES: [(&str, &str); 30] = [
    ("emptyDir", "emptyDir"),
    ("hostPath", "hostPath"),
    ("gitRepo", "gitRepo"),
    ("gcePersistentDisk", "gcePersistentDisk"),
    ("awsElasticBlockStore", "awsElasticBlockStore"),
    ("secret", "secret"),
    ("nfs", "nfs"),
    ("iscsi", "iscsi"),
    ("glusterfs", "glusterfs"),
    ("flocker", "flocker"),
    ("persistentVolumeClaim", "persistentVolumeClaim"),
    ("rbd", "rbd"),
    ("cinder", "cinder"),
    ("cephfs", "cephFS"),
    ("quobyte", "quobyte"),
    ("downwardAPI", "downwarAPI"),
    ("fc", "fc"),
    ("flexVolume", "flexVolume"),
    ("configMap", "configMap"),
    ("azureFile", "azureFile"),
    ("vsphereVolume", "vsphereVolume"),
    ("photonPersistentDisk", "photonPersistentDisk"),
    ("portworxVolume", "portworxVolume"),
    ("azureDisk", "azureDisk"),
    ("storageos", "storageos"),
    ("projected", "projected"),
    ("scaleIO", "scaleIO"),
    ("csi", "csi"),
    ("ephemeral", "ephemeral"),
    ("image", "image"),
];

const TOO_MANY: &str = "may not specify more than 1 volume type";

/// Exactly one source of these; answers those that are too many, which are not looked into.
pub(super) fn one_source<'t>(
    faults: &mut Faults,
    value: &Value,
    sources: impl IntoIterator<Item = (&'t str, &'t str)>,
    path: &Path<'_>,
) -> Vec<&'t str> {
    let mut given = sources.into_iter().filter(|(field, _)| has(value, field));
    if given.next().is_none() {
        faults.required(path, "must specify a volume type");
        return Vec::new();
    }
    let others: Vec<(&str, &str)> = given.collect();
    for (_, shown) in &others {
        faults.forbidden(&path.child(shown), TOO_MANY);
    }
    others.into_iter().map(|(field, _)| field).collect()
}

pub(super) fn volume<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let faults = &mut walk.faults;
    let others = one_source(faults, value, SOURCES, path);
    let limit = super::table::quantity(&value["emptyDir"]["sizeLimit"]);
    if limit.is_some_and(|limit| limit.is_negative()) {
        let field = path.child("emptyDir");
        faults.forbidden(&field.child("sizeLimit"), "SizeLimit field must be a valid resource quantity");
    }
    if has(value, "ephemeral") && walk.is_pod && !others.contains(&"ephemeral") {
        let (pod, name) = (text(&walk.root["metadata"], "name"), text(value, "name"));
        let claim = format!("{pod}-{name}");
        if !pod.is_empty()
            && !name.is_empty()
            && let Some(fault) = Format::Subdomain.fault(&claim)
        {
            faults.invalid(&path.child("name"), &name.into(), &format!("PVC name {claim:?}: {fault}"));
        }
    }
    Below::But(others)
}

/// The files of one volume lie at the volume, not in its list, as upstream names them.
pub(super) fn downward<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    for file in list(value, "items") {
        downward_file(&mut walk.faults, file, path);
    }
    Below::But(vec!["items"])
}

fn downward_file(faults: &mut Faults, file: &Value, path: &Path<'_>) {
    const FIELDS: [&str; 5] =
        ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
    let target = text(file, "path");
    if target.is_empty() {
        faults.required(&path.child("path"), "");
    }
    local_path(faults, target, &path.child("path"));
    match (has(file, "fieldRef"), has(file, "resourceFieldRef")) {
        (true, both) => {
            field_ref(faults, &file["fieldRef"], &FIELDS, &path.child("fieldRef"));
            if both {
                let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                faults.invalid(path, &json!("resource"), why);
            }
        }
        (false, true) => {
            resource_ref(faults, &file["resourceFieldRef"], true, &path.child("resourceFieldRef"));
        }
        (false, false) => faults.required(path, "one of fieldRef and resourceFieldRef is required"),
    }
    mode(faults, file, &path.child("mode"));
}

fn mode(faults: &mut Faults, holder: &Value, path: &Path<'_>) {
    if holder["mode"].as_i64().is_some_and(|mode| !(0..=0o777).contains(&mode)) {
        let why = "must be a number between 0 and 0777 (octal), both inclusive";
        faults.invalid(path, &holder["mode"], why);
    }
}

fn local_path(faults: &mut Faults, target: &str, path: &Path<'_>) {
    if let Some(fault) = Format::UnreservedPath.fault(target) {
        faults.invalid(path, &target.into(), &fault);
    }
}

pub(super) fn projected<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    const KINDS: [&str; 6] =
        ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"];
    let (sources, mut paths) = (path.child("sources"), HashSet::new());
    for (at, source) in list(value, "sources").iter().enumerate() {
        let at = sources.index(at);
        for kind in ["secret", "configMap", "downwardAPI"] {
            for item in list(&source[kind], "items") {
                let target = text(item, "path");
                if !target.is_empty() && !paths.insert(target) {
                    walk.faults.invalid(path, &target.into(), "conflicting duplicate paths");
                }
            }
        }
        for file in list(&source["downwardAPI"], "items") {
            downward_file(&mut walk.faults, file, &at.child("downwardAPI"));
        }
        for kind in ["secret", "configMap"] {
            if has(source, kind) {
                let type_ =
                    if kind == "secret" { "core.v1.SecretProjection" } else { "core.v1.ConfigMapProjection" };
                walk.value(type_, &source[kind], &at.child(kind));
            }
        }
        if has(source, "serviceAccountToken") {
            token(&mut walk.faults, &source["serviceAccountToken"], path, &at.child("serviceAccountToken"));
        }
        let mut claim = |faults: &mut Faults, target: &'v str| {
            if !paths.insert(target) {
                faults.invalid(path, &target.into(), "conflicting duplicate paths");
            }
        };
        if let Some(bundle) = source.get("clusterTrustBundle").filter(|bundle| !bundle.is_null()) {
            let (at, target) = (at.child("clusterTrustBundle"), text(bundle, "path"));
            certificates::projected_bundle(walk, bundle, &at);
            match target {
                "" => walk.faults.required(&at.child("path"), ""),
                target => local_path(&mut walk.faults, target, &at.child("path")),
            }
            claim(&mut walk.faults, target);
        }
        if let Some(own) = source.get("podCertificate").filter(|own| !own.is_null()) {
            let (at, faults) = (at.child("podCertificate"), &mut walk.faults);
            certificates::projected_own(faults, own, &at);
            let mut n_targets = 0;
            for field in ["credentialBundlePath", "keyPath", "certificateChainPath"] {
                let target = text(own, field);
                if !target.is_empty() {
                    n_targets += 1;
                    local_path(faults, target, &at.child(field));
                    claim(faults, target);
                }
            }
            if n_targets == 0 {
                let why = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
                faults.required(&at, why);
            }
        }
        if KINDS.iter().filter(|kind| has(source, kind)).count() > 1 {
            walk.faults.forbidden(&at, "may not specify more than 1 volume type per source");
        }
    }
    Below::But(vec!["sources"])
}

fn token(faults: &mut Faults, value: &Value, volume: &Path<'_>, path: &Path<'_>) {
    const LEAST_SECONDS: i64 = 600;
    let (seconds, field) = (number(value, "expirationSeconds"), path.child("expirationSeconds"));
    if seconds < LEAST_SECONDS {
        faults.invalid(&field, &json!(seconds), "may not specify a duration less than 10 minutes");
    }
    if seconds > 1 << 32 {
        faults.invalid(&field, &json!(seconds), "may not specify a duration larger than 2^32 seconds");
    }
    match text(value, "path") {
        "" => faults.required(&volume.child("path"), ""),
        target => local_path(faults, target, &volume.child("path")),
    }
}

pub(super) fn fibre_channel<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let (targets, ids) = (list(value, "targetWWNs"), list(value, "wwids"));
    let field = path.child("targetWWNs");
    if targets.is_empty() && ids.is_empty() {
        walk.faults.required(&field, "must specify either targetWWNs or wwids, but not both");
    } else if !targets.is_empty() && !ids.is_empty() {
        let why = "targetWWNs and wwids can not be specified simultaneously";
        walk.faults.invalid(&field, &value["targetWWNs"], why);
    }
    if !targets.is_empty() {
        match value["lun"].as_i64() {
            None => walk.faults.required(&path.child("lun"), "lun is required if targetWWNs is specified"),
            Some(0..=255) => {}
            Some(_) => {
                let why = "must be between 0 and 255, inclusive";
                walk.faults.invalid(&path.child("lun"), &value["lun"], why);
            }
        }
    }
    Below::All
}

pub(super) fn nfs<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let target = text(value, "path");
    if !target.starts_with('/') {
        walk.faults.invalid(&path.child("path"), &target.into(), "must be an absolute path");
    }
    Below::All
}

/// The three ways to name a target: by date and domain, by number, by network address.
fn is_iscsi_name(name: &str) -> bool {
    let is_word = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:".contains(&b));
    if let Some(rest) = name.strip_prefix("iqn.") {
        let date = rest.as_bytes();
        return rest.len() > 8
            && rest.is_ascii()
            && date[..4].iter().chain(&date[5..7]).all(u8::is_ascii_digit)
            && date[4] == b'-'
            && date[7] == b'.'
            && rest[8..].starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && is_word(&rest[8..]);
    }
    let is_hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    if let Some(rest) = name.strip_prefix("eui.") {
        return rest.len() == 16 && is_hex(rest);
    }
    name.strip_prefix("naa.").is_some_and(|rest| matches!(rest.len(), 16 | 32) && is_hex(rest))
}

pub(super) fn iscsi<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let name = text(value, "iqn");
    if !name.is_empty() && !is_iscsi_name(name) {
        walk.faults.invalid(&path.child("iqn"), &name.into(), "must be valid format");
    }
    if let Some(initiator) = value["initiatorName"].as_str()
        && !is_iscsi_name(initiator)
    {
        walk.faults.invalid(&path.child("initiatorname"), &initiator.into(), "must be valid format");
    }
    let with_password = is_true(value, "chapAuthDiscovery") || is_true(value, "chapAuthSession");
    if with_password && !has(value, "secretRef") {
        walk.faults.required(&path.child("secretRef"), "");
    }
    Below::All
}

pub(super) fn secret_name<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    if has(value, "secretRef") && text(&value["secretRef"], "name").is_empty() {
        let field = path.child("secretRef");
        walk.faults.required(&field.child("name"), "");
    }
    Below::All
}

/// The secrets of what belongs to no namespace are of one.
pub(super) fn secret_of_cluster<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let field = path.child("secretRef");
    for part in ["name", "namespace"].into_iter().filter(|_| has(value, "secretRef")) {
        if text(&value["secretRef"], part).is_empty() {
            walk.faults.required(&field.child(part), "");
        }
    }
    Below::All
}

/// A template may leave the image to who makes pods of it.
pub(super) fn image<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    if walk.is_pod && text(value, "reference").is_empty() {
        walk.faults.required(&path.child("reference"), "");
    }
    Below::All
}

/// Upstream reports what is wrong with it under another name.
pub(super) fn google_disk<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let holder = path.parent();
    let shown = holder.child("persistentDisk");
    if text(value, "pdName").is_empty() {
        walk.faults.required(&shown.child("pdName"), "");
    }
    let partition = number(value, "partition");
    if !(0..=255).contains(&partition) {
        let why = "must be between 1 and 255, inclusive";
        walk.faults.invalid(&shown.child("partition"), &json!(partition), why);
    }
    Below::All
}

pub(super) fn azure_file<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    if value["secretNamespace"] == "" {
        walk.faults.required(&path.child("secretNamespace"), "");
    }
    Below::All
}

pub(super) fn flocker<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let (name, id) = (text(value, "datasetName"), text(value, "datasetUUID"));
    if name.is_empty() && id.is_empty() {
        walk.faults.required(path, "one of datasetName and datasetUUID is required");
    } else if !name.is_empty() && !id.is_empty() {
        let why = "datasetName and datasetUUID can not be specified simultaneously";
        walk.faults.invalid(path, &json!("resource"), why);
    }
    if name.contains('/') {
        walk.faults.invalid(&path.child("datasetName"), &name.into(), "must not contain '/'");
    }
    Below::All
}

pub(super) fn quobyte<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    const MAX_TENANT_BYTES: usize = 64;
    let registry = text(value, "registry");
    if registry.is_empty() {
        walk.faults.required(&path.child("registry"), PAIRS);
    } else if text(value, "tenant").len() > MAX_TENANT_BYTES {
        let why = "must be a UUID and may not exceed a length of 64 characters";
        walk.faults.required(&path.child("tenant"), why);
    } else if registry.split(',').any(|pair| pair.matches(':').count() != 1) {
        walk.faults.invalid(&path.child("registry"), &registry.into(), PAIRS);
    }
    if text(value, "volume").is_empty() {
        walk.faults.required(&path.child("volume"), "");
    }
    Below::All
}

pub(super) fn azure_disk<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    const MANAGED: &str =
        "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
    const BLOB: &str = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
    let uri = text(value, "diskURI");
    let wanted = match value["kind"].as_str() {
        Some("Managed") => ("/subscriptions/", MANAGED),
        _ => ("https://", BLOB),
    };
    if !uri.starts_with(wanted.0) {
        walk.faults.not_supported(&path.child("diskURI"), &uri.into(), &[wanted.1]);
    }
    Below::All
}

/// The secrets of a volume of the cluster have a namespace; those of a pod's own are in its.
pub(super) fn csi<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let is_cluster = value.get("volumeHandle").is_some() || !path.to_string().contains("volumes[");
    // One of them upstream forgets.
    let is_checked = |key: &str| key.ends_with("SecretRef") && key != "nodeStageSecretRef";
    for (field, secret) in value.as_object().into_iter().flatten().filter(|(key, _)| is_checked(key)) {
        let path_of = path.child(field);
        let (name, name_at) = (text(secret, "name"), path_of.child("name"));
        if name.is_empty() {
            walk.faults.required(&name_at, "");
        } else if let Some(fault) = Format::Subdomain.fault(name) {
            let path_of = if is_cluster { name_at } else { path.child("name") };
            walk.faults.invalid(&path_of, &name.into(), &fault);
        }
        if !is_cluster {
            continue;
        }
        let namespace_at = path_of.child("namespace");
        match text(secret, "namespace") {
            "" => walk.faults.required(&namespace_at, ""),
            namespace => {
                if let Some(fault) = Format::Label.fault(namespace) {
                    walk.faults.invalid(&namespace_at, &namespace.into(), &fault);
                }
            }
        }
    }
    Below::All
}

/// Options of a flex volume may not look as if they were Kubernetes' own.
pub(super) fn flex<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let field = path.child("options");
    for (key, _) in entries(value, "options") {
        let domain = format!(".{}", key.split('/').next().unwrap_or(key).to_lowercase());
        if domain.ends_with(".kubernetes.io") || domain.ends_with(".k8s.io") {
            let why = "kubernetes.io and k8s.io namespaces are reserved";
            walk.faults.invalid(&field.key(key), &key.as_str().into(), why);
        }
    }
    Below::All
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_has_one_of_three_names() {
        for good in ["iqn.2020-01.com.example:a", "eui.0123456789abcdef", "naa.0123456789abcdef"] {
            assert!(is_iscsi_name(good), "{good}");
        }
        for bad in ["", "iqn", "iqn.20-01.a", "eui.1", "naa.xyz", "iqn.2020-01.", "x", "iqn.2020-01.é"] {
            assert!(!is_iscsi_name(bad), "{bad}");
        }
    }
}
