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
//! `status`; [`judge_after`] and [`judge_status_after`] are the same with warnings, the faults of `metadata` and the fields of `scale`. [`check_rules`] says what is wrong with the rules of a new
//! schema. The rest of `metadata` is the engine's, as for all kinds.
//!
//! # Guarantees
//! Pure and linear in the object times the schemas of one place. Recursion is as deep as the object and the schema, which are
//! checked before. Of one object about ten thousand faults of each sort are told.

use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;

use skiff_cel::Pattern;

use crate::kinds::Scaled;
use crate::schema::{Checks, Nested, Node, Schema, Shape, TypeRef};
use crate::{Cause, Object};

mod check;
mod embedded;
mod fault;
mod fill;
mod format;
mod lists;
pub(crate) mod mail;
mod metadata;
mod number;
mod old;
mod part;
mod place;
pub(crate) mod preset;
mod prune;
mod rules;
mod scale;
mod words;

pub use fill::default;
pub use prune::prune;
pub use rules::definition::check_rules;

use check::Checker;
use old::Old;
use part::Part;
use place::Place;
use rules::Rules;

/// What validation has to say of an object.
#[derive(Debug, Default)]
pub struct Verdict {
    pub causes: Vec<Cause>,
    /// For `Warning` headers: what rules have against parts that did not change.
    pub warnings: Vec<String>,
}

/// What is wrong with an object of a custom resource: a new one, or one that takes the place of `old`, of which parts that did not
/// change are not told again.
pub fn validate(kind_schema: &TypeRef, new: &Object, old: Option<&Object>) -> Vec<Cause> {
    judge(kind_schema, new, old).causes
}

/// What is wrong with an object of which only the `status` is new.
pub fn validate_status(kind_schema: &TypeRef, new: &Object, old: &Object) -> Vec<Cause> {
    judge_status(kind_schema, new, old).causes
}

/// As [`validate`], with warnings.
pub fn judge(kind_schema: &TypeRef, new: &Object, old: Option<&Object>) -> Verdict {
    judge_after(kind_schema, new, old, Vec::new(), None)
}

/// As [`judge`], after what is wrong with the `metadata` of the object, which may keep rules from being run; with the fields that
/// its `scale` is made of.
///
/// Source: `customResourceStrategy` of apiextensions-apiserver's `pkg/registry/customresource`.
pub fn judge_after(
    kind_schema: &TypeRef,
    new: &Object,
    old: Option<&Object>,
    metadata: Vec<Cause>,
    scale: Option<&Scaled>,
) -> Verdict {
    let schema = &*kind_schema.schema;
    let Some(root) = schema.root() else { return Verdict { causes: metadata, warnings: Vec::new() } };
    let part = Part::Node(schema, root);
    let before = old.map(|old| Old::new(part, old));
    let found = Checker { schema }.value(part, new, before.as_ref(), &Place::Root);
    let mut causes = metadata;
    causes.extend(found.faults.into_iter().map(|fault| fault.into_cause(None)));
    if let Some(scale) = scale {
        causes.extend(scale::of_spec(new, scale));
        causes.extend(scale::of_status(new, scale));
    }
    causes.extend(embedded::check(schema, new));
    causes.extend(list_faults(schema, new, old));
    by_rules(schema, causes, new, old)
}

/// What rules have against parts of an update that did not change.
pub fn warnings(kind_schema: &TypeRef, new: &Object, old: &Object) -> Vec<String> {
    let has_rules = kind_schema.schema.compiled().rules(&kind_schema.schema).is_some();
    if has_rules { judge(kind_schema, new, Some(old)).warnings } else { Vec::new() }
}

/// As [`validate_status`], with warnings.
pub fn judge_status(kind_schema: &TypeRef, new: &Object, old: &Object) -> Verdict {
    judge_status_after(kind_schema, new, old, Vec::new(), None)
}

/// As [`judge_status`], after what is wrong with the `metadata`; with the fields that its `scale` is made of.
///
/// Source: `statusStrategy` of the same package.
pub fn judge_status_after(
    kind_schema: &TypeRef,
    new: &Object,
    old: &Object,
    metadata: Vec<Cause>,
    scale: Option<&Scaled>,
) -> Verdict {
    let schema = &*kind_schema.schema;
    let Some(root) = schema.root() else { return Verdict { causes: metadata, warnings: Vec::new() } };
    let mut causes = metadata;
    if let (Some(part), Some(status)) = (Part::Node(schema, root).field("status"), new.get("status")) {
        let before = old.get("status").map(|old| Old::new(part, old));
        let found = Checker { schema }.value(part, status, before.as_ref(), &Place::Root);
        causes.extend(found.faults.into_iter().map(|fault| fault.into_cause(Some("status"))));
    }
    causes.extend(scale.into_iter().flat_map(|scale| scale::of_status(new, scale)));
    causes.extend(list_faults(schema, new, Some(old)));
    by_rules(schema, causes, new, Some(old))
}

/// Rules are run over objects whose shape they can rely on.
fn by_rules(schema: &Schema, mut causes: Vec<Cause>, new: &Object, old: Option<&Object>) -> Verdict {
    const BLOCKING: [&str; 5] = [
        "FieldValueNotSupported",
        "FieldValueRequired",
        "FieldValueTooLong",
        "FieldValueTooMany",
        "FieldValueTypeInvalid",
    ];
    let (Some(root), Some(rules)) = (schema.root(), schema.compiled().rules(schema)) else {
        return Verdict { causes, warnings: Vec::new() };
    };
    if causes.iter().any(|cause| BLOCKING.contains(&cause.reason)) {
        let message = "Invalid value: null: some validation rules were not checked because the object was invalid; correct the \
                       existing errors to complete validation";
        causes.push(Cause::new("FieldValueInvalid", "<nil>", message.into()));
        return Verdict { causes, warnings: Vec::new() };
    }
    let old = old.map(|old| (old, Old::new(Part::Node(schema, root), old)));
    let said = rules::run(rules, new, old);
    causes.extend(said.causes);
    Verdict { causes, warnings: said.warnings }
}

/// Lists of an object that had such faults before may have others.
fn list_faults(schema: &Schema, new: &Object, old: Option<&Object>) -> Vec<Cause> {
    match old {
        Some(old) if !lists::check(schema, old).is_empty() => Vec::new(),
        _ => lists::check(schema, new),
    }
}

/// What is made of a schema once, when it is first needed.
#[derive(Default)]
pub(crate) struct Compiled {
    patterns: HashMap<Box<str>, OnceLock<Result<Pattern, String>>>,
    rules: OnceLock<Option<Rules>>,
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiled").field("patterns", &self.patterns).finish_non_exhaustive()
    }
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

    /// The rules of the schema that this is of.
    fn rules(&self, schema: &Schema) -> Option<&Rules> {
        self.rules.get_or_init(|| Rules::new(schema)).as_ref()
    }

    /// A pattern of the schema.
    pub(crate) fn pattern(&self, pattern: &str) -> Result<&Pattern, &str> {
        let Some(compiled) = self.patterns.get(pattern) else { return Err("unknown") };
        compiled.get_or_init(|| Pattern::new(pattern)).as_ref().map_err(String::as_str)
    }
}

#[cfg(test)]
mod tests;
