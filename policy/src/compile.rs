//! Policies and their bindings, read once for all requests.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use skiff_api::Object;
use skiff_webhook::admission::{Attributes, GroupVersionKind};

use crate::expression::{Compiler, Declared, Expression, Expressions, Names, Returns, VARIABLES};
use crate::matching::Resources;
use crate::params::ParamRef;

/// All policies of one kind that have bindings, in the order in which they judge.
#[derive(Default)]
pub struct Policies {
    pub(crate) policies: Vec<Policy>,
    /// For whoever compiles the next time.
    expressions: Expressions,
}

/// One policy.
pub(crate) struct Policy {
    pub(crate) name: String,
    pub(crate) constraints: Option<Resources>,
    pub(crate) param_kind: Option<GroupVersionKind>,
    pub(crate) failure_policy: FailurePolicy,
    pub(crate) variables: Variables,
    pub(crate) conditions: Vec<Arc<Expression>>,
    pub(crate) validations: Vec<Validation>,
    pub(crate) annotations: Vec<Annotation>,
    pub(crate) mutations: Vec<Mutation>,
    pub(crate) reinvocation: ReinvocationPolicy,
    pub(crate) bindings: Vec<Binding>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailurePolicy {
    Fail,
    Ignore,
}

pub(crate) struct Validation {
    pub(crate) expression: Arc<Expression>,
    pub(crate) message: String,
    pub(crate) message_expression: Option<Arc<Expression>>,
    pub(crate) reason: &'static str,
}

/// An audit annotation.
pub(crate) struct Annotation {
    pub(crate) key: String,
    pub(crate) value: Arc<Expression>,
}

/// What a mutating policy changes.
pub(crate) enum Mutation {
    JsonPatch(Arc<Expression>),
    ApplyConfiguration(Arc<Expression>),
}

/// Whether a policy mutates once more what others have changed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReinvocationPolicy {
    Never,
    IfNeeded,
}

pub(crate) struct Binding {
    pub(crate) name: String,
    /// `None` for all that the policy is about.
    pub(crate) resources: Option<Resources>,
    pub(crate) param_ref: Option<ParamRef>,
    pub(crate) actions: Vec<Action>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Deny,
    Warn,
    Audit,
}

impl Action {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Action::Deny => "Deny",
            Action::Warn => "Warn",
            Action::Audit => "Audit",
        }
    }
}

/// The variables of a policy. Each may use those before it.
#[derive(Default)]
pub(crate) struct Variables {
    pub(crate) all: Vec<Variable>,
    by_name: HashMap<String, usize>,
}

pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) expression: Arc<Expression>,
    /// How deep it and the variables that it may use are nested at most, in parts of expressions.
    depth: usize,
}

/// Variables that are nested deeper than this are not made: each part takes stack.
const MAX_DEPTH: usize = 500;
/// No expression is nested deeper than this.
const MAX_EXPRESSION_DEPTH: usize = 250;

impl Variable {
    pub(crate) fn is_too_deep(&self) -> bool {
        self.depth > MAX_DEPTH
    }
}

impl Variables {
    /// The variable of a name among the first so many.
    pub(crate) fn find(&self, name: &str, below: usize) -> Option<(usize, &Variable)> {
        let at = *self.by_name.get(name).filter(|at| **at < below)?;
        Some((at, self.all.get(at)?))
    }

    fn add(&mut self, name: &str, expression: Arc<Expression>) {
        let used = names_in(&expression.text).filter_map(|name| self.by_name.get(name));
        let used = used.filter_map(|at| self.all.get(*at)).map(|variable| variable.depth).max();
        let depth = depth_of(&expression.text).saturating_add(used.unwrap_or(0));
        self.by_name.insert(name.to_owned(), self.all.len());
        self.all.push(Variable { name: name.to_owned(), expression, depth });
    }
}

/// Every word of an expression that could name a variable, if it names any.
fn names_in(text: &str) -> impl Iterator<Item = &str> {
    let is_relevant = text.contains(VARIABLES);
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(move |word| is_relevant && !word.is_empty())
}

/// How deep an expression is nested at most: every level takes an operator.
fn depth_of(text: &str) -> usize {
    let n_signs = text.bytes().filter(u8::is_ascii_punctuation).count();
    let n_words = text.split_ascii_whitespace().filter(|word| *word == "in").count();
    (n_signs + n_words + 1).min(MAX_EXPRESSION_DEPTH)
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policies").field("len", &self.policies.len()).finish()
    }
}

fn name_of(object: &Object) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

impl Policies {
    /// The `ValidatingAdmissionPolicies`, or the `MutatingAdmissionPolicies`, that have bindings, all of which were validated and have their defaults. Expressions that were
    /// compiled for `last`, the policies until now, are not compiled again.
    pub fn compile<'c>(
        policies: impl IntoIterator<Item = &'c Object>,
        bindings: impl IntoIterator<Item = &'c Object>,
        last: Option<&Policies>,
    ) -> Policies {
        let mut bound: HashMap<&str, Vec<Binding>> = HashMap::new();
        for binding in bindings {
            let policy = binding["spec"]["policyName"].as_str().unwrap_or_default();
            bound.entry(policy).or_default().push(Binding::read(binding));
        }
        let policies: BTreeMap<String, &Object> =
            policies.into_iter().map(|policy| (name_of(policy), policy)).collect();
        let mut compiler =
            Compiler { last: last.map(|last| &last.expressions), expressions: Expressions::default() };
        let mut compiled = Vec::new();
        for (name, policy) in policies {
            let Some(mut bindings) = bound.remove(name.as_str()) else { continue };
            bindings.sort_by(|a, b| a.name.cmp(&b.name));
            compiled.push(Policy::compile(&mut compiler, name, &policy["spec"], bindings));
        }
        Policies { policies: compiled, expressions: compiler.expressions }
    }

    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// How many there are that have bindings.
    pub fn len(&self) -> usize {
        self.policies.len()
    }

    /// Whether a request is judged by no policy, for what it is about.
    ///
    /// Source: `generic/plugin.go`, and `pkg/kubeapiserver/admission/exclusion` of Kubernetes.
    pub(crate) fn is_exempt(attributes: &Attributes<'_>) -> bool {
        matches!(
            (attributes.resource.group.as_str(), attributes.resource.resource.as_str()),
            (
                "admissionregistration.k8s.io",
                "validatingadmissionpolicies"
                    | "validatingadmissionpolicybindings"
                    | "mutatingadmissionpolicies"
                    | "mutatingadmissionpolicybindings"
            ) | ("authentication.k8s.io", "selfsubjectreviews" | "tokenreviews")
                | (
                    "authorization.k8s.io",
                    "localsubjectaccessreviews"
                        | "selfsubjectaccessreviews"
                        | "selfsubjectrulesreviews"
                        | "subjectaccessreviews"
                )
        )
    }
}

impl Policy {
    fn compile(compiler: &mut Compiler<'_>, name: String, spec: &Value, bindings: Vec<Binding>) -> Policy {
        let list = |field: &str| spec[field].as_array().into_iter().flatten();
        let param_kind = &spec["paramKind"];
        let names = Names { params: !param_kind.is_null(), authorizer: true, patches: false };
        let mut declared = Declared::default();
        let mut variables = Variables::default();
        for variable in list("variables") {
            let name = text(&variable["name"]);
            let expression =
                compiler.compile(text(&variable["expression"]), names, &declared, Returns::Anything);
            declared.declare(name, expression.program.as_ref().ok().map(skiff_cel::Program::output));
            variables.add(name, expression);
        }
        let mut compile = |expression: &Value, returns| {
            // Messages are made without asking for anybody's rights.
            let patches = matches!(returns, Returns::Patches | Returns::Configuration);
            let names = Names { authorizer: returns != Returns::Text, patches, ..names };
            compiler.compile(text(expression), names, &declared, returns)
        };
        Policy {
            name,
            constraints: Resources::read(&spec["matchConstraints"]),
            param_kind: (!param_kind.is_null())
                .then(|| GroupVersionKind::new(text(&param_kind["apiVersion"]), text(&param_kind["kind"]))),
            failure_policy: match spec["failurePolicy"].as_str() {
                Some("Ignore") => FailurePolicy::Ignore,
                _ => FailurePolicy::Fail,
            },
            conditions: list("matchConditions").map(|c| compile(&c["expression"], Returns::Bool)).collect(),
            validations: list("validations").map(|v| Validation::compile(v, &mut compile)).collect(),
            annotations: list("auditAnnotations")
                .map(|annotation| Annotation {
                    key: text(&annotation["key"]).to_owned(),
                    value: compile(&annotation["valueExpression"], Returns::TextOrNull),
                })
                .collect(),
            mutations: list("mutations").filter_map(|m| Mutation::compile(m, &mut compile)).collect(),
            reinvocation: match spec["reinvocationPolicy"].as_str() {
                Some("IfNeeded") => ReinvocationPolicy::IfNeeded,
                _ => ReinvocationPolicy::Never,
            },
            variables,
            bindings,
        }
    }
}

/// Compiles what a field holds, in the place of a policy that it stands in.
type Compile<'c> = dyn FnMut(&Value, Returns) -> Arc<Expression> + 'c;

impl Validation {
    fn compile(validation: &Value, compile: &mut Compile<'_>) -> Validation {
        Validation {
            expression: compile(&validation["expression"], Returns::Bool),
            message: text(&validation["message"]).trim().to_owned(),
            message_expression: (!text(&validation["messageExpression"]).is_empty())
                .then(|| compile(&validation["messageExpression"], Returns::Text)),
            reason: reason(&validation["reason"]),
        }
    }
}

impl Mutation {
    /// `None` for one of a kind that is not known.
    fn compile(mutation: &Value, compile: &mut Compile<'_>) -> Option<Mutation> {
        match mutation["patchType"].as_str()? {
            "JSONPatch" => {
                let expression = &mutation["jsonPatch"]["expression"];
                Some(Mutation::JsonPatch(compile(expression, Returns::Patches)))
            }
            "ApplyConfiguration" => {
                let expression = &mutation["applyConfiguration"]["expression"];
                Some(Mutation::ApplyConfiguration(compile(expression, Returns::Configuration)))
            }
            _ => None,
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A reason that a validation may give.
fn reason(value: &Value) -> &'static str {
    match value.as_str() {
        Some("Unauthorized") => "Unauthorized",
        Some("Forbidden") => "Forbidden",
        Some("RequestEntityTooLarge") => "RequestEntityTooLarge",
        _ => "Invalid",
    }
}

impl Binding {
    fn read(binding: &Object) -> Binding {
        let spec = &binding["spec"];
        let actions = spec["validationActions"].as_array().into_iter().flatten();
        Binding {
            name: name_of(binding),
            resources: Resources::read(&spec["matchResources"]),
            param_ref: ParamRef::read(&spec["paramRef"]),
            actions: actions
                .filter_map(|action| match action.as_str()? {
                    "Deny" => Some(Action::Deny),
                    "Warn" => Some(Action::Warn),
                    "Audit" => Some(Action::Audit),
                    _ => None,
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy(name: &str, expression: &str) -> Value {
        json!({"metadata": {"name": name}, "spec": {
            "variables": [{"name": "n", "expression": "object.n"}],
            "validations": [{"expression": expression}],
        }})
    }

    fn binding(policy: &str) -> Value {
        json!({"metadata": {"name": policy}, "spec": {"policyName": policy}})
    }

    #[test]
    fn expressions_are_compiled_once() {
        let all = |expression: &str| [policy("a", "variables.n > 1"), policy("b", expression)];
        let bindings = [binding("a"), binding("b")];
        let first = Policies::compile(&all("variables.n > 1"), &bindings, None);
        let of = |policies: &Policies, at: usize| policies.policies[at].validations[0].expression.clone();
        assert!(Arc::ptr_eq(&of(&first, 0), &of(&first, 1)));
        let second = Policies::compile(&all("variables.n > 2"), &bindings, Some(&first));
        assert!(Arc::ptr_eq(&of(&first, 0), &of(&second, 0)));
        let third = Policies::compile(&all("variables.n > 2"), &bindings, Some(&second));
        assert!(Arc::ptr_eq(&of(&second, 1), &of(&third, 1)));
    }

    #[test]
    fn one_text_means_what_the_variables_before_it_make_of_it() {
        let policy = |name: &str, variable: &str| {
            json!({"metadata": {"name": name}, "spec": {
                "variables": [{"name": "v", "expression": variable}],
                "validations": [{"expression": "variables.v == 1"}],
            }})
        };
        let all = [policy("a", "1"), policy("b", "'1'")];
        let policies = Policies::compile(&all, &[binding("a"), binding("b")], None);
        let is_program = |at: usize| policies.policies[at].validations[0].expression.program.is_ok();
        assert!(is_program(0) && !is_program(1));
    }

    #[test]
    fn what_is_no_policy_is_compiled_to_what_judges_nothing() {
        for odd in
            [json!(null), json!({"spec": 1}), json!({"spec": {"variables": [null, 1], "validations": {}}})]
        {
            let policies = Policies::compile([&odd], [&json!(null)], None);
            assert!(policies.policies.iter().all(|policy| policy.constraints.is_none()), "{odd}");
        }
    }

    #[test]
    fn variables_that_are_nested_without_end_are_not_made() {
        let expression = |at: usize| format!("variables.v{}.a.b.c.d.e.f.g.h", at - 1);
        let mut variables = vec![json!({"name": "v0", "expression": "object"})];
        variables.extend((1..200).map(|at| json!({"name": format!("v{at}"), "expression": expression(at)})));
        let policy = json!({"metadata": {"name": "a"}, "spec": {"variables": variables}});
        let policies = Policies::compile([&policy], [&binding("a")], None);
        let all = &policies.policies[0].variables.all;
        assert!(!all[10].is_too_deep() && all[199].is_too_deep());
    }
}
