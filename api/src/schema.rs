//! The structural schema: what fields an object has, and what the engine must know of each.
//!
//! A [`Schema`] is an arena of object types; a [`TypeRef`] points to one of them. The built-in types come
//! from `schema/builtin.txt`, which `cargo xtask codegen` writes; a CRD's schema is read into an arena of its own
//! ([`Schema::of_custom`]).

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, OnceLock};

use serde_json::Value;

use crate::structural::Compiled;

mod custom;
mod defaults;
mod ownership;
mod parse;
mod read;
mod wire;

pub use custom::{Bound, Checks, Custom, Nested, Rule};
pub use parse::ParseError;
pub use read::ReadError;
pub use wire::{Message, Slot, What};

/// An arena of object types.
#[derive(Debug, Default)]
pub struct Schema {
    types: Vec<ObjectType>,
    by_name: HashMap<Box<str>, TypeId>,
    /// Of a custom resource's schema: the resource itself.
    root: Option<Node>,
    compiled: OnceLock<Compiled>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(u32);

/// An object with named fields.
#[derive(Debug)]
pub struct ObjectType {
    /// `io.k8s.api.apps.v1.DeploymentSpec`.
    pub name: Box<str>,
    /// Server-side apply treats it as one value, wherever it stands.
    pub atomic: bool,
    /// Ordered by name.
    pub fields: Box<[Field]>,
    /// Which of them comes first in upstream's JSON, and so on.
    order: Box<[u16]>,
    /// The same as protobuf has them.
    pub message: Message,
}

/// What one value may be.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    String,
    Int32,
    Int64,
    Bool,
    Double,
    /// Base64 in JSON.
    Bytes,
    Quantity,
    IntOrString,
    /// RFC 3339, whole seconds.
    Time,
    /// RFC 3339, microseconds.
    MicroTime,
    /// As Go writes them, `1m30s`; in protobuf a message of nanoseconds.
    Duration,
    /// Any JSON, kept as it is; in protobuf a message of its bytes.
    Any,
    /// A JSON schema or, in its place, something simpler. The type is that of the schema.
    SchemaOr(Alternative, TypeId),
    Object(TypeId),
    List(Box<Node>),
    Map(Box<Node>),
}

/// What may stand where a JSON schema may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alternative {
    Bool,
    /// A list of schemas.
    Schemas,
    Strings,
}

/// What protobuf has of a field that is not set, and what JSON then has of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Presence {
    /// Nothing, in both: a pointer, list or map.
    #[default]
    Optional,
    /// Its zero value, in both.
    Value,
    /// Its zero value in protobuf, which JSON leaves out.
    OmitEmpty,
}

/// How server-side apply and strategic merge see a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    Map,
}

impl Shape {
    /// What a list or map holds where no value is said; `Null` where nothing stands for nothing.
    pub fn zero(&self) -> Value {
        match self {
            Shape::String | Shape::Bytes => "".into(),
            Shape::Int32 | Shape::Int64 | Shape::IntOrString | Shape::Double => 0.into(),
            Shape::Bool => false.into(),
            Shape::Quantity => "0".into(),
            Shape::Duration => "0s".into(),
            Shape::Object(_) | Shape::Map(_) => Value::Object(serde_json::Map::new()),
            Shape::List(_) => Value::Array(Vec::new()),
            Shape::Time | Shape::MicroTime | Shape::Any | Shape::SchemaOr(..) => Value::Null,
        }
    }
}

/// A value where it stands: what it may be, and what its owners and its schema make of it there.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub shape: Shape,
    pub list: ListType,
    /// The keys of a [`ListType::Map`].
    pub keys: Box<[Box<str>]>,
    /// An object or map that server-side apply treats as one value.
    pub atomic_map: bool,
    /// An object that server-side apply takes apart here, although its type is atomic.
    pub granular: bool,
    pub default: Option<Value>,
    /// What only a custom resource's schema says; `None` in Go types, whose rules are code.
    pub custom: Option<Box<Custom>>,
}

#[derive(Clone, Debug)]
pub struct Field {
    pub name: Box<str>,
    pub node: Node,
    pub required: bool,
    /// Protobuf field numbers: one, or several where the field lies in inlined messages. None for `kind` and
    /// `apiVersion`, which travel in the envelope.
    pub tag: Box<[u16]>,
    pub presence: Presence,
    /// In protobuf its list is a message of its own: `ExtraValue`, `Verbs`.
    pub wrapped: bool,
    /// Of a feature that upstream does not turn on by default: what is written has no such field.
    pub off: bool,
    /// Strategic merge joins this list (by `merge_key`, or as a set) instead of replacing it.
    pub patch_merge: bool,
    /// Strategic merge replaces this object as a whole.
    pub patch_replace: bool,
    /// Strategic merge keeps only the keys that the patch names in `$retainKeys`.
    pub patch_retain_keys: bool,
    pub merge_key: Option<Box<str>>,
}

impl From<Shape> for Node {
    /// Nothing but its shape is known.
    fn from(shape: Shape) -> Node {
        Node {
            shape,
            list: ListType::Atomic,
            keys: Box::default(),
            atomic_map: false,
            granular: false,
            default: None,
            custom: None,
        }
    }
}

impl Field {
    /// Whether JSON leaves the field out where it has this value.
    pub fn omits(&self, value: &Value) -> bool {
        self.presence == Presence::OmitEmpty && is_zero(value)
    }

    /// Whether upstream cannot tell this value from one that is not set.
    pub fn is_unset(&self, value: &Value) -> bool {
        value.is_null() || (self.presence != Presence::Optional && is_zero(value))
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Bool(yes) => !yes,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// One object type of a schema.
#[derive(Clone, Debug)]
pub struct TypeRef {
    pub schema: Arc<Schema>,
    pub id: TypeId,
}

impl Schema {
    /// The schema of all built-in types, read once.
    pub fn builtin() -> &'static Arc<Schema> {
        static BUILTIN: LazyLock<Arc<Schema>> = LazyLock::new(|| {
            let mut schema = parse::parse(include_str!("schema/builtin.txt"))
                .unwrap_or_else(|error| unreachable!("the embedded schema: {error}"));
            defaults::add(&mut schema);
            ownership::add(&mut schema);
            Arc::new(schema)
        });
        &BUILTIN
    }

    pub fn get(&self, id: TypeId) -> &ObjectType {
        &self.types[id.0 as usize]
    }

    pub fn find(&self, name: &str) -> Option<TypeId> {
        self.by_name.get(name).copied()
    }

    /// The resource itself, where this is a custom resource's schema; `None` in that of the built-in types.
    pub fn root(&self) -> Option<&Node> {
        self.root.as_ref()
    }

    /// Its patterns and rules, ready to be run.
    pub(crate) fn compiled(&self) -> &Compiled {
        self.compiled.get_or_init(|| Compiled::new(self))
    }

    pub fn types(&self) -> impl Iterator<Item = &ObjectType> {
        self.types.iter()
    }

    /// Reads a schema in the format of `schema/builtin.txt`.
    pub fn from_text(text: &str) -> Result<Schema, ParseError> {
        parse::parse(text)
    }
}

impl ObjectType {
    /// The fields in the order in which upstream writes them.
    pub fn in_order(&self) -> impl Iterator<Item = &Field> {
        self.places_in_order().map(|(_, field)| field)
    }

    /// The same, each with its place in [`ObjectType::fields`].
    pub fn places_in_order(&self) -> impl Iterator<Item = (usize, &Field)> {
        let places = self.order.iter().map(|at| usize::from(*at));
        places.filter_map(|at| Some((at, self.fields.get(at)?)))
    }

    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|f| (*f.name).cmp(name)).ok().map(|at| &self.fields[at])
    }

    /// `DeploymentSpec`.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }
}

impl TypeRef {
    /// A built-in type by its full name.
    pub fn builtin(name: &str) -> Option<TypeRef> {
        let schema = Schema::builtin();
        Some(TypeRef { schema: schema.clone(), id: schema.find(name)? })
    }

    pub fn object_type(&self) -> &ObjectType {
        self.schema.get(self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(type_name: &str, field: &str) -> &'static Field {
        let schema = Schema::builtin();
        schema.get(schema.find(type_name).unwrap()).field(field).unwrap()
    }

    #[test]
    fn a_list_of_ports_is_a_map_by_port_and_protocol_that_patches_merge_by_port() {
        let ports = field("io.k8s.api.core.v1.ServiceSpec", "ports");
        assert_eq!(ports.node.list, ListType::Map);
        assert_eq!(ports.node.keys.iter().map(|k| &**k).collect::<Vec<_>>(), ["port", "protocol"]);
        assert!(ports.patch_merge);
        assert_eq!(ports.merge_key.as_deref(), Some("port"));
    }

    #[test]
    fn a_field_of_an_inlined_message_has_several_tags() {
        assert_eq!(field("io.k8s.api.core.v1.Volume", "configMap").tag[..], [2, 19]);
        assert_eq!(field("io.k8s.api.core.v1.Container", "name").tag[..], [1]);
        let rule = "io.k8s.api.admissionregistration.v1.NamedRuleWithOperations";
        assert_eq!(field(rule, "apiGroups").tag[..], [2, 2, 1]);
    }

    #[test]
    fn defaults_come_from_markers_and_from_the_table() {
        assert_eq!(field("io.k8s.api.core.v1.ServicePort", "protocol").node.default, Some("TCP".into()));
        assert_eq!(field("io.k8s.api.core.v1.PodSpec", "restartPolicy").node.default, Some("Always".into()));
    }
}
