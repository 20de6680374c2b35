//! Server-side apply of Deployments that four managers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use http::Method;
use serde_json::{Value, json};

use crate::client::{Connection, Server};
use crate::figures::Figures;
use crate::meter::{Groups, Meter};
use crate::objects::namespace;

const APPLY: &str = "application/apply-patch+yaml";
/// What a manager applies in a turn.
type Fields = fn(usize) -> Value;
/// Who applies, and what is theirs.
const MANAGERS: [(&str, Fields); 4] =
    [("deployer", deployed), ("platform", labelled), ("scaler", scaled), ("tuner", tuned)];

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    #[arg(long)]
    namespace: String,
    /// How many applies in all, those that make the objects not counted
    #[arg(long, default_value_t = 4000)]
    count: usize,
    /// Each on a connection of its own and with a Deployment of its own
    #[arg(long, default_value_t = 16)]
    clients: usize,
}

pub async fn run(server: &Server, groups: &Groups, options: &Options) -> Result<Figures> {
    let connections = server.connections(options.clients).await?;
    namespace(&connections[0], &options.namespace).await?;
    for (number, connection) in connections.iter().enumerate() {
        round(connection, options, number, 0).await?;
    }
    let meter = Meter::start(groups)?;
    let next = Arc::new(AtomicUsize::new(MANAGERS.len()));
    let end = options.count + MANAGERS.len();
    let clients = connections.iter().enumerate().map(|(number, connection)| {
        let (next, connection, options) = (next.clone(), connection.clone(), options.clone());
        tokio::spawn(async move {
            let mut times = Vec::new();
            loop {
                let first = next.fetch_add(MANAGERS.len(), Ordering::Relaxed);
                if first >= end {
                    return anyhow::Ok(times);
                }
                times.extend(round(&connection, &options, number, first).await?);
            }
        })
    });
    let mut times = Vec::with_capacity(options.count);
    for client in futures::future::join_all(clients).await {
        times.extend(client??);
    }
    let mut figures = Figures::default();
    let taken = meter.stop(&mut figures)?;
    figures.set("applies_per_s", times.len() as f64 / taken.as_secs_f64());
    figures.percentiles("apply", &mut times);
    shared(&connections[0], options).await?;
    Ok(figures)
}

/// Every manager applies once, other values each time.
async fn round(
    connection: &Connection,
    options: &Options,
    number: usize,
    turn: usize,
) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(MANAGERS.len());
    for (manager, fields) in MANAGERS {
        let mut applied = fields(turn);
        applied["apiVersion"] = "apps/v1".into();
        applied["kind"] = "Deployment".into();
        applied["metadata"]["name"] = format!("shared-{number}").into();
        let path = format!("{}?fieldManager={manager}", path(options, number));
        let start = Instant::now();
        connection.fire(Method::PATCH, &path, APPLY, applied.to_string().into()).await?;
        times.push(start.elapsed());
    }
    Ok(times)
}

fn path(options: &Options, number: usize) -> String {
    format!("/apis/apps/v1/namespaces/{}/deployments/shared-{number}", options.namespace)
}

/// What was measured is what was meant: all four own something of the object.
async fn shared(connection: &Connection, options: &Options) -> Result<()> {
    let object = connection.get(&path(options, 0)).await?;
    let entries = object["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default();
    for (manager, _) in MANAGERS {
        let owns = entries.iter().any(|entry| entry["manager"] == manager && entry["operation"] == "Apply");
        ensure!(owns, "{manager} owns nothing of {}", path(options, 0));
    }
    Ok(())
}

fn deployed(turn: usize) -> Value {
    let container = |name: &str| {
        json!({
            "name": name, "image": format!("registry.example.com/shop/{name}:1.2.{turn}"),
            "ports": [{"name": name, "containerPort": 8080, "protocol": "TCP"}],
            "env": [{"name": "LOG_LEVEL", "value": "info"}, {"name": "TURN", "value": turn.to_string()}],
            "volumeMounts": [{"name": "config", "mountPath": "/etc/config"}],
        })
    };
    json!({"spec": {
        "selector": {"matchLabels": {"app": "shop"}},
        "template": {
            "metadata": {"labels": {"app": "shop"}},
            "spec": {
                "containers": [container("server"), container("proxy")],
                "volumes": [{"name": "config", "configMap": {"name": "config"}}],
            },
        },
    }})
}

fn labelled(turn: usize) -> Value {
    json!({"metadata": {
        "labels": {"app.kubernetes.io/name": "shop", "app.kubernetes.io/version": format!("1.2.{turn}")},
        "annotations": {"example.com/turn": turn.to_string()},
    }})
}

/// No pods: what controllers would do with them is not what is measured.
fn scaled(turn: usize) -> Value {
    json!({"spec": {"replicas": 0, "revisionHistoryLimit": 1 + turn % 9, "paused": true}})
}

fn tuned(turn: usize) -> Value {
    let container = |name: &str| {
        let cpu = format!("{}m", 100 + turn % 100);
        json!({"name": name, "resources": {"requests": {"cpu": cpu}, "limits": {"memory": "256Mi"}}})
    };
    json!({"spec": {"template": {"spec": {"containers": [container("server"), container("proxy")]}}}})
}
