//! Match conditions: expressions that say whether a webhook is asked at all.
//!
//! Source: `matchconditions` of upstream's webhook plug-in, `k8s.io/apiserver/pkg/admission/plugin/cel`.

use serde_json::{Value, json};
use skiff_api::Object;
use skiff_cel::{Check, PER_CALL_LIMIT, Program, Run, Type};

use super::{Attributes, GroupVersionKind};

/// As much may the conditions of one webhook cost together.
///
/// Source: `RuntimeCELCostBudgetMatchConditions` of `k8s.io/apiserver/pkg/apis/cel`.
const BUDGET: u64 = 2_500_000;

/// One expression.
pub(super) struct Condition {
    expression: String,
    /// Or why it is none.
    program: Result<Program, String>,
}

impl Condition {
    pub(super) fn compile(expression: &str) -> Condition {
        let program = match skiff_api::cel::match_conditions().compile(expression) {
            Ok(program) if *program.output() == Type::Bool => Ok(program),
            Ok(program) => Err(format!("must evaluate to bool but got {}", program.output())),
            Err(rejected) => Err(format!("compilation failed: {rejected}")),
        };
        Condition { expression: expression.to_owned(), program }
    }
}

/// What conditions have come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Matched {
    Yes,
    No,
    /// Neither: what went wrong, and nothing said no.
    Failed(String),
}

/// The request as conditions see it: the kind is that which the webhook is sent, the resource is the request's own.
pub fn request(attributes: &Attributes<'_>, kind: &GroupVersionKind) -> Value {
    let mut request = json!({
        "uid": "",
        "kind": kind,
        "resource": attributes.resource,
        "requestKind": attributes.kind,
        "requestResource": attributes.resource,
        "operation": attributes.operation.as_str(),
        "userInfo": attributes.user,
        "dryRun": attributes.dry_run,
        "options": attributes.options,
    });
    for (field, text) in [
        ("name", attributes.name),
        ("namespace", attributes.namespace),
        ("subResource", attributes.subresource),
        ("requestSubResource", attributes.subresource),
    ] {
        if !text.is_empty() {
            request[field] = text.into();
        }
    }
    request
}

/// Whether all conditions hold.
pub(super) fn matches<'c>(
    conditions: impl IntoIterator<Item = &'c Condition>,
    attributes: &Attributes<'_>,
    kind: &GroupVersionKind,
    object: Option<&Object>,
    old_object: Option<&Object>,
) -> Matched {
    let request = request(attributes, kind);
    let null = Value::Null;
    let (object, old_object) = (object.unwrap_or(&null), old_object.unwrap_or(&null));
    let (mut left, mut says_no, mut faults) = (BUDGET, false, Vec::new());
    for condition in conditions {
        let program = match &condition.program {
            Ok(program) => program,
            Err(why) => {
                faults.push(format!("compilation error: {why}"));
                continue;
            }
        };
        let outcome = program.run(variables(attributes, &request, object, old_object));
        if outcome.cost > left {
            let why = "validation failed due to running out of cost budget, no further validation rules will be run";
            return Matched::Failed(why.into());
        }
        left -= outcome.cost;
        match outcome.result {
            Ok(skiff_cel::Value::Bool(holds)) => says_no |= !holds,
            Ok(_) => {}
            Err(fault) => {
                faults.push(format!("expression '{}' resulted in error: {fault}", condition.expression));
            }
        }
    }
    if says_no {
        return Matched::No;
    }
    let mut distinct: Vec<String> = Vec::new();
    for fault in faults {
        if !distinct.contains(&fault) {
            distinct.push(fault);
        }
    }
    match distinct.as_slice() {
        [] => Matched::Yes,
        [one] => Matched::Failed(one.clone()),
        many => Matched::Failed(format!("[{}]", many.join(", "))),
    }
}

fn variables<'r, 'v>(
    attributes: &'r Attributes<'_>,
    request: &'v Value,
    object: &'v Value,
    old_object: &'v Value,
) -> Run<'r, 'v> {
    let typed = |json, name: &str| skiff_cel::Value::from_json(json, &Type::object(name));
    let run = Run::default()
        .limit(PER_CALL_LIMIT)
        .variable("object", skiff_cel::Value::from_json(object, &Type::Dyn))
        .variable("oldObject", skiff_cel::Value::from_json(old_object, &Type::Dyn))
        .variable("request", typed(request, "kubernetes.AdmissionRequest"))
        // Upstream has none for webhooks, either.
        .variable("namespaceObject", skiff_cel::Value::Null);
    let Some(authorizer) = attributes.authorizer else { return run };
    let mut check = Check::default();
    check.group.clone_from(&attributes.resource.group);
    check.resource.clone_from(&attributes.resource.resource);
    check.subresource = attributes.subresource.to_owned();
    check.namespace = attributes.namespace.to_owned();
    check.name = attributes.name.to_owned();
    run.variable("authorizer", skiff_cel::Value::authorizer())
        .variable("authorizer.requestResource", skiff_cel::Value::resource_check(check))
        .authorizer(authorizer)
}
