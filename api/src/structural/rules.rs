//! Rules of custom resources in CEL: `x-kubernetes-validations`.
//!
//! ```text
//! Schema ─ build ─▶ Rules (programs beside the nodes, once) ─ run(object, old) ─▶ causes, warnings
//!        └ definition::check_rules ─▶ what a definition may not say
//! ```
//!
//! # Guarantees
//! Programs are compiled when the schema is first used, and then shared. A run of one expression costs at most
//! [`skiff_cel::PER_CALL_LIMIT`], of all of an object at most [`BUDGET`].
//!
//! Source: `pkg/apiserver/schema/cel` of apiextensions-apiserver. Of fields upstream goes through them in any order; here it is that
//! of their names.

use std::collections::BTreeMap;
use std::sync::Arc;

use skiff_cel::{Declared, Environment, Program, Shape, Type};

use super::part::Part;
use crate::schema::{Rule, Schema};

pub(super) mod definition;
mod message;
pub(super) mod path;
mod run;
mod shapes;

pub(super) use run::run;

/// As much may all rules of one object cost.
pub(super) const BUDGET: i64 = 10_000_000;

/// Of these the environments speak.
pub(super) const SELF: &str = "self";
pub(super) const OLD_SELF: &str = "oldSelf";

/// Upstream calls the type of `self` by the time, so that nobody relies on the name.
const SELF_TYPE: &str = "selfType";

/// The rules of one value and of its parts.
#[derive(Default)]
pub(crate) struct Rules {
    own: Vec<Compiled>,
    /// Why none of its own can be run.
    failed: Option<&'static str>,
    /// The type that the schema says, which upstream shows in place of the value.
    type_: Box<str>,
    shape: Option<Arc<Shape>>,
    items: Option<Box<Rules>>,
    values: Option<Box<Rules>>,
    fields: BTreeMap<Box<str>, Rules>,
    all_of: Vec<Rules>,
    /// By which elements of a list are the same as before.
    keys: Option<Box<[Box<str>]>>,
}

struct Compiled {
    rule: Rule,
    /// `None` where the rule is empty; or why it cannot be run.
    program: Option<Result<Program, String>>,
    speaks_of_old: bool,
    message: Option<Program>,
    /// Below the value.
    field: Option<String>,
}

/// The names that rules of one value may use.
pub(super) struct Scope {
    plain: Environment,
    /// Where `oldSelf` may be missing.
    optional: Environment,
    declared: Declared,
}

impl Scope {
    /// `None` where expressions cannot see the value.
    pub(super) fn new(shape: &Arc<Shape>, environment: Environment) -> Option<Scope> {
        let type_ = shape.type_of(SELF_TYPE)?;
        let declared = Declared::new(SELF_TYPE, shape.clone());
        let base = environment.types(declared.clone()).variable(SELF, type_.clone());
        Some(Scope {
            plain: base.clone().variable(OLD_SELF, type_.clone()),
            optional: base.variable(OLD_SELF, Type::optional(type_)),
            declared,
        })
    }

    pub(super) fn of(&self, rule: &Rule) -> &Environment {
        if rule.optional_old_self == Some(true) { &self.optional } else { &self.plain }
    }
}

/// Why a rule cannot be run, in upstream's words.
pub(super) fn compile(scope: &Scope, rule: &Rule) -> Result<Program, String> {
    let program =
        scope.of(rule).compile(&rule.rule).map_err(|error| format!("compilation failed: {error}"))?;
    if *program.output() != Type::Bool {
        return Err("cel expression must evaluate to a bool".into());
    }
    match program.fault() {
        Some(fault) => Err(format!("program instantiation failed: {fault}")),
        None => Ok(program),
    }
}

/// The same of what says why a rule does not hold.
pub(super) fn compile_message(scope: &Scope, rule: &Rule) -> Result<Program, String> {
    let program = scope
        .of(rule)
        .compile(&rule.message_expression)
        .map_err(|error| format!("messageExpression compilation failed: {error}"))?;
    if *program.output() != Type::String {
        return Err("messageExpression must evaluate to a string".into());
    }
    match program.fault() {
        Some(fault) => Err(format!("messageExpression instantiation failed: {fault}")),
        None => Ok(program),
    }
}

impl Rules {
    /// Those of a custom resource's schema; `None` if it has none outside of `allOf`.
    pub(super) fn new(schema: &Schema) -> Option<Rules> {
        let root = Part::Node(schema, schema.root()?);
        if !has_rules(root) {
            return None;
        }
        let shape = shapes::of_part(root, true);
        build(root, root, Some(&shape))
    }
}

fn has_rules(part: Part<'_>) -> bool {
    !part.rules().is_empty()
        || part.items().is_some_and(has_rules)
        || part.values().is_some_and(has_rules)
        || part.fields().into_iter().any(|(_, field)| has_rules(field))
}

/// The rules of a part, which may be one of `allOf`, for the values of another. `None` if there are none at all.
fn build(of: Part<'_>, node: Part<'_>, shape: Option<&Arc<Shape>>) -> Option<Rules> {
    let seen = shape.filter(|shape| shape.is_seen());
    let mut rules = Rules { type_: node.type_name().into(), shape: seen.cloned(), ..Rules::default() };
    if !of.rules().is_empty() {
        match seen.and_then(|shape| Scope::new(shape, Environment::default())) {
            Some(scope) => rules.own = of.rules().iter().map(|rule| compiled(&scope, rule, node)).collect(),
            None => rules.failed = Some("failed to convert to declType for CEL validation rules"),
        }
    }
    rules.keys = node.list_keys().map(Into::into);
    let element = seen.and_then(|shape| shape.element());
    if let (Some(of), Some(node)) = (of.items(), node.items()) {
        rules.items = build(of, node, element).map(Box::new);
    }
    if let (Some(of), Some(node)) = (of.values(), node.values()) {
        rules.values = build(of, node, element).map(Box::new);
    }
    for (name, of) in of.fields() {
        let (Some(node), Some(shape)) = (node.field(name), seen) else { continue };
        let own = match shape.field(name) {
            Some(field) if field.is_seen() => build(of, node, Some(field)),
            _ => None,
        };
        if let Some(own) = own {
            rules.fields.insert(name.into(), own);
        }
    }
    rules.all_of = of.all_of().iter().filter_map(|nested| build(Part::Nested(nested), node, shape)).collect();
    let is_empty = rules.own.is_empty()
        && rules.failed.is_none()
        && rules.items.is_none()
        && rules.values.is_none()
        && rules.fields.is_empty()
        && rules.all_of.is_empty();
    (!is_empty).then_some(rules)
}

fn compiled(scope: &Scope, rule: &Rule, node: Part<'_>) -> Compiled {
    let mut compiled =
        Compiled { rule: rule.clone(), program: None, speaks_of_old: false, message: None, field: None };
    if rule.rule.trim().is_empty() {
        return compiled;
    }
    let program = compile(scope, rule);
    if let Ok(program) = &program {
        compiled.speaks_of_old = program.speaks_of(OLD_SELF);
        if !rule.message_expression.is_empty() {
            compiled.message = compile_message(scope, rule).ok();
        }
        if !rule.field_path.is_empty() {
            compiled.field = path::normalized(&rule.field_path, node).ok();
        }
    }
    compiled.program = Some(program);
    compiled
}
