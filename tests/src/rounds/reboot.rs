//! The machine of a cluster is restarted, with pods of both runtimes and one on its node's own network.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{PATIENCE, Report, healed, seconds};
use crate::drills::{Boot, children, groups, in_own_mounts};
use crate::{PodSummary, TestCluster};

const PODS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: linux}
spec:
  replicas: 2
  selector: {matchLabels: {app: reboot, kind: linux}}
  template:
    metadata: {labels: {app: reboot, kind: linux}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: nginx:alpine}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: wasm}
spec:
  replicas: 2
  selector: {matchLabels: {app: reboot, kind: wasm}}
  template:
    metadata: {labels: {app: reboot, kind: wasm}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: skiff/wasm-http:v1}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: host}
spec:
  selector: {matchLabels: {app: reboot, kind: host}}
  template:
    metadata: {labels: {app: reboot, kind: host}}
    spec:
      terminationGracePeriodSeconds: 1
      hostNetwork: true
      containers: [{name: c, image: "busybox:1.36", command: [sh, -c, "trap exit TERM; sleep 3600 & wait"]}]
"#;
const N_PODS: usize = 6;

/// From the start of `skiff up`, which a machine's boot stands for, to the last pod.
const AIM: Duration = Duration::from_secs(10);
/// Against what it was before the first restart.
const MEMORY_AIM: f64 = 1.2;
/// Logs grow by a few lines each time.
const DISK_AIM: f64 = 1.05;

/// What a cluster takes of its machine.
#[derive(Clone, Copy, Debug)]
struct Taken {
    disk_kib: u64,
    n_files: u64,
    n_groups: usize,
    memory_kib: u64,
}

/// Restarts the machine of a cluster of two nodes so often.
///
/// # Errors
/// If the cluster cannot be made, or does not come back at all.
pub fn reboot(n_reboots: usize) -> Result<Report> {
    let mut report = Report::new(&[
        "restarts",
        "all pods back, s",
        "disk, MiB",
        "files and directories",
        "control groups",
        "memory of server and agent, MiB",
    ]);
    in_own_mounts(|| rounds(&mut report, n_reboots))?;
    Ok(report)
}

fn rounds(report: &mut Report, n_reboots: usize) -> Result<()> {
    let boot = Boot::new()?;
    let cluster = TestCluster::start_nodes("drill-reboot", 2)?;
    cluster.apply_text(PODS)?;
    let mut last = Vec::new();
    ensure!(healed(|| are_back(&cluster, &last)).is_some(), "the pods do not run");
    let first = Taken::by(&cluster)?;
    row(report, 0, None, first);
    let mut now = first;
    for n in 1..=n_reboots {
        last = cluster.pods("app=reboot")?;
        boot.restart(&cluster)?;
        let start = Instant::now();
        cluster.up().with_context(|| format!("starting after restart {n}"))?;
        let back = healed(|| are_back(&cluster, &last)).map(|_| start.elapsed());
        ensure!(back.is_some(), "after restart {n} not all pods are back within {} s", PATIENCE.as_secs());
        now = Taken::by(&cluster)?;
        row(report, n, back, now);
        report.aim(back.is_some_and(|took| took <= AIM), || {
            format!("restart {n}: not back within {} s", AIM.as_secs())
        });
    }
    let grows = |now: u64, first: u64, aim: f64| now as f64 <= first as f64 * aim;
    report.aim(grows(now.memory_kib, first.memory_kib, MEMORY_AIM), || "memory grew".into());
    report.aim(grows(now.disk_kib, first.disk_kib, DISK_AIM), || "disk grew".into());
    report.aim(grows(now.n_files, first.n_files, DISK_AIM), || "files grew".into());
    report.aim(now.n_groups == first.n_groups, || "control groups differ".into());
    cluster.kubectl(&["delete", "daemonset", "host"])?;
    cluster.stop()
}

/// Whether all pods run, each in containers that it did not have before.
fn are_back(cluster: &TestCluster, before: &[PodSummary]) -> Result<bool> {
    let pods = cluster.pods("app=reboot")?;
    let old: Vec<&String> = before.iter().flat_map(|pod| &pod.container_ids).collect();
    let is_back = |pod: &PodSummary| {
        pod.ready && !pod.container_ids.is_empty() && pod.container_ids.iter().all(|id| !old.contains(&id))
    };
    let names = |pods: &[PodSummary]| pods.iter().map(|pod| pod.name.clone()).collect::<Vec<_>>();
    let are_same = before.is_empty() || names(&pods) == names(before);
    Ok(pods.len() == N_PODS && are_same && pods.iter().all(is_back))
}

impl Taken {
    fn by(cluster: &TestCluster) -> Result<Taken> {
        let (mut n_groups, mut left) = (0, groups(cluster)?);
        while let Some(group) = left.pop() {
            n_groups += 1;
            left.extend(children(&group));
        }
        let record: Value = serde_json::from_slice(&std::fs::read(cluster.record())?)?;
        let pids = [&record["server"]["pid"], &record["agents"][0]["pid"]];
        let memory_kib = pids.into_iter().map(resident_kib).sum::<Result<u64>>()?;
        let data = cluster.data_dir();
        Ok(Taken {
            disk_kib: du(&data, "--block-size=1K")?,
            n_files: du(&data, "--inodes")?,
            n_groups,
            memory_kib,
        })
    }
}

fn du(directory: &Path, unit: &str) -> Result<u64> {
    let output =
        Command::new("du").args(["--summarize", unit]).arg(directory).output().context("running du")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = text.split_whitespace().next().context("du says nothing")?;
    number.parse().with_context(|| format!("du says {text:?}"))
}

fn resident_kib(pid: &Value) -> Result<u64> {
    let path = format!("/proc/{}/status", pid.as_i64().context("no process")?);
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    line.trim().trim_end_matches(" kB").parse().with_context(|| format!("{path} says {line:?}"))
}

fn row(report: &mut Report, n: usize, back: Option<Duration>, taken: Taken) {
    let mib = |kib: u64| format!("{:.1}", kib as f64 / 1024.0);
    report.row(vec![
        n.to_string(),
        back.map_or_else(|| "–".to_owned(), seconds),
        mib(taken.disk_kib),
        taken.n_files.to_string(),
        taken.n_groups.to_string(),
        mib(taken.memory_kib),
    ]);
}
