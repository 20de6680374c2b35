//! What an applier may not change, because others own it.
//!
//! Source: `internal/conflict.go` of apimachinery's `util/managedfields`.

use std::collections::BTreeMap;
use std::fmt;

use super::element::Element;
use super::managers::Manager;
use super::set::Set;
use super::shown_path;
use crate::{Cause, Status};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    pub(super) manager: Manager,
    pub(super) path: Vec<Element>,
}

/// Ordered by manager.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conflicts(pub(super) Vec<Conflict>);

impl Conflicts {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those about other parts than the ones of the set.
    pub(super) fn outside(&self, set: &Set) -> Conflicts {
        Conflicts(self.0.iter().filter(|conflict| !set.has(&conflict.path)).cloned().collect())
    }
}

/// `conflict with "kubectl" using apps/v1: .spec.replicas`, or a list of those of each manager.
impl fmt::Display for Conflicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [Conflict { manager, path }] = &self.0[..] {
            return write!(f, "Apply failed with 1 conflict: conflict with {manager}: {}", shown_path(path));
        }
        write!(f, "Apply failed with {} conflicts: ", self.0.len())?;
        let mut of_managers: BTreeMap<&Manager, Vec<&[Element]>> = BTreeMap::new();
        for conflict in &self.0 {
            of_managers.entry(&conflict.manager).or_default().push(&conflict.path);
        }
        for (at, (manager, paths)) in of_managers.into_iter().enumerate() {
            let line = if at == 0 { "" } else { "\n" };
            write!(f, "{line}conflicts with {manager}:")?;
            for path in paths {
                write!(f, "\n- {}", shown_path(path))?;
            }
        }
        Ok(())
    }
}

impl From<Conflicts> for Status {
    fn from(conflicts: Conflicts) -> Status {
        let causes = conflicts.0.iter().map(|conflict| {
            Cause::manager_conflict(shown_path(&conflict.path), format!("conflict with {}", conflict.manager))
        });
        Status::apply_conflict(conflicts.to_string(), causes.collect())
    }
}
