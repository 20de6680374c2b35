//! Match conditions: expressions over the review that a webhook would be sent, which say whether it is asked at all.
//!
//! Source: `k8s.io/apiserver/pkg/authorization/cel`.

use std::sync::LazyLock;

use serde_json::Value;
use skiff_cel::{Environment, Program, Run, Type, Types};

/// One expression.
pub(crate) struct Condition {
    expression: String,
    program: Program,
}

/// What conditions have come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Matched {
    Yes,
    /// One says no. Whether others before it failed.
    No {
        has_failed: bool,
    },
    Failed(String),
}

impl Condition {
    /// # Errors
    /// Why it is no condition.
    pub(crate) fn compile(expression: &str) -> Result<Condition, String> {
        static ENVIRONMENT: LazyLock<Environment> = LazyLock::new(|| {
            Environment::default().types(Reviews).variable("request", named("SubjectAccessReviewSpec"))
        });
        let program = ENVIRONMENT.compile(expression);
        let program = program.map_err(|rejected| format!("compilation failed: {rejected}"))?;
        match program.output() {
            Type::Bool => Ok(Condition { expression: expression.to_owned(), program }),
            other => Err(format!("must evaluate to bool but got {other}")),
        }
    }
}

fn named(name: &str) -> Type {
    Type::object(&format!("kubernetes.{name}"))
}

/// The fields of a review.
struct Reviews;

impl Types for Reviews {
    fn field(&self, object: &str, field: &str) -> Option<Type> {
        let texts = || Type::list(Type::String);
        Some(match (object.strip_prefix("kubernetes.")?, field) {
            ("SubjectAccessReviewSpec", "user" | "uid")
            | ("NonResourceAttributes", "path" | "verb")
            | ("FieldSelectorAttributes" | "LabelSelectorAttributes", "rawSelector")
            | ("SelectorRequirement", "key" | "operator")
            | (
                "ResourceAttributes",
                "namespace" | "verb" | "group" | "version" | "resource" | "subresource" | "name",
            ) => Type::String,
            ("SubjectAccessReviewSpec", "groups") | ("SelectorRequirement", "values") => texts(),
            ("SubjectAccessReviewSpec", "extra") => Type::map(Type::String, texts()),
            ("SubjectAccessReviewSpec", "resourceAttributes") => named("ResourceAttributes"),
            ("SubjectAccessReviewSpec", "nonResourceAttributes") => named("NonResourceAttributes"),
            ("ResourceAttributes", "fieldSelector") => named("FieldSelectorAttributes"),
            ("ResourceAttributes", "labelSelector") => named("LabelSelectorAttributes"),
            ("FieldSelectorAttributes" | "LabelSelectorAttributes", "requirements") => {
                Type::list(named("SelectorRequirement"))
            }
            _ => return None,
        })
    }
}

/// Whether all conditions hold for a review's `spec`.
pub(super) fn matches(conditions: &[Condition], spec: &Value) -> Matched {
    let mut faults: Vec<String> = Vec::new();
    for condition in conditions {
        let request = skiff_cel::Value::from_json(spec, &named("SubjectAccessReviewSpec"));
        let expression = &condition.expression;
        let fault = match condition.program.run(Run::default().variable("request", request)).result {
            Ok(skiff_cel::Value::Bool(true)) => continue,
            Ok(skiff_cel::Value::Bool(false)) => return Matched::No { has_failed: !faults.is_empty() },
            Ok(_) => {
                format!("cel evaluation error: expression '{expression}' eval result type should be bool")
            }
            Err(fault) => {
                format!("cel evaluation error: expression '{expression}' resulted in error: {fault}")
            }
        };
        if !faults.contains(&fault) {
            faults.push(fault);
        }
    }
    match faults.as_slice() {
        [] => Matched::Yes,
        [one] => Matched::Failed(one.clone()),
        many => Matched::Failed(format!("[{}]", many.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec() -> Value {
        json!({
            "user": "ann", "uid": "", "groups": ["devs"], "extra": {"a": ["b"]},
            "resourceAttributes": {
                "namespace": "x", "verb": "list", "group": "", "version": "v1", "resource": "pods", "subresource": "",
                "name": "", "fieldSelector": {"requirements": [{"key": "k", "operator": "In", "values": ["v"]}]},
            },
        })
    }

    fn check(expressions: &[&str]) -> Matched {
        let conditions: Vec<Condition> =
            expressions.iter().map(|text| Condition::compile(text).expect("a condition")).collect();
        matches(&conditions, &spec())
    }

    #[test]
    fn conditions_speak_of_the_review() {
        for holds in [
            "has(request.resourceAttributes)",
            "!has(request.nonResourceAttributes)",
            "request.resourceAttributes.verb in ['get', 'list']",
            "'devs' in request.groups && request.extra['a'] == ['b'] && request.uid == ''",
            "request.resourceAttributes.fieldSelector.requirements.exists(r, r.key == 'k' && r.values == ['v'])",
            "!has(request.resourceAttributes.labelSelector)",
        ] {
            assert_eq!(check(&[holds]), Matched::Yes, "{holds}");
        }
    }

    #[test]
    fn one_that_says_no_decides_and_one_that_fails_only_if_none_does() {
        let fails = "request.nonResourceAttributes.path == '/'";
        let no = "request.user != 'ann'";
        assert_eq!(check(&[fails, no]), Matched::No { has_failed: true });
        assert_eq!(check(&[no, fails]), Matched::No { has_failed: false });
        let Matched::Failed(why) = check(&[fails, "true"]) else { panic!("it must fail") };
        let wanted = "cel evaluation error: expression 'request.nonResourceAttributes.path == '/'' resulted in error: no such key: nonResourceAttributes";
        assert_eq!(why, wanted);
    }

    #[test]
    fn what_is_no_condition_is_told_as_upstream_tells_it() {
        let why = |text| Condition::compile(text).err().expect("it is none");
        assert_eq!(why("'a'"), "must evaluate to bool but got string");
        assert!(
            why("request.nothing == 1")
                .starts_with("compilation failed: ERROR: <input>:1:8: undefined field 'nothing'")
        );
        assert!(
            why("object.a")
                .starts_with("compilation failed: ERROR: <input>:1:1: undeclared reference to 'object'")
        );
    }
}
