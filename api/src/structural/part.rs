//! A schema at one place: a node of the arena, or what `allOf` and its kin add to one.

use std::sync::LazyLock;

use crate::schema::{Checks, Custom, ListType, Nested, Node, Rule, Schema, Shape};

pub(super) const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

#[derive(Clone, Copy)]
pub(super) enum Part<'s> {
    Node(&'s Schema, &'s Node),
    Nested(&'s Nested),
}

/// What a node that is none of a custom resource's schema says: nothing.
static NOTHING: LazyLock<Custom> = LazyLock::new(Custom::default);

/// What the schema of a custom resource says of a node.
pub(super) fn custom(node: &Node) -> &Custom {
    node.custom.as_deref().unwrap_or(&NOTHING)
}

/// Whether a node says anything. Upstream has none where `additionalProperties` is just `true`.
pub(super) fn said(node: &Node) -> Option<&Node> {
    let is_nothing = node.shape == Shape::Any && *custom(node) == *NOTHING && node.default.is_none();
    (!is_nothing).then_some(node)
}

/// Whether an object with `metadata` of its own lies there.
pub(super) fn is_metadata(schema: &Schema, node: &Node) -> bool {
    matches!(node.shape, Shape::Object(id) if &*schema.get(id).name == OBJECT_META)
}

/// The field of an object that its schema names.
pub(super) fn declared<'s>(schema: &'s Schema, node: &'s Node, name: &str) -> Option<&'s Node> {
    let Shape::Object(id) = node.shape else { return None };
    let field = &schema.get(id).field(name)?.node;
    (!custom(field).implied).then_some(field)
}

/// What all values of a map are.
pub(super) fn values(node: &Node) -> Option<&Node> {
    match &node.shape {
        Shape::Map(values) => Some(values),
        _ => None,
    }
}

pub(super) fn items(node: &Node) -> Option<&Node> {
    match &node.shape {
        Shape::List(items) => said(items),
        _ => None,
    }
}

impl<'s> Part<'s> {
    /// The restrictions of an object's metadata, which are kept beside the built-in type.
    fn of_metadata(self) -> Option<&'s Nested> {
        match self {
            Part::Node(schema, node) if is_metadata(schema, node) => custom(node).checks.all_of.last(),
            _ => None,
        }
    }

    pub(super) fn checks(self) -> &'s Checks {
        match self {
            Part::Node(_, node) => &custom(node).checks,
            Part::Nested(nested) => &nested.checks,
        }
    }

    /// All of them must hold.
    pub(super) fn all_of(self) -> &'s [Nested] {
        let all = &self.checks().all_of;
        &all[..all.len() - usize::from(self.of_metadata().is_some())]
    }

    pub(super) fn is_nullable(self) -> bool {
        matches!(self, Part::Node(_, node) if custom(node).nullable)
    }

    pub(super) fn types(self) -> &'s [Box<str>] {
        static EITHER: LazyLock<[Box<str>; 2]> = LazyLock::new(|| ["integer".into(), "string".into()]);
        let type_ = match self {
            Part::Node(_, node) if node.shape == Shape::IntOrString => return &*EITHER,
            Part::Node(_, node) => &custom(node).type_,
            Part::Nested(nested) => &nested.type_,
        };
        type_.as_slice()
    }

    pub(super) fn field(self, name: &str) -> Option<Part<'s>> {
        if let Some(nested) = self.of_metadata() {
            return Part::Nested(nested).field(name);
        }
        match self {
            Part::Node(schema, node) if !is_metadata(schema, node) => {
                declared(schema, node, name).map(|node| Part::Node(schema, node))
            }
            Part::Node(..) => None,
            Part::Nested(nested) => {
                let at = nested.fields.binary_search_by(|(field, _)| (**field).cmp(name)).ok()?;
                Some(Part::Nested(&nested.fields[at].1))
            }
        }
    }

    /// Whether the schema names fields.
    pub(super) fn has_fields(self) -> bool {
        if let Some(nested) = self.of_metadata() {
            return !nested.fields.is_empty();
        }
        match self {
            Part::Node(schema, node) => match node.shape {
                Shape::Object(id) if !is_metadata(schema, node) => {
                    schema.get(id).fields.iter().any(|field| !custom(&field.node).implied)
                }
                _ => false,
            },
            Part::Nested(nested) => !nested.fields.is_empty(),
        }
    }

    /// The fields that the schema names, by their names.
    pub(super) fn fields(self) -> Vec<(&'s str, Part<'s>)> {
        let of_nested = |nested: &'s Nested| {
            nested.fields.iter().map(|(name, nested)| (&**name, Part::Nested(nested))).collect()
        };
        if let Some(nested) = self.of_metadata() {
            return of_nested(nested);
        }
        match self {
            Part::Node(schema, node) => match node.shape {
                Shape::Object(id) if !is_metadata(schema, node) => schema
                    .get(id)
                    .fields
                    .iter()
                    .filter(|field| !custom(&field.node).implied)
                    .map(|field| (&*field.name, Part::Node(schema, &field.node)))
                    .collect(),
                _ => Vec::new(),
            },
            Part::Nested(nested) => of_nested(nested),
        }
    }

    pub(super) fn is_map(self) -> bool {
        match self {
            Part::Node(_, node) => values(node).is_some(),
            Part::Nested(nested) => nested.values.is_some(),
        }
    }

    pub(super) fn rules(self) -> &'s [Rule] {
        match self {
            Part::Node(_, node) => &custom(node).rules,
            Part::Nested(nested) => &nested.rules,
        }
    }

    /// An object of its own kind, though not the root.
    pub(super) fn is_embedded(self) -> bool {
        matches!(self, Part::Node(_, node) if custom(node).embedded)
    }

    pub(super) fn type_name(self) -> &'s str {
        match self {
            Part::Node(_, node) => custom(node).type_.as_deref().unwrap_or_default(),
            Part::Nested(nested) => nested.type_.as_deref().unwrap_or_default(),
        }
    }

    pub(super) fn values(self) -> Option<Part<'s>> {
        match self {
            Part::Node(schema, node) => values(node).and_then(said).map(|node| Part::Node(schema, node)),
            Part::Nested(nested) => nested.values.as_deref().map(Part::Nested),
        }
    }

    pub(super) fn items(self) -> Option<Part<'s>> {
        match self {
            Part::Node(schema, node) => items(node).map(|node| Part::Node(schema, node)),
            Part::Nested(nested) => nested.items.as_deref().map(Part::Nested),
        }
    }

    /// The keys of the list's elements, where it is a map of them.
    pub(super) fn list_keys(self) -> Option<&'s [Box<str>]> {
        match self {
            Part::Node(_, node) if node.list == ListType::Map && matches!(node.shape, Shape::List(_)) => {
                Some(&node.keys)
            }
            _ => None,
        }
    }
}
