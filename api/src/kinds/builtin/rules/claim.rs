//! Claims of volumes, and the volumes of a cluster.

use serde_json::{Value, json};

use super::format::Format;
use super::path::{Faults, NOT_NEGATIVE, Path, entries, has, list, text};
use super::table::quantity;
use super::volume::one_source;
use super::walk::{Below, Walk};
use crate::{Cause, meta};

const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn access_modes(faults: &mut Faults, value: &Value, path: &Path<'_>) {
    let field = path.child("accessModes");
    let modes = list(value, "accessModes");
    let is_known = |mode: &Value| mode.as_str().is_some_and(|mode| MODES.contains(&mode));
    for mode in modes.iter().filter(|mode| !is_known(mode)) {
        faults.not_supported(&field, mode, &MODES);
    }
    let is_single = |mode: &Value| mode == "ReadWriteOncePod";
    if modes.iter().any(is_single) && modes.iter().any(|mode| is_known(mode) && !is_single(mode)) {
        faults.forbidden(&field, "may not use ReadWriteOncePod with other access modes");
    }
}

pub(super) fn claim<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let faults = &mut walk.faults;
    access_modes(faults, value, path);
    let (field, storage) = (path.child("resources"), &value["resources"]["requests"]["storage"]);
    let field = field.key("storage");
    match quantity(storage) {
        None => faults.required(&field, ""),
        Some(amount) if amount.is_zero() || amount.is_negative() => {
            faults.invalid(&field, storage, "must be greater than zero");
        }
        Some(_) => {}
    }
    for name in ["dataSource", "dataSourceRef"].into_iter().filter(|name| has(value, name)) {
        let had_group = walk.old.is_some_and(|old| {
            ["dataSource", "dataSourceRef"].iter().any(|name| has(&old["spec"][*name], "apiGroup"))
        });
        data_source(faults, &value[name], &path.child(name), had_group);
    }
    let (source, reference) = (&value["dataSource"], &value["dataSourceRef"]);
    let shown = json!({});
    if has(source, "name") || has(source, "kind") {
        let same = ["apiGroup", "kind", "name"].iter().all(|part| source[*part] == reference[*part]);
        if !text(reference, "namespace").is_empty() {
            faults.invalid(path, &shown, "may not be specified when dataSourceRef.namespace is specified");
        } else if has(value, "dataSourceRef") && !same {
            faults.invalid(path, &shown, "must match dataSourceRef");
        }
    }
    Below::All
}

fn data_source(faults: &mut Faults, value: &Value, path: &Path<'_>, had_group: bool) {
    let (group, kind) = (text(value, "apiGroup"), text(value, "kind"));
    if group.is_empty() && kind != "PersistentVolumeClaim" {
        let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        faults.invalid(path, &kind.into(), why);
    }
    if !group.is_empty()
        && !had_group
        && let Some(fault) = Format::Subdomain.fault(group)
    {
        faults.invalid(&path.child("apiGroup"), &group.into(), &fault);
    }
}

/// The claim that a pod has made for it: labels and annotations are all its metadata.
pub(super) fn template<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let (meta, field) = (&value["metadata"], path.child("metadata"));
    let labels = meta::validate_labels(&meta["labels"], &field.child("labels").to_string());
    let notes = meta::validate_annotations(&meta["annotations"], &field.child("annotations").to_string());
    labels.into_iter().chain(notes).for_each(|cause| walk.faults.push(cause));
    for (name, _) in meta.as_object().into_iter().flatten() {
        if !matches!(name.as_str(), "labels" | "annotations") && has(meta, name) {
            let shown = if name == "uid" { "uID" } else { name };
            walk.faults.forbidden(&field.child(shown), "cannot be set");
        }
    }
    if !has(value, "spec") {
        let spec = path.child("spec");
        walk.faults.required(&spec.child("accessModes"), "at least 1 access mode is required");
        walk.faults.required(&spec.child("resources").key("storage"), "");
    }
    Below::But(vec!["metadata"])
}

const SOURCES: [(&str, &str); 22] = [
    ("hostPath", "hostPath"),
    ("gcePersistentDisk", "gcePersistentDisk"),
    ("awsElasticBlockStore", "awsElasticBlockStore"),
    ("glusterfs", "glusterfs"),
    ("flocker", "flocker"),
    ("nfs", "nfs"),
    ("rbd", "rbd"),
    ("quobyte", "quobyte"),
    ("cephfs", "cephFS"),
    ("iscsi", "iscsi"),
    ("cinder", "cinder"),
    ("fc", "fc"),
    ("flexVolume", "flexVolume"),
    ("azureFile", "azureFile"),
    ("vsphereVolume", "vsphereVolume"),
    ("photonPersistentDisk", "photonPersistentDisk"),
    ("portworxVolume", "portworxVolume"),
    ("azureDisk", "azureDisk"),
    ("scaleIO", "scaleIO"),
    ("local", "local"),
    ("storageos", "storageos"),
    ("csi", "csi"),
];

pub(super) fn volume<'v>(walk: &mut Walk<'v>, value: &'v Value, path: &Path<'_>) -> Below {
    let faults = &mut walk.faults;
    access_modes(faults, value, path);
    capacity(faults, value, &path.child("capacity"));
    // Upstream forgets to ask whether a flex volume is one too many, but counts it.
    let mut others = one_source(faults, value, SOURCES, path);
    if let Some(at) = others.iter().position(|other| *other == "flexVolume") {
        others.remove(at);
        let shown = path.child("flexVolume").to_string();
        faults.causes.retain(|cause| cause.field != shown);
    }
    let affinity = path.child("nodeAffinity");
    if has(value, "nodeAffinity") && !has(&value["nodeAffinity"], "required") {
        faults.required(&affinity.child("required"), "must specify required node constraints");
    }
    if has(value, "local") && !others.contains(&"local") && !has(value, "nodeAffinity") {
        faults.required(&affinity, "Local volume requires node affinity");
    }
    let is_root = has(value, "hostPath") && is_root_folder(text(&value["hostPath"], "path"));
    if is_root && text(value, "persistentVolumeReclaimPolicy") == "Recycle" {
        let why = "may not be 'recycle' for a hostPath mount of '/'";
        faults.forbidden(&path.child("persistentVolumeReclaimPolicy"), why);
    }
    if has(value, "volumeAttributesClassName") && !has(value, "csi") {
        faults.required(&path.child("csi"), "has to be specified when using volumeAttributesClassName");
    }
    Below::But(others)
}

fn is_root_folder(path: &str) -> bool {
    path.starts_with('/') && path.split('/').all(|part| matches!(part, "" | "." | ".."))
}

fn capacity(faults: &mut Faults, value: &Value, path: &Path<'_>) {
    let n_entries = entries(value, "capacity").count();
    if !has(&value["capacity"], "storage") || n_entries > 1 {
        faults.not_supported(path, &value["capacity"], &["storage"]);
    }
    for (name, amount) in entries(value, "capacity") {
        let Some(given) = quantity(amount) else { continue };
        if given.is_negative() || given.is_zero() {
            faults.invalid(&path.key(name), amount, "must be greater than zero");
        }
        if given.units() < 0 {
            faults.invalid(&path.key(name), amount, NOT_NEGATIVE);
        }
    }
}

/// What may change of a claim: its size and class once it is bound, and what was not chosen yet.
pub(super) fn claim_update(new: &Value, old: &Value) -> Vec<Cause> {
    let (mut spec, was) = (new["spec"].clone(), &old["spec"]);
    let path = Path::ROOT.child("spec");
    let is_bound = text(&new["status"], "phase") == "Bound";
    let mut keep = |field: &str| match was.get(field) {
        Some(value) => spec[field] = value.clone(),
        None => _ = spec.as_object_mut().map(|spec| spec.remove(field)),
    };
    if text(was, "volumeName").is_empty() {
        keep("volumeName");
    }
    if !has(was, "storageClassName") && has(&new["spec"], "storageClassName") {
        keep("storageClassName");
    }
    if is_bound {
        keep("volumeAttributesClassName");
        if has(&spec["resources"], "requests") {
            spec["resources"]["requests"]["storage"] = was["resources"]["requests"]["storage"].clone();
        }
    }
    let mut faults = Faults::default();
    if !super::super::same_spec("io.k8s.api.core.v1.PersistentVolumeClaimSpec", &spec, was) {
        let why = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        faults.forbidden(&path, why);
    }
    let size = |object: &Value| quantity(&object["spec"]["resources"]["requests"]["storage"]);
    let none = crate::quantity::Quantity::from_units(0, crate::quantity::Suffixes::Decimal);
    let (is, was) = (size(new).unwrap_or(none), size(old).unwrap_or(none));
    if is < was {
        let has_size = quantity(&old["status"]["capacity"]["storage"]).unwrap_or(none);
        let is_less = is <= has_size;
        if is_less {
            let (resources, field) = (path.child("resources"), "requests");
            let why = "field can not be less than status.capacity";
            faults.forbidden(&resources.child(field).child("storage"), why);
        }
    }
    if new["spec"]["volumeMode"] != old["spec"]["volumeMode"] {
        faults.invalid(&Path::ROOT.child("volumeMode"), &new["spec"]["volumeMode"], "field is immutable");
    }
    faults.causes
}

/// The source of a volume stays what it is.
pub(super) fn volume_update(new: &Value, old: &Value) -> Vec<Cause> {
    let source = |object: &Value| -> Value {
        let spec = &object["spec"];
        let mut kept = json!({});
        for (field, _) in SOURCES {
            if has(spec, field) {
                kept[field] = spec[field].clone();
            }
        }
        kept
    };
    let (mut is, was) = (source(new), source(old));
    if has(&was, "csi") && !has(&was["csi"], "controllerExpandSecretRef") {
        _ = is["csi"].as_object_mut().map(|csi| csi.remove("controllerExpandSecretRef"));
    }
    let mut faults = Faults::default();
    let spec = Path::ROOT.child("spec");
    if !super::super::same_spec("io.k8s.api.core.v1.PersistentVolumeSpec", &is, &was) {
        let why = "spec.persistentvolumesource is immutable after creation";
        faults.forbidden(&spec.child("persistentvolumesource"), why);
    }
    if new["spec"]["volumeMode"] != old["spec"]["volumeMode"] {
        faults.invalid(&Path::ROOT.child("volumeMode"), &new["spec"]["volumeMode"], "field is immutable");
    }
    if has(&old["spec"], "nodeAffinity") && new["spec"]["nodeAffinity"] != old["spec"]["nodeAffinity"] {
        faults.invalid(&Path::ROOT.child("nodeAffinity"), &new["spec"]["nodeAffinity"], "field is immutable");
    }
    if has(&old["spec"], "volumeAttributesClassName") && !has(&new["spec"], "volumeAttributesClassName") {
        let why = "update from non-nil value to nil is forbidden";
        faults.forbidden(&spec.child("volumeAttributesClassName"), why);
    }
    faults.causes
}
