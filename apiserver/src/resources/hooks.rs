//! What a kind may have to say to the verbs.

use skiff_api::{Cause, Object, Status};

use crate::auth::UserInfo;
use crate::call::Part;

/// Each does nothing unless a kind has something to say.
pub(crate) trait Hooks: Send + Sync {
    /// Sets what is the server's in a new object.
    fn prepare_create(&self, _user: &UserInfo, _object: &mut Object) {}

    /// Puts back what this part of an object may not change, before the kind's strategy does.
    fn prepare_update(&self, _part: Part, _new: &mut Object, _old: &Object) {}

    /// What refuses an update before anything else is looked at.
    fn check_update(&self, _new: &Object) -> Result<(), Status> {
        Ok(())
    }

    fn validate_create(&self, _object: &Object) -> Vec<Cause> {
        Vec::new()
    }

    fn validate_update(&self, _part: Part, _new: &Object, _old: &Object) -> Vec<Cause> {
        Vec::new()
    }

    /// Whether its deletion also waits for what `spec.finalizers` names, and is told in `status.phase`.
    fn has_spec_finalizers(&self) -> bool {
        false
    }
}

/// Of most kinds.
pub(super) struct Plain;

impl Hooks for Plain {}
