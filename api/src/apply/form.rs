//! How the schema says that a value's parts may be owned.
//!
//! Source: `schema/elements.go` of structured-merge-diff; kube-openapi's `schemaconv`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::element::Element;
use crate::schema::{Custom, Field, ListType, Node, ObjectType, Presence, Schema, Shape, TypeId};

/// The type of a value where it stands.
#[derive(Clone, Copy)]
pub(super) struct Type<'s> {
    schema: &'s Schema,
    /// `None` for what lies in values that may be anything, and at the top of a Go type.
    node: Option<&'s Node>,
    /// In place of a node, at the top of a Go type.
    root: Option<TypeId>,
    /// Whether a value around it keeps what its schema does not name, all the way down.
    kept: bool,
}

/// What a value is to its owners.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// One whole: a scalar.
    Scalar,
    /// One whole, though it has parts.
    Atomic,
    /// Each of its fields or entries by itself.
    Map,
    /// Each of its items by itself, which are told apart by [`Type::element`].
    List,
}

/// What a value of a type has in it.
pub(super) enum Container<'s> {
    Map,
    List,
    None(&'s Shape),
}

/// An item that cannot be told from others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ItemError {
    #[error("associative list with keys may not have a null element")]
    NullOfKeys,
    #[error("associative list with keys may not have non-map elements")]
    NoMap,
    #[error(
        "associative list with keys has an element that omits all key fields {0} (and doesn't have default values for any key fields)"
    )]
    NoKeys(String),
    #[error("associative list without keys has an element that's a map type")]
    MapOfSet,
    #[error("not supported: associative list with lists as elements")]
    ListOfSet,
    #[error("associative list without keys has an element that's an explicit null")]
    NullOfSet,
}

impl<'s> Type<'s> {
    pub(super) fn of_object(schema: &'s Schema, id: TypeId) -> Type<'s> {
        match schema.root() {
            Some(node) if node.shape == Shape::Object(id) => {
                Type { schema, node: Some(node), root: None, kept: false }
            }
            _ => Type { schema, node: None, root: Some(id), kept: false },
        }
    }

    fn of_node(&self, node: Option<&'s Node>) -> Type<'s> {
        Type { schema: self.schema, node, root: None, kept: self.keeps() }
    }

    fn custom(&self) -> Option<&'s Custom> {
        self.node.and_then(|node| node.custom.as_deref())
    }

    /// Whether what is said of unknown fields holds for this value: they are kept by it, or by one around it.
    fn keeps(&self) -> bool {
        self.kept || self.custom().is_some_and(|custom| custom.preserve)
    }

    fn shape(&self) -> Option<&'s Shape> {
        self.node.map(|node| &node.shape)
    }

    /// Whether a custom resource has an object here of whatever fields. Metadata is none, wherever it stands.
    fn is_open(&self, type_: &ObjectType) -> bool {
        let is_go_type = !type_.message.slots().is_empty();
        self.custom().is_some() && !is_go_type && (self.keeps() || type_.fields.is_empty())
    }

    fn object_type(&self) -> Option<&'s ObjectType> {
        match (self.root, self.shape()) {
            (Some(id), _) => Some(self.schema.get(id)),
            (None, Some(Shape::Object(id))) => Some(self.schema.get(*id)),
            _ => None,
        }
    }

    /// Whether a value of this type may be anything: what it is, it says itself.
    pub(super) fn is_untyped(&self) -> bool {
        let may_be_anything = match self.shape() {
            None | Some(Shape::Any | Shape::SchemaOr(..)) => true,
            // Upstream knows no type for it, and leaves it to validation.
            Some(Shape::IntOrString) => self.custom().is_some(),
            Some(_) => false,
        };
        self.root.is_none() && may_be_anything
    }

    /// What a value is; the value matters only where it may be anything.
    pub(super) fn form(&self, value: &Value) -> Form {
        if let Some(type_) = self.object_type() {
            let is_granular = self.node.is_some_and(|node| node.granular);
            let is_atomic = type_.atomic || self.node.is_some_and(|node| node.atomic_map);
            return if is_atomic && !is_granular { Form::Atomic } else { Form::Map };
        }
        match self.shape() {
            Some(Shape::List(_)) => match self.node.map(|node| node.list) {
                Some(ListType::Set | ListType::Map) => Form::List,
                Some(ListType::Atomic) | None => Form::Atomic,
            },
            Some(Shape::Map(_)) if self.node.is_some_and(|node| node.atomic_map) => Form::Atomic,
            Some(Shape::Map(_)) => Form::Map,
            Some(_) if !self.is_untyped() => Form::Scalar,
            // Null goes for whatever is beside it.
            _ => match value {
                Value::Array(_) => Form::Atomic,
                Value::Object(_) | Value::Null => Form::Map,
                _ => Form::Scalar,
            },
        }
    }

    /// What a value of this type has in it, owned as one whole or not.
    pub(super) fn container(&self) -> Container<'s> {
        match self.shape() {
            _ if self.object_type().is_some() => Container::Map,
            Some(Shape::List(_)) => Container::List,
            Some(Shape::Map(_)) => Container::Map,
            Some(Shape::String) if self.has_format() => Container::None(&Shape::Quantity),
            Some(shape) => Container::None(shape),
            None => Container::None(&Shape::Any),
        }
    }

    /// Of a text in a format, upstream knows that it is a scalar, no more.
    fn has_format(&self) -> bool {
        let format = self.custom().and_then(|custom| custom.checks.format.as_deref());
        format.is_some_and(|format| format != "byte")
    }

    /// The field of this name, if the type has one.
    pub(super) fn declared(&self, name: &str) -> Option<&'s Field> {
        self.object_type()?.field(name)
    }

    /// The type of a field or entry; none where there can be no such field.
    pub(super) fn entry(&self, name: &str) -> Option<Type<'s>> {
        if let Some(type_) = self.object_type() {
            return match type_.field(name) {
                Some(field) => Some(self.of_node(Some(&field.node))),
                None => self.is_open(type_).then(|| self.of_node(None)),
            };
        }
        match self.shape() {
            Some(Shape::Map(inner)) => Some(self.of_node(Some(inner))),
            _ if self.is_untyped() => Some(self.of_node(None)),
            _ => None,
        }
    }

    /// The type of a list's items.
    pub(super) fn item(&self) -> Option<Type<'s>> {
        match self.shape() {
            Some(Shape::List(inner)) => Some(self.of_node(Some(inner))),
            _ if self.is_untyped() => Some(self.of_node(None)),
            _ => None,
        }
    }

    /// The type of what a step leads to.
    pub(super) fn step(&self, element: &Element) -> Option<Type<'s>> {
        match element {
            Element::Field(name) => self.entry(name),
            Element::Key(_) | Element::Value(_) | Element::Index(_) => self.item(),
        }
    }

    /// What tells an item of this list from the others.
    pub(super) fn element(&self, item: &Value) -> Result<Element, ItemError> {
        let keys = self.node.map_or(&[][..], |node| &node.keys);
        if keys.is_empty() {
            return match item {
                Value::Object(_) => Err(ItemError::MapOfSet),
                Value::Array(_) => Err(ItemError::ListOfSet),
                Value::Null => Err(ItemError::NullOfSet),
                scalar => Ok(Element::Value(scalar.clone())),
            };
        }
        let map = match item {
            Value::Object(map) => map,
            Value::Null => return Err(ItemError::NullOfKeys),
            _ => return Err(ItemError::NoMap),
        };
        let item_type = self.item();
        let found: BTreeMap<&str, Value> = keys
            .iter()
            .filter_map(|key| {
                let value = map.get(&**key).cloned();
                let default = || default_of(item_type?.declared(key)?);
                Some((&**key, value.or_else(default)?))
            })
            .collect();
        if found.is_empty() {
            let quoted: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
            return Err(ItemError::NoKeys(format!("[{}]", quoted.join(" "))));
        }
        Ok(Element::Key(found.into_iter().map(|(name, value)| (name.into(), value)).collect()))
    }
}

/// What a key is taken for where an item does not have it.
fn default_of(field: &Field) -> Option<Value> {
    let zero = || (field.presence == Presence::Value).then(|| field.node.shape.zero());
    field.node.default.clone().or_else(zero)
}

/// The items of a list with what tells them apart; those that cannot be told apart are left out.
pub(super) fn indexed<'v>(type_: &Type<'_>, items: &'v [Value]) -> Vec<(Element, &'v Value)> {
    items.iter().filter_map(|item| Some((type_.element(item).ok()?, item))).collect()
}
