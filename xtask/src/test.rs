//! `cargo xtask test`.

use std::path::PathBuf;

use anyhow::Result;

use crate::command::{cargo, program, run};
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
