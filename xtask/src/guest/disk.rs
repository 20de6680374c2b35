//! The guest's disk: Debian's stable release, small, with cgroup v2 alone as systemd has it there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use super::ARCHITECTURE;
use crate::command::run;

const RELEASE: &str = "bookworm";
const PACKAGES: &str = "systemd,systemd-sysv,dbus,udev,kmod,initramfs-tools,runc,nftables,iproute2,conntrack,docker-registry,\
                        curl,ca-certificates,procps,apparmor,jq";
/// Of which as much is written as the guest uses.
const DISK_SIZE: &str = "8G";

/// The guest's only configuration: its card, which leads nowhere, and the unit that runs the claims.
const FILES: [(&str, &str); 5] = [
    ("etc/hostname", "guest\n"),
    ("etc/resolv.conf", "nameserver 10.0.2.3\n"),
    ("etc/fstab", "/dev/vda / ext4 defaults 0 1\n"),
    (
        "etc/systemd/network/card.network",
        "[Match]\nType=ether\nName=e*\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n",
    ),
    (
        "etc/systemd/system/claims.service",
        "[Unit]\nAfter=multi-user.target\n[Service]\nType=exec\nTimeoutStopSec=5\nStandardOutput=journal+console\n\
         ExecStartPre=/bin/mkdir -p /host\n\
         ExecStartPre=/bin/mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 host /host\n\
         ExecStart=/bin/bash /host/guest/run.sh\n",
    ),
];
const ENABLED: [(&str, &str); 2] = [
    ("/etc/systemd/system/claims.service", "graphical.target.wants/claims.service"),
    ("/lib/systemd/system/systemd-networkd.service", "multi-user.target.wants/systemd-networkd.service"),
];

/// A disk that nobody writes to, and what boots it.
pub(super) struct Disk {
    pub(super) image: PathBuf,
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
}

impl Disk {
    /// Makes the disk unless one of the same content is there.
    pub(super) fn build(dir: &Path) -> Result<Disk> {
        let key = hex::encode(Sha256::digest(format!("{RELEASE} {PACKAGES} {FILES:?} {ENABLED:?}")));
        let dir = dir.join(&key[..12]);
        let disk =
            Disk { image: dir.join("disk.img"), kernel: dir.join("vmlinuz"), initrd: dir.join("initrd.img") };
        if disk.image.exists() {
            return Ok(disk);
        }
        eprintln!("making the guest's disk from Debian packages");
        let tree = dir.join("tree");
        if tree.exists() {
            remove_tree(&tree)?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        install(&tree)?;
        configure(&tree)?;
        fs::copy(newest(&tree, "vmlinuz-")?, &disk.kernel).context("copying the guest's kernel")?;
        fs::copy(newest(&tree, "initrd.img-")?, &disk.initrd).context("copying the guest's first files")?;
        let partial = dir.join("disk.partial");
        if partial.exists() {
            fs::remove_file(&partial).context("removing a disk that was not done")?;
        }
        run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(&partial).arg(DISK_SIZE))?;
        remove_tree(&tree)?;
        fs::rename(&partial, &disk.image).context("naming the guest's disk")?;
        Ok(disk)
    }
}

/// A tree of Debian's, whose links are its own business.
fn remove_tree(tree: &Path) -> Result<()> {
    fs::remove_dir_all(tree).with_context(|| format!("removing {}", tree.display()))
}

fn install(tree: &Path) -> Result<()> {
    run(Command::new("mmdebstrap")
        .args(["--quiet", "--variant=minbase", "--format=directory"])
        .arg(format!("--architectures={ARCHITECTURE}"))
        .arg(format!("--include={PACKAGES},linux-image-{ARCHITECTURE}"))
        .args(["--aptopt=APT::Install-Recommends \"false\"", "--dpkgopt=path-exclude=/usr/share/locale/*"])
        .arg(RELEASE)
        .arg(tree))
}

fn configure(tree: &Path) -> Result<()> {
    for (name, text) in FILES {
        let path = tree.join(name);
        fs::create_dir_all(path.parent().context("a file has a folder")?)?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    for (unit, at) in ENABLED {
        let link = tree.join("etc/systemd/system").join(at);
        fs::create_dir_all(link.parent().context("a link has a folder")?)?;
        std::os::unix::fs::symlink(unit, &link).with_context(|| format!("linking {}", link.display()))?;
    }
    Ok(())
}

/// The one file in `/boot` whose name begins so; the last if an update has left two.
fn newest(tree: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(tree.join("boot")).context("listing the guest's /boot")?;
    let named =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(named).collect();
    found.sort();
    found.pop().with_context(|| format!("the guest has no {prefix}* in /boot"))
}
