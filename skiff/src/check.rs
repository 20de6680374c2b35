//! `skiff check`: what this host lacks, and what to do about it.

use std::path::Path;
use std::process::Command;

use skiff_apiserver::store::{SqliteStore, StoreError};

use crate::layout::Layout;

/// One thing that Skiff needs.
struct Need {
    what: &'static str,
    found: Result<String, String>,
    fix: &'static str,
    /// Without it nothing works; without the others, something does not.
    required: bool,
}

/// Prints a line a need; answers whether the host can run Skiff.
pub(crate) fn run(layout: &Layout) -> bool {
    let mut needs = needs();
    needs.extend(database(layout));
    for need in &needs {
        match &need.found {
            Ok(found) => println!("ok       {:<18} {found}", need.what),
            Err(why) => {
                let word = if need.required { "MISSING" } else { "warning" };
                println!("{word:<8} {:<18} {why}; {}", need.what, need.fix);
            }
        }
    }
    needs.iter().all(|n| n.found.is_ok() || !n.required)
}

fn needs() -> Vec<Need> {
    let need = |what, found, fix| Need { what, found, fix, required: true };
    vec![
        need("root", root(), "run as root"),
        need("runc", runc(), "apt-get install runc"),
        Need { required: false, ..need("runc version", recent_runc(), "install runc 1.2.8, 1.3.3 or newer") },
        need("nft", version("nft", &["--version"]), "apt-get install nftables"),
        need("ip", version("ip", &["-Version"]), "apt-get install iproute2"),
        need("overlayfs", filesystem("overlay"), "load the kernel module: modprobe overlay"),
        need("cgroups", cgroups(), "mount the cgroup hierarchies; systemd does it at boot"),
        need("cgroup: memory", controller("memory"), "boot with cgroup_enable=memory"),
        need("cgroup: cpu", controller("cpu"), "enable CONFIG_CGROUP_SCHED in the kernel"),
        need("cgroup: pids", controller("pids"), "enable CONFIG_CGROUP_PIDS in the kernel"),
    ]
}

/// Whether every value in the database of a server that does not run is what was written. None where there is no server.
fn database(layout: &Layout) -> Option<Need> {
    let path = layout.database();
    if !path.exists() {
        return None;
    }
    let found = match SqliteStore::damaged(&path) {
        Ok(keys) if keys.is_empty() => Ok(format!("{} is sound", path.display())),
        Ok(keys) => Err(format!("damaged in {}: {}", path.display(), keys.join(", "))),
        Err(StoreError::InUse { .. }) => {
            Ok("in use by a running server, whose events and log name what is damaged".to_owned())
        }
        Err(error) => Err(error.to_string()),
    };
    let fix =
        "restore a backup, or delete these objects with ignoreStoreReadErrorWithClusterBreakingPotential";
    Some(Need { what: "database", found, fix, required: false })
}

fn root() -> Result<String, String> {
    if rustix::process::geteuid().is_root() { Ok("yes".into()) } else { Err("not root".into()) }
}

fn version(program: &str, args: &[&str]) -> Result<String, String> {
    let output =
        Command::new(program).args(args).output().map_err(|e| format!("cannot run {program}: {e}"))?;
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    Ok(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned())
}

fn runc() -> Result<String, String> {
    version("runc", &["--version"])
}

/// Older ones let a container out (CVE-2025-31133, CVE-2025-52565, CVE-2025-52881).
fn recent_runc() -> Result<String, String> {
    let text = runc()?;
    let number = text.split_whitespace().last().unwrap_or_default();
    let parts: Vec<u32> = number.split(['.', '+', '-', '~']).map_while(|p| p.parse().ok()).collect();
    let recent = match parts.as_slice() {
        [1, 2, patch, ..] => *patch >= 8,
        [1, 3, patch, ..] => *patch >= 3,
        [major, minor, ..] => (*major, *minor) >= (1, 4),
        _ => false,
    };
    if recent { Ok(number.to_owned()) } else { Err(format!("{number} has known ways out of a container")) }
}

fn filesystem(name: &str) -> Result<String, String> {
    let known = std::fs::read_to_string("/proc/filesystems").map_err(|e| e.to_string())?;
    let found = known.lines().any(|line| line.split_whitespace().last() == Some(name));
    if found { Ok("yes".into()) } else { Err(format!("the kernel does not know {name}")) }
}

fn cgroups() -> Result<String, String> {
    skiff_cgroup::Cgroups::detect().map(|c| format!("{:?}", c.version())).map_err(|e| e.to_string())
}

fn controller(name: &str) -> Result<String, String> {
    let v1 = Path::new("/sys/fs/cgroup").join(name).is_dir();
    let v2 = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if v1 || v2.split_whitespace().any(|c| c == name) {
        Ok("yes".into())
    } else {
        Err("not available".into())
    }
}
