//! Upstream's sources: where Go keeps them, and which of its rules differ between two versions.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::pins::Release;
use crate::command::{output, root};

/// Folders whose Go files are rules that Skiff has in words of its own, by module.
const RULES: [(&str, &[&str]); 5] = [
    (
        "k8s.io/kubernetes",
        &[
            "pkg/api",
            "pkg/apis",
            "pkg/registry",
            "pkg/printers/internalversion",
            "pkg/kubeapiserver",
            "plugin/pkg",
        ],
    ),
    ("k8s.io/apiextensions-apiserver", &["pkg/apis", "pkg/apiserver", "pkg/registry"]),
    (
        "k8s.io/apimachinery",
        &["pkg/api", "pkg/apis/meta/v1/validation", "pkg/util/validation", "pkg/util/managedfields"],
    ),
    ("k8s.io/apiserver", &["pkg/admission", "pkg/endpoints", "pkg/registry", "pkg/cel"]),
    ("k8s.io/kube-aggregator", &["pkg/apis", "pkg/registry"]),
];
/// Files that say nothing which the rest does not.
const WRITTEN: [&str; 5] = [
    "_test.go",
    "zz_generated.deepcopy.go",
    "zz_generated.conversion.go",
    "zz_generated.model_name.go",
    "doc.go",
];

/// The folder of one version of a module, downloaded if it is not there yet.
pub(super) fn module(path: &str, version: &str) -> Result<PathBuf> {
    let text = output(
        Command::new("go")
            .args(["mod", "download", "-json", &format!("{path}@{version}")])
            .current_dir(root()),
    )?;
    let told: serde_json::Value = serde_json::from_str(&text).context("reading what go mod download says")?;
    Ok(told["Dir"].as_str().with_context(|| format!("go mod download: {told}"))?.into())
}

/// The files of rules that differ, with how many lines went and came.
pub(super) fn changed(present: &Release, next: &Release) -> Result<String> {
    let mut out = "\n## rules: files that differ, lines that went and came\n\n".to_owned();
    for (path, folders) in RULES {
        let version = |release: &Release| match path {
            "k8s.io/kubernetes" => release.to_string(),
            _ => release.staging(),
        };
        let (was, is) = (module(path, &version(present))?, module(path, &version(next))?);
        for folder in folders {
            let (before, after) = (read(&was, &was.join(folder))?, read(&is, &is.join(folder))?);
            let files: BTreeSet<&PathBuf> = before.keys().chain(after.keys()).collect();
            for file in files {
                let text = |of: &BTreeMap<PathBuf, String>| of.get(file).cloned().unwrap_or_default();
                let (went, came) = counted(&text(&before), &text(&after));
                if went + came > 0 {
                    let _ = writeln!(out, "-{went} +{came} {path}/{}", file.display());
                }
            }
        }
    }
    Ok(out)
}

/// How many lines of code only the one and only the other has. Comments do not count.
fn counted(before: &str, after: &str) -> (u64, u64) {
    let mut lines: BTreeMap<&str, i64> = BTreeMap::new();
    for (text, by) in [(before, -1), (after, 1)] {
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")) {
            *lines.entry(line).or_default() += by;
        }
    }
    lines
        .values()
        .fold((0, 0), |(went, came), n| (went + n.min(&0).unsigned_abs(), came + (*n).max(0).unsigned_abs()))
}

/// All Go files below a folder, by their path below `root`.
fn read(root: &Path, folder: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        if !folder.exists() {
            continue;
        }
        for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".go") && !WRITTEN.iter().any(|end| name.ends_with(end)) {
                let text =
                    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
                files.insert(path.strip_prefix(root)?.to_owned(), text);
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn lines_that_moved_do_not_count_and_comments_neither() {
        assert_eq!(counted("a\nb\n", "b\n\na\n// c\n"), (0, 0));
        assert_eq!(counted("a\nb\nb\n", "b\nc\n"), (2, 1));
    }
}
