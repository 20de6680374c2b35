//! Pods that a scheduler places on nodes which are only objects.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use http::Method;
use serde_json::{Value, json};

use crate::client::{Connection, Lines, Server, is_status};
use crate::figures::Figures;
use crate::meter::{Groups, Meter};
use crate::objects::{self, Placement, fake_node, namespace, pods_path};
use crate::pods::{Seen, Watch, create_all};

#[derive(clap::Args, Clone, Debug)]
pub struct NodesOptions {
    #[arg(long)]
    count: usize,
}

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    #[arg(long)]
    namespace: String,
    #[arg(long, value_enum)]
    placement: Placement,
    #[arg(long)]
    count: usize,
}

const CLIENTS: usize = 16;
/// A node life cycle waits up to 50 s for a node to report, then says what it has to say of all of them. After that it evicts
/// one node in ten seconds of each zone, for hours: so few changes are let pass.
const WINDOW: Duration = Duration::from_secs(60);
const FEW: u64 = 2 * WINDOW.as_secs();
const MAX_SETTLE: Duration = Duration::from_secs(480);

/// Makes the nodes, and waits until hardly anybody changes them any more.
pub async fn nodes(server: &Server, options: &NodesOptions) -> Result<Figures> {
    let connections = server.connections(CLIENTS).await?;
    let made = futures::stream::iter(0..options.count)
        .map(|number| node(&connections[number % CLIENTS], number))
        .buffer_unordered(CLIENTS);
    let made: Vec<Result<()>> = made.collect().await;
    made.into_iter().collect::<Result<()>>()?;
    settle(&connections[0]).await?;
    let mut figures = Figures::default();
    figures.set("nodes", options.count as f64);
    Ok(figures)
}

/// What an admission adds or drops is put right, as a kubelet and a controller would.
async fn node(connection: &Connection, number: usize) -> Result<()> {
    let wanted = fake_node(number);
    let made = match connection.post("/api/v1/nodes", wanted.to_string().into()).await {
        Err(error) if is_status(&error, 409) => return Ok(()),
        made => made?,
    };
    let path = format!("/api/v1/nodes/fake-{number}");
    if made["spec"]["taints"].is_array() {
        connection.patch(&path, &json!({"spec": {"taints": Value::Null}})).await?;
    }
    if made["status"]["allocatable"]["pods"].is_null() {
        connection.patch(&format!("{path}/status"), &json!({"status": wanted["status"]})).await?;
    }
    Ok(())
}

async fn settle(connection: &Connection) -> Result<()> {
    let version = connection.version_of("/api/v1/nodes").await?;
    let selector = format!("labelSelector={}%3Dtrue", objects::FAKE_NODE.replace('/', "%2F"));
    let at = format!("/api/v1/nodes?watch=1&{selector}&resourceVersion={version}");
    let mut lines = Lines::new(connection.open(Method::GET, &at, "", bytes::Bytes::new()).await?);
    let end = Instant::now() + MAX_SETTLE;
    while Instant::now() < end {
        let mut changes = 0;
        let window = async {
            loop {
                lines.next().await?.context("the watch of nodes has ended")?;
                changes += 1;
            }
        };
        match tokio::time::timeout(WINDOW, window).await {
            Err(_) if changes <= FEW => return Ok(()),
            Err(_) => {}
            Ok(ended) => return ended,
        }
    }
    anyhow::bail!("the nodes still change after {} s", MAX_SETTLE.as_secs())
}

/// From the first create to the last bind; the pods are deleted again.
pub async fn run(server: &Server, groups: &Groups, options: &Options) -> Result<Figures> {
    let connections = server.connections(CLIENTS).await?;
    namespace(&connections[0], &options.namespace).await?;
    let path = pods_path(&options.namespace);
    let mut watch = Watch::start(server, &path).await?;
    let template = objects::scheduled_pod(options.placement, &options.namespace);
    let meter = Meter::start(groups)?;
    let start = Instant::now();
    create_all(&connections, &path, template, "pod-", options.count).await?;
    watch.wait(Seen::Bound, options.count).await?;
    let mut figures = Figures::default();
    meter.stop(&mut figures)?;
    let mut times: Vec<Duration> = watch.times(Seen::Bound).iter().map(|at| *at - start).collect();
    let last = times.iter().max().copied().unwrap_or_default();
    figures.set("pods_per_s", options.count as f64 / last.as_secs_f64());
    figures.percentiles("first_create_to_bound", &mut times);
    connections[0].delete_now(&path).await?;
    watch.wait(Seen::Gone, options.count).await?;
    Ok(figures)
}
