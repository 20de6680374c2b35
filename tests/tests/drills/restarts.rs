//! What comes back by itself, and what `skiff up` brings back.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use skiff_tests::TestCluster;
use skiff_tests::drills::{OwnClock, Process, Started};

const SERVER: &str = "https://10.99.0.2:6443";

fn node_is_ready(cluster: &TestCluster, name: &str) -> Result<Option<()>> {
    let Ok(node) = cluster.get(&["node", name]) else { return Ok(None) };
    let conditions = node["status"]["conditions"].as_array().context("no conditions")?;
    let ready = conditions.iter().find(|c| c["type"] == "Ready").context("no condition Ready")?;
    Ok((ready["status"] == "True").then_some(()))
}

#[test]
fn a_cluster_whose_server_and_agents_have_died_is_started_again() -> Result<()> {
    let cluster = TestCluster::start_nodes("drill-up", 2)?;
    for _ in 0..3 {
        cluster.server()?.kill()?;
        cluster.agent(2)?.kill()?;
        cluster.up()?;
        ensure!(node_is_ready(&cluster, "drill-up-2")?.is_some(), "it is not ready, though that was said");
    }
    // What they said before is still to be read.
    let log = std::fs::read_to_string(cluster.data_dir().join("server.log"))?;
    let n_starts = log.lines().filter(|line| line.contains("the API answers")).count();
    ensure!(n_starts == 4, "{n_starts} starts are in the log");
    cluster.stop()
}

/// What a restart of the machine leaves of a cluster without pods: what is on its disk.
fn forget_boot(cluster: &TestCluster) -> Result<()> {
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(cluster.record())?)?;
    let agents = record["agents"].as_array().context("no agents")?;
    for process in [&record["server"], &record["forwarder"]].into_iter().chain(agents) {
        Process::open(i32::try_from(process["pid"].as_i64().context("no process")?)?)?.kill()?;
    }
    let run = cluster.netns();
    let run = run.parent().context("no directory")?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let below = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|m| std::path::Path::new(m).starts_with(run));
    for mount in below {
        let status = Command::new("umount").args(["--lazy", mount]).status()?;
        ensure!(status.success(), "umount {mount}");
    }
    std::fs::remove_dir_all(run).context("removing what a restart of the machine ends")
}

#[test]
fn a_cluster_outlives_a_restart_of_its_machine_with_all_its_nodes_and_its_shape() -> Result<()> {
    let cluster = TestCluster::start_routed("drill-boot", 2)?;
    cluster.kubectl(&["create", "configmap", "kept"])?;
    forget_boot(&cluster)?;
    // Nothing is told of it but its name.
    cluster.skiff(&["up", "--name", "drill-boot"])?;
    cluster.kubectl(&["get", "configmap", "kept"])?;
    for node in ["drill-boot-1", "drill-boot-2"] {
        ensure!(node_is_ready(&cluster, node)?.is_some(), "{node} is not ready");
    }
    cluster.kubectl(&["delete", "configmap", "kept"])?;
    forget_boot(&cluster)?;
    cluster.stop_changed()
}

/// The address that a node's DNS has for a name.
fn look_up(cluster: &TestCluster, node: u8, name: &str) -> Result<[u8; 4]> {
    let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len())?);
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    let answer = skiff_tests::within(&cluster.node(node).netns, || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(std::time::Duration::from_secs(2)))?;
        socket.send_to(&question, "10.43.0.10:53")?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer)?;
        Ok(answer[..length].to_vec())
    })?;
    let n_answers = answer.get(6..8).context("no header")?;
    ensure!(n_answers == [0, 1], "{n_answers:?} answers");
    // The record is last, and its address the last of it.
    let address = answer.last_chunk::<4>().context("no address")?;
    Ok(*address)
}

#[test]
fn an_agent_without_its_server_waits_for_it_says_so_and_serves_what_it_last_knew() -> Result<()> {
    let cluster = TestCluster::start_nodes("drill-alone", 2)?;
    let (agent, server) = (cluster.agent(2)?, cluster.server()?);
    let (agent_args, server_args) = (agent.arguments()?, server.arguments()?);
    ensure!(agent_args.iter().any(|arg| arg == SERVER), "{agent_args:?}");
    let logs = tempfile::tempdir()?;
    let log = logs.path().join("agent.log");
    let known = cluster.node(2).data.join("agent/last-services.json");
    cluster.wait_for("the agent to have kept what it knows", || Ok(known.exists().then_some(())))?;
    server.kill()?;
    agent.kill()?;
    let clock = OwnClock::new()?;
    // Beside that, its clock is a day ahead: it is said, and no reason to end.
    clock.set("+1d")?;
    let mut agent = Started::like(&agent_args, &cluster.node(2).netns, &log, &clock.environment())?;
    cluster.wait_for("the agent to say that it waits", || {
        ensure!(agent.runs()?, "the agent has ended:\n{}", std::fs::read_to_string(&log)?);
        let said = std::fs::read_to_string(&log)?;
        Ok(said.contains("cannot take its place in the cluster yet").then_some(()))
    })?;
    // Its pods go on meanwhile, and have names to go by.
    let address = cluster.wait_for("the node's DNS", || {
        Ok(look_up(&cluster, 2, "kubernetes.default.svc.cluster.local").ok())
    })?;
    ensure!(address == [10, 43, 0, 1], "the API has the address {address:?}");
    let server_log = logs.path().join("server.log");
    let server = Started::like(&server_args, &cluster.netns(), &server_log, &[])?;
    cluster.wait_for("the agent's node to be ready", || {
        ensure!(agent.runs()?, "the agent has ended:\n{}", std::fs::read_to_string(&log)?);
        let said = std::fs::read_to_string(&log)?.contains("the node is ready");
        if said { node_is_ready(&cluster, "drill-alone-2") } else { Ok(None) }
    })?;
    drop((agent, server));
    cluster.up()?;
    cluster.kubectl(&["delete", "csr", "--all"])?;
    cluster.stop()
}
