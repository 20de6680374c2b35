//! `cargo xtask codegen`: what is derived from upstream's sources, and the move to another version of them.
//!
//! ```text
//!  pins        --kubernetes vX.Y.Z → every go.mod that had the version before, api/src/kubernetes.rs, k8s-openapi's feature
//!  schema      xtask/codegen       → api/src/schema/builtin.txt, and golden bytes of protobuf
//!  recorded    xtask/{histories,definitions,structural,policies,webhooks}, tests/peers/cel → what tests replay
//!  reference   xtask/codegen       → what upstream serves, prints, turns on and tests: tests/reference
//!  difference  the reference and the schema as they were and as they are, and which rules of upstream's changed
//! ```
//!
//! It needs Go.

mod difference;
pub(crate) mod pins;
mod sources;
mod suite;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::cel;
use crate::command::{root, run as execute};
use difference::Section;
use pins::Release;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Move to this version of k8s.io/kubernetes first, such as `v1.37.2`, and list what differs afterwards
    #[arg(long)]
    kubernetes: Option<Release>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let Some(next) = &options.kubernetes else { return derive(&pins::present()?.parse()?) };
    let present: Release = pins::present()?.parse()?;
    let before = Told::read()?;
    pins::set(&present, next)?;
    derive(next)?;
    let after = Told::read()?;
    let n_renamed = suite::rename(&before.tests(), &after.tests())?;
    print!("{}", difference::page(&present, next, &before.sections(), &after.sections()));
    println!("\n{n_renamed} tests are called otherwise, and called so in tests/conformance.");
    print!("{}", sources::changed(&present, next)?);
    Ok(())
}

fn derive(release: &Release) -> Result<()> {
    let version = release.to_string();
    let tree = sources::module("k8s.io/kubernetes", &version)?;
    let openapi = tree.join("api/openapi-spec/swagger.json");
    let api = root().join("api");
    let tests = api.join("tests");
    let schema = api.join("src/schema/builtin.txt");
    go("xtask/codegen", &[Path::new("reference"), &tree, Path::new(&version), &reference()])?;
    go("xtask/codegen", &[Path::new("schema"), &openapi, &reference().join("facts.txt"), &schema])?;
    go("xtask/codegen", &[Path::new("corpus"), &tests.join("golden.jsonl.gz")])?;
    go("xtask/histories", &[&tests.join("apply.jsonl.gz")])?;
    go("xtask/definitions", &[&tests.join("definitions.jsonl.gz")])?;
    for what in ["columns", "owned"] {
        let flag = format!("-{what}");
        go("xtask/definitions", &[Path::new(&flag), &tests.join(format!("{what}.jsonl.gz"))])?;
    }
    go("xtask/structural", &[&tests.join("structural.jsonl.gz")])?;
    go("xtask/policies", &[&root().join("policy/tests/cases")])?;
    go("xtask/webhooks", &[&root().join("webhook/tests/calls")])?;
    cel::record()
}

/// In the background of whatever else this machine builds. The flags are those that upstream's programs are built with, so that what
/// is compiled for one serves the other.
fn go(program: &str, arguments: &[&Path]) -> Result<()> {
    eprintln!(
        "{program} {}",
        arguments.first().map_or_else(String::new, |first| first.display().to_string())
    );
    let mut go = Command::new("nice");
    go.args(["-n", "19", "go", "run", "-trimpath", "."]).args(arguments).current_dir(root().join(program));
    go.env("CGO_ENABLED", "0").env("GOFLAGS", "-buildvcs=false -mod=readonly -p=2");
    execute(&mut go)
}

/// Where the reference is kept.
fn reference() -> PathBuf {
    root().join("tests/reference")
}

/// What is told of upstream at one version.
struct Told {
    facts: String,
    schema: String,
}

impl Told {
    fn read() -> Result<Told> {
        let text =
            |path: PathBuf| fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()));
        Ok(Told {
            facts: text(reference().join("facts.txt"))?,
            schema: text(root().join("api/src/schema/builtin.txt"))?,
        })
    }

    /// The names of the conformance suite's tests.
    fn tests(&self) -> BTreeSet<String> {
        self.facts.lines().filter_map(|line| line.strip_prefix("test ")).map(str::to_owned).collect()
    }

    fn sections(&self) -> Vec<Section<'_>> {
        let mut sections = difference::of_facts(&self.facts);
        sections.push(difference::nested("types", &self.schema));
        sections
    }
}
