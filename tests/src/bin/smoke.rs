//! `smoke CLUSTER BUNDLE`: measures a running throw-away cluster from inside its network namespace, and prints one JSON
//! object. `cargo xtask bench smoke` runs it; BUNDLE is an OCI bundle for the bare `runc run` beside it.
//!
//! Times are what a client sees: from the watch event that shows the pod bound to the one that shows it running.

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
    linux_start(&pods, "warm-up").await?;
    wasm_start(&pods, "warm-up-wasm").await?;
    let (mut linux, mut bare, mut wasm) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..N_PODS {
        bare.push(runc(bundle, n)?);
        linux.push(linux_start(&pods, &format!("linux-{n}")).await?);
        wasm.push(wasm_start(&pods, &format!("wasm-{n}")).await?);
    }
    let creates = creates(&client).await?;
    Ok(json!({
        "idle": idle,
        "runc_run_ms": summary(&mut bare),
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
    let ticks = |pids: &[u32]| pids.iter().filter_map(|pid| cpu_ticks(*pid)).sum::<u64>();
    let (before, start) = (ticks(&processes), Instant::now());
    tokio::time::sleep(IDLE_FOR).await;
    let used_s = (ticks(&processes) - before) as f64 / 100.0;
    let share = used_s / start.elapsed().as_secs_f64() * 100.0;
    let pss_kib: u64 = processes.iter().filter_map(|pid| pss_kib(*pid)).sum();
    Ok(
        json!({"pss_mib": (pss_kib as f64 / 102.4).round() / 10.0, "cpu_percent_of_a_core": (share * 100.0).round() / 100.0,
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

fn cpu_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

fn pss_kib(pid: u32) -> Option<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    rollup.lines().find_map(|l| l.strip_prefix("Pss:"))?.trim().trim_end_matches(" kB").parse().ok()
}

/// A bare container of the same program, from the command to its being started.
fn runc(bundle: &Path, n: usize) -> Result<Duration> {
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
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false},
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

async fn remove(pods: &Api<Pod>, name: &str) -> Result<()> {
    pods.delete(name, &DeleteParams::default().grace_period(0)).await?;
    Ok(())
}

async fn linux_start(pods: &Api<Pod>, name: &str) -> Result<Duration> {
    let pod = pod(name, "busybox:1.36", json!({"command": ["sleep", "3600"]}))?;
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
