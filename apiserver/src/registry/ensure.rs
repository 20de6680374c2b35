//! Objects that are to be there.

use serde_json::Value;
use skiff_api::decode::FieldValidation;
use skiff_api::{Kind, Status, decode, default};

use super::Registry;
use crate::call::{Call, Part};

/// What becomes of an object that is there already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    Stays,
    IsReplaced,
}

impl Registry {
    /// Creates an object of a kind, by its group, version and plural, in the name of the server.
    pub(crate) async fn ensure(
        &self,
        (group, version, plural): (&str, &str, &str),
        namespace: &str,
        name: &str,
        object: Value,
        existing: Existing,
    ) -> Result<(), Status> {
        let lister = &self.objects.lister;
        let kind = lister.kind(group, version, plural)?;
        let mut object = decode::conform(&kind, with_type(object, &kind), FieldValidation::Strict)?.object;
        default::apply(&kind, &mut object);
        let mut call = Call::of_server(lister, kind, "create", namespace, name);
        match self.create_object(&mut call, object.clone(), false).await {
            Ok(_) => return Ok(()),
            Err(status) if status.reason == "AlreadyExists" => {}
            // The Service's address is its own if it exists.
            Err(status) if status.code == 422 && self.has(&call)? => {}
            Err(status) => return Err(status),
        }
        if existing == Existing::IsReplaced {
            object["metadata"]["namespace"] = namespace.into();
            self.update_object(&call, Part::Main, false, &mut Vec::new(), |_| Ok(object.clone())).await?;
        }
        Ok(())
    }

    /// Whether a call's object is there.
    pub(super) fn has(&self, call: &Call) -> Result<bool, Status> {
        Ok(self.objects.lister.caches.of(&call.kind)?.get(&call.key())?.is_some())
    }
}

fn with_type(mut object: Value, kind: &Kind) -> Value {
    object["apiVersion"] = kind.api_version().into();
    object["kind"] = kind.kind.clone().into();
    object
}
