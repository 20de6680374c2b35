//! Stories: what a person does with a cluster, from the first command to the last.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use skiff_tests::{TestCluster, http_get};

fn sample(path: &str) -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../samples");
    root.join(path).to_string_lossy().into_owned()
}

#[track_caller]
fn has(text: &str, wanted: &[&str]) -> Result<()> {
    for word in wanted {
        ensure!(text.contains(word), "{word:?} is missing in:\n{text}");
    }
    Ok(())
}

#[test]
fn helloworld_is_deployed_looked_at_changed_and_deleted() -> Result<()> {
    let cluster = TestCluster::start("story-hello")?;
    let nodes = cluster.kubectl(&["get", "nodes", "-o", "wide"])?;
    has(
        &nodes,
        &[
            "NAME",
            "STATUS",
            "ROLES",
            "INTERNAL-IP",
            "CONTAINER-RUNTIME",
            "Ready",
            "control-plane",
            "skiff://",
        ],
    )?;

    let applied = cluster.kubectl(&["apply", "-f", &sample("helloworld")])?;
    has(&applied, &["deployment.apps/helloworld created", "service/helloworld-svc created"])?;
    cluster.kubectl(&["rollout", "status", "deployment/helloworld", "--timeout=60s"])?;
    let all = cluster.kubectl(&["get", "all"])?;
    has(
        &all,
        &[
            "pod/helloworld-",
            "1/1     Running",
            "service/helloworld-svc",
            "LoadBalancer",
            "deployment.apps/helloworld",
            "2/2",
            "replicaset.apps/helloworld-",
        ],
    )?;
    let address = cluster.address("helloworld-svc")?;
    ensure!(address.starts_with("127."), "published at {address}");
    let page = cluster.wait_for("the first page", || Ok(http_get(&address, 80).ok()))?;
    has(&page.to_lowercase(), &["nginx"])?;
    has(
        &cluster.skiff(&["service", "--name", "story-hello", "url", "helloworld-svc"])?,
        &[&format!("http://{address}")],
    )?;

    let described = cluster.kubectl(&["describe", "deployment", "helloworld"])?;
    has(
        &described,
        &[
            "Replicas:",
            "2 desired | 2 updated | 2 total | 2 available | 0 unavailable",
            "NewReplicaSetAvailable",
            "ScalingReplicaSet",
        ],
    )?;
    let pod = cluster.pods("app=helloworld")?.first().context("no pod")?.name.clone();
    let described = cluster.kubectl(&["describe", "pod", &pod])?;
    has(
        &described,
        &["Scheduled", "Successfully assigned default/", "Pulled", "Created", "Started", "QoS Class"],
    )?;

    cluster.wait_for("a line in the log", || {
        http_get(&address, 80)?;
        let logs = cluster.kubectl(&["logs", "-l", "app=helloworld", "--tail=50"])?;
        Ok(logs.contains("GET / HTTP/1.1").then_some(()))
    })?;
    has(
        &cluster.kubectl(&["exec", &pod, "--", "sh", "-c", "echo hi from $HOSTNAME"])?,
        &[&format!("hi from {pod}")],
    )?;
    let failed = cluster.kubectl_fails(&["exec", &pod, "--", "sh", "-c", "exit 7"])?;
    has(&failed, &["exit code 7"])?;

    cluster.kubectl(&["scale", "deployment/helloworld", "--replicas=4"])?;
    cluster.kubectl(&["rollout", "status", "deployment/helloworld", "--timeout=60s"])?;
    ensure!(cluster.pods("app=helloworld")?.iter().filter(|p| p.ready).count() >= 4);

    cluster.kubectl(&["set", "image", "deployment/helloworld", "*=nginx:1.29"])?;
    cluster.kubectl(&["rollout", "status", "deployment/helloworld", "--timeout=60s"])?;
    has(&cluster.kubectl(&["rollout", "history", "deployment/helloworld"])?, &["REVISION", "1 ", "2 "])?;
    cluster.kubectl(&["rollout", "undo", "deployment/helloworld"])?;
    cluster.kubectl(&["rollout", "status", "deployment/helloworld", "--timeout=60s"])?;
    let image =
        cluster.get(&["deployment", "helloworld"])?["spec"]["template"]["spec"]["containers"][0]["image"]
            .clone();
    ensure!(image == "nginx:alpine", "{image}");

    has(
        &cluster.kubectl(&["explain", "deployment.spec.strategy"])?,
        &["KIND:", "Deployment", "rollingUpdate", "type"],
    )?;
    has(&cluster.kubectl(&["get", "events"])?, &["LAST SEEN", "REASON", "Killing", "SuccessfulCreate"])?;

    cluster.kubectl(&["delete", "-f", &sample("helloworld")])?;
    cluster.wait_for("every pod to go", || Ok(cluster.pods("app=helloworld")?.is_empty().then_some(())))?;
    cluster.stop()
}

#[test]
fn nginx_and_wasm_stand_behind_one_service_and_share_a_pod() -> Result<()> {
    let cluster = TestCluster::start("story-mixed")?;
    cluster.kubectl(&["apply", "-f", &sample("mixed")])?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?;
    let address = cluster.address("mixed")?;
    let (mut nginx, mut wasm) = (false, false);
    cluster.wait_for("an answer from either kind", || {
        let answer = http_get(&address, 80)?.to_lowercase();
        nginx |= answer.contains("nginx");
        wasm |= answer.contains("wasm");
        Ok((nginx && wasm).then_some(()))
    })?;
    let containers = cluster.get(&["pods"])?["items"].to_string();
    has(&containers, &["runc://", "wasmtime://"])?;
    cluster.wait_for("the side-car to hear the Wasm container on localhost", || {
        let pair = cluster.get(&["pod", "pair"])?;
        let names = pair["spec"]["containers"].as_array().context("no containers")?.clone();
        let heard = names.iter().filter_map(|c| c["name"].as_str()).any(|name| {
            cluster.kubectl(&["logs", "pair", "-c", name]).is_ok_and(|log| log.contains("hello from wasm"))
        });
        Ok(heard.then_some(()))
    })?;
    cluster.stop()
}

#[test]
fn a_killed_server_leaves_pods_of_both_kinds_as_they_are() -> Result<()> {
    let cluster = TestCluster::start("story-killed")?;
    cluster.kubectl(&["apply", "-f", &sample("mixed")])?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?;
    let address = cluster.address("mixed")?;
    cluster.wait_for("the first answer", || Ok(http_get(&address, 80).ok()))?;
    let before = cluster.pods("app=mixed")?;
    for _ in 0..3 {
        cluster.kill_server()?;
        // Nothing of the way to a pod goes through the server.
        http_get(&address, 80)?;
    }
    cluster.wait_for("all pods to be seen ready again", || {
        Ok(cluster.pods("app=mixed")?.iter().all(|p| p.ready).then_some(()))
    })?;
    ensure!(cluster.pods("app=mixed")? == before, "a pod was changed: {:?}", cluster.pods("app=mixed")?);

    let victim = before.first().context("no pod")?.name.clone();
    cluster.kubectl(&["delete", "pod", &victim])?;
    let after = cluster.wait_for("another pod in its place", || {
        let pods = cluster.pods("app=mixed")?;
        let healed = pods.len() == before.len() && pods.iter().all(|p| p.ready && p.name != victim);
        Ok(healed.then_some(pods))
    })?;
    for pod in before.iter().filter(|p| p.name != victim) {
        ensure!(after.contains(pod), "{pod:?} was not concerned, but changed");
    }
    cluster.stop()
}
