//! What there is of a running cluster: objects, and everything on the machine that stands for a pod or a Service. A
//! story takes one when its cluster is new; when all that the story made is deleted, nothing may have been added.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::{NodePaths, TestCluster};

/// One line a thing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Inventory {
    pub(crate) objects: BTreeSet<String>,
    machine: BTreeSet<String>,
}

/// Objects that come and go without anyone's doing.
const RESTLESS: [&str; 4] = [
    "events",
    "events.events.k8s.io",
    "leases.coordination.k8s.io",
    "certificatesigningrequests.certificates.k8s.io",
];
/// Of the data directory, what holds something for each pod, container or address.
const PER_POD: [&str; 8] = [
    "addresses",
    "logs",
    "nodelet/pods",
    "oci",
    "runtime/container-records",
    "runtime/sandbox-records",
    "runtime/sandboxes",
    "wasm/containers",
];

impl Inventory {
    pub(crate) fn take(cluster: &TestCluster) -> Result<Inventory> {
        Ok(Inventory { objects: objects(cluster)?, machine: machine(cluster)? })
    }

    /// Whether each of the first namespaces has what every namespace gets.
    pub(crate) fn has_accounts(&self) -> bool {
        let count = |kind: &str| self.objects.iter().filter(|o| o.contains(kind)).count();
        let n_namespaces = count(" Namespace/");
        n_namespaces >= 4
            && count(" ServiceAccount/default") == n_namespaces
            && count(" ConfigMap/kube-root-ca.crt") == n_namespaces
    }

    /// What is here and was not there, and the other way round.
    pub(crate) fn changes_since(&self, earlier: &Inventory) -> Vec<String> {
        let (now, then) = (self.all(), earlier.all());
        let added = now.difference(&then).map(|line| format!("+ {line}"));
        let lost = then.difference(&now).map(|line| format!("- {line}"));
        added.chain(lost).collect()
    }

    fn all(&self) -> BTreeSet<&String> {
        self.objects.iter().chain(&self.machine).collect()
    }
}

/// All objects, as `namespace kind/name`, with their owners.
fn objects(cluster: &TestCluster) -> Result<BTreeSet<String>> {
    let kinds = cluster.kubectl(&["api-resources", "--verbs=list,delete", "-o", "name"])?;
    let kinds: Vec<&str> = kinds.lines().filter(|kind| !RESTLESS.contains(kind)).collect();
    let listed = cluster.get(&["-A", &kinds.join(",")])?;
    let items = listed["items"].as_array().context("no items")?;
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    Ok(items
        .iter()
        .map(|item| {
            let meta = &item["metadata"];
            let owner = text(&meta["ownerReferences"][0]["name"]);
            let owner = if owner.is_empty() { owner } else { format!(" of {owner}") };
            format!("{} {}/{}{owner}", text(&meta["namespace"]), text(&item["kind"]), text(&meta["name"]))
        })
        .collect())
}

fn machine(cluster: &TestCluster) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for node in cluster.nodes() {
        of_node(&node, &mut found)?;
    }
    let of_cluster = format!("/clusters/{}/", cluster.name());
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading the mounts")?;
    let points = mounts.lines().filter_map(|l| l.split(' ').nth(4)).filter(|m| m.contains(&of_cluster));
    found.extend(points.map(|m| format!("mount {m}")));
    for shim in crate::leaks::processes(&of_cluster).iter().filter(|p| p.contains(" shim ")) {
        found.insert(shim.clone());
    }
    Ok(found)
}

fn of_node(node: &NodePaths, found: &mut BTreeSet<String>) -> Result<()> {
    let per_pod = PER_POD.map(|d| node.data.join(d)).into_iter();
    for directory in per_pod.chain(["ns", "runc"].map(|d| node.run.join(d))) {
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        found.extend(entries.map(|e| e.path().display().to_string()));
    }
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        pod_groups(&hierarchy.path().join(&node.cgroup), found);
    }
    pod_groups(&Path::new("/sys/fs/cgroup").join(&node.cgroup), found);
    for (what, arguments) in [
        ("link", ["ip", "-brief", "link"].as_slice()),
        ("route", &["ip", "route"]),
        ("nft", &["nft", "list", "ruleset"]),
    ] {
        let printed = inside(&node.netns, arguments)?;
        // Of a link the name: its state goes with the pods on it.
        let words = if what == "link" { 1 } else { usize::MAX };
        let lines = printed.lines().map(|line| format!("{} {what} {}", node.name, settled(line, words)));
        found.extend(lines);
    }
    Ok(())
}

/// Groups of pods and containers below one.
fn pod_groups(group: &Path, found: &mut BTreeSet<String>) {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    for child in entries.map(|e| e.path()).filter(|p| p.is_dir()) {
        if child.file_name().is_some_and(|n| n.to_string_lossy().starts_with("pod")) {
            found.insert(format!("cgroup {}", child.display()));
        }
        pod_groups(&child, found);
    }
}

fn inside(netns: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("nsenter");
    let output = command.arg(format!("--net={}", netns.display())).args(arguments).output();
    let output = output.context("running nsenter")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} in the cluster's namespace: {error}", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A line without what differs by when it is looked at: the numbers that chains get in the order they are made in.
fn settled(line: &str, n_words: usize) -> String {
    let mut words = Vec::new();
    // A bridge without pods has no carrier: nothing is amiss.
    for word in line.split_whitespace().filter(|w| *w != "linkdown").take(n_words) {
        let numbered = word.split_once('_').filter(|(_, n)| n.starts_with(|c: char| c.is_ascii_digit()));
        words.push(numbered.map_or(word, |(stem, _)| stem));
    }
    words.join(" ")
}
