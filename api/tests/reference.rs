//! The kinds table against what upstream's API server serves and prints by default: `tests/reference`, which `cargo xtask codegen`
//! writes.

use std::collections::BTreeSet;

use skiff_api::{Kind, Kinds, Scope};

const FACTS: &str = include_str!("../../tests/reference/facts.txt");

/// The facts of one sort.
fn facts(sort: &str) -> impl Iterator<Item = &'static str> {
    let prefix = format!("{sort} ");
    FACTS.lines().filter_map(move |line| line.strip_prefix(&prefix))
}

/// What upstream says and we do not, and the other way round.
#[track_caller]
fn check(upstream: BTreeSet<String>, ours: BTreeSet<String>) {
    assert!(!upstream.is_empty());
    let signed = |sign: char, lines: Vec<&String>| {
        lines.into_iter().map(|line| format!("{sign} {line}\n")).collect::<String>()
    };
    let missing = signed('-', upstream.difference(&ours).collect());
    let other = signed('+', ours.difference(&upstream).collect());
    assert!(missing.is_empty() && other.is_empty(), "-upstream +ours:\n{missing}{other}");
}

fn group(kind: &Kind) -> &str {
    if kind.group.is_empty() { "core" } else { &kind.group }
}

#[test]
fn what_is_served_is_what_upstream_serves_by_default() {
    let sorted = |words: &str| {
        let mut words: Vec<&str> = words.split(',').collect();
        words.sort_unstable();
        words.join(",")
    };
    let resource = |line: &str| {
        let words = line.split(' ').map(|word| match word.split_once('=') {
            Some((name, list)) => format!("{name}={}", sorted(list)),
            None => word.to_owned(),
        });
        words.collect::<Vec<_>>().join(" ")
    };
    let ours = |kind: &Kind| {
        let scope = if kind.scope == Scope::Cluster { "Cluster" } else { "Namespaced" };
        let mut line = format!("{} {} {} {scope}", kind.api_version(), kind.plural, kind.kind);
        let lists =
            [("short", &kind.short_names), ("categories", &kind.categories), ("parts", &kind.subresources)];
        for (name, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            line += &format!(" {name}={}", sorted(&list.join(",")));
        }
        line
    };
    check(
        facts("resource").map(resource).collect(),
        // Those are metrics-server's.
        Kinds::builtin()
            .iter()
            .filter(|kind| kind.group != "metrics.k8s.io")
            .map(|kind| ours(kind))
            .collect(),
    );
}

#[test]
fn what_is_printed_is_what_upstream_prints() {
    // Upstream has columns for it, and a storage that does not use them.
    let columns = || facts("column").filter(|line| !line.starts_with("storage.k8s.io CSIStorageCapacity "));
    let printed: BTreeSet<(String, String)> = columns()
        .map(|line| {
            let mut words = line.split(' ');
            let mut word = || words.next().unwrap_or_default().to_owned();
            (word(), word())
        })
        .collect();
    let mut ours = BTreeSet::new();
    for kind in Kinds::builtin().iter() {
        // Of others upstream has the columns of all.
        if !printed.contains(&(group(kind).to_owned(), kind.kind.clone())) {
            continue;
        }
        for (at, column) in kind.columns.iter().enumerate() {
            let format =
                if column.format.is_empty() { String::new() } else { format!(" format={}", column.format) };
            let (name, type_, priority) = (&column.name, &column.kind, column.priority);
            ours.insert(format!(
                "{} {} {at:02} {name:?} type={type_} priority={priority}{format}",
                group(kind),
                kind.kind
            ));
        }
    }
    check(columns().map(str::to_owned).collect(), ours);
}
