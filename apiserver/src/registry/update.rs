//! Update, of an object and of its status.

use serde_json::{Value, json};
use skiff_api::meta::Meta;
use skiff_api::{Cause, Kind, Object, Status};
use skiff_webhook::admission::Operation;

use super::Registry;
use super::create::{read_object, refuse};
use super::managed::Tracker;
use super::metadata;
use super::options::WriteOptions;
use crate::admission::dynamic::{Admitted, Rounds, write_options};
use crate::admission::quota::Charge;
use crate::call::{Call, Part, key_of};
use crate::objects::{Current, MAX_ATTEMPTS, Next, Outcome, Swapped};
use crate::resources::hooks_of;
use crate::respond::Response;
use crate::services::allocator::{self, Allocation};

impl Registry {
    /// PUT of an object, its `status` or its `finalize`.
    pub(crate) async fn update(&self, mut call: Call) -> Result<Response, Status> {
        let options = WriteOptions::parse(&call)?;
        let mut new = read_object(&mut call, options.validation).await?;
        metadata::match_namespace(&call, &mut new)?;
        metadata::match_name(&call, &mut new)?;
        let part = Part::of(&call.info.subresource);
        let kind = call.kind.clone();
        let tracker = Tracker::of(&call, &options);
        if part == Part::Main && kind.traits.creates_on_update {
            self.objects.lister.caches.wait_for_newest().await?;
            let exists = self
                .objects
                .lister
                .caches
                .of(&kind)?
                .get(&key_of(&kind, new.namespace(), new.name()))?
                .is_some();
            if !exists {
                self.authorizer.check_may_create(&call.user, &call.info).await?;
                tracker.note(None, &mut new);
                let created = self.create_object(&mut call, new, options.dry_run).await?;
                return Ok(call.object(201, created));
            }
        }
        let (mut old, mut warnings) = (None, Vec::new());
        let outcome = self
            .update_object(&call, part, options.dry_run, &mut warnings, |current| {
                old = Some(current.clone());
                let mut new = new.clone();
                tracker.note(Some(current), &mut new);
                Ok(new)
            })
            .await?;
        call.warnings.extend(warnings);
        if part == Part::Main {
            self.admission.warn(&mut call, &outcome.object, old.as_ref());
        }
        Ok(call.object(200, outcome.object))
    }

    /// Replaces a part of a stored object with what `make` makes of the current one. What webhooks warn of is added to `warnings`.
    pub(crate) async fn update_object(
        &self,
        call: &Call,
        part: Part,
        dry_run: bool,
        warnings: &mut Vec<String>,
        mut make: impl FnMut(&Object) -> Result<Object, Status>,
    ) -> Result<Outcome, Status> {
        let kind = &call.kind;
        let (namespace, name) = (call.info.namespace.as_str(), call.info.name.as_str());
        let charge = match part {
            Part::Main => {
                self.admission.quotas.charge_update(kind, namespace, name, dry_run, &mut make).await?
            }
            Part::Resize => {
                let resized = |current: &Object| {
                    let mut new = make(current)?;
                    prepare(kind, part, &mut new, current);
                    Ok(new)
                };
                self.admission.quotas.charge_update(kind, namespace, name, dry_run, resized).await?
            }
            _ => Charge::default(),
        };
        let update = Updating { call, part, dry_run, warnings };
        let (outcome, allocation) = match self.update_until_written(update, make).await {
            Ok(updated) => updated,
            Err(status) => {
                self.admission.quotas.refund(charge).await;
                return Err(status);
            }
        };
        if let Some(allocation) = allocation
            && !dry_run
        {
            self.services.keep(allocation, &outcome.object).await;
        }
        // The last thing that its deletion waited for is gone.
        if outcome.deleted && !dry_run {
            self.services.release(kind, &outcome.object).await;
        }
        Ok(outcome)
    }

    async fn update_until_written(
        &self,
        update: Updating<'_>,
        mut make: impl FnMut(&Object) -> Result<Object, Status>,
    ) -> Result<(Outcome, Option<Allocation>), Status> {
        let Updating { call, part, dry_run, warnings } = update;
        let kind = &call.kind;
        let (namespace, name) = (call.info.namespace.as_str(), call.info.name.as_str());
        let options = write_options(
            if call.info.verb == "patch" { "PatchOptions" } else { "UpdateOptions" },
            call,
            dry_run,
        );
        let admitted = Admitted { operation: Operation::Update, call, dry_run, options: &options };
        // What an earlier try took is given back first: it would be in this one's way.
        let mut allocation: Option<Allocation>;
        let mut current = self.objects.current(kind, namespace, name).await?;
        for _ in 0..MAX_ATTEMPTS {
            allocation = None;
            warnings.clear();
            let mut new = make(&current.object)?;
            check_version(kind, &new, &current)?;
            if call.info.verb == "update" {
                check_uid(kind, &new, &current)?;
            }
            new = self.mutate_update(&admitted, part, new, &current.object, warnings).await?;
            kind.write(&mut new);
            check(kind, part, &new, &current.object)?;
            if part == Part::Main {
                let unreadable = self.admission.unreadable_params(call, &new, Some(&current.object)).await?;
                refuse(kind, new.name(), unreadable.into_iter().collect())?;
            }
            if part == Part::Status {
                let unsigned = self.admission.unsigned(call, &new, &current.object).await;
                refuse(kind, new.name(), unsigned.into_iter().collect())?;
            }
            self.admission.validate_update(call, &new, &current.object).await?;
            self.admission.dynamic.validate(&admitted, Some(&new), Some(&current.object), warnings).await?;
            if part == Part::Main {
                let write = allocator::Write::of(dry_run);
                allocation =
                    Some(self.services.allocate(kind, &mut new, Some(&current.object), write).await?);
                kind.write(&mut new);
            }
            let wanted = allocation.as_ref().filter(|given| given.is_claimed()).map(|_| new.clone());
            let next =
                if is_finished(kind, &new, &current.object) { Next::Delete(new) } else { Next::Put(new) };
            match self.objects.swap(kind, namespace, name, current, next, dry_run).await? {
                Swapped::Done(outcome) => return Ok((outcome, allocation)),
                Swapped::Lost(newer) => current = newer,
            }
            if let (Some(given), Some(wanted)) = (allocation.as_mut(), wanted) {
                self.services.unclaim(given, &wanted).await;
            }
        }
        Err(Status::modified(&kind.group, &kind.plural, name))
    }

    /// The object as mutating admission leaves it: what is built in, then webhooks, and all of it once more where a webhook has
    /// changed something that another may want to see.
    async fn mutate_update(
        &self,
        admitted: &Admitted<'_>,
        part: Part,
        mut new: Object,
        old: &Object,
        warnings: &mut Vec<String>,
    ) -> Result<Object, Status> {
        let (call, kind) = (admitted.call, &admitted.call.kind);
        let (mut rounds, mut has_changed) = (Rounds::default(), false);
        loop {
            self.complete(call, part, &mut new, old).await?;
            let mutated =
                self.admission.dynamic.mutate(admitted, Some(new), Some(old), &mut rounds, warnings).await?;
            has_changed |= mutated.has_changed;
            new = mutated.object.ok_or_else(|| Status::internal("a webhook left no object"))?;
            if !rounds.is_wanted() {
                break;
            }
            rounds.begin_again();
        }
        if has_changed {
            // What no request may change, no webhook may.
            prepare(kind, part, &mut new, old);
        }
        Ok(new)
    }

    async fn complete(&self, call: &Call, part: Part, new: &mut Object, old: &Object) -> Result<(), Status> {
        let kind = &call.kind;
        self.admission.complete_update(call, new, old);
        prepare(kind, part, new, old);
        self.admission.admit_update(call, new, old).await?;
        if part == Part::Main { hooks_of(kind).check_update(new) } else { Ok(()) }
    }
}

/// One update.
struct Updating<'u> {
    call: &'u Call,
    part: Part,
    dry_run: bool,
    warnings: &'u mut Vec<String>,
}

fn check_version(kind: &Kind, new: &Object, current: &Current) -> Result<(), Status> {
    match new.resource_version() {
        "" | "0" if kind.traits.needs_version => {
            // As Go prints an unsigned number.
            let cause = Cause {
                reason: "FieldValueInvalid",
                message: "Invalid value: 0x0: must be specified for an update".to_owned(),
                field: "metadata.resourceVersion".to_owned(),
            };
            refuse(kind, new.name(), vec![cause])
        }
        "" | "0" => Ok(()),
        version if version.parse() == Ok(current.revision) => Ok(()),
        version => match version.parse::<u64>() {
            Ok(_) => Err(Status::modified(&kind.group, &kind.plural, new.name())),
            Err(_) => Err(Status::bad_request(format!("invalid resourceVersion {version:?}"))),
        },
    }
}

fn check_uid(kind: &Kind, new: &Object, current: &Current) -> Result<(), Status> {
    let (wanted, found) = (new.uid(), current.object.uid());
    if wanted.is_empty() || wanted == found {
        return Ok(());
    }
    let key = kind.key(current.object.namespace(), current.object.name());
    let why = format!(
        "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: \
         Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}"
    );
    Err(Status::conflict(&kind.group, &kind.plural, new.name(), &why))
}

/// Puts back what this part of the object may not change.
fn prepare(kind: &Kind, part: Part, new: &mut Object, old: &Object) {
    // Who manages what was noted before, whatever part it is.
    let managed = new.meta_mut().remove("managedFields");
    prepare_part(kind, part, new, old);
    match managed {
        Some(managed) => new.set_meta("managedFields", managed),
        None => _ = new.meta_mut().remove("managedFields"),
    }
}

fn prepare_part(kind: &Kind, part: Part, new: &mut Object, old: &Object) {
    match part {
        Part::Main => {
            if kind.has_subresource("status") {
                restore(new, old, "status");
            }
            metadata::prepare_update(new, old);
            hooks_of(kind).prepare_update(part, new, old);
            kind.strategy.prepare_update(new, old);
            metadata::raise_generation(kind, new, old);
        }
        Part::Status => {
            let status = new.get("status").cloned();
            let owners = old.meta().get("ownerReferences").cloned();
            let meta = new["metadata"].take();
            *new = old.clone();
            new["metadata"] = meta;
            match owners {
                Some(owners) => new.set_meta("ownerReferences", owners),
                None => _ = new.meta_mut().remove("ownerReferences"),
            }
            if let (Some(status), Some(root)) = (status, new.as_object_mut()) {
                root.insert("status".into(), status);
            }
            for field in kind.traits.kept_metadata {
                match old.meta().get(*field) {
                    Some(value) => new.set_meta(field, value.clone()),
                    None => _ = new.meta_mut().remove(*field),
                }
            }
            metadata::prepare_update(new, old);
            hooks_of(kind).prepare_update(part, new, old);
            kind.strategy.prepare_status_update(new, old);
        }
        Part::Finalize => {
            let finalizers = new["spec"]["finalizers"].take();
            *new = old.clone();
            if let Some(spec) = new["spec"].as_object_mut() {
                spec.insert("finalizers".into(), finalizers);
            } else {
                new["spec"] = json!({"finalizers": finalizers});
            }
            if new["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty)
                && let Some(spec) = new["spec"].as_object_mut()
            {
                spec.remove("finalizers");
            }
        }
        Part::Approval => {
            let conditions = new["status"]["conditions"].take();
            let meta = new["metadata"].take();
            *new = old.clone();
            new["metadata"] = meta;
            // None is what takes them away, which validation refuses.
            if !conditions.is_null() {
                new["status"]["conditions"] = conditions;
            } else if let Some(status) = new["status"].as_object_mut() {
                status.remove("conditions");
            }
            metadata::prepare_update(new, old);
            hooks_of(kind).prepare_update(part, new, old);
        }
        Part::EphemeralContainers | Part::Resize => {
            let written = std::mem::replace(new, old.clone());
            kind.strategy.prepare_part_update(subresource_of(part), new, &written);
            metadata::raise_generation(kind, new, old);
        }
    }
}

/// What the strategy of the kind calls a part that it alone knows.
fn subresource_of(part: Part) -> &'static str {
    match part {
        Part::Main => "",
        Part::Status => "status",
        Part::Finalize => "finalize",
        Part::Approval => "approval",
        Part::EphemeralContainers => "ephemeralcontainers",
        Part::Resize => "resize",
    }
}

fn restore(new: &mut Object, old: &Object, field: &str) {
    if let Some(root) = new.as_object_mut() {
        match old.get(field) {
            Some(value) => root.insert(field.into(), value.clone()),
            None => root.remove(field),
        };
    }
}

fn check(kind: &Kind, part: Part, new: &Object, old: &Object) -> Result<(), Status> {
    let mut causes = metadata::validate_update(new, old);
    causes.extend(metadata::validate(kind, new, metadata::Write::Update));
    match part {
        Part::Main => causes = kind.faults(new, Some(old), causes),
        Part::Status => causes.extend(kind.validate_status(new, old)),
        Part::EphemeralContainers | Part::Resize => {
            causes.extend(kind.validate_part(subresource_of(part), new, old));
        }
        Part::Finalize | Part::Approval => {}
    }
    causes.extend(hooks_of(kind).validate_update(part, new, old));
    refuse(kind, new.name(), causes)
}

/// Whether an update took away the last thing that an object's deletion was waiting for.
fn is_finished(kind: &Kind, new: &Object, old: &Object) -> bool {
    if !old.is_being_deleted() || !new.finalizers().is_empty() {
        return false;
    }
    if hooks_of(kind).has_spec_finalizers() {
        return new["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty);
    }
    matches!(old.meta()["deletionGracePeriodSeconds"], Value::Null)
        || old.meta()["deletionGracePeriodSeconds"] == 0
}
