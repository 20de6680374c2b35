//! `cargo xtask check`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::command::{cargo, on_path, output, root, run as execute};

/// The workspace crates each crate may depend on; `*` is all.
const ARROWS: [(&str, &[&str]); 28] = [
    ("skiff-api", &["skiff-cel"]),
    ("skiff-cel", &[]),
    ("skiff-cgroup", &["skiff-tree"]),
    ("skiff-cri", &[]),
    ("skiff-images", &["skiff-tree"]),
    ("skiff-spdy", &[]),
    ("skiff-tree", &[]),
    ("skiff-texts", &["skiff-api"]),
    ("skiff-webhook", &["skiff-api", "skiff-cel"]),
    ("skiff-policy", &["skiff-api", "skiff-cel", "skiff-webhook"]),
    ("skiff-client", &["skiff-api"]),
    ("skiff-flow", &[]),
    (
        "skiff-apiserver",
        &["skiff-api", "skiff-cel", "skiff-flow", "skiff-policy", "skiff-texts", "skiff-webhook"],
    ),
    ("skiff-scheduler", &["skiff-api", "skiff-client"]),
    ("skiff-controllers", &["skiff-api", "skiff-client"]),
    ("skiff-network", &["skiff-api", "skiff-client"]),
    ("skiff-nodelet", &["skiff-api", "skiff-cri", "skiff-client", "skiff-spdy", "skiff-tree"]),
    ("skiff-runtime", &["skiff-cgroup", "skiff-cri", "skiff-images", "skiff-tree"]),
    ("skiff-runtime-oci", &["skiff-cgroup", "skiff-cri", "skiff-images", "skiff-tree"]),
    ("skiff-runtime-wasm", &["skiff-cgroup", "skiff-cri", "skiff-images", "skiff-tree"]),
    ("skiff", &["*"]),
    ("skiff-differ", &["skiff-api", "skiff-apiserver", "skiff-client", "skiff-load"]),
    ("skiff-differ-images", &["skiff-images"]),
    (
        "skiff-fuzz",
        &["skiff-api", "skiff-apiserver", "skiff-cel", "skiff-policy", "skiff-spdy", "skiff-webhook"],
    ),
    ("skiff-hollow", &["skiff-client"]),
    ("skiff-load", &[]),
    ("skiff-suite", &["skiff-apiserver", "skiff-client", "skiff-controllers"]),
    ("skiff-tests", &["*"]),
];
const BANNED: [&str; 4] = ["ring", "openssl-sys", "serde_yaml", "rustables"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: Vec<String>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    license: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    path: Option<String>,
    /// `None` for what the crate itself is built with.
    kind: Option<String>,
}

pub(crate) fn run() -> Result<()> {
    execute(cargo().args(["fmt", "--all", "--check"]))?;
    execute(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    let text = output(cargo().args([
        "metadata",
        "--format-version=1",
        "--filter-platform",
        "x86_64-unknown-linux-gnu",
    ]))?;
    let metadata: Metadata = serde_json::from_str(&text).context("reading cargo metadata")?;
    let mut faults = arrows(&metadata);
    faults.extend(crate::structure::faults(&root())?);
    // The tree holds what is built, unlike the lock file, which holds what a feature in nobody's use would need.
    let tree = output(cargo().args(["tree", "--workspace", "--prefix=none", "--format={p}"]))?;
    let built: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    let used: Vec<&Package> = metadata.packages.iter().filter(|p| built.contains(p.name.as_str())).collect();
    faults.extend(
        used.iter()
            .filter(|p| BANNED.contains(&p.name.as_str()))
            .map(|p| format!("banned crate in the tree: {}", p.name)),
    );
    if on_path("cargo-deny") {
        execute(cargo().args(["deny", "check", "licenses", "bans"]))?;
    } else {
        faults.extend(licences(&used)?);
    }
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{}", faults.join("\n"))
}

fn arrows(metadata: &Metadata) -> Vec<String> {
    let table: BTreeMap<_, _> = ARROWS.into_iter().collect();
    let mut faults = Vec::new();
    for package in metadata.packages.iter().filter(|p| metadata.workspace_members.contains(&p.id)) {
        let allowed = table.get(package.name.as_str()).copied().unwrap_or_default();
        // A test may well run a crate against the one it is a client of.
        let own = |d: &&Dependency| d.path.is_some() && d.kind.as_deref() != Some("dev");
        for dependency in package.dependencies.iter().filter(own) {
            if !allowed.contains(&"*") && !allowed.contains(&dependency.name.as_str()) {
                faults.push(format!("arrow not allowed: {} -> {}", package.name, dependency.name));
            }
        }
    }
    faults
}

fn licences(used: &[&Package]) -> Result<Vec<String>> {
    let path = root().join("deny.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let list = text.split_once("allow = [").and_then(|(_, rest)| rest.split_once(']'));
    let (list, _) = list.context("deny.toml has no licence allow list")?;
    let allowed: Vec<&str> = list.split('"').skip(1).step_by(2).collect();
    Ok(used
        .iter()
        .filter(|p| !p.license.as_deref().is_some_and(|text| permitted(text, &allowed)))
        .map(|p| format!("licence not allowed: {} {}", p.name, p.license.as_deref().unwrap_or("(none)")))
        .collect())
}

/// Whether an SPDX expression can be met; AND binds tighter than OR, parentheses tighter than both.
fn permitted(expression: &str, allowed: &[&str]) -> bool {
    let text = expression.replace('/', " OR ");
    split(&text, " OR ").iter().any(|choice| {
        split(choice, " AND ").iter().all(|term| {
            let term = term.trim();
            match term.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
                Some(inner) => permitted(inner, allowed),
                None => allowed.contains(&term),
            }
        })
    })
}

/// Splits at a separator outside of parentheses.
fn split<'a>(text: &'a str, separator: &str) -> Vec<&'a str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_usize);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            _ if depth == 0 && at >= start && text.as_bytes()[at..].starts_with(separator.as_bytes()) => {
                parts.push(&text[start..at]);
                start = at + separator.len();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_licence_expression_is_met_by_one_choice() {
        let allowed = ["MIT", "Zlib"];
        assert!(permitted("MIT OR GPL-3.0", &allowed));
        assert!(permitted("(GPL-3.0 OR MIT) AND Zlib", &allowed));
        assert!(permitted("Apache-2.0/MIT", &allowed));
        assert!(!permitted("MIT AND GPL-3.0", &allowed));
    }
}
