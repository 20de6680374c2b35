//! Machines that are given another address while their part of the cluster runs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use skiff_tests::{TestCluster, has};

use crate::restarts::{Started, node_is_ready};

fn ip(netns: &Path, command: &str) -> Result<()> {
    let mut nsenter = Command::new("nsenter");
    nsenter.arg(format!("--net={}", netns.display())).arg("ip").args(command.split(' '));
    let output = nsenter.output().context("running ip")?;
    ensure!(output.status.success(), "ip {command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What a server or an agent was started with, but for the address, which it is to find by itself.
fn without_address(arguments: &[String]) -> Result<Vec<String>> {
    let at = arguments.iter().position(|arg| arg == "--node-ip").context("no --node-ip")?;
    Ok([&arguments[..at], &arguments[at + 2..]].concat())
}

/// As a lease does that becomes another: the route goes with the address.
fn renumber(netns: &Path, from: &str, to: &str) -> Result<()> {
    ip(netns, &format!("address del {from}/24 dev eth0"))?;
    ip(netns, &format!("address add {to}/24 dev eth0"))?;
    ip(netns, "route replace default via 10.99.0.1 dev eth0 onlink")
}

fn internal_ip(cluster: &TestCluster, node: &str) -> Result<String> {
    let node = cluster.get(&["node", node])?;
    let addresses = node["status"]["addresses"].as_array().context("no addresses")?;
    let internal = addresses.iter().find(|a| a["type"] == "InternalIP").context("no InternalIP")?;
    Ok(internal["address"].as_str().unwrap_or_default().to_owned())
}

/// Waits until a node has another address, and is reached there with a certificate for it.
fn is_reached_at(cluster: &TestCluster, node: &str, address: &str) -> Result<()> {
    cluster.wait_for("the node's new address", || {
        Ok(internal_ip(cluster, node).ok().filter(|now| now == address))
    })?;
    let health = format!("/api/v1/nodes/{node}/proxy/healthz");
    cluster.wait_for("the node to be reached at its new address", || {
        Ok(cluster.kubectl(&["get", "--raw", &health]).ok())
    })?;
    ensure!(node_is_ready(cluster, node)?.is_some(), "the node is not ready");
    Ok(())
}

#[test]
fn an_agent_whose_address_becomes_another_is_reached_there_without_a_restart() -> Result<()> {
    let cluster = TestCluster::start_nodes("drill-move", 2)?;
    let agent = cluster.agent(2)?;
    let arguments = without_address(&agent.arguments()?)?;
    agent.kill()?;
    let logs = tempfile::tempdir()?;
    let (log, node) = (logs.path().join("agent.log"), cluster.node(2));
    let mut agent = Started::like(&arguments, &node.netns, &log, &[])?;
    cluster.wait_for("the agent", || {
        Ok(std::fs::read_to_string(&log)?.contains("the node is ready").then_some(()))
    })?;
    ensure!(internal_ip(&cluster, "drill-move-2")? == "10.99.0.3", "it has not found its address");
    renumber(&node.netns, "10.99.0.3", "10.99.0.77")?;
    is_reached_at(&cluster, "drill-move-2", "10.99.0.77")?;
    ensure!(agent.runs()?, "the agent has ended:\n{}", std::fs::read_to_string(&log)?);
    has(&std::fs::read_to_string(&log)?, &["the node has another address"])?;
    renumber(&node.netns, "10.99.0.77", "10.99.0.3")?;
    is_reached_at(&cluster, "drill-move-2", "10.99.0.3")?;
    drop(agent);
    cluster.up()?;
    cluster.kubectl(&["delete", "csr", "--all"])?;
    cluster.stop()
}

#[test]
fn a_server_whose_address_becomes_another_is_reached_there_without_a_restart() -> Result<()> {
    let cluster = TestCluster::start("drill-renumber")?;
    let server = cluster.server()?;
    let arguments = without_address(&server.arguments()?)?;
    server.kill()?;
    let logs = tempfile::tempdir()?;
    let log = logs.path().join("server.log");
    let mut server = Started::like(&arguments, &cluster.netns(), &log, &[])?;
    cluster.wait_for("the server", || {
        Ok(std::fs::read_to_string(&log)?.contains("the node is ready").then_some(()))
    })?;
    // For the forwarder, which knows no other.
    ip(&cluster.netns(), "address add 10.99.0.2/32 dev lo")?;
    renumber(&cluster.netns(), "10.99.0.2", "10.99.0.88")?;
    is_reached_at(&cluster, "drill-renumber-1", "10.99.0.88")?;
    let endpoints = cluster.kubectl(&[
        "get",
        "endpoints",
        "kubernetes",
        "-o",
        "jsonpath={.subsets[0].addresses[0].ip}",
    ])?;
    ensure!(endpoints.contains("10.99.0.88"), "the API's endpoints are {endpoints}");
    cluster.wait_for("nodes that join to be told", || {
        let info =
            cluster.kubectl(&["get", "configmap", "-n", "kube-public", "cluster-info", "-o", "yaml"])?;
        Ok(info.contains("https://10.99.0.88:6443").then_some(()))
    })?;
    ensure!(server.runs()?, "the server has ended:\n{}", std::fs::read_to_string(&log)?);
    renumber(&cluster.netns(), "10.99.0.88", "10.99.0.2")?;
    is_reached_at(&cluster, "drill-renumber-1", "10.99.0.2")?;
    ip(&cluster.netns(), "address del 10.99.0.2/32 dev lo")?;
    drop(server);
    cluster.up()?;
    cluster.stop()
}
