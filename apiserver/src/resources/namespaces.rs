//! Namespaces end once their controllers have taken their own finalizers away, which only `finalize` does.

use skiff_api::Object;

use super::hooks::Hooks;
use crate::call::Part;

pub(super) struct Namespaces;

impl Hooks for Namespaces {
    fn prepare_update(&self, part: Part, new: &mut Object, old: &Object) {
        if part == Part::Main {
            new["spec"]["finalizers"] = old["spec"]["finalizers"].clone();
        }
    }

    fn has_spec_finalizers(&self) -> bool {
        true
    }
}
