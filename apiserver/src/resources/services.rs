//! Services keep what they were given.

use skiff_api::{Object, Status};

use super::hooks::Hooks;
use crate::call::Part;
use crate::services::allocator::{carry_over, repeated_port};

pub(super) struct Services;

impl Hooks for Services {
    fn prepare_update(&self, part: Part, new: &mut Object, old: &Object) {
        if part == Part::Main {
            carry_over(new, old);
        }
    }

    fn check_update(&self, new: &Object) -> Result<(), Status> {
        repeated_port(new).map_or(Ok(()), Err)
    }
}
