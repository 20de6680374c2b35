//! Asking all webhooks at once.
//!
//! Source: `validating/dispatcher.go` of upstream's webhook plug-in.

use futures::future::join_all;
use skiff_api::{Object, Status};
use tokio::time::Instant;

use super::applies::{Equivalents, Invocation};
use super::call::{Settled, is_over};
use super::compile::Webhook;
use super::review::Subject;
use super::{Attributes, AuditLevel, Caller, GroupVersionKind, Phase, Record, Webhooks, rejected};

const FAILED_OPEN: &str = "failed-open.validating.webhook.admission.k8s.io/";

/// The objects of a request as another kind.
struct Versioned {
    kind: GroupVersionKind,
    object: Option<Object>,
    old_object: Option<Object>,
}

impl Webhooks {
    /// Asks all webhooks that apply, at once, and waits for all of them.
    ///
    /// # Errors
    /// The first denial or failure that counts, in the order of the webhooks.
    pub async fn validate(
        &self,
        caller: Caller<'_>,
        attributes: &Attributes<'_>,
        record: &mut Record,
    ) -> Result<(), Status> {
        if self.hooks.is_empty() || Webhooks::is_exempt(attributes) {
            return Ok(());
        }
        let mut versions: Vec<Versioned> = Vec::new();
        let mut called: Vec<(&Webhook, Invocation)> = Vec::new();
        let equivalents = Equivalents::new(caller.host);
        for hook in &self.hooks {
            let invocation = hook.invocation(attributes, attributes.object, &equivalents)?;
            let Some(invocation) = invocation else { continue };
            version(&mut versions, caller, attributes, &invocation.kind).await?;
            let subject = subject(&versions, attributes, &invocation);
            let (object, old_object) = (subject.object, subject.old_object);
            if hook.conditions_hold(attributes, subject.kind, object, old_object).await? {
                called.push((hook, invocation));
            }
        }
        if called.is_empty() {
            return Ok(());
        }
        if is_over(attributes) {
            return Err(rejected::timed_out());
        }
        let calls = called.iter().enumerate().map(|(index, (hook, invocation))| {
            let subject = subject(&versions, attributes, invocation);
            validate_one(hook, index, caller, attributes, subject)
        });
        let mut first = Ok(());
        for (result, of_one) in join_all(calls).await {
            record.add(of_one);
            first = first.and(result);
        }
        first
    }
}

/// Makes sure that the objects are there as `kind`.
async fn version(
    versions: &mut Vec<Versioned>,
    caller: Caller<'_>,
    attributes: &Attributes<'_>,
    kind: &GroupVersionKind,
) -> Result<(), Status> {
    if kind == attributes.kind || versions.iter().any(|known| known.kind == *kind) {
        return Ok(());
    }
    let mut converted = [None, None];
    for (place, object) in converted.iter_mut().zip([attributes.object, attributes.old_object]) {
        if let Some(object) = object {
            let object = caller.host.convert(object.clone(), kind).await;
            *place = Some(object.map_err(|why| rejected::internal(&why))?);
        }
    }
    let [object, old_object] = converted;
    versions.push(Versioned { kind: kind.clone(), object, old_object });
    Ok(())
}

fn subject<'r>(
    versions: &'r [Versioned],
    attributes: &Attributes<'r>,
    invocation: &'r Invocation,
) -> Subject<'r> {
    let (kind, resource) = (&invocation.kind, &invocation.resource);
    match versions.iter().find(|known| known.kind == *kind) {
        Some(known) => {
            let (object, old_object) = (known.object.as_ref(), known.old_object.as_ref());
            Subject { kind, resource, object, old_object }
        }
        None => Subject { kind, resource, object: attributes.object, old_object: attributes.old_object },
    }
}

async fn validate_one(
    hook: &Webhook,
    index: usize,
    caller: Caller<'_>,
    attributes: &Attributes<'_>,
    subject: Subject<'_>,
) -> (Result<(), Status>, Record) {
    let (start, mut record) = (Instant::now(), Record::default());
    let answer = hook.call(caller.client, Phase::Validating, attributes, &subject, &mut record).await;
    let operation = attributes.operation;
    let result = match hook.settle(caller.host, Phase::Validating, operation, start.elapsed(), answer) {
        Settled::Goes => Ok(()),
        Settled::Fails(status) => Err(status),
        Settled::FailedOpen => {
            let key = format!("{FAILED_OPEN}round_0_index_{index}");
            record.annotate(key, AuditLevel::Metadata, hook.name.clone());
            Ok(())
        }
    };
    (result, record)
}
