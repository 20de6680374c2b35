//! `cargo xtask test` and `cargo xtask codegen`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::{cargo, output, program, root, run};
use crate::peers::Programs;
use crate::{clients, conformance, differ, fixtures, setup};

pub(crate) fn run_all() -> Result<()> {
    setup::run()?;
    setup::room()?;
    let registries = fixtures::run()?;
    let containerd = differ::images::containerd()?;
    let clients = clients::build()?;
    let etcd = etcd()?;
    let skiff = debug_build()?;
    run(cargo()
        .args(["test", "--workspace"])
        .env("SKIFF_BIN", skiff)
        .env("SKIFF_TEST_REGISTRIES", registries)
        .env("SKIFF_TEST_CONTAINERD", containerd)
        .env("SKIFF_TEST_CLIENTS", clients)
        .env("SKIFF_TEST_ETCD", etcd)
        .env("SKIFF_TEST_SWAGGER", conformance::swagger()?))
}

/// The etcd that the store is tested with: the one that upstream's programs run with here.
fn etcd() -> Result<PathBuf> {
    let programs = Programs::open()?;
    programs.require("etcd")?;
    Ok(programs.path("etcd"))
}

/// The program that the tests use. All is built at once: features of one member alone would build wasmtime a second time.
pub(crate) fn debug_build() -> Result<PathBuf> {
    run(cargo().args(["build", "--workspace", "--all-targets"]))?;
    program("debug")
}

/// Goes on where the test of the corpus ends.
pub(crate) fn fuzz(arguments: &[String]) -> Result<()> {
    run(cargo().args(["run", "--release", "-p", "skiff-fuzz", "--"]).args(arguments))
}

pub(crate) fn codegen() -> Result<()> {
    let manifest = root().join("xtask/codegen/Cargo.toml");
    let text = output(cargo().args(["metadata", "--format-version=1", "--manifest-path"]).arg(&manifest))?;
    let metadata: serde_json::Value = serde_json::from_str(&text).context("reading cargo metadata")?;
    let sources = metadata["packages"]
        .as_array()
        .and_then(|all| all.iter().find(|package| package["name"] == "k8s-pb"))
        .and_then(|package| package["manifest_path"].as_str())
        .and_then(|path| Path::new(path).parent())
        .context("xtask/codegen does not depend on k8s-pb")?
        .join("src");
    let out = root().join("api/src/schema/builtin.txt");
    run(cargo().args(["run", "--release", "--manifest-path"]).arg(manifest).arg("--").arg(sources).arg(out))?;
    let histories = root().join("api/tests/apply.jsonl.gz");
    run(Command::new("go").args(["run", "."]).arg(histories).current_dir(root().join("xtask/histories")))?;
    let definitions = root().join("xtask/definitions");
    for (what, file) in [("", "definitions"), ("-columns", "columns"), ("-owned", "owned")] {
        let file = root().join(format!("api/tests/{file}.jsonl.gz"));
        let what = Some(what).filter(|what| !what.is_empty());
        run(Command::new("go").args(["run", "."]).args(what).arg(file).current_dir(&definitions))?;
    }
    let calls = root().join("webhook/tests/calls");
    run(Command::new("go").args(["run", "."]).arg(calls).current_dir(root().join("xtask/webhooks")))
}
