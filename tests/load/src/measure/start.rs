//! A cluster's start as its first user sees it: started beside the programs, asks until it is answered.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::client::{Connection, Server};
use crate::figures::Figures;
use crate::kubeconfig::Access;
use crate::meter::Groups;
use crate::objects::{self, namespace, pods_path};
use crate::pods::{Seen, Watch};

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    #[arg(long)]
    image: String,
    /// When the first program was started, in milliseconds since 1970
    #[arg(long)]
    since_ms: u64,
}

const ASK_AGAIN: Duration = Duration::from_millis(10);

/// Waits until the API server answers that it is ready.
pub async fn ready(kubeconfig: &Path) -> Result<Server> {
    loop {
        if let Ok(access) = Access::read(kubeconfig)
            && let Ok(server) = Server::new(&access)
            && let Ok(connection) = server.connect().await
            && connection.fire(http::Method::GET, "/readyz", "", bytes::Bytes::new()).await.is_ok()
        {
            return Ok(server);
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

pub async fn run(kubeconfig: &Path, groups: &Groups, options: &Options) -> Result<Figures> {
    let mut figures = Figures::default();
    let server = ready(kubeconfig).await?;
    figures.set("api_ready_ms", since(options));
    let connection = server.connect().await?;
    let node = async {
        node_ready(&connection).await?;
        anyhow::Ok(since(options))
    };
    let pod = async {
        first_pod(&server, &connection, &options.image).await?;
        anyhow::Ok(since(options))
    };
    let (node, pod) = tokio::try_join!(node, pod)?;
    figures.set("node_ready_ms", node);
    figures.set("first_pod_running_ms", pod);
    // The groups are as old as the cluster.
    figures.set("cpu_s", groups.cpu()?.as_secs_f64());
    figures.set("pss_mib", groups.pss_kib().values().sum::<u64>() as f64 / 1024.0);
    Ok(figures)
}

fn since(options: &Options) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_secs_f64() * 1000.0 - options.since_ms as f64
}

async fn node_ready(connection: &Connection) -> Result<()> {
    loop {
        let nodes = connection.get("/api/v1/nodes").await?;
        let is_ready = |node: &Value| {
            let conditions = node["status"]["conditions"].as_array();
            conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
        };
        if nodes["items"].as_array().is_some_and(|nodes| nodes.iter().any(is_ready)) {
            return Ok(());
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Made as soon as it is accepted: a server that has just started may not have all it admits pods with.
async fn first_pod(server: &Server, connection: &Connection, image: &str) -> Result<()> {
    const NAMESPACE: &str = "first";
    let path = pods_path(NAMESPACE);
    let mut last = None;
    for _ in 0..MAX_TRIES {
        let made = async {
            namespace(connection, NAMESPACE).await?;
            let watch = Watch::start(server, &path).await?;
            connection.post(&path, objects::running_pod(image).named("first")).await?;
            anyhow::Ok(watch)
        };
        match made.await {
            Ok(mut watch) => return watch.wait(Seen::Running, 1).await,
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
    Err(last.context("no pod was tried")?.context("the first pod was not accepted"))
}

const MAX_TRIES: usize = 3000;
