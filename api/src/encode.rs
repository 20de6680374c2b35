//! Documents as they are sent: in the order of upstream's types, so that what they are comes first, and a newline last.
//!
//! Source: the order of fields in upstream's types; apimachinery's JSON serializer, which ends each document with a newline.

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value};

use crate::schema::{ObjectType, Schema, Shape, TypeId};

/// What stands in front of all other fields.
const FIRST: [&str; 3] = ["kind", "apiVersion", "metadata"];

/// A document whose fields are written in the order of upstream's types, if it is of one of them; of any other `kind`, `apiVersion`
/// and `metadata` come first, and items of a list each by their own type.
pub struct Ordered<'v>(pub &'v Value);

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Value::Object(map) = self.0 else { return self.0.serialize(serializer) };
        if let Some(id) = type_of(map) {
            return Typed { schema: Schema::builtin(), shape: &Shape::Object(id), value: self.0 }
                .serialize(serializer);
        }
        let mut out = serializer.serialize_map(Some(map.len()))?;
        for name in FIRST {
            if let Some(value) = map.get(name) {
                out.serialize_entry(name, value)?;
            }
        }
        for (name, value) in map.iter().filter(|(name, _)| !FIRST.contains(&name.as_str())) {
            match (name.as_str(), value) {
                ("items", Value::Array(items)) => {
                    let items: Vec<Ordered<'_>> = items.iter().map(Ordered).collect();
                    out.serialize_entry(name, &items)?;
                }
                _ => out.serialize_entry(name, value)?,
            }
        }
        out.end()
    }
}

/// The built-in type of a document, by what it says it is.
fn type_of(document: &Map<String, Value>) -> Option<TypeId> {
    let text = |field: &str| document.get(field).and_then(Value::as_str);
    let (kind, version) = (text("kind")?, text("apiVersion")?);
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let package = match (group, kind) {
        ("", "Status") => "io.k8s.apimachinery.pkg.apis.meta",
        _ => crate::kinds::package(group)?,
    };
    Schema::builtin().find(&format!("{package}.{version}.{kind}"))
}

/// A value of a shape. What its type does not know follows by name.
struct Typed<'v> {
    schema: &'v Schema,
    shape: &'v Shape,
    value: &'v Value,
}

impl Serialize for Typed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let schema = self.schema;
        let of = |shape, value| Typed { schema, shape, value };
        match (self.shape, self.value) {
            (Shape::Object(id) | Shape::SchemaOr(_, id), Value::Object(map)) => {
                let type_ = schema.get(*id);
                let (values, n_known) = by_field(type_, map);
                let mut out = serializer.serialize_map(Some(map.len()))?;
                for (at, field) in type_.places_in_order() {
                    if let Some(value) = values.get(at).copied().flatten() {
                        out.serialize_entry(&field.name, &of(&field.node.shape, value))?;
                    }
                }
                if n_known < map.len() {
                    for (name, value) in map.iter().filter(|(name, _)| type_.field(name).is_none()) {
                        out.serialize_entry(name, value)?;
                    }
                }
                out.end()
            }
            (Shape::SchemaOr(_, id), Value::Array(items)) => {
                let shape = Shape::Object(*id);
                serializer.collect_seq(items.iter().map(|item| Typed { schema, shape: &shape, value: item }))
            }
            (Shape::List(inner), Value::Array(items)) => {
                serializer.collect_seq(items.iter().map(|item| of(&inner.shape, item)))
            }
            (Shape::Map(inner), Value::Object(map)) => {
                serializer.collect_map(map.iter().map(|(name, value)| (name, of(&inner.shape, value))))
            }
            (_, value) => value.serialize(serializer),
        }
    }
}

/// The values of a type's fields, and how many there are. Both are in the order of names, so that none is looked up.
fn by_field<'v>(type_: &ObjectType, map: &'v Map<String, Value>) -> (Vec<Option<&'v Value>>, usize) {
    let (mut values, mut n_known) = (vec![None; type_.fields.len()], 0);
    let mut fields = type_.fields.iter().zip(&mut values).peekable();
    for (name, value) in map {
        while fields.next_if(|(field, _)| *field.name < **name).is_some() {}
        if let Some((_, place)) = fields.next_if(|(field, _)| *field.name == **name) {
            *place = Some(value);
            n_known += 1;
        }
    }
    (values, n_known)
}

/// A document whose maps are written in a given order of names, at whatever depth; names that are not in it follow.
pub struct InOrder<'v> {
    pub value: &'v Value,
    /// Of the outermost map.
    pub top: &'v [&'v str],
    pub order: &'v [&'v str],
}

impl Serialize for InOrder<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let order = self.order;
        let inner = |value| InOrder { value, top: order, order };
        match self.value {
            Value::Array(items) => serializer.collect_seq(items.iter().map(inner)),
            Value::Object(map) => {
                let order = self.top;
                let known = order.iter().filter_map(|name| map.get_key_value(*name));
                let others = map.iter().filter(|(name, _)| !order.contains(&name.as_str()));
                serializer.collect_map(known.chain(others).map(|(name, value)| (name, inner(value))))
            }
            leaf => leaf.serialize(serializer),
        }
    }
}

/// The same as JSON, with its newline.
pub fn json_in_order(document: &Value, top: &[&str], order: &[&str]) -> Vec<u8> {
    // Writing a `Value` to memory cannot fail.
    let mut bytes = serde_json::to_vec(&InOrder { value: document, top, order }).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// One document as JSON, with its newline.
pub fn json(document: &Value) -> Vec<u8> {
    // Writing a `Value` to memory cannot fail.
    let mut bytes = serde_json::to_vec(&Ordered(document)).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// The same for people: indented by two, as `?pretty=true` wants it.
pub fn pretty_json(document: &Value) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(&Ordered(document)).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_document_is_comes_first_and_a_newline_last() {
        let object =
            json!({"apiVersion": "v1", "data": {"a": "b"}, "kind": "ConfigMap", "metadata": {"name": "x"}});
        assert_eq!(
            String::from_utf8(json(&object)).unwrap(),
            "{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"metadata\":{\"name\":\"x\"},\"data\":{\"a\":\"b\"}}\n"
        );
        let list = json!({"apiVersion": "v1", "items": [], "kind": "PodList", "metadata": {}});
        assert!(json(&list).starts_with(br#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items""#));
        assert!(pretty_json(&list).starts_with(b"{\n  \"kind\": \"PodList\",\n  \"apiVersion\""));
        assert_eq!(json(&json!([1])), b"[1]\n");
    }

    #[test]
    fn an_order_holds_at_every_depth() {
        let document = json!({"a": [{"x": 1, "name": "n", "kind": "k"}], "kind": "K", "name": "N"});
        let ordered =
            serde_json::to_string(&InOrder { value: &document, top: &["kind"], order: &["name", "kind"] })
                .unwrap();
        assert_eq!(ordered, r#"{"kind":"K","a":[{"name":"n","kind":"k","x":1}],"name":"N"}"#);
    }
}
