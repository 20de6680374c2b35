//! What a kind knows beyond its shape: its rules on creation, update and status.

use crate::{Cause, Object};

/// The rules of one kind. Every method has a default that fits a kind without behaviour of its own.
///
/// The engine has decoded, pruned and defaulted the objects it hands over; `metadata` is checked and kept
/// by the engine itself (names, labels, ownership, immutable fields).
pub trait Strategy: Send + Sync {
    /// Defaults that the schema cannot say: those that depend on other fields.
    fn default(&self, _object: &mut Object) {}

    /// Clears what a client may not set on creation. The default drops `status` and starts `generation` at 1
    /// where the kind has a status subresource (`has_status`).
    fn prepare_create(&self, _object: &mut Object) {}

    /// Keeps what an update of the main resource may not touch. The engine has already put the old `status`
    /// back where the kind has a status subresource, and raises `generation` afterwards if `spec` differs.
    fn prepare_update(&self, _new: &mut Object, _old: &Object) {}

    /// The same for an update of `status`: the engine has kept everything but `status` from `old`.
    fn prepare_status_update(&self, _new: &mut Object, _old: &Object) {}

    /// The same for an update of another part, which `subresource` names: `new` is what stands, to be given what was `written` of
    /// that part.
    fn prepare_part_update(&self, _subresource: &str, _new: &mut Object, _written: &Object) {}

    /// Marks an object that is about to be deleted for the first time: with a finalizer it stays until somebody takes that
    /// away.
    fn prepare_delete(&self, _object: &mut Object, _now: &str) {}

    fn validate(&self, _object: &Object) -> Vec<Cause> {
        Vec::new()
    }

    /// What [`Strategy::validate`] does not say, of new objects only.
    fn validate_create(&self, _object: &Object) -> Vec<Cause> {
        Vec::new()
    }

    fn validate_update(&self, _new: &Object, _old: &Object) -> Vec<Cause> {
        Vec::new()
    }

    fn validate_status_update(&self, _new: &Object, _old: &Object) -> Vec<Cause> {
        Vec::new()
    }

    fn validate_part_update(&self, _subresource: &str, _new: &Object, _old: &Object) -> Vec<Cause> {
        Vec::new()
    }

    /// The grace period of a deletion that names none, in seconds; `None` deletes at once. Pods answer their
    /// `terminationGracePeriodSeconds`, or 0 when they were never bound or have ended.
    fn deletion_grace_seconds(&self, _object: &Object, requested: Option<i64>) -> Option<i64> {
        let _ = requested;
        None
    }

    /// Whether the `/spec` of this kind counts generations.
    fn counts_generations(&self) -> bool {
        true
    }

    /// What the version that is stored calls a selectable field of this one.
    fn stored_field<'f>(&self, field: &'f str) -> &'f str {
        field
    }

    /// The value of a selectable field, `""` if unset. The default follows the dotted path.
    fn field(&self, object: &Object, field: &str) -> String {
        let mut at = object;
        for part in field.split('.') {
            at = &at[part];
        }
        match at {
            serde_json::Value::String(s) => s.clone(),
            serde_json::Value::Null => String::new(),
            other => other.to_string(),
        }
    }
}

/// A kind without rules of its own.
pub struct Plain;

impl Strategy for Plain {}
