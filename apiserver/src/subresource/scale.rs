//! `scale`: the number of replicas of whatever has one, as `autoscaling/v1`.

use serde_json::{Value, json};
use skiff_api::decode::{Decoded, FieldValidation};
use skiff_api::kinds;
use skiff_api::meta::Meta;
use skiff_api::patch::Patch;
use skiff_api::{Cause, Kind, LabelSelector, Object, Status, decode};

use super::Subresources;
use super::document::read_document;
use crate::call::{Call, Part};
use crate::registry::managed::Tracker;
use crate::registry::metadata;
use crate::registry::options::WriteOptions;
use crate::registry::patch::{Body, read_patch};
use crate::respond::Response;

impl Subresources {
    pub(super) async fn scale(&self, mut call: Call) -> Result<Response, Status> {
        if call.info.verb == "get" {
            self.registry.objects.lister.caches.wait_for_newest().await?;
            let scale = scale_of(&call.kind, &self.object_of(&call).await?)?;
            return Ok(call.document(200, &scale));
        }
        let body = if call.info.verb == "patch" { Some(Body::of(&call)?) } else { None };
        let options = WriteOptions::parse(&call)?;
        let change = match body {
            Some(body) => Change::Patch(read_patch(&mut call, body, options.validation).await?),
            None => Change::Replace(read_document(&mut call, "autoscaling/v1", "Scale").await?),
        };
        let scale_kind = kinds::scale();
        let tracker = Tracker::of(&call, &options);
        let (mut warnings, mut admitted) = (Vec::new(), Vec::new());
        let outcome = self
            .registry
            .update_object(&call, Part::Main, options.dry_run, &mut admitted, |current| {
                let wanted = change.wanted(&call.kind, scale_kind, current, options.validation)?;
                warnings = wanted.warnings;
                let mut new = scaled(&call.kind, scale_kind, current, wanted.object)?;
                tracker.note(Some(current), &mut new);
                Ok(new)
            })
            .await?;
        call.warnings.extend(warnings.into_iter().chain(admitted));
        let scale = scale_of(&call.kind, &outcome.object)?;
        Ok(call.document(200, &scale))
    }
}

enum Change {
    Patch(Patch),
    Replace(Value),
}

impl Change {
    fn wanted(
        &self,
        kind: &Kind,
        scale_kind: &Kind,
        current: &Object,
        validation: FieldValidation,
    ) -> Result<Decoded, Status> {
        match self {
            Change::Replace(scale) => decode::conform(scale_kind, scale.clone(), validation),
            Change::Patch(patch) => patch.apply(scale_kind, &scale_of(kind, current)?),
        }
    }
}

/// The object with the replicas of `scale`.
fn scaled(kind: &Kind, scale_kind: &Kind, current: &Object, mut scale: Object) -> Result<Object, Status> {
    check_name(&mut scale, current)?;
    let replicas = match &scale["spec"]["replicas"] {
        Value::Null => 0,
        value => value.as_i64().ok_or_else(|| Status::bad_request("spec.replicas is not a number"))?,
    };
    let name = current.name();
    let mut causes = metadata::validate(scale_kind, &scale, metadata::Write::Update);
    if replicas < 0 {
        let why = "must be greater than or equal to 0";
        causes.push(Cause::invalid("spec.replicas", &json!(replicas), why));
    }
    if !causes.is_empty() {
        return Err(Status::invalid("autoscaling", "Scale", name, causes));
    }
    let version = scale.resource_version();
    if !version.is_empty() && version != current.resource_version() {
        return Err(Status::modified(&kind.group, &kind.plural, name));
    }
    let uid = scale.uid();
    if !uid.is_empty() && uid != current.uid() {
        let why =
            format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", current.uid());
        return Err(Status::conflict(&kind.group, &kind.plural, name, &why));
    }
    let mut object = current.clone();
    match kind.custom().and_then(|custom| custom.scale.as_ref()) {
        None => object["spec"]["replicas"] = replicas.into(),
        Some(_) if scale["spec"]["replicas"].is_null() && number(current, custom_path(kind))?.is_none() => {
            let path = custom_path(kind).join(".");
            return Err(Status::bad_request(format!(
                "the spec replicas field {:?} cannot be empty",
                format!(".{path}")
            )));
        }
        Some(places) => set(&mut object, &places.wanted, replicas.into())?,
    }
    Ok(object)
}

fn custom_path(kind: &Kind) -> &[Box<str>] {
    kind.custom().and_then(|custom| custom.scale.as_ref()).map_or(&[], |places| &places.wanted)
}

/// What lies at a path; `None` where nothing does.
fn at<'o>(object: &'o Object, path: &[Box<str>]) -> Option<&'o Value> {
    path.iter().try_fold(object, |within, field| within.get(&**field)).filter(|value| !value.is_null())
}

fn number(object: &Object, path: &[Box<str>]) -> Result<Option<i64>, Status> {
    match at(object, path) {
        None => Ok(None),
        Some(value) => value.as_i64().map(Some).ok_or_else(|| misplaced(value, path, "int64")),
    }
}

/// An author's schema may allow what is no number of replicas.
fn misplaced(value: &Value, path: &[Box<str>], wanted: &str) -> Status {
    let path = path.join(".");
    Status::internal(format!(".{path} accessor error: {value} is not of the expected type {wanted}"))
}

fn set(object: &mut Object, path: &[Box<str>], value: Value) -> Result<(), Status> {
    let mut within = object;
    for field in path {
        if within.is_null() {
            *within = json!({});
        }
        let Value::Object(map) = within else { return Err(misplaced(within, path, "map")) };
        within = map.entry(field.to_string()).or_insert(Value::Null);
    }
    *within = value;
    Ok(())
}

/// A scale is of the object that its path names.
fn check_name(scale: &mut Object, current: &Object) -> Result<(), Status> {
    let (given, name) = (scale.name(), current.name());
    if given.is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        )));
    }
    if given != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    match scale.namespace() {
        "" => scale.set_meta("namespace", current.namespace()),
        namespace if namespace == current.namespace() => {}
        _ => {
            let why = "the namespace of the provided object does not match the namespace sent on the request";
            return Err(Status::bad_request(why));
        }
    }
    Ok(())
}

/// Replicas as they are wanted and counted, and the pods they are.
struct Numbers {
    wanted: i64,
    counted: i64,
    selector: String,
}

fn numbers(kind: &Kind, object: &Object) -> Result<Numbers, Status> {
    let Some(places) = kind.custom().and_then(|custom| custom.scale.as_ref()) else {
        let count = |field: &str| object[field]["replicas"].as_i64().unwrap_or(0);
        let (wanted, counted) = (count("spec"), count("status"));
        return Ok(Numbers { wanted, counted, selector: selector_of(object) });
    };
    let selector = match places.selector.as_ref().and_then(|path| Some((path, at(object, path)?))) {
        None => String::new(),
        Some((_, Value::String(selector))) => selector.clone(),
        Some((path, other)) => return Err(misplaced(other, path, "string")),
    };
    let count = |path| number(object, path).map(|count| count.unwrap_or(0));
    Ok(Numbers { wanted: count(&places.wanted)?, counted: count(&places.counted)?, selector })
}

fn selector_of(object: &Object) -> String {
    let selector = &object["spec"]["selector"];
    // A replication controller's selector is plain labels.
    if selector["matchLabels"].is_null() && selector["matchExpressions"].is_null() {
        plain_selector(selector)
    } else {
        LabelSelector::from_json(selector).map(|_| selector_text(selector)).unwrap_or_default()
    }
}

fn scale_of(kind: &Kind, object: &Object) -> Result<Value, Status> {
    let meta = object.meta();
    let Numbers { wanted, counted, selector } = numbers(kind, object)?;
    let mut status = json!({ "replicas": counted });
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    let mut metadata = serde_json::Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = meta.get(field) {
            metadata.insert(field.into(), value.clone());
        }
    }
    // None is what is left out.
    let spec = if wanted == 0 { json!({}) } else { json!({ "replicas": wanted }) };
    Ok(json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status,
    }))
}

fn plain_selector(labels: &Value) -> String {
    let pair = |(key, value): (&String, &Value)| format!("{key}={}", value.as_str().unwrap_or_default());
    labels.as_object().into_iter().flatten().map(pair).collect::<Vec<_>>().join(",")
}

/// The selector in its query form, requirements sorted by key as upstream.
fn selector_text(selector: &Value) -> String {
    let mut terms: Vec<(String, String)> = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        terms.push((key.clone(), format!("{key}={}", value.as_str().unwrap_or_default())));
    }
    for requirement in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = requirement["key"].as_str().unwrap_or_default();
        let mut values: Vec<&str> =
            requirement["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let term = match requirement["operator"].as_str() {
            Some("In") => format!("{key} in ({values})"),
            Some("NotIn") => format!("{key} notin ({values})"),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key.to_owned(),
        };
        terms.push((key.to_owned(), term));
    }
    // Those of one key stay as they come.
    terms.sort_by(|a, b| a.0.cmp(&b.0));
    terms.into_iter().map(|(_, term)| term).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_tells_replicas_and_selector() {
        let deployment = json!({
            "metadata": {"name": "web", "namespace": "a", "labels": {"x": "y"}},
            "spec": {"replicas": 3, "selector": {
                "matchLabels": {"app": "web"},
                "matchExpressions": [{"key": "a", "operator": "In", "values": ["2", "1"]}],
            }},
            "status": {"replicas": 2},
        });
        let kinds = skiff_api::Kinds::builtin();
        let kind = kinds.by_resource("apps", "v1", "deployments").expect("a kind");
        let scale = scale_of(kind, &deployment).expect("a scale");
        assert_eq!(scale["spec"], json!({"replicas": 3}));
        assert_eq!(scale["status"], json!({"replicas": 2, "selector": "a in (1,2),app=web"}));
        assert_eq!(scale["metadata"], json!({"name": "web", "namespace": "a"}));
    }
}
