//! The annotation in which `kubectl apply` keeps what it applied last, of objects that kubectl goes on to apply here.
//!
//! Source: `internal/lastappliedmanager.go` and `lastappliedupdater.go` of apimachinery's `util/managedfields`.

use serde_json::{Map, Value};

use super::check::check;
use super::element::go_json;
use super::form::Type;
use super::set::Set;
use super::updater::Updater;
use crate::meta::{MAX_ANNOTATIONS_BYTES, Meta};
use crate::{Kind, Object, depth};

const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The only manager that this is for.
const KUBECTL: &str = "kubectl";

/// What of the annotation still stands in `live`, which kubectl may therefore take over from whoever owns it.
pub(super) fn owned(updater: &Updater<'_>, kind: &Kind, live: &Object, manager: &str) -> Option<Set> {
    let text = live.meta()["annotations"][ANNOTATION].as_str().filter(|text| !text.is_empty())?;
    if manager != KUBECTL {
        return None;
    }
    let document: Value = serde_json::from_str(text).ok()?;
    depth::check(&document).ok()?;
    if document["apiVersion"] != updater.api_version || !document["kind"].is_string() {
        return None;
    }
    let type_ = Type::of_object(&kind.schema.schema, kind.schema.id);
    check(type_, live).and_then(|()| check(type_, &document)).ok()?;
    Some(updater.agreeing(&document, live))
}

/// Brings the annotation up to date, if there is one, so that `kubectl apply` can go on from here. One that would be too
/// long is left out.
pub(super) fn keep(object: &mut Object, document: &Object, manager: &str) {
    let has_one = object.meta()["annotations"][ANNOTATION].as_str().is_some_and(|text| !text.is_empty());
    if manager != KUBECTL || !has_one {
        return;
    }
    let mut document = document.clone();
    if let Some(annotations) = document["metadata"]["annotations"].as_object_mut() {
        annotations.remove(ANNOTATION);
    } else if let Some(metadata) = document["metadata"].as_object_mut() {
        metadata.remove("annotations");
    }
    let text = go_json(&document) + "\n";
    let no_annotations = Map::new();
    let others = object.meta()["annotations"].as_object().unwrap_or(&no_annotations).iter();
    let bytes: usize = others
        .filter(|(name, _)| *name != ANNOTATION)
        .map(|(name, value)| name.len() + value.as_str().map_or(0, str::len))
        .sum();
    let annotations = object.meta_mut().get_mut("annotations").and_then(Value::as_object_mut);
    if let Some(annotations) = annotations {
        if bytes + ANNOTATION.len() + text.len() > MAX_ANNOTATIONS_BYTES {
            annotations.remove(ANNOTATION);
        } else {
            annotations.insert(ANNOTATION.into(), text.into());
        }
    }
}
