//! `cargo xtask setup`: what this machine lacks, through apt and rustup.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::command::{on_path, output};

const PROGRAMS: [(&str, &str); 9] = [
    ("runc", "runc"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("docker-registry", "docker-registry"),
    ("skopeo", "skopeo"),
    ("busybox", "busybox-static"),
    ("curl", "curl"),
    ("faketime", "faketime"),
    ("openssl", "openssl"),
];

pub(crate) fn run() -> Result<()> {
    packages(&PROGRAMS)?;
    targets()
}

/// What a guest is made with and runs in.
pub(crate) fn guest() -> Result<()> {
    packages(&[
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("mmdebstrap", "mmdebstrap"),
        ("mke2fs", "e2fsprogs"),
    ])
}

/// Installs those whose program is not there.
fn packages(programs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> =
        programs.iter().filter(|(name, _)| !on_path(name)).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        ensure!(on_path("apt-get"), "missing: {}; setup knows Debian and Ubuntu only", missing.join(" "));
        eprintln!("installing {}", missing.join(" "));
        let apt = || {
            let mut apt = Command::new("apt-get");
            apt.env("DEBIAN_FRONTEND", "noninteractive");
            apt
        };
        install(apt().arg("update"))?;
        install(apt().args(["install", "-y", "--no-install-recommends"]).args(&missing))?;
    }
    Ok(())
}

fn install(command: &mut Command) -> Result<()> {
    crate::command::run(command)
}

fn targets() -> Result<()> {
    let installed = output(Command::new("rustup").args(["target", "list", "--installed"]))?;
    for target in ["wasm32-wasip1", "wasm32-wasip2"] {
        if !installed.lines().any(|line| line == target) {
            eprintln!("installing rustup target {target}");
            crate::command::run(Command::new("rustup").args(["target", "add", target]))?;
        }
    }
    Ok(())
}

pub(crate) fn kubectl() -> Result<()> {
    ensure!(
        on_path("kubectl"),
        "kubectl is not on PATH; install it as https://kubernetes.io/docs/tasks/tools/ says"
    );
    Ok(())
}
