//! `smoke CLUSTER BUNDLE`: measures a running throw-away cluster from inside its network namespace, and prints one JSON
//! object. `cargo xtask bench smoke` runs it; BUNDLE is an OCI bundle as `runc spec` makes it, for the bare `runc run` beside
//! it, and also gets a `same.json`: what Skiff gave runc for the same container, seccomp profile and all.
//!
//! Times are what a client sees: from the watch event that shows the pod bound to the one that shows it running.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{DeleteParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

const N_PODS: usize = 21;
const N_CLIENTS: usize = 64;
const CREATE_FOR: Duration = Duration::from_secs(8);
const MAX_CREATES: usize = 100_000;
const IDLE_FOR: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A first process that ends when it is asked to.
const SLEEP: [&str; 3] = ["sh", "-c", "trap exit TERM; sleep 3600 & wait"];
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [cluster, bundle] = args.as_slice() else { bail!("usage: smoke CLUSTER BUNDLE") };
    let netns = PathBuf::from("/run/skiff/clusters").join(cluster).join("net");
    let namespace = File::open(&netns).with_context(|| format!("opening {}", netns.display()))?;
    // Before any other thread exists, so that all of them are inside.
    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(measure(cluster, Path::new(bundle)))?;
    println!("{report}");
    Ok(())
}

async fn measure(cluster: &str, bundle: &Path) -> Result<Value> {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let idle = idle(cluster).await?;
    let client = client(cluster).await?;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    // Pulled and compiled once before anything is timed.
    copy_spec(cluster, &pods, bundle).await?;
    wasm_start(&pods, "warm-up-wasm").await?;
    let specs = [bundle.join("bare.json"), bundle.join("same.json")];
    let (mut linux, mut bare, mut same, mut wasm) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for n in 0..N_PODS {
        bare.push(runc(bundle, &specs[0], n)?);
        same.push(runc(bundle, &specs[1], n)?);
        linux.push(linux_start(&pods, &format!("linux-{n}")).await?);
        wasm.push(wasm_start(&pods, &format!("wasm-{n}")).await?);
    }
    let creates = creates(&client).await?;
    Ok(json!({
        "idle": idle,
        "runc_run_ms": summary(&mut bare),
        "runc_run_same_ms": summary(&mut same),
        "linux_bound_to_running_ms": summary(&mut linux),
        "wasm_bound_to_200_ms": summary(&mut wasm),
        "creates_per_s": creates,
    }))
}

/// The administrator's client, at the node's own address.
async fn client(cluster: &str) -> Result<Client> {
    let path = PathBuf::from("/var/lib/skiff/clusters").join(cluster).join("kubeconfig");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let mut config = kube::Config::from_custom_kubeconfig(
        kube::config::Kubeconfig::from_yaml(&text)?,
        &kube::config::KubeConfigOptions::default(),
    )
    .await?;
    config.cluster_url = "https://10.99.0.2:6443".parse()?;
    config.proxy_url = None;
    Ok(Client::try_from(config)?)
}

fn summary(times: &mut [Duration]) -> Value {
    times.sort_unstable();
    let ms = |d: &Duration| (d.as_secs_f64() * 10_000.0).round() / 10.0;
    json!({"p50": ms(&times[times.len() / 2]), "min": ms(&times[0]), "max": ms(&times[times.len() - 1]), "n": times.len()})
}

/// Memory and CPU of everything that Skiff runs, with nothing to do.
async fn idle(cluster: &str) -> Result<Value> {
    // What starting up has left to do is over by then.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let processes = processes(cluster);
    ensure!(!processes.is_empty(), "no process of the cluster is running");
    let (mut last, start) = (cpu_times(&processes), Instant::now());
    let mut used = Duration::ZERO;
    while start.elapsed() < IDLE_FOR {
        tokio::time::sleep(LOOK_AGAIN).await;
        let now = cpu_times(&processes);
        let before = |thread| last.get(thread).copied().unwrap_or_default();
        used += now.iter().map(|(thread, time)| time.saturating_sub(before(thread))).sum::<Duration>();
        last = now;
    }
    let share = used.as_secs_f64() / start.elapsed().as_secs_f64() * 100.0;
    let pss_kib: u64 = processes.iter().filter_map(|pid| pss_kib(*pid)).sum();
    Ok(
        json!({"pss_mib": (pss_kib as f64 / 102.4).round() / 10.0, "cpu_percent_of_a_core": (share * 1000.0).round() / 1000.0,
              "n_processes": processes.len()}),
    )
}

/// Processes whose arguments name the cluster: server, forwarder, shims, Wasm hosts.
fn processes(cluster: &str) -> Vec<u32> {
    let own = std::process::id();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok()).filter(|pid| *pid != own);
    pids.filter(|pid| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
        let is_forwarder = arguments.contains(&format!("forward --name {cluster}"));
        is_forwarder
            || arguments.contains(&format!("/clusters/{cluster}/"))
            || arguments.contains(&format!("/clusters/{cluster} "))
    })
    .collect()
}

/// What each thread has run, by the scheduler's own clock: the ticks in `stat` miss whoever runs less than one. Looked at
/// often, since a thread that ends takes its time with it.
fn cpu_times(pids: &[u32]) -> HashMap<PathBuf, Duration> {
    let tasks = |pid: &u32| std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let run = |task: PathBuf| {
        let text = std::fs::read_to_string(task.join("schedstat")).ok()?;
        let nanoseconds = text.split_whitespace().next()?.parse().ok()?;
        Some((task, Duration::from_nanos(nanoseconds)))
    };
    pids.iter().flat_map(tasks).filter_map(|entry| run(entry.path())).collect()
}

fn pss_kib(pid: u32) -> Option<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    rollup.lines().find_map(|l| l.strip_prefix("Pss:"))?.trim().trim_end_matches(" kB").parse().ok()
}

/// A bare container of the same program, from the command to its being started.
fn runc(bundle: &Path, spec: &Path, n: usize) -> Result<Duration> {
    std::fs::copy(spec, bundle.join("config.json")).with_context(|| format!("copying {}", spec.display()))?;
    let id = format!("skiff-smoke-{}-{n}", std::process::id());
    let start = Instant::now();
    let status = Command::new("runc")
        .args(["run", "--detach", "--bundle"])
        .arg(bundle)
        .arg(&id)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .status()
        .context("running runc")?;
    let taken = start.elapsed();
    ensure!(status.success(), "runc run failed");
    let deleted =
        Command::new("runc").args(["delete", "--force", &id]).status().context("running runc delete")?;
    ensure!(deleted.success(), "runc delete failed");
    Ok(taken)
}

fn pod(name: &str, image: &str, container: Value) -> Result<Pod> {
    let mut container = container;
    container["name"] = "c".into();
    container["image"] = image.into();
    container["imagePullPolicy"] = "IfNotPresent".into();
    Ok(serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false},
    }))?)
}

/// Creates a pod and answers when it was seen bound, and the first version that `until` accepts.
async fn start(pods: &Api<Pod>, pod: &Pod, until: impl Fn(&Pod) -> bool) -> Result<(Instant, Instant, Pod)> {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let params = WatchParams::default().fields(&format!("metadata.name={name}"));
    let watching = async {
        let mut events = std::pin::pin!(pods.watch(&params, "0").await?);
        pods.create(&PostParams::default(), pod).await?;
        let mut bound = None;
        while let Some(event) = events.next().await {
            let (WatchEvent::Added(pod) | WatchEvent::Modified(pod)) = event? else { continue };
            let now = Instant::now();
            if pod.spec.as_ref().is_some_and(|s| s.node_name.is_some()) {
                bound.get_or_insert(now);
            }
            if let Some(bound) = bound
                && until(&pod)
            {
                return Ok((bound, now, pod));
            }
        }
        bail!("the watch of {name} ended")
    };
    tokio::time::timeout(PATIENCE, watching).await.with_context(|| format!("{name} has not started"))?
}

/// Deletes it and waits until all of it is gone, or the next to be timed would share the machine with its end.
async fn remove(pods: &Api<Pod>, name: &str) -> Result<()> {
    let params = WatchParams::default().fields(&format!("metadata.name={name}"));
    let gone = async {
        let mut events = std::pin::pin!(pods.watch(&params, "0").await?);
        pods.delete(name, &DeleteParams::default()).await?;
        while let Some(event) = events.next().await {
            if let WatchEvent::Deleted(_) = event? {
                return Ok(());
            }
        }
        bail!("the watch of {name} ended")
    };
    tokio::time::timeout(PATIENCE, gone).await.with_context(|| format!("{name} has not ended"))?
}

/// Starts a container as those that are timed, and keeps what runc was told of it, but for names that only its pod has.
async fn copy_spec(cluster: &str, pods: &Api<Pod>, bundle: &Path) -> Result<()> {
    let name = "warm-up";
    let pod = pod(name, "busybox:1.36", json!({"command": SLEEP}))?;
    let id = |p: &Pod| -> Option<String> {
        let status = p.status.as_ref()?.container_statuses.as_ref()?.first()?;
        status.state.as_ref()?.running.as_ref()?;
        Some(status.container_id.as_ref()?.split_once("://")?.1.to_owned())
    };
    let (_, _, seen) = start(pods, &pod, |p| id(p).is_some()).await?;
    let id = id(&seen).context("a running container without an ID")?;
    let oci = PathBuf::from("/var/lib/skiff/clusters").join(cluster).join("oci");
    let path = oci.join(id).join("bundle/config.json");
    let text = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let mut spec: Value = serde_json::from_slice(&text)?;
    spec["root"]["path"] = "rootfs".into();
    spec["linux"]["cgroupsPath"] = Value::Null;
    for namespace in spec["linux"]["namespaces"].as_array_mut().into_iter().flatten() {
        if let Some(namespace) = namespace.as_object_mut() {
            namespace.remove("path");
        }
    }
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.retain(|m| m["type"] != "bind");
    }
    std::fs::write(bundle.join("same.json"), serde_json::to_vec(&spec)?)?;
    std::fs::rename(bundle.join("config.json"), bundle.join("bare.json"))?;
    remove(pods, name).await
}

async fn linux_start(pods: &Api<Pod>, name: &str) -> Result<Duration> {
    let pod = pod(name, "busybox:1.36", json!({"command": SLEEP}))?;
    let running = |p: &Pod| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
    let (bound, running, _) = start(pods, &pod, running).await?;
    remove(pods, name).await?;
    Ok(running - bound)
}

async fn wasm_start(pods: &Api<Pod>, name: &str) -> Result<Duration> {
    let pod = pod(name, "skiff/wasm-http:v1", json!({"ports": [{"containerPort": 80}]}))?;
    let has_ip = |p: &Pod| p.status.as_ref().is_some_and(|s| s.pod_ip.is_some());
    let (bound, _, seen) = start(pods, &pod, has_ip).await?;
    let ip = seen.status.and_then(|s| s.pod_ip).context("a pod without an address")?;
    let address: SocketAddr = format!("{ip}:80").parse()?;
    let answered = tokio::task::spawn_blocking(move || first_200(address)).await??;
    remove(pods, name).await?;
    Ok(answered - bound)
}

fn first_200(address: SocketAddr) -> Result<Instant> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
            stream.write_all(b"GET / HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        if ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            return Ok(Instant::now());
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    bail!("{address} has not answered")
}

/// Durable creates from many clients at once.
async fn creates(client: &Client) -> Result<f64> {
    let done = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let clients = (0..N_CLIENTS).map(|n| {
        let (maps, done): (Api<ConfigMap>, _) = (Api::default_namespaced(client.clone()), done.clone());
        tokio::spawn(async move {
            let mut made = 0;
            while start.elapsed() < CREATE_FOR && done.load(Ordering::Relaxed) < MAX_CREATES {
                let map = serde_json::from_value(json!({
                    "metadata": {"name": format!("smoke-{n}-{made}")}, "data": {"key": "x".repeat(512)},
                }))?;
                maps.create(&PostParams::default(), &map).await?;
                done.fetch_add(1, Ordering::Relaxed);
                made += 1;
            }
            anyhow::Ok(())
        })
    });
    for client in futures::future::join_all(clients).await {
        client??;
    }
    let rate = done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
    Ok(rate.round())
}
