//! Stories: what a person does with a cluster, from the first command to the last.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use skiff_tests::{TestCluster, has, http_get};

fn sample(path: &str) -> String {
    // Cargo runs a test in its package's folder; a path known at build time may be another clone's.
    let root = PathBuf::from("../samples");
    root.join(path).to_string_lossy().into_owned()
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
    // What the server raised for itself is not a container's.
    let found = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.context("no limit")?;
    let limit = cluster.kubectl(&["exec", &pod, "--", "sh", "-c", "ulimit -Sn"])?;
    has(&limit, &[&found.to_string()])?;
    let failed = cluster.kubectl_fails(&["exec", &pod, "--", "sh", "-c", "exit 7"])?;
    has(&failed, &["exit code 7"])?;

    has(&on_a_terminal(&cluster, &pod, "tty; stty size")?, &["/dev/pts/", "40 132"])?;
    follow_the_log(&cluster, &pod, &address)?;

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
        &["KIND:", "Deployment", "The deployment strategy to use", "rollingUpdate", "type"],
    )?;
    has(&cluster.kubectl(&["get", "events"])?, &["LAST SEEN", "REASON", "Killing", "SuccessfulCreate"])?;

    cluster.kubectl(&["delete", "-f", &sample("helloworld")])?;
    cluster.wait_for("every pod to go", || Ok(cluster.pods("app=helloworld")?.is_empty().then_some(())))?;
    cluster.stop()
}

/// What a shell command prints through `kubectl exec -it` on a terminal of 40 rows and 132 columns.
fn on_a_terminal(cluster: &TestCluster, pod: &str, command: &str) -> Result<String> {
    let exec = format!("stty rows 40 cols 132; kubectl exec -it {pod} -- sh -c 'sleep 0.3; {command}'");
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &exec, "/dev/null"])
        .env("KUBECONFIG", cluster.kubeconfig())
        .stdin(Stdio::null())
        .output()
        .context("running script, of the package bsdutils")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `kubectl logs -f` shows a line that is written after it began.
fn follow_the_log(cluster: &TestCluster, pod: &str, address: &str) -> Result<()> {
    let mut following = cluster
        .kubectl_command(&["logs", "-f", "--tail=0", pod])
        .stdout(Stdio::piped())
        .spawn()
        .context("running kubectl logs -f")?;
    let lines = BufReader::new(following.stdout.take().context("no output")?).lines();
    let is_page = |line: String| line.contains("GET / HTTP/1.1");
    let seen = std::thread::spawn(move || lines.map_while(Result::ok).any(is_page));
    // A page may be asked for before the log is followed, or of another pod: ask until a line was seen.
    cluster.wait_for("a line that was followed", || {
        http_get(address, 80)?;
        Ok(seen.is_finished().then_some(()))
    })?;
    following.kill()?;
    following.wait()?;
    ensure!(seen.join().is_ok_and(|found| found), "the log ended without the line");
    Ok(())
}

#[test]
fn a_killed_container_is_restarted_in_its_pod_and_others_are_left_alone() -> Result<()> {
    let cluster = TestCluster::start("story-restart")?;
    cluster.kubectl(&["apply", "-f", &sample("helloworld")])?;
    cluster.kubectl(&["rollout", "status", "deployment/helloworld", "--timeout=60s"])?;
    let before = cluster.pods("app=helloworld")?;
    let (victim, others) = before.split_first().context("no pod")?;
    cluster.kubectl(&["exec", &victim.name, "--", "sh", "-c", "kill -QUIT 1"]).ok();
    let restarted = cluster.wait_for("the container to be restarted", || {
        let pod = cluster.get(&["pod", &victim.name])?;
        let status = &pod["status"]["containerStatuses"][0];
        let healed = status["restartCount"] == 1 && status["ready"] == true;
        Ok(healed.then(|| pod.clone()))
    })?;
    ensure!(restarted["status"]["podIP"] == victim.ip.as_str(), "the pod has another address");
    ensure!(restarted["status"]["containerStatuses"][0]["lastState"]["terminated"]["reason"] == "Completed");
    let after = cluster.pods("app=helloworld")?;
    for pod in others {
        ensure!(after.contains(pod), "{pod:?} was not concerned, but changed");
    }
    cluster.stop()
}

#[test]
fn what_is_wrong_is_said_as_upstream_says_it() -> Result<()> {
    let cluster = TestCluster::start("story-wrong")?;
    let pod = |name: &str, image: &str, rest: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: {image:?}{rest}}}]}}\n"
        )
    };
    let manifest = [
        pod("no-image", "nothing-of-the-kind:1", ""),
        pod("no-program", "busybox:1.36", ", command: [no-such-program]"),
        pod("no-config", "busybox:1.36", ", envFrom: [{configMapRef: {name: absent}}]"),
        pod("too-big", "busybox:1.36", ", resources: {requests: {cpu: \"500\"}}"),
    ]
    .join("---\n");
    cluster.apply_text(&manifest)?;
    for (name, reason) in [
        ("no-image", "ErrImagePull|ImagePullBackOff"),
        ("no-program", "RunContainerError|CrashLoopBackOff|StartError"),
        ("no-config", "CreateContainerConfigError"),
    ] {
        cluster.wait_for(&format!("the reason of {name}"), || {
            let shown = cluster.kubectl(&["get", "pod", name])?;
            Ok(reason.split('|').any(|r| shown.contains(r)).then_some(()))
        })?;
    }
    cluster.wait_for("the scheduler's word", || {
        let events = cluster.kubectl(&["get", "events", "--field-selector", "reason=FailedScheduling"])?;
        Ok(events.contains("0/1 nodes are available: 1 Insufficient cpu.").then_some(()))
    })?;
    let refused = cluster.apply_text_fails(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{nam: c}]}\n",
    )?;
    has(&refused, &["unknown field \"spec.containers[0].nam\""])?;
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
    // By its short name, as any pod of the namespace knows it.
    cluster.kubectl(&["expose", "deployment", "mixed-nginx", "--name=only-nginx", "--port=80"])?;
    cluster.wait_for("the Wasm container to find nginx by the name of its Service", || {
        let fetch = ["exec", "pair", "-c", "side-car", "--", "wget", "-qO-"];
        let answer = cluster.kubectl(&[&fetch[..], &["http://127.0.0.1:8080/fetch/only-nginx"]].concat())?;
        Ok(answer.contains("nginx").then_some(()))
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
