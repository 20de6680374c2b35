//! Reads the schema of a custom resource, as its CustomResourceDefinition has it, into the arena.
//!
//! ```text
//! openAPIV3Schema ─ node ─┬ properties ─ an object type of its own for each place
//!                         ├ items, additionalProperties ─ a node in its list or map
//!                         └ all else ─ facts and checks of the node
//! apiVersion, kind, metadata ─ added to the root and to embedded resources; metadata is the built-in type
//! ```
//!
//! # Guarantees
//! - Linear in the document, but for the names of types, which are paths; recursion as deep as it, which is checked first.
//! - Whoever reads has checked that the schema is structural. What is not is read as far as it goes, never refused for it: a stored
//!   definition stays readable.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{
    Bound, Checks, Custom, Field, ListType, Message, Nested, Node, ObjectType, Presence, Rule, Schema, Shape,
    TypeId,
};
use crate::depth::{self, TooDeep};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Why a schema cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("the schema of {path:?} is no object: write at least {{\"type\": \"object\"}}")]
    NoObject { path: String },
    #[error("the object {path:?} has more than {limit} fields, which is more than this server keeps; use additionalProperties", limit = u16::MAX)]
    TooManyFields { path: String },
    #[error("the schema cannot be kept")]
    TooDeep(#[from] TooDeep),
}

impl Schema {
    /// Reads an `openAPIV3Schema`. [`Schema::root`] is the resource.
    ///
    /// An object type is called by its path: `spec.template`, `spec.containers[*]`; that of the root has no name. What may be
    /// anything without `x-kubernetes-preserve-unknown-fields`, as the values of `additionalProperties: true`, is a
    /// [`Shape::Any`] that does not preserve: objects in it lose their fields.
    ///
    /// # Errors
    /// If it has more than can be kept, or something else where a schema must be.
    pub fn of_custom(open_api_v3_schema: &Value) -> Result<Schema, ReadError> {
        depth::check(open_api_v3_schema)?;
        let mut reader = Reader::default();
        let root = reader.node(open_api_v3_schema, "", Place::Root)?;
        Ok(Schema { root: Some(root), ..reader.schema })
    }

    /// Reads a part of such a schema as if it were the whole: [`Schema::root`] is a value there. What is said of a resource holds
    /// for the part where that is an embedded one.
    ///
    /// # Errors
    /// As [`Schema::of_custom`].
    pub(crate) fn of_part(schema: &Value) -> Result<Schema, ReadError> {
        depth::check(schema)?;
        let mut reader = Reader::default();
        let root = reader.node(schema, "", Place::Inner)?;
        Ok(Schema { root: Some(root), ..reader.schema })
    }

    /// The same of a whole schema, whose resource is then seen as an embedded one.
    ///
    /// # Errors
    /// As [`Schema::of_custom`].
    pub(crate) fn of_embedded(open_api_v3_schema: &Value) -> Result<Schema, ReadError> {
        let mut schema = Schema::of_custom(open_api_v3_schema)?;
        if let Some(custom) = schema.root.as_mut().and_then(|root| root.custom.as_mut()) {
            custom.embedded = true;
        }
        Ok(schema)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Root,
    Inner,
}

#[derive(Default)]
struct Reader {
    schema: Schema,
    /// Built-in types with what they have become here.
    copied: HashMap<TypeId, TypeId>,
}

impl Reader {
    fn node(&mut self, schema: &Value, path: &str, place: Place) -> Result<Node, ReadError> {
        let Value::Object(props) = schema else { return Err(ReadError::NoObject { path: path.to_owned() }) };
        Ok(Node {
            shape: self.shape(props, path, place)?,
            list: match text(props, "x-kubernetes-list-type") {
                Some("set") => ListType::Set,
                Some("map") => ListType::Map,
                _ => ListType::Atomic,
            },
            keys: texts(props, "x-kubernetes-list-map-keys"),
            atomic_map: text(props, "x-kubernetes-map-type") == Some("atomic"),
            granular: false,
            default: props.get("default").filter(|default| !default.is_null()).cloned(),
            custom: Some(Box::new(custom(props))),
        })
    }

    fn shape(&mut self, props: &Map<String, Value>, path: &str, place: Place) -> Result<Shape, ReadError> {
        if is_set(props, "x-kubernetes-int-or-string") {
            return Ok(Shape::IntOrString);
        }
        let type_ = text(props, "type").unwrap_or_default();
        match type_ {
            "string" => return Ok(Shape::String),
            "integer" => return Ok(Shape::Int64),
            "number" => return Ok(Shape::Double),
            "boolean" => return Ok(Shape::Bool),
            _ => {}
        }
        // Where no type is said, what the schema has of parts says the shape.
        let is_resource = place == Place::Root || is_set(props, "x-kubernetes-embedded-resource");
        let fields = props.get("properties").and_then(Value::as_object).filter(|fields| !fields.is_empty());
        if is_resource || fields.is_some() {
            return self.object(props, path, is_resource).map(Shape::Object);
        }
        match (type_, props.get("additionalProperties"), props.get("items")) {
            ("array", _, None) => Ok(Shape::List(Box::new(anything()))),
            ("" | "array", None | Some(Value::Null), Some(items)) if !items.is_null() => {
                Ok(Shape::List(Box::new(self.node(items, &format!("{path}[*]"), Place::Inner)?)))
            }
            ("" | "object", Some(values @ Value::Object(_)), _) => {
                Ok(Shape::Map(Box::new(self.node(values, &format!("{path}[*]"), Place::Inner)?)))
            }
            ("" | "object", Some(Value::Bool(true)), _) => Ok(Shape::Map(Box::new(anything()))),
            ("object", ..) => self.object(props, path, false).map(Shape::Object),
            _ => Ok(Shape::Any),
        }
    }

    fn object(
        &mut self,
        props: &Map<String, Value>,
        path: &str,
        is_resource: bool,
    ) -> Result<TypeId, ReadError> {
        let mut required = texts(props, "required");
        required.sort_unstable();
        let mut fields: Vec<Field> = Vec::new();
        for (name, schema) in props.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let node = if is_resource && name == "metadata" {
                self.metadata(Some(schema))
            } else {
                self.node(schema, &below(path, name), Place::Inner)?
            };
            fields.push(field(name, node));
        }
        if is_resource {
            let has = |name: &str| fields.iter().any(|field| &*field.name == name);
            let missing = ["apiVersion", "kind"].into_iter().filter(|name| !has(name)).collect::<Vec<_>>();
            let has_metadata = has("metadata");
            fields.extend(missing.into_iter().map(|name| field(name, word())));
            if !has_metadata {
                fields.push(field("metadata", self.metadata(None)));
            }
        }
        for field in &mut fields {
            field.required = required.binary_search(&field.name).is_ok();
        }
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        let Ok(count) = u16::try_from(fields.len()) else {
            return Err(ReadError::TooManyFields { path: path.to_owned() });
        };
        Ok(self.add(ObjectType {
            name: path.into(),
            atomic: false,
            fields: fields.into(),
            order: (0..count).collect(),
            message: Message::default(),
        }))
    }

    fn add(&mut self, type_: ObjectType) -> TypeId {
        // No document has as many objects as a `u32` counts.
        let id = TypeId(u32::try_from(self.schema.types.len()).unwrap_or(u32::MAX));
        self.schema.types.push(type_);
        id
    }

    /// The built-in type, with what the schema restricts of it.
    fn metadata(&mut self, schema: Option<&Value>) -> Node {
        let shape = match Schema::builtin().find(OBJECT_META) {
            Some(id) => Shape::Object(self.copy(id)),
            None => Shape::Any,
        };
        let mut custom = Custom { implied: true, ..Custom::default() };
        if let Some(Value::Object(props)) = schema {
            let Nested { checks, rules, type_, fields, items, values } = nested(props);
            let parts = Nested { fields, items, values, ..Nested::default() };
            let all_of = checks.all_of.iter().cloned().chain([parts]).collect();
            custom = Custom { type_, checks: Checks { all_of, ..checks }, rules, ..Custom::default() };
        }
        Node { custom: Some(Box::new(custom)), ..shape.into() }
    }

    /// Takes a built-in type over, with all that it needs. Of these none holds another in a circle, and they are few.
    fn copy(&mut self, id: TypeId) -> TypeId {
        if let Some(known) = self.copied.get(&id) {
            return *known;
        }
        let type_ = Schema::builtin().get(id);
        let fields: Vec<Field> = type_
            .fields
            .iter()
            .map(|field| {
                let mut field = field.clone();
                self.copy_shape(&mut field.node.shape);
                field
            })
            .collect();
        let copy = self.add(ObjectType {
            name: type_.name.clone(),
            atomic: type_.atomic,
            message: Message::of(&fields),
            fields: fields.into(),
            order: type_.order.clone(),
        });
        self.schema.by_name.insert(type_.name.clone(), copy);
        self.copied.insert(id, copy);
        copy
    }

    fn copy_shape(&mut self, shape: &mut Shape) {
        match shape {
            Shape::Object(id) | Shape::SchemaOr(_, id) => *id = self.copy(*id),
            Shape::List(inner) | Shape::Map(inner) => self.copy_shape(&mut inner.shape),
            _ => {}
        }
    }
}

fn below(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn field(name: &str, node: Node) -> Field {
    Field {
        name: name.into(),
        node,
        required: false,
        tag: Box::default(),
        presence: Presence::Optional,
        wrapped: false,
        off: false,
        patch_merge: false,
        patch_replace: false,
        patch_retain_keys: false,
        merge_key: None,
    }
}

/// A value of which the schema says nothing.
fn anything() -> Node {
    Node { custom: Some(Box::default()), ..Shape::Any.into() }
}

/// `apiVersion` or `kind`, where the schema says nothing of it.
fn word() -> Node {
    let custom = Custom { type_: Some("string".into()), implied: true, ..Custom::default() };
    Node { custom: Some(Box::new(custom)), ..Shape::String.into() }
}

fn custom(props: &Map<String, Value>) -> Custom {
    Custom {
        nullable: is_set(props, "nullable"),
        preserve: is_set(props, "x-kubernetes-preserve-unknown-fields"),
        embedded: is_set(props, "x-kubernetes-embedded-resource"),
        implied: false,
        type_: text(props, "type").map(Box::from),
        checks: checks(props),
        rules: rules(props),
    }
}

fn checks(props: &Map<String, Value>) -> Checks {
    let number = |name: &str| props.get(name).and_then(Value::as_f64);
    let whole = |name: &str| props.get(name).and_then(Value::as_i64);
    let bound = |name: &str, exclusive: &str| {
        number(name).map(|value| Bound { value, is_exclusive: is_set(props, exclusive) })
    };
    Checks {
        format: text(props, "format").map(Box::from),
        maximum: bound("maximum", "exclusiveMaximum"),
        minimum: bound("minimum", "exclusiveMinimum"),
        multiple_of: number("multipleOf"),
        max_length: whole("maxLength"),
        min_length: whole("minLength"),
        pattern: text(props, "pattern").map(Box::from),
        max_items: whole("maxItems"),
        min_items: whole("minItems"),
        unique_items: is_set(props, "uniqueItems"),
        max_properties: whole("maxProperties"),
        min_properties: whole("minProperties"),
        one_of_values: items(props, "enum").to_vec().into(),
        required: items(props, "required").iter().filter_map(Value::as_str).map(Box::from).collect(),
        all_of: all_nested(props, "allOf"),
        any_of: all_nested(props, "anyOf"),
        one_of: all_nested(props, "oneOf"),
        not: one_nested(props, "not"),
    }
}

fn nested(props: &Map<String, Value>) -> Nested {
    let fields = props.get("properties").and_then(Value::as_object);
    let of_field =
        |(name, schema): (&String, &Value)| Some((name.as_str().into(), nested(schema.as_object()?)));
    let mut fields: Vec<(Box<str>, Nested)> = fields.into_iter().flatten().filter_map(of_field).collect();
    fields.sort_by(|(a, _), (b, _)| a.cmp(b));
    Nested {
        checks: checks(props),
        rules: rules(props),
        type_: text(props, "type").map(Box::from),
        fields: fields.into(),
        items: one_nested(props, "items"),
        values: one_nested(props, "additionalProperties"),
    }
}

fn all_nested(props: &Map<String, Value>, name: &str) -> Box<[Nested]> {
    items(props, name).iter().filter_map(Value::as_object).map(nested).collect()
}

fn one_nested(props: &Map<String, Value>, name: &str) -> Option<Box<Nested>> {
    props.get(name).and_then(Value::as_object).map(|schema| Box::new(nested(schema)))
}

fn rules(props: &Map<String, Value>) -> Box<[Rule]> {
    let rule = |rule: &Map<String, Value>| {
        let word = |name: &str| Box::from(text(rule, name).unwrap_or_default());
        Rule {
            rule: word("rule"),
            message: word("message"),
            message_expression: word("messageExpression"),
            reason: text(rule, "reason").map(Box::from),
            field_path: word("fieldPath"),
            optional_old_self: rule.get("optionalOldSelf").and_then(Value::as_bool),
        }
    };
    items(props, "x-kubernetes-validations").iter().filter_map(Value::as_object).map(rule).collect()
}

/// A text that is said; an empty one says nothing.
fn text<'p>(props: &'p Map<String, Value>, name: &str) -> Option<&'p str> {
    props.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
}

fn texts(props: &Map<String, Value>, name: &str) -> Box<[Box<str>]> {
    items(props, name).iter().filter_map(Value::as_str).map(Box::from).collect()
}

fn items<'p>(props: &'p Map<String, Value>, name: &str) -> &'p [Value] {
    props.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn is_set(props: &Map<String, Value>, name: &str) -> bool {
    props.get(name).and_then(Value::as_bool).unwrap_or_default()
}

#[cfg(test)]
mod tests;
