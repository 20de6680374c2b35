//! OpenAPI documents made from the schema.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::patch::PatchType;
use crate::schema::{Field, ListType, Schema, Shape, TypeId};
use crate::{Kind, Kinds, apply, kubernetes};

mod custom;
pub mod gnostic;
mod parameters;

pub(crate) const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
/// What it says of `apiVersion`, `kind` and `metadata` is true of every kind.
const ANY_KIND: &str = "io.k8s.api.core.v1.Pod";

/// What types and their fields are for, by the names that OpenAPI has for types.
pub trait Texts {
    fn of_type(&self, name: &str) -> Option<String>;
    fn of_field(&self, name: &str, field: &str) -> Option<String>;
}

/// No texts at all.
impl Texts for () {
    fn of_type(&self, _: &str) -> Option<String> {
        None
    }

    fn of_field(&self, _: &str, _: &str) -> Option<String> {
        None
    }
}

/// What a definition is made with.
#[derive(Clone, Copy)]
struct Maker<'t> {
    version: Version,
    texts: &'t dyn Texts,
}

impl Maker<'_> {
    fn describe(self, schema: &mut Value, text: Option<String>) {
        if let Some(text) = text {
            schema["description"] = text.into();
        }
    }
}

/// Where references to types point.
#[derive(Clone, Copy)]
enum Version {
    V2,
    V3,
}

impl Version {
    fn reference(self, name: &str) -> Value {
        match self {
            Version::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Version::V3 => {
                json!({"allOf": [{"$ref": format!("#/components/schemas/{name}")}], "default": {}})
            }
        }
    }
}

/// The OpenAPI v3 document of one group and version (`""` and `v1` for the core group), out of whatever kinds.
pub fn v3(kinds: &[Arc<Kind>], group: &str, version: &str, texts: &dyn Texts) -> Value {
    let of_group: Vec<&Kind> =
        kinds.iter().map(|k| &**k).filter(|k| k.group == group && k.version == version).collect();
    let schemas = definitions(&of_group, Maker { version: Version::V3, texts });
    let mut paths = Map::new();
    for kind in &of_group {
        paths.extend(paths_of(kind));
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": kubernetes::RELEASE},
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

/// The OpenAPI v2 document of all kinds.
pub fn v2(kinds: &Kinds, texts: &dyn Texts) -> Value {
    let all: Vec<&Kind> = kinds.iter().map(|k| &**k).collect();
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": kubernetes::RELEASE},
        "paths": {},
        "definitions": definitions(&all, Maker { version: Version::V2, texts }),
        "parameters": parameters::v2(),
    })
}

/// The paths of a kind, with no more in each operation than what clients look up: which kind it is about and
/// whether it knows `fieldValidation`.
fn paths_of(kind: &Kind) -> Vec<(String, Value)> {
    let root = if kind.group.is_empty() {
        format!("/api/{}", kind.version)
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    let collection = if kind.is_namespaced() {
        format!("{root}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        format!("{root}/{}", kind.plural)
    };
    let gvk = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
    let operation = |action: &str, parameters: &[&str]| {
        let mut operation = json!({
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk,
            "responses": {"200": {"description": "OK"}},
        });
        // Clients that write what they have read leave an empty list out, so that theirs would differ.
        if !parameters.is_empty() {
            operation["parameters"] = parameters.iter().map(|name| parameters::v3(name)).collect();
        }
        operation
    };
    let write = ["dryRun", "fieldManager", "fieldValidation"];
    let mut patch = operation("patch", &["dryRun", "fieldManager", "fieldValidation", "force"]);
    let media_types = PatchType::media_types(kind).chain([apply::MEDIA_TYPE]);
    let content: Map<String, Value> = media_types
        .map(|media_type| (media_type.to_owned(), json!({"schema": {"type": "object"}})))
        .collect();
    patch["requestBody"] = json!({"required": true, "content": content});
    vec![
        (
            collection.clone(),
            json!({
                "get": operation("list", &["labelSelector", "fieldSelector", "limit", "continue", "watch"]),
                "post": operation("post", &write),
                "delete": operation("deletecollection", &["dryRun"]),
            }),
        ),
        (
            format!("{collection}/{{name}}"),
            json!({
                "get": operation("get", &[]),
                "put": operation("put", &write),
                "patch": patch,
                "delete": operation("delete", &["dryRun", "gracePeriodSeconds", "propagationPolicy"]),
            }),
        ),
    ]
}

fn definitions(kinds: &[&Kind], maker: Maker<'_>) -> Map<String, Value> {
    let mut out = Map::new();
    for kind in kinds {
        if let Some(custom) = kind.custom() {
            let name = custom::name(kind);
            out.insert(name.clone(), custom::definition(kind, custom, maker));
            out.insert(list_name(kind, &name), list_definition(kind, &name, maker));
        }
    }
    out.extend(builtin_definitions(kinds, maker));
    out
}

/// Beside the definition of its items.
fn list_name(kind: &Kind, item: &str) -> String {
    let package = item.strip_suffix(kind.kind.as_str()).unwrap_or_default();
    format!("{package}{}", kind.list_kind())
}

/// The definitions of Go types: those of built-in kinds, and those that custom resources share with them.
fn builtin_definitions(kinds: &[&Kind], maker: Maker<'_>) -> Map<String, Value> {
    let mut out = Map::new();
    let schema = Schema::builtin();
    let kinds: Vec<&Kind> = kinds.iter().copied().filter(|kind| kind.custom().is_none()).collect();
    let mut gvks: BTreeMap<TypeId, Vec<Value>> = BTreeMap::new();
    for kind in &kinds {
        gvks.entry(kind.schema.id)
            .or_default()
            .push(json!({"group": kind.group, "version": kind.version, "kind": kind.kind}));
    }
    let mut todo: Vec<TypeId> = gvks.keys().copied().collect();
    let shared =
        ["ListMeta", "ObjectMeta"].map(|name| format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}"));
    todo.extend(shared.iter().filter_map(|name| schema.find(name)));
    let mut seen: BTreeSet<TypeId> = todo.iter().copied().collect();
    while let Some(id) = todo.pop() {
        let type_ = schema.get(id);
        for field in &type_.fields {
            if let Some(inner) = object_of(&field.node.shape)
                && seen.insert(inner)
            {
                todo.push(inner);
            }
        }
        out.insert(type_.name.to_string(), definition(schema, id, gvks.get(&id), maker));
    }
    for kind in &kinds {
        let item = &kind.schema.object_type().name;
        out.insert(list_name(kind, item), list_definition(kind, item, maker));
    }
    out
}

fn object_of(shape: &Shape) -> Option<TypeId> {
    match shape {
        Shape::Object(id) => Some(*id),
        Shape::List(inner) | Shape::Map(inner) => object_of(&inner.shape),
        _ => None,
    }
}

fn definition(schema: &Schema, id: TypeId, gvks: Option<&Vec<Value>>, maker: Maker<'_>) -> Value {
    let type_ = schema.get(id);
    let mut properties = Map::new();
    for field in &type_.fields {
        let mut property = property(schema, field, maker.version);
        maker.describe(&mut property, maker.texts.of_field(&type_.name, &field.name));
        properties.insert(field.name.to_string(), property);
    }
    let required: Vec<&str> = type_.fields.iter().filter(|f| f.required).map(|f| &*f.name).collect();
    let mut out = json!({"type": "object", "properties": properties});
    maker.describe(&mut out, maker.texts.of_type(&type_.name));
    if type_.atomic {
        out["x-kubernetes-map-type"] = "atomic".into();
    }
    if !required.is_empty() {
        out["required"] = required.into();
    }
    if let Some(gvks) = gvks {
        out["x-kubernetes-group-version-kind"] = Value::Array(gvks.clone());
    }
    out
}

fn list_definition(kind: &Kind, item: &str, maker: Maker<'_>) -> Value {
    let gvk = json!({"group": kind.group, "version": kind.version, "kind": kind.list_kind()});
    let reference = |name: &str| maker.version.reference(name);
    let items = json!({
        "description": format!("List of {}", kind.plural),
        "type": "array",
        "items": reference(item),
    });
    let mut out = json!({
        "description": format!("{} is a list of {}", kind.list_kind(), kind.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": reference("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"),
            "items": items,
        },
        "x-kubernetes-group-version-kind": [gvk],
    });
    for field in ["apiVersion", "kind"] {
        maker.describe(&mut out["properties"][field], maker.texts.of_field(ANY_KIND, field));
    }
    out
}

fn property(schema: &Schema, field: &Field, version: Version) -> Value {
    let mut out = shape(schema, &field.node.shape, version);
    if let Some(default) = &field.node.default {
        out["default"] = default.clone();
    }
    if matches!(field.node.shape, Shape::List(_)) {
        match field.node.list {
            ListType::Map => {
                out["x-kubernetes-list-type"] = "map".into();
                out["x-kubernetes-list-map-keys"] = field.node.keys.iter().map(|k| k.to_string()).collect();
            }
            ListType::Set => out["x-kubernetes-list-type"] = "set".into(),
            ListType::Atomic => out["x-kubernetes-list-type"] = "atomic".into(),
        }
    }
    if field.node.atomic_map {
        out["x-kubernetes-map-type"] = "atomic".into();
    }
    if field.node.granular {
        out["x-kubernetes-map-type"] = "granular".into();
    }
    let strategy: Vec<&str> = [(field.patch_merge, "merge"), (field.patch_retain_keys, "retainKeys")]
        .iter()
        .filter_map(|(set, name)| set.then_some(*name))
        .collect();
    if !strategy.is_empty() {
        out["x-kubernetes-patch-strategy"] = strategy.join(",").into();
    }
    if let Some(key) = &field.merge_key {
        out["x-kubernetes-patch-merge-key"] = key.to_string().into();
    }
    out
}

fn shape(schema: &Schema, of: &Shape, version: Version) -> Value {
    match of {
        Shape::String => json!({"type": "string"}),
        Shape::Int32 => json!({"type": "integer", "format": "int32"}),
        Shape::Int64 => json!({"type": "integer", "format": "int64"}),
        Shape::Bool => json!({"type": "boolean"}),
        Shape::Double => json!({"type": "number", "format": "double"}),
        Shape::Bytes => json!({"type": "string", "format": "byte"}),
        Shape::Quantity => match version {
            Version::V2 => json!({"type": "string"}),
            Version::V3 => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        },
        Shape::IntOrString => match version {
            Version::V2 => json!({"type": "string", "format": "int-or-string"}),
            Version::V3 => {
                json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"})
            }
        },
        Shape::Duration => json!({"type": "string"}),
        Shape::Time | Shape::MicroTime => json!({"type": "string", "format": "date-time"}),
        Shape::Any | Shape::SchemaOr(..) => {
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
        }
        Shape::Object(id) => version.reference(&schema.get(*id).name),
        Shape::List(inner) => json!({"type": "array", "items": shape(schema, &inner.shape, version)}),
        Shape::Map(inner) => {
            json!({"type": "object", "additionalProperties": shape(schema, &inner.shape, version)})
        }
    }
}
