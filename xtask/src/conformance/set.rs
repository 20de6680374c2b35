//! Which of upstream's tests there are to run, and where is kept what is known of them.

use std::path::PathBuf;

use anyhow::Result;

use super::page::Causes;
use super::suite::Selection;
use crate::command::root;

/// Tests that are run, listed and told of together.
pub(super) struct Set {
    /// What its cluster is called unless told otherwise, and the folder of its results.
    pub(super) name: &'static str,
    /// ginkgo's filter of labels that selects all of it.
    pub(super) labels: &'static str,
    /// What runs it, for the page.
    pub(super) command: &'static str,
    pub(super) title: &'static str,
    /// What a whole run is of, for the page; the version follows.
    pub(super) what: &'static str,
    /// Below the page's first paragraph.
    pub(super) note: &'static str,
    lists: &'static str,
    page: &'static str,
}

pub(super) const CONFORMANCE: Set = Set {
    name: "conformance",
    labels: "Conformance",
    command: "cargo xtask conformance",
    title: "Conformance",
    what: "upstream's whole suite",
    note: "Upstream's other tests are in [conformance-beyond.md](conformance-beyond.md).",
    lists: "tests/conformance",
    page: "docs/conformance.md",
};

/// Upstream labels a test by what a cluster must have for it, and by what it does to the cluster or to who waits for it.
pub(super) const BEYOND: Set = Set {
    name: "beyond",
    labels: "!Conformance && Feature: isEmpty && FeatureGate: isEmpty \
             && !Slow && !Serial && !Disruptive && !Flaky && !Deprecated && !sig-storage && !sig-windows",
    command: "cargo xtask conformance --beyond",
    title: "Beyond conformance",
    what: "upstream's default tests that are not conformance",
    note: "They are the tests that want no feature and no feature gate and are not slow, serial, disruptive, flaky or \
           deprecated,\nwithout those of storage and of Windows. Conformance is in [conformance.md](conformance.md).",
    lists: "tests/conformance/beyond",
    page: "docs/conformance-beyond.md",
};

impl Set {
    /// One of its lists of names; it may be empty.
    pub(super) fn list(&self, file: &str) -> Result<Selection> {
        Selection::of_list(&root().join(self.lists).join(file))
    }

    pub(super) fn causes(&self) -> Result<Causes> {
        Causes::read(&root().join(self.lists).join("causes.tsv"))
    }

    pub(super) fn page(&self) -> PathBuf {
        root().join(self.page)
    }

    /// The folder below the cache. A cluster of another name has results of its own, as two may run at once.
    pub(super) fn results(&self, cluster: &str) -> String {
        let other = if cluster == self.name { String::new() } else { format!("-{cluster}") };
        format!("results-{}{other}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::{BEYOND, CONFORMANCE};

    #[test]
    fn runs_that_may_be_at_once_have_results_of_their_own() {
        let all = [
            CONFORMANCE.results("conformance"),
            CONFORMANCE.results("other"),
            BEYOND.results("beyond"),
            BEYOND.results("other"),
        ];
        let different: std::collections::BTreeSet<&String> = all.iter().collect();
        assert_eq!(different.len(), all.len(), "{all:?}");
    }

    #[test]
    fn every_set_has_its_lists() {
        for set in [&CONFORMANCE, &BEYOND] {
            for list in ["passing.txt", "vacuous.txt", "endless.txt"] {
                set.list(list).unwrap();
            }
            set.causes().unwrap();
        }
    }
}
