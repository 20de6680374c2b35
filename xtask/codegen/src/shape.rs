//! Types and fields, from JSON schemas to the lines of the schema file.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use schemars::SchemaGenerator;
use serde_json::Value;

/// Type name to its fields.
pub type Types = BTreeMap<String, BTreeMap<String, Field>>;

/// One field of an object type.
#[derive(Clone, Default)]
pub struct Field {
    /// `string`, `[]int32`, `{}string`, `.io.k8s…` with the leading dot of a reference.
    pub shape: String,
    pub required: bool,
    /// Where it stands in upstream's type. Without one it comes first: `kind`, then `apiVersion`.
    pub place: Option<usize>,
    /// The protobuf field number; several joined by `.` for a field of an inlined message.
    pub tag: Option<String>,
    /// `go=value`, `go=omitempty`, `wrapped`: what the wire has of a field that is not set, and in what.
    pub wire: Vec<String>,
    /// `key=value` facts, in a fixed order.
    pub facts: Vec<(String, String)>,
}

pub fn from_json_schemas(mut schemas: SchemaGenerator) -> Result<Types> {
    let definitions = schemas.take_definitions(false);
    let mut types = Types::new();
    for (name, schema) in &definitions {
        if leaf(name).is_some() {
            continue;
        }
        let mut fields = BTreeMap::new();
        let required: Vec<&str> = schema["required"]
            .as_array()
            .map(|r| r.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
            bail!("type {name} is neither a known leaf nor an object with properties: {schema}");
        };
        for (field, schema) in properties {
            let shape = shape(schema).with_context(|| format!("{name}.{field}"))?;
            let required = required.contains(&field.as_str());
            fields.insert(field.clone(), Field { shape, required, ..Field::default() });
        }
        types.insert(name.clone(), fields);
    }
    Ok(types)
}

/// Types that have a shape of their own, not that of an object with fields.
fn leaf(name: &str) -> Option<&'static str> {
    Some(match name.strip_prefix("io.k8s.").unwrap_or(name) {
        "apimachinery.pkg.api.resource.Quantity" => "quantity",
        "apimachinery.pkg.util.intstr.IntOrString" => "intstr",
        "apimachinery.pkg.apis.meta.v1.Time" => "time",
        "apimachinery.pkg.apis.meta.v1.MicroTime" => "microtime",
        "apimachinery.pkg.apis.meta.v1.FieldsV1" | "apimachinery.pkg.runtime.RawExtension" => "any",
        _ => {
            let last = name.rsplit('.').next().unwrap_or(name);
            match last {
                "JSON"
                | "JSONSchemaPropsOrArray"
                | "JSONSchemaPropsOrBool"
                | "JSONSchemaPropsOrStringArray"
                | "CustomResourceSubresourceStatus" => "any",
                _ => return None,
            }
        }
    })
}

fn shape(schema: &Value) -> Result<String> {
    if let Some(reference) = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str()) {
        let name = reference.rsplit('/').next().unwrap_or(reference);
        return Ok(leaf(name).map_or_else(|| format!(".{name}"), str::to_owned));
    }
    let format = schema["format"].as_str().unwrap_or_default();
    Ok(match schema["type"].as_str().unwrap_or_default() {
        "string" if format == "byte" => "bytes".into(),
        "string" if format == "date-time" => "time".into(),
        "string" => "string".into(),
        "boolean" => "bool".into(),
        "number" => "double".into(),
        "integer" if format == "int64" => "int64".into(),
        "integer" => "int32".into(),
        "array" => format!("[]{}", shape(&schema["items"])?),
        "object" if schema["additionalProperties"].is_object() => {
            format!("{{}}{}", shape(&schema["additionalProperties"])?)
        }
        "object" => "any".into(),
        _ => bail!("a shape this program does not know: {schema}"),
    })
}

pub fn render(types: &Types) -> String {
    let mut out = String::from(
        "# Written by `cargo xtask codegen`; do not edit. `parse.rs` beside this file says what a line means.\n",
    );
    for (name, fields) in types {
        out.push_str(name);
        out.push('\n');
        let mut fields: Vec<_> = fields.iter().collect();
        fields.sort_by_key(|(name, facts)| (facts.place, name.as_str() != "kind"));
        for (field, facts) in fields {
            out.push_str(&format!(" {field} {}", facts.shape));
            if let Some(tag) = &facts.tag {
                out.push_str(&format!(" #{tag}"));
            }
            if facts.required {
                out.push_str(" required");
            }
            for word in &facts.wire {
                out.push_str(&format!(" {word}"));
            }
            for (key, value) in &facts.facts {
                out.push_str(&format!(" {key}={value}"));
            }
            out.push('\n');
        }
    }
    out
}
