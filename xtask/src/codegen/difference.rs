//! What a person has to look at: the lines in which two versions of the reference differ, and where Skiff has that.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::pins::Release;

/// Lines about one thing.
pub(super) struct Section<'a> {
    name: &'a str,
    lines: BTreeSet<String>,
}

/// The sections of `facts.txt`, by what they are called there, and where the same is said here.
const PLACES: [(&str, &str); 7] = [
    (
        "serves",
        "`package()` in api/src/kinds/builtin.rs, and apiserver/src: GROUPS of discovery, aggregation/priorities.rs",
    ),
    ("resource", "declarations in api/src/kinds/builtin, traits.rs beside them"),
    ("types", "api/src/schema/builtin.txt, which is written already; what a new field means is not"),
    ("column", "columns of the declarations; a new column is described in api/src/table/described.rs"),
    ("gate", "whatever the gate turns on; a gate that went was locked before"),
    ("test", "tests/conformance/{passing,slice,vacuous}.txt and causes.tsv"),
    ("version", "api/src/kubernetes.rs, which is written already"),
];

/// A line of facts is one of the section that its first word names.
pub(super) fn of_facts(text: &str) -> Vec<Section<'_>> {
    let mut sections: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, fact)) = line.split_once(' ') {
            sections.entry(name).or_default().insert(fact.to_owned());
        }
    }
    sections.into_iter().map(|(name, lines)| Section { name, lines }).collect()
}

/// A text in which indented lines belong to the one above them. Each says whose it is.
pub(super) fn nested<'a>(name: &'a str, text: &str) -> Section<'a> {
    let mut head = "";
    let mut lines = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if line.starts_with(' ') {
            lines.insert(format!("{head}: {}", line.trim_start()));
        } else {
            head = line;
            lines.insert(line.to_owned());
        }
    }
    Section { name, lines }
}

pub(super) fn page(
    present: &Release,
    next: &Release,
    before: &[Section<'_>],
    after: &[Section<'_>],
) -> String {
    let mut out = format!("# {present} → {next}\n");
    let none = BTreeSet::new();
    for (name, place) in PLACES {
        let lines =
            |of: &[Section<'_>]| of.iter().find(|s| s.name == name).map_or(none.clone(), |s| s.lines.clone());
        let (was, is) = (lines(before), lines(after));
        let mut changes: Vec<(&str, char)> = was.difference(&is).map(|line| (line.as_str(), '-')).collect();
        changes.extend(is.difference(&was).map(|line| (line.as_str(), '+')));
        // What went and what came of one thing stand together.
        changes.sort();
        let _ = writeln!(out, "\n## {name}: {} lines differ\n\nHere: {place}.\n", changes.len());
        for (line, sign) in changes {
            let _ = writeln!(out, "{sign} {line}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_and_went_is_told_by_section() {
        let (present, next) = ("v1.36.3".parse().expect("a version"), "v1.37.2".parse().expect("a version"));
        let mut before = of_facts("gate A Beta off\ngate B GA on\ntest one\n");
        before.push(nested("types", "a.Type\n name string #1\n"));
        let mut after = of_facts("gate A GA on\ngate B GA on\ntest one\ntest two\n");
        after.push(nested("types", "a.Type\n name string #2\n"));
        let page = page(&present, &next, &before, &after);
        assert!(page.contains("- A Beta off\n+ A GA on\n"), "{page}");
        assert!(page.contains("+ two\n"), "{page}");
        assert!(page.contains("- a.Type: name string #1\n+ a.Type: name string #2\n"), "{page}");
        assert!(!page.contains("B GA"), "{page}");
        assert!(page.contains("## column: 0 lines differ"), "{page}");
    }

    #[test]
    fn every_section_has_a_place() {
        let page =
            page(&"v1.0.0".parse().expect("a version"), &"v1.0.1".parse().expect("a version"), &[], &[]);
        assert_eq!(page.matches("\n## ").count(), PLACES.len());
    }
}
