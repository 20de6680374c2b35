//! Small reads that a role allows, among many bindings of others.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::client::{Connection, Server};
use crate::credentials;
use crate::figures::Figures;
use crate::meter::{Groups, Meter};
use crate::objects::{NAME, Template, namespace};
use crate::pods::create_all;

const GROUP: &str = "/apis/rbac.authorization.k8s.io/v1";
/// Until the server heeds the binding of who asks.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    #[arg(long)]
    namespace: String,
    /// Bindings of others in the namespace
    #[arg(long)]
    bindings: usize,
    /// How many reads
    #[arg(long, default_value_t = 20_000)]
    count: usize,
    /// Each on a connection of its own
    #[arg(long, default_value_t = 16)]
    clients: usize,
}

pub async fn run(server: &Server, groups: &Groups, options: &Options) -> Result<Figures> {
    let admin = server.connections(options.clients).await?;
    prepare(&admin, options).await?;
    let account = credentials::of_account(server, &options.namespace, "default").await?;
    let connections = account.connections(options.clients).await?;
    let path = format!("/api/v1/namespaces/{}/configmaps/read", options.namespace);
    let end = Instant::now() + PATIENCE;
    while let Err(error) = connections[0].get(&path).await {
        ensure!(Instant::now() < end, "the account may not read: {error:#}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let meter = Meter::start(groups)?;
    let each = options.count / options.clients.max(1);
    let clients = connections.iter().map(|connection| {
        let (connection, path) = (connection.clone(), path.clone());
        tokio::spawn(async move { reads(&connection, &path, each).await })
    });
    let mut times = Vec::with_capacity(options.count);
    for client in futures::future::join_all(clients).await {
        times.extend(client??);
    }
    let mut figures = Figures::default();
    let taken = meter.stop(&mut figures)?;
    figures.set("reads_per_s", times.len() as f64 / taken.as_secs_f64());
    figures.percentiles("read", &mut times);
    Ok(figures)
}

async fn reads(connection: &Connection, path: &str, count: usize) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        connection.get(path).await?;
        times.push(start.elapsed());
    }
    Ok(times)
}

/// A namespace with one object, a role to read it, and bindings of it: that of the account is one of many.
async fn prepare(admin: &[Connection], options: &Options) -> Result<()> {
    let name = options.namespace.as_str();
    namespace(&admin[0], name).await?;
    let of = |kind: &str| format!("{GROUP}/namespaces/{name}/{kind}");
    let read =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "read"}, "data": {"k": "v"}});
    admin[0].ensure(&format!("/api/v1/namespaces/{name}/configmaps"), &read).await?;
    let rule = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["configmaps"]});
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "reader"}, "rules": [rule],
    });
    admin[0].ensure(&of("roles"), &role).await?;
    let binding = |binding: &str, subject: serde_json::Value| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": binding},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
            "subjects": [subject],
        })
    };
    let account = json!({"kind": "ServiceAccount", "name": "default", "namespace": name});
    admin[0].ensure(&of("rolebindings"), &binding("account", account)).await?;
    let other = json!({"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": NAME});
    let template = Template::new(&binding(NAME, other));
    create_all(admin, &of("rolebindings"), template, "other-", options.bindings).await?;
    Ok(())
}
