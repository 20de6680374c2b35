//! Drills in rounds: one fault again and again, and what became of the cluster. `cargo xtask drills` runs many rounds and writes
//! them down; the tests run a few of each.

mod address;
mod clock;
mod link;
mod power;
mod reboot;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::drills::Process;
use crate::{NodePaths, PodSummary, TestCluster, http_get, within};

pub use address::address;
pub use clock::{Case, Who, clock, first_boots};
pub use link::{Shape, link};
pub use power::power;
pub use reboot::reboot;

/// How long a drill waits for what is to heal, twice as long as the slowest may take.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What came of a drill: a table, and the aims that were missed.
#[derive(Debug)]
pub struct Report {
    columns: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    missed: Vec<String>,
}

impl Report {
    pub fn new(columns: &[&'static str]) -> Report {
        Report { columns: columns.to_vec(), rows: Vec::new(), missed: Vec::new() }
    }

    fn row(&mut self, row: Vec<String>) {
        eprintln!("{}", row.join(" | "));
        self.rows.push(row);
    }

    /// Notes an aim that was missed, if it was.
    fn aim(&mut self, is_met: bool, what: impl FnOnce() -> String) {
        if !is_met {
            self.missed.push(what());
        }
    }

    /// As `cargo xtask drills` reads it.
    pub fn to_json(&self) -> Value {
        json!({"columns": self.columns, "rows": self.rows, "missed": self.missed})
    }

    /// # Errors
    /// If an aim was missed.
    pub fn require(&self) -> Result<()> {
        ensure!(self.missed.is_empty(), "missed: {}; {:?}", self.missed.join("; "), self.rows);
        Ok(())
    }
}

/// How long it takes until something is so; none if it is not in time. What cannot be asked is not so yet.
fn healed(mut look: impl FnMut() -> Result<bool>) -> Option<Duration> {
    let start = Instant::now();
    loop {
        if look().unwrap_or(false) {
            return Some(start.elapsed());
        }
        if start.elapsed() > PATIENCE {
            return None;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64())
}

/// The median and the longest, in seconds.
fn median_and_longest(times: &mut [Duration]) -> (String, String) {
    times.sort_unstable();
    let text = |time: Option<&Duration>| time.map_or_else(|| "–".to_owned(), |time| seconds(*time));
    (text(times.get(times.len() / 2)), text(times.last()))
}

/// One pod on each of two nodes.
const PODS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: drill}
spec:
  replicas: 2
  selector: {matchLabels: {app: drill}}
  template:
    metadata: {labels: {app: drill}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: DoNotSchedule
        labelSelector: {matchLabels: {app: drill}}
      containers: [{name: web, image: nginx:alpine}]
"#;

/// A cluster of two nodes with a pod on each.
struct TwoNodes<'c> {
    cluster: &'c TestCluster,
    /// With the pod on each: its name and its address.
    pods: [(NodePaths, String, String); 2],
}

impl<'c> TwoNodes<'c> {
    fn start(cluster: &'c TestCluster) -> Result<TwoNodes<'c>> {
        cluster.apply_text(PODS)?;
        cluster.kubectl(&["rollout", "status", "deployment/drill", "--timeout=60s"])?;
        let list = cluster.get(&["pods", "-l", "app=drill"])?;
        let on = |node: NodePaths| {
            let mut pods = list["items"].as_array().into_iter().flatten();
            let pod = pods.find(|pod| pod["spec"]["nodeName"] == node.name.as_str());
            let pod = pod.with_context(|| format!("no pod is on {}", node.name))?;
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            Ok::<_, anyhow::Error>((node, text(&pod["metadata"]["name"]), text(&pod["status"]["podIP"])))
        };
        let two = TwoNodes { cluster, pods: [on(cluster.node(1))?, on(cluster.node(2))?] };
        ensure!(healed(|| Ok(two.is_whole())).is_some(), "the pods of a new cluster do not meet");
        Ok(two)
    }

    /// Whether each node reaches the other's pod.
    fn meets(&self) -> bool {
        let [(first, _, first_ip), (second, _, second_ip)] = &self.pods;
        let reaches = |from: &NodePaths, ip: &str| within(&from.netns, || http_get(ip, 80)).is_ok();
        reaches(first, second_ip) && reaches(second, first_ip)
    }

    /// Whether people get into each pod, which is the server's way to the nodes.
    fn is_entered(&self) -> bool {
        let enter = |pod: &str| self.cluster.kubectl(&["exec", pod, "--", "sh", "-c", "exit 0"]);
        self.pods.iter().all(|(_, pod, _)| enter(pod).is_ok())
    }

    fn is_whole(&self) -> bool {
        self.meets() && self.is_entered() && self.are_ready()
    }

    /// Whether both nodes are ready and say so now.
    fn are_ready(&self) -> bool {
        let ready = |node: &Value| {
            let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
            conditions.any(|c| c["type"] == "Ready" && c["status"] == "True")
        };
        let nodes = self.cluster.get(&["nodes"]).unwrap_or_default();
        let nodes = nodes["items"].as_array().cloned().unwrap_or_default();
        nodes.len() == 2 && nodes.iter().all(ready)
    }

    fn summary(&self) -> Result<Vec<PodSummary>> {
        self.cluster.pods("app=drill")
    }
}

/// How many pods are not where and what they were. Whether they are ready just now is another question.
fn n_moved(before: &[PodSummary], after: &[PodSummary]) -> usize {
    let is_same = |a: &PodSummary, b: &PodSummary| {
        (&a.name, &a.ip, &a.container_ids) == (&b.name, &b.ip, &b.container_ids)
    };
    before.iter().filter(|pod| !after.iter().any(|other| is_same(pod, other))).count()
}

/// Runs `ip` in a network namespace.
fn ip(netns: &std::path::Path, command: &str) -> Result<()> {
    let output = std::process::Command::new("nsenter")
        .arg(format!("--net={}", netns.display()))
        .arg("ip")
        .args(command.split(' '))
        .output()
        .context("running nsenter")?;
    ensure!(output.status.success(), "ip {command}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// What the nodes' default routes lead to.
const ROUTE: &str = "route replace default via 10.99.0.1 dev eth0 onlink";

/// Whether a process has lived all along.
fn lives(process: &Process) -> Result<bool> {
    Ok(!process.ends_within(Duration::ZERO)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_times_the_middle_and_the_longest_are_told() {
        let mut times = [3, 1, 9].map(Duration::from_secs);
        assert_eq!(median_and_longest(&mut times), ("3.0".to_owned(), "9.0".to_owned()));
        assert_eq!(median_and_longest(&mut []), ("–".to_owned(), "–".to_owned()));
    }

    #[test]
    fn a_pod_that_is_not_ready_has_not_moved_and_one_of_another_container_has() {
        let pod = |id: &str, ready| PodSummary {
            name: "a".into(),
            ip: "10.42.0.2".into(),
            container_ids: vec![id.into()],
            ready,
        };
        assert_eq!(n_moved(&[pod("x", true)], &[pod("x", false)]), 0);
        assert_eq!(n_moved(&[pod("x", true)], &[pod("y", true)]), 1);
        assert_eq!(n_moved(&[pod("x", true)], &[]), 1);
    }

    #[test]
    fn an_aim_that_was_missed_fails_a_drill_that_must_meet_it() {
        let mut report = Report::new(&["a"]);
        report.row(vec!["1".into()]);
        report.aim(true, || "one".into());
        report.require().unwrap();
        report.aim(false, || "two".into());
        assert!(report.require().unwrap_err().to_string().contains("missed: two"));
        assert_eq!(report.to_json(), json!({"columns": ["a"], "rows": [["1"]], "missed": ["two"]}));
    }
}
