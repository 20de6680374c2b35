//! Changing the object of a request.
//!
//! ```text
//! policies × bindings × params that apply to the object as it came ─▶ invocations
//!        one after the other: conditions ─▶ is it asked in this round? ─▶ each mutation: expression ─▶ patch ─▶ defaults
//! ```
//!
//! Source: `generic/policy_dispatcher.go` and `mutating/dispatcher.go` of upstream's policy plug-in.

use std::sync::Arc;

use serde_json::Value as Json;
use skiff_api::apply::configure;
use skiff_api::schema::TypeRef;
use skiff_api::{Object, Status, patch as json_patch};
use skiff_cel::Value;
use skiff_webhook::admission::{
    Attributes, Equivalents, GroupVersionKind, Invocation, Reinvocation, internal, request,
};

use crate::compile::{Binding, FailurePolicy, Mutation, Policies, Policy, ReinvocationPolicy};
use crate::conditions::conditions_hold;
use crate::evaluate::{BUDGET, Inputs, OutOfBudget, Rights, Session, namespace_object, request_check};
use crate::{Caller, bound, patch, rejected};

/// The type of a kind, if anybody serves it.
pub type SchemaOf<'s> = dyn Fn(&GroupVersionKind) -> Option<TypeRef> + Send + Sync + 's;

/// A policy that is to mutate, with one of its params.
struct Turn<'p> {
    policy: &'p Policy,
    binding: &'p Binding,
    invocation: Invocation,
    param: Json,
}

/// What stands against the request.
struct PolicyError {
    message: String,
    reason: Option<&'static str>,
}

/// Why a mutation has not happened.
enum Failure {
    /// An error of the request, whatever the policy says of failures.
    Status(Status),
    Told(String),
}

/// The object as it is now.
struct Current {
    kind: GroupVersionKind,
    object: Option<Object>,
    old_object: Option<Object>,
    is_touched: bool,
}

/// What one request is mutated with.
struct Mutator<'m> {
    caller: Caller<'m>,
    attributes: Attributes<'m>,
    schema_of: &'m SchemaOf<'m>,
    namespace: Json,
    request_check: Value<'static>,
    errors: Vec<PolicyError>,
}

impl Policies {
    /// The object that the policies make of it which are about the request, one after the other. [`Attributes::object`] is not looked
    /// at. Whether there is to be a second round, and what of it, is in `reinvocation`, which is not the one of webhooks: the chain
    /// runs again if either wants it.
    ///
    /// # Errors
    /// What policies have against the request whose failures count, or that the request's namespace is not known.
    pub async fn mutate(
        &self,
        caller: Caller<'_>,
        schema_of: &SchemaOf<'_>,
        attributes: &Attributes<'_>,
        object: Option<Object>,
        reinvocation: &mut Reinvocation,
    ) -> Result<Option<Object>, Status> {
        if self.policies.is_empty() || Policies::is_exempt(attributes) {
            return Ok(object);
        }
        let given = Attributes { object: object.as_ref(), ..*attributes };
        let mut mutator = Mutator {
            caller,
            attributes: given,
            schema_of,
            namespace: namespace_object(bound::namespace(attributes)),
            request_check: request_check(attributes),
            errors: Vec::new(),
        };
        let turns = mutator.turns(self);
        let mutated = if turns.is_empty() {
            None
        } else {
            bound::check_namespace(attributes)?;
            reinvocation.begin(object.as_ref());
            let mutated = mutator.run(&turns, reinvocation).await?;
            reinvocation.end(mutated.as_ref().or(object.as_ref()));
            mutated
        };
        match rejected::by_policies(&mutator.attributes, &mutator.errors()) {
            Some(status) => Err(status),
            None => Ok(mutated.or(object)),
        }
    }
}

impl Mutator<'_> {
    fn errors(&self) -> Vec<(&str, Option<&'static str>)> {
        self.errors.iter().map(|error| (error.message.as_str(), error.reason)).collect()
    }

    fn fail(&mut self, policy: &Policy, binding: Option<&Binding>, why: &str, reason: Option<&'static str>) {
        if policy.failure_policy == FailurePolicy::Ignore {
            return;
        }
        let message = match binding {
            Some(binding) => {
                format!("policy '{}' with binding '{}' denied request: {why}", policy.name, binding.name)
            }
            None => format!("policy {:?} denied request: {why}", policy.name),
        };
        self.errors.push(PolicyError { message, reason });
    }

    fn misconfigured(&mut self, policy: &Policy, binding: Option<&Binding>, why: &str) {
        let what = if binding.is_some() { "binding" } else { "policy" };
        self.fail(policy, binding, &format!("failed to configure {what}: {why}"), None);
    }

    /// All that is to mutate, by the object as it came.
    fn turns<'p>(&mut self, policies: &'p Policies) -> Vec<Turn<'p>> {
        let equivalents = Equivalents::new(self.caller.host);
        let attributes = self.attributes;
        let mut turns = Vec::new();
        for policy in &policies.policies {
            let invocation = match &policy.constraints {
                None => Err("policy contained no match constraints, a required field".to_owned()),
                Some(constraints) => constraints.invocation(&attributes, &equivalents),
            };
            let found = invocation.and_then(|invocation| match invocation {
                Some(invocation) => Ok(Some((invocation, bound::param_scope(policy, self.caller.params)?))),
                None => Ok(None),
            });
            let (invocation, scope) = match found {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                Err(why) => {
                    self.misconfigured(policy, None, &why);
                    continue;
                }
            };
            for binding in &policy.bindings {
                match bound::params(binding, scope, self.caller.params, &attributes, &equivalents) {
                    Ok(params) => turns.extend(params.into_iter().flatten().map(|param| Turn {
                        policy,
                        binding,
                        invocation: invocation.clone(),
                        param,
                    })),
                    Err(why) => self.misconfigured(policy, Some(binding), &why),
                }
            }
        }
        turns
    }

    /// What all make of the object; `None` if nobody has touched it.
    async fn run(
        &mut self,
        turns: &[Turn<'_>],
        reinvocation: &mut Reinvocation,
    ) -> Result<Option<Object>, Status> {
        let mut current = Current {
            kind: self.attributes.kind.clone(),
            object: self.attributes.object.cloned(),
            old_object: self.attributes.old_object.cloned(),
            is_touched: false,
        };
        for turn in turns {
            if let Err(why) = self.turn_into(&mut current, &turn.invocation.kind).await {
                self.misconfigured(turn.policy, None, &why);
                continue;
            }
            self.turn(turn, &mut current, reinvocation).await?;
        }
        if !current.is_touched {
            return Ok(None);
        }
        reinvocation.changed();
        reinvocation.want();
        let own = self.attributes.kind.clone();
        let back = self.turn_into(&mut current, &own).await;
        back.map_err(|why| internal(&format!("failed to convert object: {why}")))?;
        Ok(current.object)
    }

    /// The sentence says why it cannot be that. It then is what it was.
    async fn turn_into(&self, current: &mut Current, kind: &GroupVersionKind) -> Result<(), String> {
        if current.kind == *kind {
            return Ok(());
        }
        let mut converted = [None, None];
        for (place, object) in converted.iter_mut().zip([&current.object, &current.old_object]) {
            if let Some(object) = object {
                *place = Some(self.caller.host.convert(object.clone(), kind).await?);
            }
        }
        [current.object, current.old_object] = converted;
        current.kind = kind.clone();
        Ok(())
    }

    async fn turn(
        &mut self,
        turn: &Turn<'_>,
        current: &mut Current,
        reinvocation: &mut Reinvocation,
    ) -> Result<(), Status> {
        let Turn { policy, binding, param, .. } = turn;
        let mut request = request(&self.attributes, &current.kind);
        match self.conditions_hold(policy, current, param, &request).await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(why) => {
                self.fail(policy, Some(binding), &why, Some("Invalid"));
                return Ok(());
            }
        }
        let key = key(turn);
        if !reinvocation.is_asked_now(&key) {
            return Ok(());
        }
        request["resource"] = serde_json::json!(turn.invocation.resource);
        let mut has_changed = false;
        for mutation in &policy.mutations {
            let Some(object) = &current.object else { break };
            match self.mutated(policy, mutation, current, object, param, &request).await {
                Ok(mutated) => {
                    has_changed |= mutated != *object;
                    (current.object, current.is_touched) = (Some(mutated), true);
                }
                Err(Failure::Status(status)) => return Err(status),
                Err(Failure::Told(why)) => self.fail(policy, Some(binding), &why, Some("Invalid")),
            }
        }
        if has_changed {
            reinvocation.changed();
            reinvocation.want();
        }
        if policy.reinvocation == ReinvocationPolicy::IfNeeded {
            reinvocation.asked(&key);
        }
        Ok(())
    }

    fn rights(&self) -> Option<Rights<'_>> {
        self.attributes.authorizer.map(|authorizer| Rights { authorizer, request: &self.request_check })
    }

    async fn conditions_hold(
        &self,
        policy: &Policy,
        current: &Current,
        param: &Json,
        request: &Json,
    ) -> Result<bool, String> {
        let null = Json::Null;
        let inputs = Inputs {
            object: current.object.as_ref().unwrap_or(&null),
            old_object: current.old_object.as_ref().unwrap_or(&null),
            request,
            params: param,
            namespace: &null,
        };
        loop {
            let held = conditions_hold(policy, inputs, self.rights());
            if !self.attributes.is_to_be_asked_again().await {
                return held;
            }
        }
    }

    /// What one mutation makes of the object.
    async fn mutated(
        &self,
        policy: &Policy,
        mutation: &Mutation,
        current: &Current,
        object: &Object,
        param: &Json,
        request: &Json,
    ) -> Result<Object, Failure> {
        loop {
            let mutated = self.mutated_once(policy, mutation, current, object, param, request);
            if !self.attributes.is_to_be_asked_again().await {
                return mutated;
            }
        }
    }

    fn mutated_once(
        &self,
        policy: &Policy,
        mutation: &Mutation,
        current: &Current,
        object: &Object,
        param: &Json,
        request: &Json,
    ) -> Result<Object, Failure> {
        let kind = &current.kind;
        let schema = (self.schema_of)(kind).ok_or_else(|| Failure::Status(rejected::not_served(kind)))?;
        let (Mutation::JsonPatch(expression) | Mutation::ApplyConfiguration(expression)) = mutation;
        if let Err(why) = &expression.program {
            return Err(Failure::Told(why.clone()));
        }
        let null = Json::Null;
        let old_object = current.old_object.as_ref().unwrap_or(&null);
        let namespace = &self.namespace;
        let inputs = Inputs { object, old_object, request, params: param, namespace };
        let mut session = Session::new(inputs, self.rights(), &policy.variables, BUDGET);
        let value = session
            .run(expression)
            .map_err(|OutOfBudget| Failure::Told(OutOfBudget::WORDS.to_owned()))?
            .map_err(Failure::Told)?;
        let mut mutated = match mutation {
            Mutation::JsonPatch(_) => {
                let operations = patch::operations(&value).map_err(Failure::Told)?;
                let mut patched = object.clone();
                match json_patch::apply_json(&mut patched, &operations) {
                    Ok(()) => {}
                    Err(error) if error.is_test() => patched = object.clone(),
                    Err(error) => return Err(Failure::Told(format!("JSON Patch: {error}"))),
                }
                let decoded = self.caller.host.decode(kind, patched);
                decoded.map_err(|why| Failure::Status(internal(&why)))?
            }
            Mutation::ApplyConfiguration(_) => {
                let mut part = patch::configuration(&value).map_err(Failure::Told)?;
                for field in ["apiVersion", "kind"] {
                    part[field] = object[field].clone();
                }
                configure(&schema, object, &part)
                    .map_err(|error| Failure::Told(format!("error applying patch: {error}")))?
            }
        };
        self.caller.host.default(kind, &mut mutated);
        Ok(mutated)
    }
}

/// What tells one turn from another in the second round.
fn key(turn: &Turn<'_>) -> Arc<str> {
    let metadata = &turn.param["metadata"];
    let text = |field: &str| metadata[field].as_str().unwrap_or_default();
    format!("{}/{}/{}/{}", turn.policy.name, turn.binding.name, text("namespace"), text("name")).into()
}
