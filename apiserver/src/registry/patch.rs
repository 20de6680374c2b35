//! Patch: JSON patch, merge patch, strategic merge patch.

use skiff_api::decode::FieldValidation;
use skiff_api::meta::{Admission, Meta, merge_owner_references};
use skiff_api::patch::{Patch, PatchType};
use skiff_api::{Kind, Object, Status, apply, default};

use super::Registry;
use super::managed::Tracker;
use super::options::{WriteOptions, is_apply, media_type};
use crate::call::{Call, Part};
use crate::limits::read_body;
use crate::respond::Response;

/// What the body of a request to patch is.
#[derive(Clone, Copy)]
pub(crate) enum Body {
    /// A document to apply.
    Applied,
    Patch(PatchType),
}

impl Body {
    /// What the content type says that it is, which is judged before anything else of the request, as upstream does: clients go
    /// by the code where theirs is unknown.
    ///
    /// # Errors
    /// 415 for types that the kind does not take.
    pub(crate) fn of(call: &Call) -> Result<Body, Status> {
        if is_apply(call) {
            return Ok(Body::Applied);
        }
        let sent = media_type(call);
        let known: Vec<_> = PatchType::media_types(&call.kind).collect();
        let patch = PatchType::of_media_type(sent).filter(|_| known.contains(&sent));
        patch.map(Body::Patch).ok_or_else(|| {
            Status::unsupported_media_type(&known.into_iter().chain([apply::MEDIA_TYPE]).collect::<Vec<_>>())
        })
    }
}

/// Reads the body of what is patched without being applied to.
///
/// # Errors
/// 415 for documents to apply.
pub(crate) async fn read_patch(
    call: &mut Call,
    body: Body,
    validation: FieldValidation,
) -> Result<Patch, Status> {
    let Body::Patch(patch_type) = body else {
        let why = format!(
            "server-side apply of {} is not supported by this server yet; apply the object itself",
            call.info.subresource
        );
        return Err(Status::new(415, "UnsupportedMediaType", why));
    };
    let bytes = read_body(call.take_body()).await?;
    Patch::read(patch_type, &bytes, validation)
}

impl Registry {
    /// PATCH of an object or its `status`.
    pub(crate) async fn patch(&self, mut call: Call) -> Result<Response, Status> {
        let body = Body::of(&call)?;
        let options = WriteOptions::parse(&call)?;
        if matches!(body, Body::Applied) {
            return self.apply(call, &options).await;
        }
        let patch = read_patch(&mut call, body, options.validation).await?;
        let part = Part::of(&call.info.subresource);
        let kind = call.kind.clone();
        let tracker = Tracker::of(&call, &options);
        let (mut warnings, mut admitted, mut old) = (Vec::new(), Vec::new(), None);
        let outcome = self
            .update_object(&call, part, options.dry_run, &mut admitted, |current| {
                warnings.clear();
                old = Some(current.clone());
                let mut new = patched(&kind, &patch, current, &mut warnings)?;
                tracker.note(Some(current), &mut new);
                Ok(new)
            })
            .await?;
        call.warnings.extend(warnings.into_iter().chain(admitted));
        if part == Part::Main {
            self.admission.warn(&mut call, &outcome.object, old.as_ref());
        }
        Ok(call.object(200, outcome.object))
    }
}

fn patched(
    kind: &Kind,
    patch: &Patch,
    current: &Object,
    warnings: &mut Vec<String>,
) -> Result<Object, Status> {
    let decoded = patch.apply(kind, current)?;
    warnings.extend(decoded.warnings);
    let mut object = decoded.object;
    warnings.extend(merge_owner_references(&mut object, Admission::After));
    default::apply(kind, &mut object);
    // As in other writes: what lies in no namespace is not told one, and who names none means that of the path.
    match current.namespace() {
        "" => _ = object.meta_mut().remove("namespace"),
        namespace if object.namespace().is_empty() => object.set_meta("namespace", namespace),
        _ => {}
    }
    for field in ["name", "namespace"] {
        if object.meta_str(field) != current.meta_str(field) {
            return Err(Status::bad_request(match field {
                "name" => format!(
                    "the name of the object ({}) does not match the name on the URL ({})",
                    object.name(),
                    current.name()
                ),
                _ => "the namespace of the provided object does not match the namespace sent on the request"
                    .to_owned(),
            }));
        }
    }
    Ok(object)
}
