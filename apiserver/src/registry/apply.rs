//! Server-side apply: PATCH with a document that says what its author wants, of an object that may be there or not.
//!
//! Source: `applyPatcher` of apiserver's `endpoints/handlers/patch.go`.

use skiff_api::apply::{self, Force};
use skiff_api::meta::{Admission, Meta, merge_owner_references};
use skiff_api::{Object, Status};

use super::Registry;
use super::managed::Tracker;
use super::metadata;
use super::options::WriteOptions;
use crate::call::{Call, Part};
use crate::limits::read_body;
use crate::respond::Response;

/// How often an object may appear or go between looking and writing.
const MAX_ATTEMPTS: usize = 5;

impl Registry {
    /// What was there is changed, what was not is created.
    pub(super) async fn apply(&self, mut call: Call, options: &WriteOptions) -> Result<Response, Status> {
        let body = read_body(call.take_body()).await?;
        let read = apply::read(&body, options.validation)?;
        call.warnings.extend(read.warnings);
        let document = read.object;
        for _ in 0..MAX_ATTEMPTS {
            match self.apply_to_existing(&mut call, options, &document).await {
                Err(status)
                    if status.code == 404 && call.info.subresource.is_empty() && !self.has(&call)? => {}
                answer => return answer,
            }
            match self.apply_to_nothing(&mut call, options, &document).await {
                Err(status) if status.reason == "AlreadyExists" => {}
                answer => return answer,
            }
        }
        Err(Status::modified(&call.kind.group, &call.kind.plural, &call.info.name))
    }

    async fn apply_to_existing(
        &self,
        call: &mut Call,
        options: &WriteOptions,
        document: &Object,
    ) -> Result<Response, Status> {
        let part = Part::of(&call.info.subresource);
        let tracker = Tracker::of(call, options);
        let (mut warning, mut old, mut warnings) = (None, None, Vec::new());
        let outcome = self
            .update_object(call, part, options.dry_run, &mut warnings, |current| {
                old = Some(current.clone());
                let mut new = applied(&tracker, call, Some(current), document, options.force)?;
                warning = merge_owner_references(&mut new, Admission::After);
                Ok(new)
            })
            .await?;
        call.warnings.extend(warning.into_iter().chain(warnings));
        if part == Part::Main {
            self.admission.warn(call, &outcome.object, old.as_ref());
        }
        Ok(call.object(200, outcome.object))
    }

    async fn apply_to_nothing(
        &self,
        call: &mut Call,
        options: &WriteOptions,
        document: &Object,
    ) -> Result<Response, Status> {
        self.authorizer.check_may_create(&call.user, &call.info).await?;
        let mut new = applied(&Tracker::of(call, options), call, None, document, options.force)?;
        if !new.uid().is_empty() {
            let why = format!(
                "uid mismatch: the provided object specified uid {}, and no existing object was found",
                new.uid()
            );
            return Err(Status::conflict(&call.kind.group, &call.kind.plural, &call.info.name, &why));
        }
        call.warnings.extend(merge_owner_references(&mut new, Admission::After));
        let created = self.create_object(call, new, options.dry_run).await?;
        Ok(call.object(201, created))
    }
}

/// What the document makes of the object that the path names.
fn applied(
    tracker: &Tracker,
    call: &Call,
    live: Option<&Object>,
    document: &Object,
    force: Force,
) -> Result<Object, Status> {
    let mut new = tracker.apply(live, document, force)?;
    metadata::match_namespace(call, &mut new)?;
    metadata::match_name(call, &mut new)?;
    Ok(new)
}
