//! The groups and versions of this server and of those behind it, in the order in which discovery lists them.
//!
//! Source: `SortedByGroupAndVersion` of kube-aggregator.

use std::cmp::Reverse;
use std::sync::Arc;

use skiff_api::Kind;
use skiff_api::kinds::compare_versions;

use super::Discovery;
use crate::aggregation::Aggregated;
use crate::aggregation::priorities::{self, Priority};
use crate::aggregation::told::Told;

/// A group, whoever serves its versions.
pub(super) struct Listed<'d> {
    pub(super) name: &'d str,
    /// The highest that one of its versions gives it.
    priority: i64,
    pub(super) versions: Vec<Version<'d>>,
}

pub(super) struct Version<'d> {
    pub(super) version: &'d str,
    priority: i64,
    pub(super) source: Source<'d>,
}

#[derive(Clone, Copy)]
pub(super) enum Source<'d> {
    Local(&'d [Arc<Kind>]),
    Remote(&'d Told),
}

impl Discovery {
    pub(super) fn listed<'d>(&'d self, aggregated: &'d Aggregated) -> Vec<Listed<'d>> {
        let mut groups: Vec<Listed<'d>> = Vec::new();
        for group in &self.groups {
            let mut listed = Listed { name: &group.name, priority: 0, versions: Vec::new() };
            for (version, kinds) in &group.versions {
                // What another serves, this server does not.
                if !aggregated.has(&group.name, version) {
                    listed.add(version, priorities::local(&group.name, version), Source::Local(kinds));
                }
            }
            if !listed.versions.is_empty() {
                groups.push(listed);
            }
        }
        if aggregated.is_empty() {
            return groups;
        }
        for remote in aggregated.remotes() {
            let at = groups.iter().position(|group| group.name == remote.group).unwrap_or_else(|| {
                groups.push(Listed { name: &remote.group, priority: 0, versions: Vec::new() });
                groups.len() - 1
            });
            groups[at].add(&remote.version, remote.priority, Source::Remote(&remote.told));
            groups[at].versions.sort_by(|a, b| {
                b.priority.cmp(&a.priority).then_with(|| compare_versions(a.version, b.version))
            });
        }
        // Those of this server stand in order already; what has the same priority goes by name.
        let of_builtin = |name: &str| super::GROUPS.iter().position(|known| *known == name);
        groups.sort_by_key(|group| {
            let place = of_builtin(group.name).unwrap_or(usize::MAX);
            (Reverse(group.priority), place, group.name)
        });
        groups
    }
}

impl<'d> Listed<'d> {
    fn add(&mut self, version: &'d str, priority: Priority, source: Source<'d>) {
        self.priority = self.priority.max(priority.group);
        self.versions.push(Version { version, priority: priority.version, source });
    }
}
