//! `cargo xtask setup`: what this machine lacks, through apt and rustup.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::command::{on_path, output};
use crate::guest::Arch;

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
pub(crate) fn guest(arch: Arch) -> Result<()> {
    let qemu = match arch {
        Arch::X86 => ("qemu-system-x86_64", "qemu-system-x86"),
        Arch::Arm => ("qemu-system-aarch64", "qemu-system-arm"),
    };
    packages(&[qemu, ("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs")])?;
    if arch.is_own() { Ok(()) } else { foreign_programs() }
}

/// Has the kernel run ARM64's programs by qemu, as those that configure the guest's packages are. Until the machine's next start.
fn foreign_programs() -> Result<()> {
    packages(&[("qemu-aarch64-static", "qemu-user-static"), ("arch-test", "arch-test")])?;
    let known = Path::new("/proc/sys/fs/binfmt_misc");
    if !known.join("register").exists() {
        install(Command::new("mount").args(["-t", "binfmt_misc", "binfmt_misc"]).arg(known))?;
    }
    if known.join("qemu-aarch64").exists() {
        return Ok(());
    }
    // As the package has it for systemd, which need not run here.
    let rule = std::fs::read("/usr/lib/binfmt.d/qemu-aarch64.conf")
        .context("reading how ARM64's programs are known")?;
    std::fs::write(known.join("register"), rule.trim_ascii())
        .context("telling the kernel of ARM64's programs")
}

/// What another kind of processor is built for with.
pub(crate) fn cross(compiler: &str, target: &str) -> Result<()> {
    packages(&[(compiler, "gcc-aarch64-linux-gnu")])?;
    add_targets(&[target])
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
    add_targets(&["wasm32-wasip1", "wasm32-wasip2"])
}

fn add_targets(targets: &[&str]) -> Result<()> {
    let installed = output(Command::new("rustup").args(["target", "list", "--installed"]))?;
    for target in targets {
        if !installed.lines().any(|line| line == *target) {
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
