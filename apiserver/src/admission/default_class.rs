//! `DefaultStorageClass`, `DefaultIngressClass`: what names no class is given the one that is marked as the default; the newest, if
//! several are.
//!
//! Source: upstream's admission of the same names.

use std::cmp::Reverse;

use skiff_api::meta::Meta;
use skiff_api::{Kind, Object, Status};

use crate::lister::Lister;

/// A kind whose objects have a class.
struct Classed {
    group: &'static str,
    kind: &'static str,
    field: &'static str,
    /// An older way to name one, which counts as well.
    annotation: &'static str,
    classes: (&'static str, &'static str),
    /// Marks of the default.
    marks: &'static [&'static str],
}

const CLASSED: &[Classed] = &[
    Classed {
        group: "",
        kind: "PersistentVolumeClaim",
        field: "storageClassName",
        annotation: "volume.beta.kubernetes.io/storage-class",
        classes: ("storage.k8s.io", "storageclasses"),
        marks: &[
            "storageclass.kubernetes.io/is-default-class",
            "storageclass.beta.kubernetes.io/is-default-class",
        ],
    },
    Classed {
        group: "networking.k8s.io",
        kind: "Ingress",
        field: "ingressClassName",
        annotation: "kubernetes.io/ingress.class",
        classes: ("networking.k8s.io", "ingressclasses"),
        marks: &["ingressclass.kubernetes.io/is-default-class"],
    },
];

/// The plug-in that objects of a kind concern, if any does.
pub(super) fn plugin_of(kind: &Kind) -> Option<&'static str> {
    let classed = CLASSED.iter().find(|one| one.group == kind.group && one.kind == kind.kind)?;
    Some(if classed.kind == "Ingress" { "DefaultIngressClass" } else { "DefaultStorageClass" })
}

pub(super) fn complete(lister: &Lister, kind: &Kind, object: &mut Object) -> Result<(), Status> {
    let classed = CLASSED.iter().find(|one| one.group == kind.group && one.kind == kind.kind);
    let Some(classed) = classed else { return Ok(()) };
    let annotation = &object["metadata"]["annotations"][classed.annotation];
    if !object["spec"][classed.field].is_null() || !annotation.is_null() {
        return Ok(());
    }
    let (group, plural) = classed.classes;
    let (_, classes) = lister.cache(group, "v1", plural)?.snapshot()?;
    let is_default = |class: &Object| {
        let annotations = &class["metadata"]["annotations"];
        classed.marks.iter().any(|mark| annotations[*mark] == "true")
    };
    let defaults = classes.values().map(|entry| entry.parse()).filter(is_default);
    let newest = defaults.min_by_key(|class| {
        (Reverse(class.meta_str("creationTimestamp").to_owned()), class.name().to_owned())
    });
    if let Some(class) = newest {
        object["spec"][classed.field] = class.name().into();
    }
    Ok(())
}
