//! A node is given another address, as by a lease that ran out, while everything runs.
//!
//! `skiff up` names each node's address, and one that is named is never left. Who is moved is therefore started by hand without it,
//! and takes that of the default route, as on a machine.

use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{PODS, ROUTE, Report, TwoNodes, healed, ip, median_and_longest, n_moved};
use crate::drills::{Process, Started};
use crate::{PodSummary, TestCluster, within};

/// Each node's own, and one that nobody has.
const OF_SERVER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 0, 2), Ipv4Addr::new(10, 99, 0, 202)];
const OF_AGENT: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 0, 3), Ipv4Addr::new(10, 99, 0, 203)];
/// After the machine has another address.
const AIM: Duration = Duration::from_secs(30);

/// Gives an agent's machine another address, so often, and a server's, and waits until all is as it was: their Nodes say so,
/// pods meet, people get into them, and the API is reached by its Service.
///
/// # Errors
/// If a cluster cannot be made, or a process ends.
pub fn address(n_rounds: usize) -> Result<Report> {
    let mut report = Report::new(&[
        "who",
        "rounds",
        "whole again at the other address, median and longest, s",
        "pods that moved or started anew",
    ]);
    of_agent(&mut report, n_rounds)?;
    of_server(&mut report, n_rounds)?;
    Ok(report)
}

fn of_agent(report: &mut Report, n_rounds: usize) -> Result<()> {
    let cluster = TestCluster::start_nodes("drill-address", 2)?;
    let node = cluster.node(2);
    let two = TwoNodes::start(&cluster)?;
    let before = two.summary()?;
    let (agent, _logs) = by_hand(cluster.agent(2)?, &node.netns)?;
    let is_whole = |to: Ipv4Addr| -> Result<bool> {
        let node: Value =
            serde_json::from_str(&cluster.kubectl(&["get", "node", &node.name, "-o", "json"])?)?;
        Ok(internal_ip(&node)? == to && two.is_whole())
    };
    let times = rounds(n_rounds, &node.netns, OF_AGENT, agent, is_whole)?;
    row(report, "agent", n_rounds, times, &before, &two.summary()?);
    cluster.up()?;
    cluster.stop_changed()
}

/// What publishes the cluster on the loopback goes by the address that the node had: people are on the node here.
fn of_server(report: &mut Report, n_rounds: usize) -> Result<()> {
    let cluster = TestCluster::start("drill-renumber")?;
    let name = cluster.node(1).name;
    cluster.apply_text(&PODS.replace("replicas: 2", "replicas: 1"))?;
    cluster.kubectl(&["rollout", "status", "deployment/drill", "--timeout=60s"])?;
    let before = cluster.pods("app=drill")?;
    let pod = before.first().context("no pod")?.name.clone();
    let (server, _logs) = by_hand(cluster.server()?, &cluster.netns())?;
    let is_whole = |to: Ipv4Addr| -> Result<bool> {
        let get = |what: &str, name: &str| -> Result<Value> {
            Ok(serde_json::from_str(&cluster.kubectl_inside(&["get", what, name, "-o", "json"])?)?)
        };
        let endpoints = get("endpoints", "kubernetes")?;
        cluster.kubectl_inside(&["exec", &pod, "--", "sh", "-c", "exit 0"])?;
        let api = (Ipv4Addr::new(10, 43, 0, 1), 443).into();
        within(&cluster.netns(), || Ok(TcpStream::connect_timeout(&api, Duration::from_secs(2))?))?;
        let told = endpoints["subsets"][0]["addresses"][0]["ip"].as_str().unwrap_or_default().to_owned();
        Ok(internal_ip(&get("node", &name)?)? == to && told == to.to_string())
    };
    let times = rounds(n_rounds, &cluster.netns(), OF_SERVER, server, is_whole)?;
    cluster.up()?;
    row(report, "server", n_rounds, times, &before, &cluster.pods("app=drill")?);
    cluster.stop_changed()
}

/// Starts a process of a cluster again without its address, with its log in a directory that is answered as well.
fn by_hand(process: Process, netns: &Path) -> Result<(Started, tempfile::TempDir)> {
    let arguments = without_address(&process.arguments()?);
    process.kill()?;
    let logs = tempfile::tempdir()?;
    // It needs no way out for images: its pods are there.
    Ok((Started::like(&arguments, netns, &logs.path().join("log"), &[])?, logs))
}

/// Ends with the first of the two addresses.
fn rounds(
    n_rounds: usize,
    netns: &Path,
    addresses: [Ipv4Addr; 2],
    mut process: Started,
    is_whole: impl Fn(Ipv4Addr) -> Result<bool>,
) -> Result<Vec<Duration>> {
    ensure!(healed(|| is_whole(addresses[0])).is_some(), "what was started by hand is not whole");
    let mut times = Vec::new();
    for round in 0..n_rounds {
        let (from, to) = (addresses[round % 2], addresses[(round + 1) % 2]);
        renumber(netns, from, to)?;
        times.extend(healed(|| is_whole(to)));
        ensure!(process.runs()?, "after round {round} it has ended");
    }
    if n_rounds % 2 == 1 {
        renumber(netns, addresses[1], addresses[0])?;
    }
    Ok(times)
}

fn row(
    report: &mut Report,
    who: &str,
    n_rounds: usize,
    mut times: Vec<Duration>,
    before: &[PodSummary],
    after: &[PodSummary],
) {
    let n_slow = n_rounds - times.iter().filter(|took| **took <= AIM).count();
    let n_moved = n_moved(before, after);
    let (median, longest) = median_and_longest(&mut times);
    report.row(vec![
        who.to_owned(),
        n_rounds.to_string(),
        format!("{median}, {longest}"),
        n_moved.to_string(),
    ]);
    report.aim(n_slow == 0, || format!("{who}: {n_slow} times not within {} s", AIM.as_secs()));
    report.aim(n_moved == 0, || format!("{who}: {n_moved} pods moved or started anew"));
}

/// What a process was started with, but for the address that it is to have.
fn without_address(arguments: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut all = arguments.iter();
    while let Some(argument) = all.next() {
        if argument == "--node-ip" {
            all.next();
        } else {
            kept.push(argument.clone());
        }
    }
    kept
}

/// The new one first, as network managers do it; with the old one goes the route over it.
fn renumber(netns: &Path, from: Ipv4Addr, to: Ipv4Addr) -> Result<()> {
    ip(netns, &format!("address replace {to}/24 dev eth0"))?;
    ip(netns, &format!("address delete {from}/24 dev eth0"))?;
    // The first address of a range takes the others of it along.
    ip(netns, &format!("address replace {to}/24 dev eth0"))?;
    ip(netns, ROUTE)
}

fn internal_ip(node: &Value) -> Result<Ipv4Addr> {
    let addresses = node["status"]["addresses"].as_array().context("the node has no addresses")?;
    let internal = addresses.iter().find(|a| a["type"] == "InternalIP").context("it has no InternalIP")?;
    internal["address"].as_str().context("no address")?.parse().context("an address")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_started_with_all_but_its_address() {
        let arguments = ["skiff", "agent", "--node-name", "a", "--node-ip", "10.0.0.1", "--data-dir", "/d"];
        let kept = without_address(&arguments.map(str::to_owned));
        assert_eq!(kept, ["skiff", "agent", "--node-name", "a", "--data-dir", "/d"]);
    }
}
