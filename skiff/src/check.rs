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
    needs.extend(apparmor());
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
        need("overlayfs", overlay(), "install a kernel that has it, or its modules"),
        need("cgroups", cgroups(), "mount the cgroup hierarchies read-write; systemd does it at boot"),
        need(
            "cgroup: memory",
            controller("memory"),
            "put cgroup_enable=memory cgroup_memory=1 on the kernel command line and boot again",
        ),
        need("cgroup: cpu", controller("cpu"), "enable CONFIG_CGROUP_SCHED in the kernel"),
        need("cgroup: pids", controller("pids"), "enable CONFIG_CGROUP_PIDS in the kernel"),
    ]
}

/// What loads the profile of containers, where there is such a thing.
fn apparmor() -> Option<Need> {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    let found = || version("apparmor_parser", &["--version"]);
    let fix = "apt-get install apparmor; without it AppArmor confines no container";
    (enabled.trim() == "Y").then(|| Need { what: "apparmor", found: found(), fix, required: false })
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

fn overlay() -> Result<String, String> {
    let known = std::fs::read_to_string("/proc/filesystems").map_err(|e| e.to_string())?;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let modules = Path::new("/lib/modules").join(release.trim());
    filesystem("overlay", &known, &modules)
}

/// A file system that the kernel knows, or one that is a module: the first mount loads it.
fn filesystem(name: &str, known: &str, modules: &Path) -> Result<String, String> {
    if known.lines().any(|line| line.split_whitespace().last() == Some(name)) {
        return Ok("yes".into());
    }
    // A line of either begins with the path of a module, which may be compressed.
    let listed = ["modules.dep", "modules.builtin"].map(|list| std::fs::read_to_string(modules.join(list)));
    let module = format!("/{name}.ko");
    match listed.iter().flatten().flat_map(|text| text.lines()).any(|line| line.contains(&module)) {
        true => Ok("a module, which the first mount loads".into()),
        false => Err(format!("the kernel does not know {name}")),
    }
}

fn cgroups() -> Result<String, String> {
    let found = skiff_cgroup::Cgroups::detect()
        .and_then(|cgroups| cgroups.require_writable().map(|()| format!("{:?}", cgroups.version())));
    found.map_err(|error| skiff_cri::whole(&error))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_that_loads_itself_is_not_missing() {
        let modules = tempfile::tempdir().unwrap();
        let has = |known: &str| filesystem("overlay", known, modules.path());
        has("nodev\ttmpfs\n").unwrap_err();
        has("nodev\ttmpfs\nnodev\toverlay\n").unwrap();
        std::fs::write(modules.path().join("modules.dep"), "kernel/fs/overlayfs/overlay.ko.xz:\n").unwrap();
        has("nodev\ttmpfs\n").unwrap();
    }
}
