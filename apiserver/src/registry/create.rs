//! Create.

use skiff_api::decode::FieldValidation;
use skiff_api::meta::{Admission, Meta, merge_owner_references};
use skiff_api::{Cause, Kind, Object, Status, decode, default};
use skiff_webhook::admission::Operation;

use super::Registry;
use super::managed::Tracker;
use super::metadata;
use super::options::WriteOptions;
use crate::admission::dynamic::{Admitted, Rounds, write_options};
use crate::call::Call;
use crate::limits::read_body;
use crate::negotiate::object_format;
use crate::resources::hooks_of;
use crate::respond::Response;
use crate::services::allocator;

/// How often a generated name that is taken is generated again, as upstream.
const GENERATE_ATTEMPTS: usize = 8;

impl Registry {
    pub(super) async fn create(&self, mut call: Call) -> Result<Response, Status> {
        let options = WriteOptions::parse(&call)?;
        let mut object = read_object(&mut call, options.validation).await?;
        Tracker::of(&call, &options).note(None, &mut object);
        let created = self.create_object(&mut call, object, options.dry_run).await?;
        Ok(call.object(201, created))
    }

    /// Creates a decoded object: names it, admits it, checks it, writes it.
    pub(crate) async fn create_object(
        &self,
        call: &mut Call,
        mut given: Object,
        dry_run: bool,
    ) -> Result<Object, Status> {
        let kind = call.kind.clone();
        metadata::match_namespace(call, &mut given)?;
        let has_version = !matches!(given.resource_version(), "" | "0");
        given.meta_mut().remove("resourceVersion");
        if call.table.is_terminating(&kind) {
            let why = "create not allowed while custom resource definition is terminating";
            return Err(Status::forbidden(&kind.group, &kind.plural, given.name(), why));
        }
        self.admission.check_namespace(call, &given).await?;
        let mut attempt = 0;
        loop {
            attempt += 1;
            // Only a name that is generated may be taken and the object still be made.
            let is_last = attempt == GENERATE_ATTEMPTS || !given.name().is_empty();
            let mut object = if is_last { std::mem::take(&mut given) } else { given.clone() };
            let generated = metadata::generate_name(&kind, &mut object);
            object = self.mutate_new(call, object, generated, dry_run).await?;
            prepare(&kind, &mut object);
            hooks_of(&kind).prepare_create(&call.user, &mut object);
            kind.write(&mut object);
            check(&kind, &object, self.admission.device_admins(&kind, &object)?)?;
            refuse(
                &kind,
                object.name(),
                self.admission.unreadable_params(call, &object, None).await?.into_iter().collect(),
            )?;
            self.admission.validate_create(call, &object, None).await?;
            self.admission.check_limits(&kind, &object)?;
            self.validate_new(call, &object, dry_run).await?;
            // Upstream's store says so, after all of admission.
            if has_version {
                return Err(Status::new(
                    500,
                    "",
                    "resourceVersion should not be set on objects to be created",
                ));
            }
            let name = object.name().to_owned();
            let charge = self.admission.quotas.charge(&kind, &object, dry_run).await?;
            match self.write_new(&kind, object, dry_run).await {
                Ok(Some(created)) => {
                    self.admission.warn(call, &created, None);
                    return Ok(created);
                }
                Ok(None) => self.admission.quotas.refund(charge).await,
                Err(status) => {
                    self.admission.quotas.refund(charge).await;
                    return Err(status);
                }
            }
            if !generated || attempt == GENERATE_ATTEMPTS {
                return Err(Status::already_exists(&kind.group, &kind.plural, &name));
            }
        }
    }

    /// A new object as mutating admission leaves it: what is built in, then webhooks, and all of it once more where a webhook has
    /// changed something that another may want to see.
    async fn mutate_new(
        &self,
        call: &mut Call,
        mut object: Object,
        generated: bool,
        dry_run: bool,
    ) -> Result<Object, Status> {
        let options = write_options("CreateOptions", call, dry_run);
        let (mut rounds, mut warnings) = (Rounds::default(), Vec::new());
        loop {
            self.admission.admit_create(call, &mut object).await?;
            // Webhooks are asked before a name is generated.
            let name = if generated { object.meta_mut().remove("name") } else { None };
            let admitted = Admitted { operation: Operation::Create, call, dry_run, options: &options };
            let mutated = self
                .admission
                .dynamic
                .mutate(&admitted, Some(object), None, &mut rounds, &mut warnings)
                .await?;
            object = mutated.object.ok_or_else(|| Status::internal("a webhook left no object"))?;
            if let Some(name) = name.filter(|_| object.name().is_empty()) {
                object.set_meta("name", name);
            }
            if !rounds.is_wanted() {
                break;
            }
            rounds.begin_again();
        }
        call.warnings.extend(warnings);
        Ok(object)
    }

    async fn validate_new(&self, call: &mut Call, object: &Object, dry_run: bool) -> Result<(), Status> {
        let (options, mut warnings) = (write_options("CreateOptions", call, dry_run), Vec::new());
        let admitted = Admitted { operation: Operation::Create, call, dry_run, options: &options };
        self.admission.dynamic.validate(&admitted, Some(object), None, &mut warnings).await?;
        call.warnings.extend(warnings);
        Ok(())
    }

    /// Gives a checked object what is given out, and writes it; `None` if one of its name exists.
    async fn write_new(
        &self,
        kind: &Kind,
        mut object: Object,
        dry_run: bool,
    ) -> Result<Option<Object>, Status> {
        let mut allocation =
            self.services.allocate(kind, &mut object, None, allocator::Write::of(dry_run)).await?;
        kind.write(&mut object);
        let wanted = allocation.is_claimed().then(|| object.clone());
        // Where this fails it may have happened: what is claimed for it is found later, if it has not.
        let created = self.objects.insert(kind, object, dry_run).await?;
        match (&created, wanted) {
            (Some(created), _) if !dry_run => self.services.keep(allocation, created).await,
            (None, Some(wanted)) => self.services.unclaim(&mut allocation, &wanted).await,
            _ => {}
        }
        Ok(created)
    }
}

/// Reads and decodes the body as an object of the call's kind, defaults filled in.
pub(crate) async fn read_object(call: &mut Call, validation: FieldValidation) -> Result<Object, Status> {
    let format = object_format(&call.kind, &call.headers)?;
    let bytes = read_body(call.take_body()).await?;
    let decoded = decode::decode(&call.kind, &bytes, format, validation)?;
    call.warnings.extend(decoded.warnings);
    let mut object = decoded.object;
    call.warnings.extend(merge_owner_references(&mut object, Admission::Before));
    default::apply(&call.kind, &mut object);
    Ok(object)
}

/// Clears and sets what is the server's.
fn prepare(kind: &Kind, object: &mut Object) {
    if kind.has_subresource("status")
        && !kind.traits.keeps_status
        && let Some(root) = object.as_object_mut()
    {
        root.remove("status");
    }
    metadata::prepare_create(kind, object);
    kind.strategy.prepare_create(object);
}

fn check(kind: &Kind, object: &Object, more: Option<Cause>) -> Result<(), Status> {
    let mut causes = metadata::validate(kind, object, metadata::Write::Create);
    causes.extend(more);
    let mut causes = kind.faults(object, None, causes);
    causes.extend(hooks_of(kind).validate_create(object));
    refuse(kind, object.name(), causes)
}

pub(super) fn refuse(kind: &Kind, name: &str, causes: Vec<Cause>) -> Result<(), Status> {
    if causes.is_empty() { Ok(()) } else { Err(Status::invalid(&kind.group, &kind.kind, name, causes)) }
}
