//! Rules of a definition that is to be created: whether they can be compiled, and what they may cost.
//!
//! Source: `pkg/apis/apiextensions/validation` of apiextensions-apiserver. Of fields upstream goes through them in any order; here it
//! is that of their names.

use std::sync::Arc;

use serde_json::{Value, json};
use skiff_cel::{Environment, Program, Shape};

use super::super::part::Part;
use super::super::words;
use super::{OLD_SELF, Scope, shapes};
use crate::Cause;
use crate::schema::{Rule, Schema};

/// As much may one expression cost, by estimate.
const MAX_RULE_COST: u64 = 10_000_000;
/// As much may all of a definition's version cost.
const MAX_COST: u64 = 100_000_000;
/// Of what exceeds that the most expensive are told.
const MAX_TOLD: usize = 4;

/// New expressions have what the version before this one has, so that a server of that version can still run them.
const NEW_EXPRESSIONS: u8 = 35;

/// What is wrong with the rules of a schema that is otherwise right; `base` is where it lies:
/// `spec.versions[0].schema.openAPIV3Schema`.
pub fn check_rules(schema: &Schema, base: &str) -> Vec<Cause> {
    let Some(root) = schema.root() else { return Vec::new() };
    let root = Part::Node(schema, root);
    let mut check = Check { causes: Vec::new(), total: 0, dearest: Vec::new() };
    let shape = shapes::of_part(root, true);
    let at = At { path: base, times: Some(1), uncorrelatable: None };
    check.part(root, &shape, at);
    if check.total > MAX_COST {
        for (path, _) in check.dearest {
            let why =
                "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            check.causes.push(Cause::forbidden(path, why));
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        check.causes.push(Cause::forbidden(base, &too_dear(what, check.total, MAX_COST)));
    }
    check.causes
}

struct Check {
    causes: Vec<Cause>,
    total: u64,
    /// The most expensive rules, the most expensive first.
    dearest: Vec<(String, u64)>,
}

#[derive(Clone, Copy)]
struct At<'p> {
    path: &'p str,
    /// How often the value may stand in an object; `None` is without end.
    times: Option<u64>,
    /// The list around it whose elements nobody can tell from others.
    uncorrelatable: Option<&'p str>,
}

impl Check {
    fn part(&mut self, part: Part<'_>, shape: &Arc<Shape>, at: At<'_>) {
        let checks = part.checks();
        let times = |most: Option<i64>| {
            let most = most.map(shapes::limit)?;
            Some(product(at.times?, most))
        };
        let unknown = Arc::new(Shape::unknown());
        let element = shape.element().unwrap_or(&unknown);
        if let Some(values) = part.values() {
            let path = format!("{}.additionalProperties", at.path);
            self.part(values, element, At { path: &path, times: times(checks.max_properties), ..at });
        }
        for (name, field) in part.fields() {
            let path = format!("{}.properties[{name}]", at.path);
            let shape = shape.field(name).unwrap_or(&unknown);
            let shape =
                if shape.is_seen() { shape.clone() } else { shapes::of_part(field, field.is_embedded()) };
            self.part(field, &shape, At { path: &path, ..at });
        }
        if let Some(items) = part.items() {
            let path = format!("{}.items", at.path);
            let uncorrelatable = match part.list_keys() {
                Some(_) => at.uncorrelatable,
                None => at.uncorrelatable.or(Some(at.path)),
            };
            self.part(items, element, At { path: &path, times: times(checks.max_items), uncorrelatable });
        }
        self.rules(part.rules(), shape, at);
    }

    fn rules(&mut self, rules: &[Rule], shape: &Arc<Shape>, at: At<'_>) {
        if rules.is_empty() {
            return;
        }
        let Some(scope) = Scope::new(shape, Environment::default().version(NEW_EXPRESSIONS)) else {
            let why = "internal error: failed to construct type information for x-kubernetes-validations rules: unable to \
                       convert structural schema to CEL declarations";
            self.causes.push(Cause::internal(format!("{}.x-kubernetes-validations", at.path), why));
            return;
        };
        let times = at.times.unwrap_or_else(|| shapes::max_cardinality(shape));
        for (number, rule) in rules.iter().enumerate() {
            let path = format!("{}.x-kubernetes-validations[{number}]", at.path);
            self.rule(&scope, rule, times, &path, at.uncorrelatable);
        }
    }

    fn rule(&mut self, scope: &Scope, rule: &Rule, times: u64, path: &str, uncorrelatable: Option<&str>) {
        let at = |field: &str| format!("{path}.{field}");
        let is_empty = rule.rule.trim().is_empty();
        let program = if is_empty { None } else { Some(super::compile(scope, rule)) };
        let estimate = |program: &Program| program.estimate(&scope.declared).max;
        let cost = match &program {
            Some(Ok(program)) => product(estimate(program), times),
            _ => 0,
        };
        self.cost(at("rule"), cost, "estimated rule cost");
        if let Some(Err(error)) = &program {
            self.causes.push(invalid(at("rule"), rule, error));
        }
        let Some(Ok(program)) = program else {
            self.old_self(rule, path, false, uncorrelatable);
            return;
        };
        if !rule.message_expression.is_empty() {
            match super::compile_message(scope, rule) {
                Ok(message) => {
                    self.cost(at("messageExpression"), estimate(&message), "estimated messageExpression cost")
                }
                Err(error) => self.causes.push(invalid(at("messageExpression"), rule, &error)),
            }
        }
        self.old_self(rule, path, program.speaks_of(OLD_SELF), uncorrelatable);
    }

    fn old_self(&mut self, rule: &Rule, path: &str, speaks_of_old: bool, uncorrelatable: Option<&str>) {
        match (speaks_of_old, uncorrelatable, rule.optional_old_self) {
            (true, Some(list), _) => {
                let why = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {list}"
                );
                let message = format!("Invalid value: {}: {why}", words::quoted(&rule.rule));
                self.causes.push(Cause::new("FieldValueInvalid", format!("{path}.rule"), message));
            }
            (false, _, Some(is_optional)) => {
                let message =
                    format!("Invalid value: {is_optional}: may not be set if oldSelf is not used in rule");
                self.causes.push(Cause::new("FieldValueInvalid", format!("{path}.optionalOldSelf"), message));
            }
            _ => {}
        }
    }

    fn cost(&mut self, path: String, cost: u64, what: &str) {
        if cost > MAX_RULE_COST {
            self.causes.push(Cause::forbidden(path.clone(), &too_dear(what, cost, MAX_RULE_COST)));
        }
        self.total = self.total.saturating_add(cost);
        if cost >= MAX_COST / 100 {
            let before = self.dearest.partition_point(|(_, other)| *other >= cost);
            self.dearest.insert(before, (path, cost));
            self.dearest.truncate(MAX_TOLD);
        }
    }
}

/// The rule stands in the message as upstream's own type has it.
fn invalid(path: String, rule: &Rule, why: &str) -> Cause {
    let fields: [(&str, Value); 6] = [
        ("Rule", json!(rule.rule)),
        ("Message", json!(rule.message)),
        ("MessageExpression", json!(rule.message_expression)),
        ("Reason", json!(rule.reason)),
        ("FieldPath", json!(rule.field_path)),
        ("OptionalOldSelf", json!(rule.optional_old_self)),
    ];
    let shown: Vec<String> =
        fields.iter().map(|(name, value)| format!("\"{name}\":{}", words::json(value))).collect();
    let message = format!("Invalid value: {{{}}}: {why}", shown.join(","));
    Cause::new("FieldValueInvalid", path, message)
}

fn product(cost: u64, times: u64) -> u64 {
    cost.saturating_mul(times)
}

fn too_dear(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = match factor {
        factor if factor > 100.0 => "more than 100x".to_owned(),
        factor if factor < 1.5 => format!("{factor:.6}x"),
        factor => format!("{factor:.1}x"),
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and \
         maxLength where arrays, maps, and strings are declared)"
    )
}
