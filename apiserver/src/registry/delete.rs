//! Delete: at once, gracefully, or once finalizers are gone; of one object or a collection.
//!
//! Source: upstream's generic registry store (`Delete`, `BeforeDelete`, `DeleteCollection`).

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use skiff_api::meta::Meta;
use skiff_api::{Cause, Kind, Object, Status};
use skiff_webhook::admission::Operation;

use super::Registry;
use super::list::Page;
use super::options::{DeleteOptions, ListOptions, Propagation};
use crate::admission::dynamic::{Admitted, Rounds};
use crate::auth::attributes::Attributes;
use crate::cache::Entry;
use crate::call::Call;
use crate::clock::{now, timestamp};
use crate::convert::needs_webhook;
use crate::failure::store_failure;
use crate::limits::read_body;
use crate::objects::{Current, MAX_ATTEMPTS, Next, Outcome, Swapped};
use crate::resources::hooks_of;
use crate::respond::{self, Response};
use crate::store::{Expect, Write, Written};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
/// The verb for deleting what cannot be read.
const UNSAFE_DELETE: &str = "unsafe-delete-ignore-read-errors";

impl Registry {
    pub(super) async fn delete(&self, call: Call) -> Result<Response, Status> {
        let body = read_body(call.take_body()).await?;
        let options = DeleteOptions::parse(&call, &body)?;
        let (namespace, name) = (call.info.namespace.clone(), call.info.name.clone());
        if options.unreadable {
            self.delete_unreadable(&call).await?;
            return Ok(call.document(200, &respond::success(json!({}))));
        }
        let outcome = self.delete_object(&call, &namespace, &name, &options).await?;
        // The old way of asking for a cascade is told that it goes on.
        let code = if !outcome.deleted && options.orphan_dependents == Some(false) { 202 } else { 200 };
        if outcome.deleted && !call.kind.traits.returns_deleted {
            let details = json!({
                "name": name, "group": call.kind.group, "kind": call.kind.plural, "uid": outcome.object.uid(),
            });
            return Ok(call.document(code, &respond::success(without_empty(details))));
        }
        Ok(call.object(code, outcome.object))
    }

    /// Deletes one object as far as can be done now.
    pub(crate) async fn delete_object(
        &self,
        call: &Call,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Outcome, Status> {
        let kind = &call.kind;
        check_deletable(kind, name)?;
        let outcome = self.delete_until_written(call, namespace, name, options).await?;
        if outcome.deleted && !options.dry_run {
            self.services.release(kind, &outcome.object).await;
        }
        Ok(outcome)
    }

    async fn delete_until_written(
        &self,
        call: &Call,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Outcome, Status> {
        let (kind, document) = (&call.kind, options.document());
        let admitted =
            Admitted { operation: Operation::Delete, call, dry_run: options.dry_run, options: &document };
        let mut current = self.objects.current(kind, namespace, name).await?;
        for _ in 0..MAX_ATTEMPTS {
            check_preconditions(kind, &current, options)?;
            self.admission.admit_delete(call, &current.object)?;
            // An eviction was admitted as what it is.
            if call.info.subresource.is_empty() {
                self.admit_delete_dynamically(&admitted, &current.object).await?;
            }
            let next = plan(kind, &current.object, options, Timestamp::now());
            match self.objects.swap(kind, namespace, name, current, next, options.dry_run).await? {
                Swapped::Done(outcome) => return Ok(outcome),
                Swapped::Lost(newer) => current = newer,
            }
        }
        Err(Status::modified(&kind.group, &kind.plural, name))
    }

    async fn admit_delete_dynamically(&self, admitted: &Admitted<'_>, old: &Object) -> Result<(), Status> {
        let (mut rounds, mut warnings) = (Rounds::default(), Vec::new());
        self.admission.dynamic.mutate(admitted, None, Some(old), &mut rounds, &mut warnings).await?;
        self.admission.dynamic.validate(admitted, None, Some(old), &mut warnings).await
    }

    /// Removes a value that cannot be read, whatever it was: finalizers and dependents cannot be heeded.
    async fn delete_unreadable(&self, call: &Call) -> Result<(), Status> {
        let asked = Attributes { verb: UNSAFE_DELETE, ..Attributes::of(&call.user, &call.info) };
        self.authorizer.check(&asked).await?;
        self.objects.lister.caches.wait_for_newest().await?;
        let cache = self.objects.lister.caches.of(&call.kind)?;
        let Some(damage) = cache.damaged().remove(call.key().as_str()) else {
            let why = "is exclusively used to delete corrupt object(s), try again by removing this option";
            let field = "ignoreStoreReadErrorWithClusterBreakingPotential";
            let causes = vec![Cause::invalid(field, &json!(true), why)];
            return Err(Status::invalid(&call.kind.group, &call.kind.plural, &call.info.name, causes));
        };
        let key = cache.kind().key(&call.info.namespace, &call.info.name);
        tracing::warn!(key, user = call.user.name, why = %damage.why, "deleting a value that cannot be read");
        let write = Write::delete(key, Expect::ModRevision(damage.mod_revision));
        match self.objects.store.write(write).await.map_err(|e| store_failure(&e))? {
            Written::Done { .. } => Ok(()),
            Written::Mismatch { .. } => {
                Err(Status::modified(&call.kind.group, &call.kind.plural, &call.info.name))
            }
        }
    }

    pub(super) async fn delete_collection(&self, call: Call) -> Result<Response, Status> {
        let list = ListOptions::parse(&call)?;
        let body = read_body(call.take_body()).await?;
        let options = DeleteOptions::parse(&call, &body)?;
        let revision = self.objects.lister.caches.wait_for_newest().await?;
        let cache = self.objects.lister.caches.of(&call.kind)?;
        let (_, mut snapshot) = cache.snapshot_of(list.filter.namespace.as_deref())?;
        if needs_webhook(cache.kind(), &call.kind) && list.filter.has_own_fields() {
            snapshot =
                self.lists.converted_snapshot(cache.kind(), &call.kind, &snapshot, &list.filter).await?;
        }
        let matching = snapshot.values().filter(|entry| list.filter.matches(entry));
        let keys: Vec<_> = matching.map(|entry| entry.key.clone()).collect();
        // What was deleted is kept encoded: parsed, ten thousand objects would take ten times the memory.
        drop(snapshot);
        let mut deleted = Vec::new();
        for key in keys {
            let (namespace, name) = key.split_once('/').unwrap_or(("", &key));
            match self.delete_object(&call, namespace, name, &options).await {
                Ok(outcome) => {
                    deleted.push(Arc::new(self.entry_of(&call.kind, &key, &outcome.object).await?))
                }
                // Someone else was faster.
                Err(status) if status.code == 404 => {}
                Err(status) => return Err(status),
            }
        }
        self.lists
            .encode(
                call,
                Page { revision, entries: deleted, next: None, remaining: None, is_converted: false },
            )
            .await
    }

    /// An object as the cache would hold it.
    async fn entry_of(&self, kind: &Kind, key: &str, object: &Object) -> Result<Entry, Status> {
        let revision = object.meta_str("resourceVersion").parse().unwrap_or_default();
        let stored = self.objects.encode_stored(kind, object).await?;
        let decoded = Entry::decode(self.objects.lister.caches.of(kind)?.kind(), key, &stored, revision);
        decoded.map(|(entry, _)| entry).map_err(Status::internal)
    }
}

fn check_deletable(kind: &Kind, name: &str) -> Result<(), Status> {
    if kind.traits.protected.contains(&name) {
        let why = format!("this {} may not be deleted", kind.singular);
        return Err(Status::forbidden(&kind.group, &kind.plural, name, &why));
    }
    Ok(())
}

fn without_empty(mut details: Value) -> Value {
    if let Some(map) = details.as_object_mut() {
        map.retain(|_, value| value != "");
    }
    details
}

fn check_preconditions(kind: &Kind, current: &Current, options: &DeleteOptions) -> Result<(), Status> {
    let conflict =
        |why: String| Err(Status::conflict(&kind.group, &kind.plural, current.object.name(), &why));
    let uid = current.object.uid();
    if let Some(wanted) = options.uid.as_deref().filter(|wanted| *wanted != uid) {
        return conflict(format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
        ));
    }
    let version = current.revision.to_string();
    if let Some(wanted) = options.resource_version.as_ref().filter(|wanted| **wanted != version) {
        return conflict(format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({version}). The object might have been modified"
        ));
    }
    Ok(())
}

/// What deleting `object` now comes to.
fn plan(kind: &Kind, object: &Object, options: &DeleteOptions, at: Timestamp) -> Next {
    if hooks_of(kind).has_spec_finalizers() {
        return plan_with_spec_finalizers(kind, object, options, at);
    }
    if object.is_being_deleted() {
        return plan_again(object, options);
    }
    let grace_s = kind.strategy.deletion_grace_seconds(object, options.grace_s);
    let mut object = object.clone();
    set_finalizers(kind, &mut object, options);
    kind.strategy.prepare_delete(&mut object, &timestamp(at));
    match grace_s {
        Some(grace_s) if grace_s > 0 => {
            mark(&mut object, at, grace_s);
            Next::Put(object)
        }
        _ if !object.finalizers().is_empty() => {
            mark(&mut object, at, 0);
            Next::Put(object)
        }
        _ => Next::Delete(object),
    }
}

/// A deletion that is under way can only be made shorter.
fn plan_again(object: &Object, options: &DeleteOptions) -> Next {
    let pending_s = object.meta()["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    let mut object = object.clone();
    let waits = !object.finalizers().is_empty();
    // A negative time is a second, as upstream has it.
    match options.grace_s.map(|grace_s| if grace_s < 0 { 1 } else { grace_s }) {
        Some(grace_s) if grace_s < pending_s => {
            let since: Option<Timestamp> = object.meta_str("deletionTimestamp").parse().ok();
            if grace_s == 0 && !waits {
                return Next::Delete(object);
            }
            if let Some(since) = since {
                let earlier = since.saturating_sub(SignedDuration::from_secs(pending_s - grace_s));
                if let Ok(earlier) = earlier {
                    object.set_meta("deletionTimestamp", timestamp(earlier));
                }
            }
            object.set_meta("deletionGracePeriodSeconds", grace_s);
            Next::Put(object)
        }
        // Nothing holds it any more: what an interrupted deletion left.
        _ if pending_s == 0 && !waits => Next::Delete(object),
        _ => Next::Put(object),
    }
}

/// What has `spec.finalizers` goes when those are gone, too; the first deletion only marks it.
fn plan_with_spec_finalizers(kind: &Kind, object: &Object, options: &DeleteOptions, at: Timestamp) -> Next {
    let holds = |object: &Object| {
        !object.finalizers().is_empty()
            || object["spec"]["finalizers"].as_array().is_some_and(|list| !list.is_empty())
    };
    let mut object = object.clone();
    if object.is_being_deleted() {
        return if holds(&object) { Next::Put(object) } else { Next::Delete(object) };
    }
    set_finalizers(kind, &mut object, options);
    object.set_meta("deletionTimestamp", timestamp(at));
    object["status"]["phase"] = "Terminating".into();
    if holds(&object) { Next::Put(object) } else { Next::Delete(object) }
}

fn mark(object: &mut Object, at: Timestamp, grace_s: i64) {
    let due =
        at.saturating_add(SignedDuration::from_secs(grace_s)).map_or_else(|_| now(), |t| timestamp(t).into());
    object.set_meta("deletionTimestamp", due);
    object.set_meta("deletionGracePeriodSeconds", grace_s);
    if let Some(generation) = object.meta()["generation"].as_i64().filter(|g| *g > 0) {
        object.set_meta("generation", generation + 1);
    }
}

/// The garbage collector's finalizers, as the propagation policy asks.
fn set_finalizers(kind: &Kind, object: &mut Object, options: &DeleteOptions) {
    let before: Vec<String> = object.finalizers().into_iter().map(str::to_owned).collect();
    let wanted = match options.propagation {
        Some(Propagation::Orphan) => Some(ORPHAN),
        Some(Propagation::Foreground) => Some(FOREGROUND),
        Some(Propagation::Background) => None,
        None if before.iter().any(|f| f == ORPHAN || f == FOREGROUND) => return,
        None => kind.traits.orphans.then_some(ORPHAN),
    };
    let mut after: Vec<String> = before.into_iter().filter(|f| f != ORPHAN && f != FOREGROUND).collect();
    after.extend(wanted.map(str::to_owned));
    if after.is_empty() {
        object.meta_mut().remove("finalizers");
    } else {
        object.set_meta("finalizers", after);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deletion_under_way_only_gets_shorter() {
        let pod = json!({"metadata": {
            "deletionTimestamp": "2026-01-01T00:00:30Z", "deletionGracePeriodSeconds": 30,
        }});
        let again = |grace_s| plan_again(&pod, &DeleteOptions { grace_s, ..Default::default() });
        assert!(matches!(again(None), Next::Put(same) if same == pod));
        assert!(matches!(again(Some(60)), Next::Put(same) if same == pod));
        assert!(matches!(again(Some(0)), Next::Delete(_)));
        let Next::Put(negative) = again(Some(-1)) else { panic!("a negative time is not force") };
        assert_eq!(negative["metadata"]["deletionGracePeriodSeconds"], 1);
        let Next::Put(shorter) = again(Some(10)) else { panic!("still graceful") };
        assert_eq!(shorter["metadata"]["deletionTimestamp"], "2026-01-01T00:00:10Z");
        assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 10);
    }
}
