//! Values of custom resources: what their schemas say of them, as upstream has them say it.
//!
//! ```text
//! decoding    prune     unknown fields, nulls, metadata        ─┐
//! defaulting  default                                           ├─ the object
//! validation  validate  types, checks, embedded objects, lists  │
//!                       rules in CEL                            ─┘
//! ```
//!
//! Entry points: [`prune`] and [`default`], which decoding and defaulting call for every kind whose schema has a
//! [`root`](crate::schema::Schema::root); [`validate`] on creation and update of the object, [`validate_status`] on update of its
//! `status`. The rest of `metadata` is the engine's, as for all kinds.
//!
//! # Guarantees
//! Pure and linear in the object times the schemas of one place. Recursion is as deep as the object and the schema, which are
//! checked before. Of one object at most ten thousand faults are told.

use std::collections::HashMap;
use std::sync::OnceLock;

use skiff_cel::Pattern;

use crate::schema::{Checks, Nested, Node, Schema, Shape, TypeRef};
use crate::{Cause, Object};

mod check;
mod embedded;
mod fault;
mod fill;
mod format;
mod lists;
mod mail;
mod metadata;
mod number;
mod old;
mod part;
mod place;
pub(crate) mod preset;
mod prune;
mod words;

pub use fill::default;
pub use prune::prune;

use check::Checker;
use old::Old;
use part::Part;
use place::Place;

/// What is wrong with an object of a custom resource: a new one, or one that takes the place of `old`, of which parts that did not
/// change are not told again.
///
/// Source: `customResourceStrategy` of apiextensions-apiserver's `pkg/registry/customresource`.
pub fn validate(kind_schema: &TypeRef, new: &Object, old: Option<&Object>) -> Vec<Cause> {
    let schema = &*kind_schema.schema;
    let Some(root) = schema.root() else { return Vec::new() };
    let part = Part::Node(schema, root);
    let before = old.map(|old| Old::new(part, old));
    let found = Checker { schema }.value(part, new, before.as_ref(), &Place::Root);
    let mut causes: Vec<Cause> = found.faults.into_iter().map(|fault| fault.into_cause(None)).collect();
    causes.extend(embedded::check(schema, new));
    causes.extend(list_faults(schema, new, old));
    causes
}

/// What is wrong with an object of which only the `status` is new.
///
/// Source: `statusStrategy` of the same package.
pub fn validate_status(kind_schema: &TypeRef, new: &Object, old: &Object) -> Vec<Cause> {
    let schema = &*kind_schema.schema;
    let Some(root) = schema.root() else { return Vec::new() };
    let mut causes = Vec::new();
    if let (Some(part), Some(status)) = (Part::Node(schema, root).field("status"), new.get("status")) {
        let before = old.get("status").map(|old| Old::new(part, old));
        let found = Checker { schema }.value(part, status, before.as_ref(), &Place::Root);
        causes.extend(found.faults.into_iter().map(|fault| fault.into_cause(Some("status"))));
    }
    causes.extend(list_faults(schema, new, Some(old)));
    causes
}

/// Lists of an object that had such faults before may have others.
fn list_faults(schema: &Schema, new: &Object, old: Option<&Object>) -> Vec<Cause> {
    match old {
        Some(old) if !lists::check(schema, old).is_empty() => Vec::new(),
        _ => lists::check(schema, new),
    }
}

/// What is made of a schema once, when it is first needed.
#[derive(Debug, Default)]
pub(crate) struct Compiled {
    patterns: HashMap<Box<str>, OnceLock<Result<Pattern, String>>>,
}

impl Compiled {
    pub(crate) fn new(schema: &Schema) -> Compiled {
        let mut compiled = Compiled::default();
        if let Some(root) = schema.root() {
            compiled.node(root);
        }
        for type_ in schema.types() {
            type_.fields.iter().for_each(|field| compiled.node(&field.node));
        }
        compiled
    }

    fn node(&mut self, node: &Node) {
        let mut next = Some(node);
        while let Some(node) = next {
            self.checks(&part::custom(node).checks);
            next = match &node.shape {
                Shape::List(inner) | Shape::Map(inner) => Some(inner),
                _ => None,
            };
        }
    }

    fn checks(&mut self, checks: &Checks) {
        if let Some(pattern) = checks.pattern.as_deref().filter(|pattern| !pattern.is_empty()) {
            self.patterns.entry(pattern.into()).or_default();
        }
        let all = [&checks.all_of, &checks.any_of, &checks.one_of].into_iter().flatten();
        all.chain(checks.not.as_deref()).for_each(|nested| self.nested(nested));
    }

    fn nested(&mut self, nested: &Nested) {
        self.checks(&nested.checks);
        let fields = nested.fields.iter().map(|(_, nested)| nested);
        let inner = nested.items.as_deref().into_iter().chain(nested.values.as_deref());
        fields.chain(inner).for_each(|nested| self.nested(nested));
    }

    /// A pattern of the schema.
    pub(crate) fn pattern(&self, pattern: &str) -> Result<&Pattern, &str> {
        let Some(compiled) = self.patterns.get(pattern) else { return Err("unknown") };
        compiled.get_or_init(|| Pattern::new(pattern)).as_ref().map_err(String::as_str)
    }
}

#[cfg(test)]
mod tests;
