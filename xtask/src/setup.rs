//! `cargo xtask setup`: what this machine lacks, through apt and rustup.

use std::process::Command;

use anyhow::{Result, bail, ensure};

use crate::command::{on_path, output};

const PROGRAMS: [(&str, &str); 11] = [
    ("runc", "runc"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("docker-registry", "docker-registry"),
    ("skopeo", "skopeo"),
    ("busybox", "busybox-static"),
    ("curl", "curl"),
    ("faketime", "faketime"),
    ("openssl", "openssl"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
];

/// For what a run writes: nodes of its clusters take pods until 1 % is left.
const LEAST_ROOM_PERCENT: u64 = 5;

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

/// A node whose disk is nearly full takes no pods: that is to be said before anything waits for them.
pub(crate) fn room() -> Result<()> {
    let text = output(Command::new("df").args(["--output=size,avail", "/var/lib"]))?;
    let kib: Vec<u64> =
        text.lines().last().unwrap_or_default().split(' ').filter_map(|n| n.parse().ok()).collect();
    let [size, free] = kib[..] else { bail!("df does not say how full the disk is: {text}") };
    ensure!(
        free * 100 >= size * LEAST_ROOM_PERCENT,
        "{} GiB of {} are free under /var/lib: a run wants {LEAST_ROOM_PERCENT} % for what it writes",
        free >> 20,
        size >> 20
    );
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
