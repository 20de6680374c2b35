//! The cluster's authority is given another certificate, and a node comes back whose own has ended.

use anyhow::{Context as _, Result, ensure};
use skiff_tests::drills::{OwnClock, Started};
use skiff_tests::{TestCluster, has};

fn read(path: &std::path::Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

#[test]
fn a_new_certificate_of_the_authority_is_taken_up_everywhere_and_no_agent_is_lost() -> Result<()> {
    let cluster = TestCluster::start_nodes("drill-authority", 2)?;
    let certs = |args: &[&str]| cluster.skiff(&[&["certs", "--name", "drill-authority"], args].concat());
    has(&certs(&["check"])?, &["authority", "server: api-server", "node: client", "good"])?;
    let far = certs(&["check", "--within-days", "4000"]);
    ensure!(far.is_err_and(|error| error.to_string().contains("ends soon")), "nothing ends soon");
    let (authority, at_agent) =
        (cluster.data_dir().join("pki/ca.crt"), cluster.node(2).data.join("agent/ca.crt"));
    let (before, server) = (read(&authority)?, cluster.server_pid()?);
    let old_kubeconfig = tempfile::NamedTempFile::new()?;
    std::fs::copy(cluster.kubeconfig(), old_kubeconfig.path())?;

    has(&certs(&["rotate-ca"])?, &["has a new certificate", "its key is the same"])?;
    let now = read(&authority)?;
    ensure!(now != before, "it is the same");
    cluster.wait_for("the new certificate in what pods are given", || {
        let map = cluster.get(&["configmap", "kube-root-ca.crt"])?;
        Ok((map["data"]["ca.crt"] == now.as_str()).then_some(()))
    })?;
    cluster.wait_for("the new certificate in what nodes are told", || {
        let map = cluster.get(&["configmap", "cluster-info", "-n", "kube-public"])?;
        let encoded = base64_of(&now);
        Ok(map["data"]["kubeconfig"].as_str().is_some_and(|told| told.contains(&encoded)).then_some(()))
    })?;
    ensure!(cluster.server_pid()? == server, "the server was started anew");
    // Those who know the one before go on; so does the agent, which at its next start learns of the new one.
    let old = old_kubeconfig.path().to_string_lossy().into_owned();
    has(&cluster.kubectl(&["--kubeconfig", &old, "get", "nodes"])?, &["drill-authority-2"])?;
    ensure!(read(&at_agent)? == before, "the agent has been told already, and nothing is shown by that");
    cluster.agent(2)?.kill()?;
    cluster.up()?;
    cluster.wait_for("the new certificate at the agent", || Ok((read(&at_agent)? == now).then_some(())))?;
    has(&certs(&["check"])?, &["authority, the one before", "node: the cluster's authority"])?;
    cluster.stop()
}

fn base64_of(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[test]
fn a_node_that_was_off_for_four_hundred_days_comes_back_if_the_server_has_grace_for_it() -> Result<()> {
    let cluster = TestCluster::start_nodes("drill-off", 2)?;
    let (server, agent) = (cluster.server()?, cluster.agent(2)?);
    let (server_args, agent_args) = (server.arguments()?, agent.arguments()?);
    agent.kill()?;
    server.kill()?;
    let (clock, logs) = (OwnClock::new()?, tempfile::tempdir()?);
    clock.set("+400d")?;
    let with_grace = [server_args.clone(), vec!["--node-certificate-grace".into(), "9600h".into()]].concat();
    let log = |name: &str| logs.path().join(name);
    let start = |arguments: &[String], node: u8, name: &str| {
        Started::like(arguments, &cluster.node(node).netns, &log(name), &clock.environment())
    };
    let server = start(&server_args, 1, "strict.log")?;
    let mut agent = start(&agent_args, 2, "agent.log")?;
    cluster.wait_for("the server to say why it refuses", || {
        let said = read(&log("strict.log")).unwrap_or_default();
        Ok(said.contains("asks for another and is refused").then_some(()))
    })?;
    ensure!(agent.runs()?, "the agent has ended");
    drop(server);
    let server = start(&with_grace, 1, "lenient.log")?;
    cluster.wait_for("the agent to have a certificate that is good, and its place", || {
        let said = read(&log("agent.log"))?;
        let renewed = said.contains("a certificate that had ended was renewed");
        Ok((renewed && said.contains("the node is ready")).then_some(()))
    })?;
    drop((agent, server));
    // By the clock of now, all of that is from a time to come.
    cluster.stop_changed()
}
