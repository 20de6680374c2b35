//! Judging a request.
//!
//! Source: `validating/dispatcher.go` and `validating/validator.go` of upstream's policy plug-in.

use std::collections::BTreeMap;

use indexmap::IndexSet;
use serde_json::Value as Json;
use skiff_api::{Object, Status};
use skiff_cel::Value;
use skiff_webhook::admission::{
    Attributes, AuditLevel, Equivalents, GroupVersionKind, Invocation, Record, request,
};

use crate::compile::{Action, Binding, FailurePolicy, Policies, Policy, Validation};
use crate::conditions::conditions_hold;
use crate::evaluate::{BUDGET, Inputs, OutOfBudget, Rights, Session, namespace_object, request_check};
use crate::{Caller, bound, rejected};

const FAILURE_KEY: &str = "validation.policy.admission.k8s.io/validation_failure";
/// A longer value of an audit annotation is cut.
const MAX_ANNOTATION_BYTES: usize = 10 * 1024;
/// A longer message is not told.
const MAX_MESSAGE_BYTES: usize = 5 * 1024;

/// So many failures are told in the annotation of them.
const MAX_FAILURES: usize = 50;

/// What a policy has against a request, from one of its validations.
struct Decision {
    index: usize,
    message: String,
    reason: &'static str,
}

/// What one policy has to say with one param.
#[derive(Default)]
struct Judgement {
    denials: Vec<Decision>,
    /// Key and value, or why there is none.
    annotations: Vec<(String, Result<String, String>)>,
}

/// The first that stands against a request.
struct Denial {
    message: String,
    reason: &'static str,
}

/// The objects of a request as another kind.
struct Versioned {
    kind: GroupVersionKind,
    object: Option<Object>,
    old_object: Option<Object>,
}

/// What one request is judged with.
struct Judge<'j> {
    caller: Caller<'j>,
    attributes: &'j Attributes<'j>,
    equivalents: Equivalents<'j>,
    namespace: Json,
    request_check: Value<'static>,
    versions: Vec<Versioned>,
    denial: Option<Denial>,
    /// What the audit annotation tells, each as JSON.
    failures: Vec<String>,
}

/// The values of the audit annotations of one policy, by key.
type Collected = BTreeMap<String, IndexSet<String>>;

impl Policies {
    /// Judges a request by all policies that are about it.
    ///
    /// # Errors
    /// The first denial, in the order of policies, bindings, params and validations, or that the request's namespace is not known.
    pub async fn validate(
        &self,
        caller: Caller<'_>,
        attributes: &Attributes<'_>,
        record: &mut Record,
    ) -> Result<(), Status> {
        if self.policies.is_empty() || Policies::is_exempt(attributes) {
            return Ok(());
        }
        let mut judge = Judge {
            caller,
            attributes,
            equivalents: Equivalents::new(caller.host),
            namespace: namespace_object(bound::namespace(attributes)),
            request_check: request_check(attributes),
            versions: Vec::new(),
            denial: None,
            failures: Vec::new(),
        };
        for policy in &self.policies {
            judge.policy(policy, record).await?;
        }
        if !judge.failures.is_empty() {
            let all = format!("[{}]", judge.failures.join(","));
            record.annotate(FAILURE_KEY.to_owned(), AuditLevel::Metadata, all);
        }
        match judge.denial {
            None => Ok(()),
            Some(Denial { message, reason }) => Err(rejected::denied(attributes, reason, &message)),
        }
    }
}

impl<'j> Judge<'j> {
    async fn policy(&mut self, policy: &Policy, record: &mut Record) -> Result<(), Status> {
        let attributes = self.attributes;
        let invocation = match &policy.constraints {
            None => Err("policy contained no match constraints, a required field".to_owned()),
            Some(constraints) => constraints.invocation(attributes, &self.equivalents),
        };
        let invocation = match invocation {
            Ok(Some(invocation)) => invocation,
            Ok(None) => return Ok(()),
            Err(why) => {
                self.misconfigured(policy, None, &why);
                return Ok(());
            }
        };
        let scope = match bound::param_scope(policy, self.caller.params) {
            Ok(scope) => scope,
            Err(why) => {
                self.misconfigured(policy, None, &why);
                return Ok(());
            }
        };
        let mut collected = Collected::new();
        for binding in &policy.bindings {
            let params = bound::params(binding, scope, self.caller.params, attributes, &self.equivalents);
            let params = match params {
                Ok(Some(params)) => params,
                Ok(None) => continue,
                Err(why) => {
                    self.misconfigured(policy, Some(binding), &why);
                    continue;
                }
            };
            if !params.is_empty()
                && let Err(why) = self.version(&invocation.kind).await
            {
                self.misconfigured(
                    policy,
                    Some(binding),
                    &format!("failed to convert object version: {why}"),
                );
                continue;
            }
            bound::check_namespace(attributes)?;
            for param in &params {
                let judgement = loop {
                    let judgement = self.judgement(policy, &invocation, param);
                    if !attributes.is_to_be_asked_again().await {
                        break judgement;
                    }
                };
                self.enforce(policy, binding, judgement, &mut collected, record);
            }
        }
        for (key, values) in collected {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            record.annotate(format!("{}/{key}", policy.name), AuditLevel::Metadata, values.join(", "));
        }
        Ok(())
    }

    /// What is wrong with a policy itself stands against the request, unless failures are ignored.
    fn misconfigured(&mut self, policy: &Policy, binding: Option<&Binding>, why: &str) {
        if policy.failure_policy == FailurePolicy::Ignore {
            return;
        }
        let what = if binding.is_some() { "binding" } else { "policy" };
        self.deny(policy, binding, &format!("failed to configure {what}: {why}"), "Invalid");
    }

    fn deny(&mut self, policy: &Policy, binding: Option<&Binding>, message: &str, reason: &'static str) {
        let by = match binding {
            Some(binding) => format!("'{}' with binding '{}'", policy.name, binding.name),
            None => format!("'{}'", policy.name),
        };
        let message = format!("ValidatingAdmissionPolicy {by} denied request: {message}");
        self.denial.get_or_insert(Denial { message, reason });
    }

    /// Makes sure that the objects are there as `kind`.
    async fn version(&mut self, kind: &GroupVersionKind) -> Result<(), String> {
        let attributes = self.attributes;
        if kind == attributes.kind || self.versions.iter().any(|known| known.kind == *kind) {
            return Ok(());
        }
        let mut converted = [None, None];
        for (place, object) in converted.iter_mut().zip([attributes.object, attributes.old_object]) {
            if let Some(object) = object {
                *place = Some(self.caller.host.convert(object.clone(), kind).await?);
            }
        }
        let [object, old_object] = converted;
        self.versions.push(Versioned { kind: kind.clone(), object, old_object });
        Ok(())
    }

    fn judgement(&self, policy: &Policy, invocation: &Invocation, param: &Json) -> Judgement {
        let null = Json::Null;
        let (object, old_object) = match self.versions.iter().find(|known| known.kind == invocation.kind) {
            Some(known) => (known.object.as_ref(), known.old_object.as_ref()),
            None => (self.attributes.object, self.attributes.old_object),
        };
        let request = request(self.attributes, &invocation.kind);
        let rights =
            self.attributes.authorizer.map(|authorizer| Rights { authorizer, request: &self.request_check });
        let inputs = Inputs {
            object: object.unwrap_or(&null),
            old_object: old_object.unwrap_or(&null),
            request: &request,
            params: param,
            // Conditions are not told of it.
            namespace: &null,
        };
        match conditions_hold(policy, inputs, rights) {
            Ok(true) => {}
            Ok(false) => return Judgement::default(),
            Err(why) => return failed(policy, why),
        }
        let mut request = request.clone();
        request["resource"] = serde_json::json!(invocation.resource);
        let inputs = Inputs { request: &request, namespace: &self.namespace, ..inputs };
        let mut validations = Session::new(inputs, rights, &policy.variables, BUDGET);
        let results: Result<Vec<_>, OutOfBudget> =
            policy.validations.iter().map(|validation| validations.run(&validation.expression)).collect();
        let Ok(results) = results else { return failed(policy, OutOfBudget::WORDS.into()) };
        let denials = denials(policy, inputs, &results, validations.left());
        let mut session = Session::new(inputs, None, &policy.variables, BUDGET);
        let mut annotations = Vec::new();
        for annotation in &policy.annotations {
            match session.run(&annotation.value) {
                Err(OutOfBudget) => return failed(policy, OutOfBudget::WORDS.into()),
                Ok(Err(_)) if policy.failure_policy == FailurePolicy::Ignore => {}
                Ok(Err(why)) => annotations.push((annotation.key.clone(), Err(why))),
                Ok(Ok(Value::Text(text))) if !text.trim().is_empty() => {
                    annotations.push((annotation.key.clone(), Ok(text.trim().to_owned())));
                }
                Ok(Ok(_)) => {}
            }
        }
        Judgement { denials, annotations }
    }

    /// Does what the binding wants done with a judgement.
    fn enforce(
        &mut self,
        policy: &Policy,
        binding: &Binding,
        judgement: Judgement,
        collected: &mut Collected,
        record: &mut Record,
    ) {
        for Decision { index, message, reason } in judgement.denials {
            for action in &binding.actions {
                match action {
                    Action::Deny => self.deny(policy, Some(binding), &message, reason),
                    Action::Audit => {
                        if self.failures.len() < MAX_FAILURES {
                            self.failures.push(failure(policy, binding, index, &message));
                        }
                    }
                    Action::Warn => record.warn([format!(
                        "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {message}",
                        policy.name, binding.name
                    )]),
                }
            }
        }
        for (key, value) in judgement.annotations {
            match value {
                Ok(mut value) => {
                    value.truncate(value.floor_char_boundary(MAX_ANNOTATION_BYTES));
                    collected.entry(key).or_default().insert(value);
                }
                Err(why) => self.deny(policy, Some(binding), &why, "Invalid"),
            }
        }
    }
}

/// Nothing of a policy could be asked.
fn failed(policy: &Policy, why: String) -> Judgement {
    let mut judgement = Judgement::default();
    if policy.failure_policy == FailurePolicy::Fail {
        judgement.denials.push(Decision { index: 0, message: why, reason: "Invalid" });
    }
    judgement
}

/// What the validations of a policy have against a request. All messages are made, whether they are told or not, as they have to be
/// paid for from what the validations have left.
fn denials(
    policy: &Policy,
    inputs: Inputs<'_>,
    results: &[Result<Value<'_>, String>],
    left: u64,
) -> Vec<Decision> {
    let mut session = Session::new(inputs, None, &policy.variables, left);
    let messages: Result<Vec<Option<String>>, OutOfBudget> = policy
        .validations
        .iter()
        .map(|validation| match &validation.message_expression {
            None => Ok(None),
            Some(expression) => Ok(session.run(expression)?.ok().and_then(message)),
        })
        .collect();
    let is_ignored = policy.failure_policy == FailurePolicy::Ignore;
    let mut denials = Vec::new();
    for (index, (validation, result)) in policy.validations.iter().zip(results).enumerate() {
        let failure = match (result, &messages) {
            (Err(why), _) => Some(why.clone()),
            (Ok(_), Err(OutOfBudget)) => Some(format!("failed messageExpression: {}", OutOfBudget::WORDS)),
            (Ok(Value::Bool(true)), _) => continue,
            (Ok(_), Ok(_)) => None,
        };
        if failure.is_some() && is_ignored {
            continue;
        }
        let (message, reason) = match (failure, &messages) {
            (Some(why), _) => (why, "Invalid"),
            (None, messages) => {
                let made = messages.as_ref().ok().and_then(|all| all.get(index)).cloned().flatten();
                (made.unwrap_or_else(|| own_message(validation)), validation.reason)
            }
        };
        denials.push(Decision { index, message, reason });
    }
    denials
}

/// What an expression has made as a message, if it may be told.
fn message(value: Value<'_>) -> Option<String> {
    let Value::Text(text) = value else { return None };
    let text = text.trim();
    let may_be_told = !text.is_empty() && text.len() <= MAX_MESSAGE_BYTES && !text.contains('\n');
    may_be_told.then(|| text.to_owned())
}

fn own_message(validation: &Validation) -> String {
    match validation.message.as_str() {
        "" => format!("failed expression: {}", validation.expression.text.trim()),
        message => message.to_owned(),
    }
}

/// A failure as audit events have it: a list of one, with what Go escapes for HTML.
fn failure(policy: &Policy, binding: &Binding, index: usize, message: &str) -> String {
    let actions: Vec<&str> = binding.actions.iter().map(|action| action.as_str()).collect();
    let quoted = |text: &str| {
        let mut out = String::new();
        for c in Json::from(text).to_string().chars() {
            match c {
                '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                    out.push_str(&format!("\\u{:04x}", u32::from(c)));
                }
                c => out.push(c),
            }
        }
        out
    };
    format!(
        "{{\"message\":{},\"policy\":{},\"binding\":{},\"expressionIndex\":{index},\"validationActions\":{}}}",
        quoted(message),
        quoted(&policy.name),
        quoted(&binding.name),
        serde_json::json!(actions),
    )
}
