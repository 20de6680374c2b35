//! Building for ARM64, the processors of most edge machines, on x86-64.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::command::{cargo, program, root, run};
use crate::setup;

const TARGET: &str = "aarch64-unknown-linux-gnu";
const COMPILER: &str = "aarch64-linux-gnu-gcc";

/// A cargo whose `--target` is ARM64, with Debian's cross compiler for what is in C.
fn cross(verb: &str) -> Result<Command> {
    ensure!(cfg!(target_arch = "x86_64"), "building for ARM64 is set up for x86-64 machines only");
    setup::cross(COMPILER, TARGET)?;
    let mut command = cargo();
    command.args([verb, "--target", TARGET]);
    command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", COMPILER);
    command.env("CC_aarch64_unknown_linux_gnu", COMPILER);
    Ok(command)
}

/// Checks every crate, tests too.
pub(crate) fn check() -> Result<()> {
    run(cross("check")?.args(["--workspace", "--all-targets"]))
}

/// Builds the program; answers where it is.
pub(crate) fn build() -> Result<PathBuf> {
    run(cross("build")?.args(["--release", "-p", "skiff"]))?;
    program(&format!("{TARGET}/release"))
}

/// Builds kubectl from the Go module that `tests/peers` pins.
pub(crate) fn kubectl(to: &PathBuf) -> Result<()> {
    let mut go = Command::new("go");
    go.args(["build", "-trimpath", "-ldflags", "-s -w", "-o"]).arg(to).arg("k8s.io/kubernetes/cmd/kubectl");
    go.env("CGO_ENABLED", "0").env("GOARCH", "arm64").env("GOFLAGS", "-buildvcs=false -mod=readonly -p=2");
    run(go.current_dir(root().join("tests/peers/kubernetes")))
}
