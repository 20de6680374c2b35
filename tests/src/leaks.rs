//! The whole-cluster checker: what a cluster must not leave on the machine.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};

/// Fails with a list of everything that is left of a cluster.
pub(crate) fn check(name: &str) -> Result<()> {
    let mut left = Vec::new();
    for path in ["/run/skiff/clusters/{}", "/var/lib/skiff/clusters/{}", "/var/lib/skiff/clusters/{}.json"] {
        let path = PathBuf::from(path.replace("{}", name));
        if path.exists() {
            left.push(format!("file {}", path.display()));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let of_cluster = format!("/clusters/{name}/");
    left.extend(
        mounts
            .lines()
            .filter_map(|l| l.split(' ').nth(4))
            .filter(|m| m.contains(&of_cluster))
            .map(|m| format!("mount {m}")),
    );
    let group = format!("skiff-{name}");
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let groups = fs::read_dir(hierarchy.path()).into_iter().flatten().flatten().map(|g| g.path());
        let of_cluster = groups.filter(|path| {
            // Of the first node, and of the others: `skiff-NAME.2`.
            let group_name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            group_name == group || group_name.starts_with(&format!("{group}."))
        });
        left.extend(of_cluster.map(|path| format!("cgroup {}", path.display())));
    }
    left.extend(processes(&of_cluster));
    left.extend(tables());
    ensure!(left.is_empty(), "the cluster {name:?} has left:\n  {}", left.join("\n  "));
    Ok(())
}

/// Processes whose arguments name one of the cluster's directories: shims, Wasm hosts, servers.
pub(crate) fn processes(of_cluster: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        if arguments.contains(of_cluster) {
            found.push(format!("process {} {arguments}", entry.file_name().to_string_lossy()));
        }
    }
    found
}

/// Tables of Skiff's in the host's own network, where a throw-away cluster has no business.
fn tables() -> Vec<String> {
    let output = std::process::Command::new("nft").args(["list", "tables"]).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().filter(|l| l.contains("skiff")).map(|l| format!("nft {l}")).collect()
}
