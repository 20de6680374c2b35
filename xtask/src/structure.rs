//! How the API server is built, in figures that may not be passed: its largest circle of imports, the methods of its largest
//! struct, and comparisons with kinds' names where no kind is to be known.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Files that import each other in a circle.
const MAX_CIRCLE: usize = 3;
/// Methods of one struct.
const MAX_METHODS: usize = 30;
/// Folders whose code is of all kinds alike.
const NAMELESS: [&str; 3] = ["objects", "pipeline", "registry"];

/// # Errors
/// Where the sources cannot be read.
pub(crate) fn faults(root: &Path) -> Result<Vec<String>> {
    let source = root.join("apiserver/src");
    let files = read(&source)?;
    let mut faults = Vec::new();
    let circle = circles(&arrows(&files)).into_iter().max_by_key(Vec::len).unwrap_or_default();
    if circle.len() > MAX_CIRCLE {
        let names: Vec<String> = circle
            .iter()
            .filter_map(|n| files.keys().nth(*n))
            .map(|path| path.display().to_string())
            .collect();
        faults.push(format!(
            "structure of apiserver: {} files import each other, more than {MAX_CIRCLE}: {}",
            names.len(),
            names.join(", ")
        ));
    }
    let (name, methods) = most_methods(&files);
    if methods > MAX_METHODS {
        faults.push(format!("structure of apiserver: {name} has {methods} methods, more than {MAX_METHODS}"));
    }
    for (path, text) in
        files.iter().filter(|(path, _)| NAMELESS.iter().any(|folder| path.starts_with(folder)))
    {
        for name in kind_names(text) {
            faults.push(format!(
                "structure of apiserver: {} tells kinds by their names: {name}; say it in the kind's traits, or in a hook of \
                 resources/",
                path.display()
            ));
        }
    }
    Ok(faults)
}

/// The sources below a folder, without tests, by their path there.
fn read(source: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![source.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
            let path = entry.with_context(|| format!("reading {}", folder.display()))?.path();
            let is_test = path.file_stem().is_some_and(|stem| stem == "tests" || stem == "kernel_tests");
            if is_test {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                let text =
                    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
                // Tests at the end of a file; a file of their own is left out by its name.
                let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
                let below = path.strip_prefix(source).unwrap_or(&path).to_owned();
                files.insert(below, text.to_owned());
            }
        }
    }
    Ok(files)
}

/// `a/b.rs` and `a/b/mod.rs` are `["a", "b"]`.
fn module(path: &Path) -> Vec<String> {
    let mut segments: Vec<String> =
        path.with_extension("").components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
    if segments.last().is_some_and(|last| last == "mod" || last == "lib") {
        segments.pop();
    }
    segments
}

/// Which file names something of which other.
fn arrows(files: &BTreeMap<PathBuf, String>) -> Vec<Vec<usize>> {
    let modules: Vec<Vec<String>> = files.keys().map(|path| module(path)).collect();
    let at: BTreeMap<&[String], usize> = modules.iter().enumerate().map(|(n, m)| (m.as_slice(), n)).collect();
    let target = |path: &[String]| (1..=path.len()).rev().find_map(|n| at.get(&path[..n]).copied());
    let mut all = Vec::new();
    for ((n, text), own) in files.values().enumerate().zip(&modules) {
        let mut found = BTreeSet::new();
        for path in named(text) {
            let absolute: Vec<String> = match path.split_first() {
                Some((first, rest)) if first == "crate" => rest.to_vec(),
                Some((first, _)) if first == "super" => {
                    let ups = path.iter().take_while(|segment| *segment == "super").count();
                    let up = own.get(..own.len().saturating_sub(ups)).unwrap_or_default();
                    up.iter().chain(&path[ups..]).cloned().collect()
                }
                // A module below this one.
                _ => own.iter().chain(&path).cloned().collect(),
            };
            let is_below = path.first().is_none_or(|first| first != "crate" && first != "super");
            if let Some(other) = target(&absolute)
                && other != n
                && !(is_below && modules[other].len() <= own.len())
            {
                found.insert(other);
            }
        }
        all.push(found.into_iter().collect());
    }
    all
}

/// The paths that a text names, groups in braces taken apart.
fn named(text: &str) -> Vec<Vec<String>> {
    let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let mut paths = Vec::new();
    let (mut path, mut word): (Vec<String>, String) = Default::default();
    // What stands before each open brace of a group.
    let mut groups: Vec<Vec<String>> = Vec::new();
    let mut chars = code.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_alphanumeric() || c == '_' => word.push(c),
            ':' if chars.peek() == Some(&':') => {
                chars.next();
                path.push(std::mem::take(&mut word));
                if chars.peek() == Some(&'{') {
                    chars.next();
                    groups.push(path.clone());
                }
            }
            c if c.is_whitespace() && !groups.is_empty() => {}
            c => {
                // After a group that ended nothing is named.
                let is_named = !word.is_empty() || c == '*' || groups.is_empty();
                if !path.is_empty() && is_named {
                    path.push(std::mem::take(&mut word));
                    paths.push(std::mem::take(&mut path));
                }
                word.clear();
                if c == '}' {
                    groups.pop();
                }
                path = groups.last().cloned().unwrap_or_default();
                if !matches!(c, ',' | '}') {
                    groups.clear();
                    path.clear();
                }
            }
        }
    }
    paths
}

/// The circles: sets of files each of which leads to every other.
fn circles(arrows: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut back = vec![Vec::new(); arrows.len()];
    for (from, targets) in arrows.iter().enumerate() {
        targets.iter().for_each(|to| back[*to].push(from));
    }
    let mut order = Vec::new();
    let mut seen = vec![false; arrows.len()];
    for start in 0..arrows.len() {
        let mut path = vec![(start, 0)];
        while let Some((at, next)) = path.pop() {
            if next == 0 && std::mem::replace(&mut seen[at], true) {
                continue;
            }
            match arrows[at].get(next) {
                Some(to) => {
                    path.push((at, next + 1));
                    if !seen[*to] {
                        path.push((*to, 0));
                    }
                }
                None => order.push(at),
            }
        }
    }
    let mut taken = vec![false; arrows.len()];
    let mut circles = Vec::new();
    for start in order.into_iter().rev() {
        let (mut circle, mut open) = (Vec::new(), vec![start]);
        while let Some(at) = open.pop() {
            if !std::mem::replace(&mut taken[at], true) {
                circle.push(at);
                open.extend(&back[at]);
            }
        }
        circles.extend(Some(circle).filter(|circle| !circle.is_empty()));
    }
    circles
}

/// The struct with the most methods.
fn most_methods(files: &BTreeMap<PathBuf, String>) -> (String, usize) {
    let mut methods: BTreeMap<&str, usize> = BTreeMap::new();
    for text in files.values() {
        let mut of = None;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("impl") {
                let rest =
                    rest.strip_prefix(|c| c == '<').and_then(|r| r.split_once('>')).map_or(rest, |(_, r)| r);
                // What a trait asks for is none of the struct's own.
                let name = rest.trim_start().split(|c: char| !c.is_alphanumeric()).next();
                of = name.filter(|_| !rest.contains(" for "));
            } else if line.starts_with('}') {
                of = None;
            } else if let Some(name) = of
                && line.starts_with("    ")
                && !line.starts_with("     ")
                && line.contains("fn ")
                && !line.trim_start().starts_with("//")
            {
                *methods.entry(name).or_default() += 1;
            }
        }
    }
    let most = methods.into_iter().max_by_key(|(_, n)| *n);
    most.map(|(name, n)| (name.to_owned(), n)).unwrap_or_default()
}

/// Comparisons with names of kinds.
fn kind_names(text: &str) -> Vec<&str> {
    const MARKS: [&str; 6] = [
        "is_core(",
        "kind.kind == ",
        "kind.kind.as_str()",
        "kind.plural == ",
        "plural.as_str()",
        "resource == \"",
    ];
    text.lines().map(str::trim).filter(|line| MARKS.iter().any(|mark| line.contains(mark))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named_in(text: &str) -> Vec<String> {
        named(text).iter().map(|path| path.join("::")).filter(|path| path.contains("::")).collect()
    }

    #[test]
    fn groups_are_taken_apart() {
        assert_eq!(named_in("use crate::a::b;"), ["crate::a::b"]);
        assert_eq!(
            named_in("use crate::a::{b, c::{d, e}, f};\nuse super::g;"),
            ["crate::a::b", "crate::a::c::d", "crate::a::c::e", "crate::a::f", "super::g"]
        );
        assert_eq!(named_in("let x = crate::h::i(2, y);"), ["crate::h::i"]);
    }

    #[test]
    fn a_circle_is_all_that_leads_to_each_other() {
        let arrows = vec![vec![1], vec![2], vec![0, 3], vec![4], vec![], vec![0]];
        let mut sizes: Vec<usize> = circles(&arrows).iter().map(Vec::len).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [1, 1, 1, 3]);
    }

    #[test]
    fn methods_are_counted_where_they_are_the_structs_own() {
        let text = "impl A {\n    fn a() {\n        fn inner() {}\n    }\n    pub(crate) async fn b() {}\n}\nimpl B for A {\n    fn c() {}\n}\nimpl<'a> A<'a> {\n    fn d() {}\n}\n";
        let files = BTreeMap::from([(PathBuf::from("a.rs"), text.to_owned())]);
        assert_eq!(most_methods(&files), ("A".to_owned(), 3));
    }

    #[test]
    fn a_kind_is_told_by_its_name_where_that_is_compared() {
        let text =
            "if is_core(kind, \"Pod\") {\n}\nif call.kind.plural == \"pods\" {\n}\nlet name = &kind.kind;\n";
        assert_eq!(kind_names(text), ["if is_core(kind, \"Pod\") {", "if call.kind.plural == \"pods\" {"]);
    }
}
