//! Between the versions of a kind. Most differ in nothing but their `apiVersion`.

mod autoscaling;

use serde_json::{Map, Value};
use skiff_api::kinds::Conversion;
use skiff_api::{Kind, Object, Status};

use crate::api::Api;

/// Fields of `v1.Event` and what `events.k8s.io/v1` calls them.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// Whether objects of one are objects of the other as they stand.
pub(crate) fn is_same_version(a: &Kind, b: &Kind) -> bool {
    a.group == b.group && a.version == b.version
}

/// Whether a webhook converts the objects of a kind.
pub(crate) fn asks_webhook(kind: &Kind) -> bool {
    kind.custom().is_some_and(|custom| *custom.conversion != Conversion::None)
}

/// Whether a webhook has to be asked.
pub(crate) fn needs_webhook(from: &Kind, to: &Kind) -> bool {
    !is_same_version(from, to) && asks_webhook(to)
}

impl Api {
    /// The object as of kind `to`; both kinds are versions of one resource.
    ///
    /// # Errors
    /// If the webhook that converts it does not.
    pub(crate) async fn converted(&self, from: &Kind, to: &Kind, object: Object) -> Result<Object, Status> {
        if !asks_webhook(to) {
            return Ok(convert(from, to, object));
        }
        // What was stored before the version of the store changed says another than `from`.
        let version = to.api_version();
        if object["apiVersion"] == version {
            return Ok(object);
        }
        Ok(self.live.table().converter(to)?.convert(object, &version).await?)
    }

    /// The same of the items of a list, which a webhook is asked for together.
    pub(crate) async fn all_converted(
        &self,
        from: &Kind,
        to: &Kind,
        objects: Vec<Object>,
    ) -> Result<Vec<Object>, Status> {
        if !asks_webhook(to) {
            return Ok(objects.into_iter().map(|object| convert(from, to, object)).collect());
        }
        let (version, list) = (from.api_version(), from.list_kind());
        let converter = self.live.table().converter(to)?;
        Ok(converter.convert_list((&version, &list), objects, &to.api_version()).await?)
    }
}

/// The object as of kind `to`, where no webhook has to be asked; both kinds are versions of one resource.
pub(crate) fn convert(from: &Kind, to: &Kind, mut object: Object) -> Object {
    if is_same_version(from, to) {
        return object;
    }
    let Some(root) = object.as_object_mut() else { return object };
    match (from.kind.as_str(), from.group.as_str(), from.version.as_str(), to.version.as_str()) {
        ("Event", "", ..) => rename(root, EVENT_FIELDS.iter().copied()),
        ("Event", "events.k8s.io", ..) => rename(root, EVENT_FIELDS.iter().map(|(core, new)| (*new, *core))),
        ("HorizontalPodAutoscaler", _, "v1", "v2") => autoscaling::to_v2(root, &to.schema.schema),
        ("HorizontalPodAutoscaler", _, "v2", "v1") => autoscaling::to_v1(root),
        _ => {}
    }
    root.insert("apiVersion".into(), to.api_version().into());
    root.insert("kind".into(), to.kind.clone().into());
    object
}

fn rename<'a>(root: &mut Map<String, Value>, fields: impl Iterator<Item = (&'a str, &'a str)>) {
    for (old, new) in fields {
        if let Some(value) = root.remove(old) {
            root.insert(new.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests;
