//! Asking webhooks one after the other, each about what the last has made of the object.
//!
//! Source: `mutating/dispatcher.go` of upstream's webhook plug-in.

use serde_json::{Value, json};
use skiff_api::{Object, Status, patch};
use tokio::time::Instant;

use super::applies::Equivalents;
use super::call::{CallFailure, Settled, is_over};
use super::compile::{ReinvocationPolicy, Webhook};
use super::reinvocation::{Reinvocation, Round};
use super::review::{Answer, Subject};
use super::{Attributes, AuditLevel, Caller, GroupVersionKind, Phase, Record, Webhooks, rejected};
use crate::document::named;

const MUTATION: &str = "mutation.webhook.admission.k8s.io/";
const PATCH: &str = "patch.webhook.admission.k8s.io/";
const FAILED_OPEN: &str = "failed-open.mutation.webhook.admission.k8s.io/";

impl Webhooks {
    /// Asks the webhooks that apply, in their order, and answers what they have made of `object`, in the version of the request and
    /// with the defaults of its kind. `attributes.object` is not looked at. Where `reinvocation` wants it then, the host runs its
    /// whole chain once more.
    ///
    /// # Errors
    /// The first denial or failure that counts.
    pub async fn mutate(
        &self,
        caller: Caller<'_>,
        attributes: &Attributes<'_>,
        object: Option<Object>,
        reinvocation: &mut Reinvocation,
        record: &mut Record,
    ) -> Result<Option<Object>, Status> {
        if self.hooks.is_empty() || Webhooks::is_exempt(attributes) {
            return Ok(object);
        }
        reinvocation.begin(object.as_ref());
        let mut current = Current::new(attributes, object);
        let equivalents = Equivalents::new(caller.host);
        for (index, hook) in self.hooks.iter().enumerate() {
            let mutation = Mutation { hook, index, caller, attributes, equivalents: &equivalents };
            mutation.run(&mut current, reinvocation, record).await?;
        }
        let object = current.back(caller).await?;
        reinvocation.end(object.as_ref());
        Ok(object)
    }
}

/// The object as it is now, as the kind that the last webhook was sent.
struct Current<'a> {
    attributes: &'a Attributes<'a>,
    kind: GroupVersionKind,
    object: Option<Object>,
    /// As `kind`; `None` while that is the request's own.
    old_object: Option<Object>,
    /// The object as the request's own kind, while `kind` is another.
    own: Option<Object>,
    /// Whether `object` is newer than `own`.
    is_changed: bool,
}

impl<'a> Current<'a> {
    fn new(attributes: &'a Attributes<'a>, object: Option<Object>) -> Current<'a> {
        let kind = attributes.kind.clone();
        Current { attributes, kind, object, old_object: None, own: None, is_changed: false }
    }

    fn is_own(&self) -> bool {
        self.kind == *self.attributes.kind
    }

    fn old_object(&self) -> Option<&Object> {
        if self.is_own() { self.attributes.old_object } else { self.old_object.as_ref() }
    }

    /// Makes it the request's own kind again.
    async fn restore(&mut self, caller: Caller<'_>) -> Result<(), Status> {
        if self.is_own() {
            return Ok(());
        }
        let own = self.attributes.kind;
        self.object = match self.object.take() {
            Some(object) if self.is_changed => Some(convert(caller, object, own).await?),
            _ => self.own.take(),
        };
        (self.kind, self.old_object, self.own, self.is_changed) = (own.clone(), None, None, false);
        Ok(())
    }

    async fn turn_into(&mut self, caller: Caller<'_>, kind: &GroupVersionKind) -> Result<(), Status> {
        if self.kind == *kind {
            return Ok(());
        }
        self.restore(caller).await?;
        if self.kind == *kind {
            return Ok(());
        }
        if let Some(old_object) = self.attributes.old_object {
            self.old_object = Some(convert(caller, old_object.clone(), kind).await?);
        }
        if let Some(object) = self.object.take() {
            self.object = Some(convert(caller, object.clone(), kind).await?);
            self.own = Some(object);
        }
        self.kind = kind.clone();
        Ok(())
    }

    async fn back(mut self, caller: Caller<'_>) -> Result<Option<Object>, Status> {
        self.restore(caller).await?;
        Ok(self.object)
    }
}

async fn convert(caller: Caller<'_>, object: Object, kind: &GroupVersionKind) -> Result<Object, Status> {
    caller.host.convert(object, kind).await.map_err(|why| rejected::internal(&why))
}

/// One webhook's turn.
struct Mutation<'m> {
    hook: &'m Webhook,
    /// Among all webhooks.
    index: usize,
    caller: Caller<'m>,
    attributes: &'m Attributes<'m>,
    equivalents: &'m Equivalents<'m>,
}

impl Mutation<'_> {
    async fn run(
        &self,
        current: &mut Current<'_>,
        reinvocation: &mut Reinvocation,
        record: &mut Record,
    ) -> Result<(), Status> {
        let (hook, attributes) = (self.hook, self.attributes);
        let invocation = hook.invocation(attributes, current.object.as_ref(), self.equivalents)?;
        let Some(invocation) = invocation else { return Ok(()) };
        if !hook.conditions.is_empty() {
            current.turn_into(self.caller, &invocation.kind).await?;
            let (object, old_object) = (current.object.as_ref(), current.old_object());
            if !hook.conditions_hold(attributes, &invocation.kind, object, old_object).await? {
                return Ok(());
            }
        }
        if !reinvocation.is_asked_now(&hook.uid) {
            return Ok(());
        }
        current.turn_into(self.caller, &invocation.kind).await?;
        let round = match reinvocation.round() {
            Round::First => 0,
            Round::Second => 1,
        };
        let place = format!("round_{round}_index_{}", self.index);
        let subject = Subject {
            kind: &invocation.kind,
            resource: &invocation.resource,
            object: current.object.as_ref(),
            old_object: current.old_object(),
        };
        let start = Instant::now();
        let answer = hook.call(self.caller.client, Phase::Mutating, attributes, &subject, record).await;
        let result = answer.and_then(|answer| self.apply(&answer, current));
        let has_changed = matches!(result, Ok(Some(Patched { has_changed: true, .. })));
        self.annotate(record, &place, has_changed, result.as_ref().ok().and_then(Option::as_ref));
        if has_changed {
            reinvocation.changed();
            reinvocation.want();
        }
        if hook.reinvocation == ReinvocationPolicy::IfNeeded {
            reinvocation.asked(&hook.uid);
        }
        let operation = attributes.operation;
        match hook.settle(self.caller.host, Phase::Mutating, operation, start.elapsed(), result) {
            Settled::Goes => Ok(()),
            Settled::Fails(status) => Err(status),
            Settled::FailedOpen => {
                record.annotate(format!("{FAILED_OPEN}{place}"), AuditLevel::Metadata, hook.name.clone());
                if is_over(attributes) { Err(rejected::timed_out()) } else { Ok(()) }
            }
        }
    }

    /// Applies the patch of an answer, if it has one with something in it.
    fn apply(&self, answer: &Answer, current: &mut Current<'_>) -> Result<Option<Patched>, CallFailure> {
        if answer.patch.is_empty() {
            return Ok(None);
        }
        let undecodable =
            |why: String| self.hook.failed(format!("received undecodable patch in webhook response: {why}"));
        let operations = operations(&answer.patch).map_err(undecodable)?;
        if operations.is_empty() {
            return Ok(None);
        }
        let internal = |why: String| CallFailure::Internal(rejected::internal(&why));
        let Some(object) = &current.object else {
            let name = &self.hook.name;
            return Err(internal(format!(
                "admission webhook {name:?} attempted to modify the object, which is not supported for this operation"
            )));
        };
        if answer.patch_type != "JSONPatch" {
            return Err(self.hook.failed(format!("unsupported patch type {:?}", answer.patch_type)));
        }
        let mut patched = object.clone();
        patch::apply_json(&mut patched, &operations).map_err(|error| internal(error.to_string()))?;
        let host = self.caller.host;
        let mut patched = host.decode(&current.kind, patched).map_err(internal)?;
        let has_changed = patched != *object;
        // A patch does not make another kind of it: upstream converts it back.
        if let Some(fields) = patched.as_object_mut() {
            for field in ["apiVersion", "kind"] {
                fields.insert(field.into(), object[field].clone());
            }
        }
        host.default(&current.kind, &mut patched);
        (current.object, current.is_changed) = (Some(patched), true);
        Ok(Some(Patched { operations, has_changed }))
    }

    fn annotate(&self, record: &mut Record, place: &str, has_changed: bool, patched: Option<&Patched>) {
        let (configuration, webhook) = (&*self.hook.configuration, &self.hook.name);
        let value =
            AuditValue { configuration, webhook, mutated: Some(has_changed), patch: None, patch_type: None };
        record.annotate(format!("{MUTATION}{place}"), AuditLevel::Metadata, value.shown());
        if let Some(Patched { operations, .. }) = patched {
            let patch = Some(operations.as_slice());
            let value =
                AuditValue { configuration, webhook, mutated: None, patch, patch_type: Some("JSONPatch") };
            record.annotate(format!("{PATCH}{place}"), AuditLevel::Request, value.shown());
        }
    }
}

/// What a patch has done.
struct Patched {
    operations: Vec<Value>,
    has_changed: bool,
}

/// Reads a patch as upstream's library does.
pub(super) fn operations(patch: &[u8]) -> Result<Vec<Value>, String> {
    let wrong = |value: &Value, type_: &str| {
        Err(format!("json: cannot unmarshal {} into Go value of type jsonpatch.{type_}", named(value)))
    };
    let operations = match serde_json::from_slice(patch).map_err(|error| error.to_string())? {
        Value::Array(operations) => operations,
        Value::Null => return Ok(Vec::new()),
        other => return wrong(&other, "Patch"),
    };
    match operations.iter().find(|operation| !operation.is_object() && !operation.is_null()) {
        Some(operation) => wrong(operation, "Operation"),
        None => Ok(operations),
    }
}

/// What audit events tell of a mutation.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct AuditValue<'v> {
    configuration: &'v str,
    webhook: &'v str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mutated: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<&'v [Value]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'v str>,
}

impl AuditValue<'_> {
    fn shown(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| json!({}).to_string())
    }
}
