//! Where the version of upstream is pinned.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context as _, Result, ensure};

use super::sources;
use crate::command::{output, root, run};

/// The one place that Rust code has it from.
const CONSTANTS: &str = "api/src/kubernetes.rs";
/// Other files that spell it, each as one of the words of [`spellings`].
const SPELT: [&str; 2] = ["Cargo.toml", "tests/hollow/src/node.rs"];
const KUBERNETES: &str = "k8s.io/kubernetes";

/// A release of upstream: `v1.37.2`. Its parts are modules of their own, of version `v0.37.2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Release {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Release {
    pub(super) fn staging(self) -> String {
        format!("v0.{}.{}", self.minor, self.patch)
    }

    /// As k8s-openapi calls its feature.
    fn feature(self) -> String {
        format!("\"v{}_{}\"", self.major, self.minor)
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for Release {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Release> {
        let numbers: Option<Vec<u32>> = text
            .strip_prefix('v')
            .and_then(|numbers| numbers.split('.').map(|number| number.parse().ok()).collect());
        let Some([major, minor, patch]) = numbers.as_deref() else {
            anyhow::bail!("{text:?} is no version such as v1.37.2");
        };
        Ok(Release { major: *major, minor: *minor, patch: *patch })
    }
}

/// The version that Skiff is like now.
pub(crate) fn present() -> Result<String> {
    let path = root().join(CONSTANTS);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let quoted = text.lines().find_map(|line| line.strip_prefix("pub const RELEASE: &str = \""));
    let release = quoted.and_then(|rest| rest.strip_suffix("\";"));
    Ok(release.with_context(|| format!("{CONSTANTS} has no RELEASE"))?.to_owned())
}

/// Pins another version wherever the present one is pinned, and has Go settle what that needs.
pub(super) fn set(present: &Release, next: &Release) -> Result<()> {
    let kubernetes = sources::module(KUBERNETES, &next.to_string())?.join("go.mod");
    let parts = parts(&read(&kubernetes)?);
    ensure!(!parts.is_empty(), "{} has no parts", kubernetes.display());
    let modules = output(Command::new("git").args(["ls-files", "*go.mod"]).current_dir(root()))?;
    for path in modules.lines() {
        let path = root().join(path);
        let before = read(&path)?;
        let after = repinned(&before, present, next, &parts);
        if after != before {
            eprintln!("{}", path.display());
            write(&path, &after)?;
            let folder = path.parent().unwrap_or(&path);
            run(Command::new("go").args(["mod", "tidy"]).current_dir(folder))?;
        }
    }
    for path in SPELT.map(|path| root().join(path)) {
        let mut text = read(&path)?;
        for (was, is) in spellings(*present).iter().zip(spellings(*next)) {
            text = text.replace(was, &is);
        }
        write(&path, &text)?;
    }
    write(&root().join(CONSTANTS), &constants(next))
}

fn spellings(release: Release) -> [String; 2] {
    [release.feature(), format!("\"{release}+hollow\"")]
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// The modules that are published beside upstream's own, which takes them from folders of its tree.
fn parts(go_mod: &str) -> BTreeSet<String> {
    let replaced = go_mod.lines().filter_map(|line| line.trim().split_once(" => ./staging/"));
    replaced.map(|(module, _)| module.trim_start_matches("replace ").to_owned()).collect()
}

/// A `go.mod` with the next version for the present one. One that requires all of upstream says of each part which is meant.
fn repinned(text: &str, present: &Release, next: &Release, parts: &BTreeSet<String>) -> String {
    let versions = [(present.to_string(), next.to_string()), (present.staging(), next.staging())];
    let mut out = String::new();
    for line in text.lines() {
        let mut line = line.to_owned();
        if line.contains("k8s.io/") {
            for (was, is) in &versions {
                let words: Vec<&str> =
                    line.split(' ').map(|word| if word == was { is } else { word }).collect();
                line = words.join(" ");
            }
        }
        out.push_str(&line);
        out.push('\n');
    }
    let Some((head, rest)) = out.split_once("\nreplace (\n") else { return out };
    if !out.contains(&format!("{KUBERNETES} {next}")) {
        return out;
    }
    let tail = rest.split_once("\n)\n").map_or("", |(_, tail)| tail);
    let staging = next.staging();
    let list: String = parts.iter().map(|part| format!("\t{part} => {part} {staging}\n")).collect();
    format!("{head}\nreplace (\n{list})\n{tail}")
}

fn constants(release: &Release) -> String {
    let Release { major, minor, .. } = release;
    format!(
        "//! The version of Kubernetes that Skiff is like. Written by `cargo xtask codegen --kubernetes`; do not edit.\n\n\
         /// Upstream's release.\n\
         pub const RELEASE: &str = \"{release}\";\n\
         pub const MAJOR: &str = \"{major}\";\n\
         pub const MINOR: &str = \"{minor}\";\n\
         /// What servers and nodes say that they are.\n\
         pub const VERSION: &str = \"{release}+skiff\";\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(text: &str) -> Release {
        text.parse().expect("a version")
    }

    #[test]
    fn a_release_is_three_numbers() {
        assert_eq!(release("v1.37.2").to_string(), "v1.37.2");
        assert_eq!(release("v1.37.2").staging(), "v0.37.2");
        for wrong in ["1.37.2", "v1.37", "v1.37.2-rc.1", "latest", "v1.37.2.3"] {
            assert!(wrong.parse::<Release>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_constants_say_the_present_version() {
        let present = release(&present().expect("a version"));
        assert_eq!(constants(&present), read(&root().join(CONSTANTS)).expect("the file"));
    }

    #[test]
    fn what_has_another_version_keeps_it_and_new_parts_are_replaced_too() {
        let parts = parts(
            "replace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n\tk8s.io/new => ./staging/src/k8s.io/new\n)\n",
        );
        let (present, next) = (release("v1.36.3"), release("v1.37.2"));
        let before = "require (\n\tk8s.io/api v0.36.3\n\tk8s.io/kubernetes v1.36.3\n\tk8s.io/utils v0.1.0\n\tgoogle.golang.org/x v1.36.3\n)\n\n\
                      replace (\n\tk8s.io/api => k8s.io/api v0.36.3\n)\n";
        let after = "require (\n\tk8s.io/api v0.37.2\n\tk8s.io/kubernetes v1.37.2\n\tk8s.io/utils v0.1.0\n\tgoogle.golang.org/x v1.36.3\n)\n\n\
                     replace (\n\tk8s.io/api => k8s.io/api v0.37.2\n\tk8s.io/new => k8s.io/new v0.37.2\n)\n";
        assert_eq!(repinned(before, &present, &next, &parts), after);
        let other = "require k8s.io/api v0.35.0 // indirect\n";
        assert_eq!(repinned(other, &present, &next, &parts), other);
    }
}
