//! Definitions as upstream's messages show them: as the JSON of its internal Go types.

use serde_json::{Value, json};

use crate::kinds::builtin::rules::path::{has, is_true, text};

/// What the Go type of a schema's field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Go {
    Text,
    Bool,
    /// A pointer to a scalar or to any JSON, or a list of such.
    Plain,
    Schema,
    Schemas,
    Named,
    SchemaOrArray,
    SchemaOrBool,
    SchemasOrTexts,
    Docs,
    Rules,
}

/// The fields of a schema in upstream's order, by their names there and in JSON.
pub(super) const FIELDS: [(&str, &str, Go); 43] = [
    ("ID", "id", Go::Text),
    ("Schema", "$schema", Go::Text),
    ("Ref", "$ref", Go::Plain),
    ("Description", "description", Go::Text),
    ("Type", "type", Go::Text),
    ("Nullable", "nullable", Go::Bool),
    ("Format", "format", Go::Text),
    ("Title", "title", Go::Text),
    ("Default", "default", Go::Plain),
    ("Maximum", "maximum", Go::Plain),
    ("ExclusiveMaximum", "exclusiveMaximum", Go::Bool),
    ("Minimum", "minimum", Go::Plain),
    ("ExclusiveMinimum", "exclusiveMinimum", Go::Bool),
    ("MaxLength", "maxLength", Go::Plain),
    ("MinLength", "minLength", Go::Plain),
    ("Pattern", "pattern", Go::Text),
    ("MaxItems", "maxItems", Go::Plain),
    ("MinItems", "minItems", Go::Plain),
    ("UniqueItems", "uniqueItems", Go::Bool),
    ("MultipleOf", "multipleOf", Go::Plain),
    ("Enum", "enum", Go::Plain),
    ("MaxProperties", "maxProperties", Go::Plain),
    ("MinProperties", "minProperties", Go::Plain),
    ("Required", "required", Go::Plain),
    ("Items", "items", Go::SchemaOrArray),
    ("AllOf", "allOf", Go::Schemas),
    ("OneOf", "oneOf", Go::Schemas),
    ("AnyOf", "anyOf", Go::Schemas),
    ("Not", "not", Go::Schema),
    ("Properties", "properties", Go::Named),
    ("AdditionalProperties", "additionalProperties", Go::SchemaOrBool),
    ("PatternProperties", "patternProperties", Go::Named),
    ("Dependencies", "dependencies", Go::SchemasOrTexts),
    ("AdditionalItems", "additionalItems", Go::SchemaOrBool),
    ("Definitions", "definitions", Go::Named),
    ("ExternalDocs", "externalDocs", Go::Docs),
    ("Example", "example", Go::Plain),
    ("XPreserveUnknownFields", "x-kubernetes-preserve-unknown-fields", Go::Plain),
    ("XEmbeddedResource", "x-kubernetes-embedded-resource", Go::Bool),
    ("XIntOrString", "x-kubernetes-int-or-string", Go::Bool),
    ("XListMapKeys", "x-kubernetes-list-map-keys", Go::Plain),
    ("XListType", "x-kubernetes-list-type", Go::Plain),
    ("XMapType", "x-kubernetes-map-type", Go::Plain),
];
const RULES: (&str, &str, Go) = ("XValidations", "x-kubernetes-validations", Go::Rules);

/// All of [`FIELDS`], and rules, which come last.
pub(super) fn fields() -> impl Iterator<Item = (&'static str, &'static str, Go)> {
    FIELDS.into_iter().chain([RULES])
}

/// Whether a field of a schema is said: whether it is not the zero value of its type.
pub(super) fn is_said(schema: &Value, name: &str, go: Go) -> bool {
    match go {
        Go::Text => !text(schema, name).is_empty(),
        Go::Bool => is_true(schema, name),
        _ => has(schema, name),
    }
}

/// The JSON that Go writes, in the order of the fields of its types, which no map here keeps.
pub(super) fn schema(value: &Value) -> String {
    if value.is_null() {
        return "null".into();
    }
    let field = |(go_name, name, go): (&str, &str, Go)| {
        let value = value.get(name).unwrap_or(&Value::Null);
        let shown = match go {
            Go::Text => json(&json!(value.as_str().unwrap_or_default())),
            Go::Bool => value.as_bool().unwrap_or_default().to_string(),
            Go::Plain => json(value),
            Go::Schema => schema(value),
            Go::Schemas => many(value, schema),
            Go::Named => named(value, schema),
            Go::SchemaOrArray => schema_or_array(value),
            Go::SchemaOrBool => schema_or_bool(value),
            Go::SchemasOrTexts => named(value, schema_or_texts),
            Go::Docs => said(value, &[("Description", "description"), ("URL", "url")]),
            Go::Rules => many(value, rule),
        };
        format!("{go_name:?}:{shown}")
    };
    format!("{{{}}}", fields().map(field).collect::<Vec<_>>().join(","))
}

pub(super) fn schema_or_array(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Array(items) => {
            // An empty list is none in Go.
            let shown = if items.is_empty() { "null".into() } else { many(value, schema) };
            format!(r#"{{"Schema":null,"JSONSchemas":{shown}}}"#)
        }
        one => format!(r#"{{"Schema":{},"JSONSchemas":null}}"#, schema(one)),
    }
}

fn schema_or_bool(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(allows) => format!(r#"{{"Allows":{allows},"Schema":null}}"#),
        one => format!(r#"{{"Allows":true,"Schema":{}}}"#, schema(one)),
    }
}

fn schema_or_texts(value: &Value) -> String {
    match value {
        Value::Array(_) => format!(r#"{{"Schema":null,"Property":{}}}"#, json(value)),
        one => format!(r#"{{"Schema":{},"Property":null}}"#, schema(one)),
    }
}

fn rule(value: &Value) -> String {
    format!(
        r#"{{{},"Reason":{},"FieldPath":{},"OptionalOldSelf":{}}}"#,
        texts(value, &[("Rule", "rule"), ("Message", "message"), ("MessageExpression", "messageExpression")]),
        json(value.get("reason").unwrap_or(&Value::Null)),
        json(&json!(text(value, "fieldPath"))),
        json(value.get("optionalOldSelf").unwrap_or(&Value::Null)),
    )
}

/// A version as it is left once what all versions say alike is said for all of them.
pub(super) fn version(value: &Value, keeps: impl Fn(&str) -> bool) -> String {
    let kept = |name: &str| if keeps(name) { value.get(name).unwrap_or(&Value::Null) } else { &Value::Null };
    let validation = match kept("schema") {
        Value::Null => "null".into(),
        said => format!(r#"{{"OpenAPIV3Schema":{}}}"#, schema(&said["openAPIV3Schema"])),
    };
    format!(
        concat!(
            r#"{{"Name":{},"Served":{},"Storage":{},"Deprecated":{},"DeprecationWarning":{},"Schema":{},"#,
            r#""Subresources":{},"AdditionalPrinterColumns":{},"SelectableFields":{}}}"#
        ),
        json(&json!(text(value, "name"))),
        is_true(value, "served"),
        is_true(value, "storage"),
        is_true(value, "deprecated"),
        json(value.get("deprecationWarning").unwrap_or(&Value::Null)),
        validation,
        subresources(kept("subresources")),
        many(kept("additionalPrinterColumns"), column),
        many(kept("selectableFields"), |field| said(field, &[("JSONPath", "jsonPath")])),
    )
}

fn subresources(value: &Value) -> String {
    if value.is_null() {
        return "null".into();
    }
    let status = if has(value, "status") { "{}" } else { "null" };
    let scale = match &value["scale"] {
        Value::Null => "null".into(),
        scale => format!(
            r#"{{{},"LabelSelectorPath":{}}}"#,
            texts(
                scale,
                &[("SpecReplicasPath", "specReplicasPath"), ("StatusReplicasPath", "statusReplicasPath")]
            ),
            json(&scale["labelSelectorPath"]),
        ),
    };
    format!(r#"{{"Status":{status},"Scale":{scale}}}"#)
}

fn column(value: &Value) -> String {
    format!(
        r#"{{{},"Priority":{},"JSONPath":{}}}"#,
        texts(
            value,
            &[("Name", "name"), ("Type", "type"), ("Format", "format"), ("Description", "description")]
        ),
        value["priority"].as_i64().unwrap_or_default(),
        json(&json!(text(value, "jsonPath"))),
    )
}

fn texts(value: &Value, fields: &[(&str, &str)]) -> String {
    let field = |(go_name, name): &(&str, &str)| format!("{go_name:?}:{}", json(&json!(text(value, name))));
    fields.iter().map(field).collect::<Vec<_>>().join(",")
}

fn said(value: &Value, fields: &[(&str, &str)]) -> String {
    if value.is_null() { "null".into() } else { format!("{{{}}}", texts(value, fields)) }
}

fn many(value: &Value, shown: impl Fn(&Value) -> String) -> String {
    match value.as_array() {
        Some(items) => list_of(items.iter().map(shown)),
        None => "null".into(),
    }
}

pub(super) fn list_of(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(","))
}

fn named(value: &Value, shown: impl Fn(&Value) -> String) -> String {
    match value.as_object() {
        Some(map) => {
            let entries = map.iter().map(|(name, value)| format!("{}:{}", json(&json!(name)), shown(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
        }
        None => "null".into(),
    }
}

/// Go's JSON: safe to stand in a page.
pub(super) fn json(value: &Value) -> String {
    let mut out = String::new();
    for c in value.to_string().chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
}

/// Texts as `%q` writes them.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if is_printed(c) => out.push(c),
            c if c.is_ascii() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if u32::from(c) <= 0xffff => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push('"');
    out
}

/// Letters, marks, numbers, punctuation, symbols and the space of ASCII.
pub(super) fn is_printed(c: char) -> bool {
    let escapes = c.escape_debug();
    // Of the printed, marks and quotes have escapes, too.
    c == ' ' || (!c.is_whitespace() && (escapes.len() == 1 || matches!(c, '\'' | '"' | '\\') || is_mark(c)))
}

/// A mark is written with an escape only where it has nothing to stand on.
fn is_mark(c: char) -> bool {
    format!("a{c}").escape_debug().count() == 2
}

/// What is in a list besides the schema, such as a value in `Invalid value: …`.
pub(super) fn value(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        other => json(other),
    }
}

pub(super) fn versions(versions: &[Value], keeps: impl Fn(&str) -> bool + Copy) -> String {
    list_of(versions.iter().map(|one| version(one, keeps)))
}
