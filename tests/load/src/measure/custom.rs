//! Custom resources with a structural schema, rules in CEL and a validating webhook.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::client::{Connection, Server, is_status};
use crate::figures::Figures;
use crate::measure::list;
use crate::meter::{Groups, Meter};
use crate::objects::{MARK, NAME, Template, namespace};
use crate::pods::create_all;
use crate::webhook::Webhook;

const GROUP: &str = "load.skiff.dev";
const PLURAL: &str = "shops";
const CONFIGURATION: &str = "skiff-load";
const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
/// Until the server serves a definition and heeds a webhook.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

#[derive(clap::Args, Clone, Debug)]
pub struct FillOptions {
    #[arg(long)]
    namespace: String,
    #[arg(long, default_value_t = 10_000)]
    count: usize,
    /// Each on a connection of its own
    #[arg(long, default_value_t = 32)]
    clients: usize,
}

/// A namespace with many objects, and no webhook.
pub async fn fill(server: &Server, options: &FillOptions) -> Result<Figures> {
    let connections = server.connections(options.clients).await?;
    define(&connections[0]).await?;
    namespace(&connections[0], &options.namespace).await?;
    create_all(&connections, &path(&options.namespace), shop(), "shop-", options.count).await?;
    Ok(Figures::default())
}

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Where objects are made
    #[arg(long)]
    namespace: String,
    #[arg(long, default_value_t = 2000)]
    count: usize,
    /// Each on a connection of its own
    #[arg(long, default_value_t = 32)]
    clients: usize,
    /// Where objects are listed
    #[arg(long)]
    listed: String,
    /// How many are there
    #[arg(long, default_value_t = 10_000)]
    items: usize,
    /// How many lists
    #[arg(long, default_value_t = 4)]
    lists: usize,
}

pub async fn run(server: &Server, groups: &Groups, options: &Options) -> Result<Figures> {
    let connections = server.connections(options.clients).await?;
    namespace(&connections[0], &options.namespace).await?;
    let webhook = Webhook::start().await?;
    let measured = measure(&connections, groups, options, &webhook).await;
    // The webhook is gone with this process: what named it would refuse all that follows.
    connections[0].delete(&format!("{CONFIGURATIONS}/{CONFIGURATION}")).await?;
    measured
}

async fn measure(
    connections: &[Connection],
    groups: &Groups,
    options: &Options,
    webhook: &Webhook,
) -> Result<Figures> {
    let path = path(&options.namespace);
    connections[0].ensure(CONFIGURATIONS, &configuration(webhook)).await?;
    heeded(&connections[0], &path, webhook).await?;
    let before = webhook.n_asked();
    let meter = Meter::start(groups)?;
    let start = Instant::now();
    let mut creates = create_all(connections, &path, shop(), "shop-", options.count).await?;
    let taken = start.elapsed();
    let n_asked = webhook.n_asked() - before;
    ensure!(n_asked >= options.count as u64, "{n_asked} reviews of {} creates", options.count);
    let where_listed = self::path(&options.listed);
    let listed = list::Listed::new(&where_listed, options.items)?;
    let mut lists = Vec::with_capacity(options.lists);
    for _ in 0..options.lists {
        lists.push(listed.list(&connections[0]).await?.0);
    }
    let mut figures = Figures::default();
    meter.stop(&mut figures)?;
    figures.set("creates_per_s", creates.len() as f64 / taken.as_secs_f64());
    figures.percentiles("create", &mut creates);
    figures.percentiles("list", &mut lists);
    Ok(figures)
}

/// Returns once a create is reviewed: servers are told of webhooks after they were written.
async fn heeded(connection: &Connection, path: &str, webhook: &Webhook) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    for number in 0.. {
        let before = webhook.n_asked();
        connection.post(path, shop().named(&format!("first-{number}"))).await?;
        if webhook.n_asked() > before {
            break;
        }
        ensure!(Instant::now() < end, "no review was asked for");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

fn path(namespace: &str) -> String {
    format!("/apis/{GROUP}/v1/namespaces/{namespace}/{PLURAL}")
}

async fn define(connection: &Connection) -> Result<()> {
    connection.ensure("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition()).await?;
    let end = Instant::now() + PATIENCE;
    loop {
        match connection.get(&format!("/apis/{GROUP}/v1/{PLURAL}")).await {
            // Upstream answers 429 as long as it begins to serve the kind.
            Err(error) if (is_status(&error, 404) || is_status(&error, 429)) && Instant::now() < end => {}
            other => return other.map(drop),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn configuration(webhook: &Webhook) -> Value {
    let rule =
        json!({"apiGroups": [GROUP], "apiVersions": ["v1"], "resources": [PLURAL], "operations": ["CREATE"]});
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": CONFIGURATION},
        "webhooks": [{
            "name": "load.skiff.dev", "clientConfig": webhook.client, "rules": [rule], "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "failurePolicy": "Fail", "timeoutSeconds": 10,
        }],
    })
}

/// As operators write them: nested, with defaults, lists that are maps, and rules between fields.
fn definition() -> Value {
    let text = |most: u32| json!({"type": "string", "maxLength": most});
    let port = json!({"type": "integer", "minimum": 1, "maximum": 65_535});
    let listener = json!({
        "type": "object", "required": ["name", "port"],
        "properties": {"name": text(63), "port": port, "protocol": {"type": "string", "enum": ["TCP", "UDP"], "default": "TCP"}},
    });
    let store = json!({
        "type": "object",
        "properties": {
            "size": {"x-kubernetes-int-or-string": true, "default": "1Gi"},
            "retention": {"type": "string", "enum": ["Delete", "Retain"], "default": "Delete"},
        },
    });
    let rules = json!([
        {"rule": "self.minReplicas <= self.replicas && self.replicas <= self.maxReplicas", "message": "replicas must lie between the bounds"},
        {"rule": "self.listeners.all(l, l.port != 22)", "message": "22 is taken"},
        {"rule": "!has(self.host) || self.host.endsWith('.example.com')", "messageExpression": "'not a host of ours: ' + self.host"},
        {"rule": "self.replicas >= oldSelf.replicas - 5", "message": "shrinks by five at most"},
    ]);
    let spec = json!({
        "type": "object", "required": ["image", "listeners"], "x-kubernetes-validations": rules,
        "properties": {
            "image": text(512), "host": text(253),
            "replicas": {"type": "integer", "minimum": 0, "default": 1},
            "minReplicas": {"type": "integer", "minimum": 0, "default": 1},
            "maxReplicas": {"type": "integer", "minimum": 1, "default": 10},
            "listeners": {
                "type": "array", "maxItems": 32, "items": listener,
                "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            },
            "environment": {"type": "object", "maxProperties": 64, "additionalProperties": text(1024)},
            "store": store,
        },
    });
    let conditions =
        json!({"type": "array", "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let status =
        json!({"type": "object", "properties": {"ready": {"type": "integer"}, "conditions": conditions}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{PLURAL}.{GROUP}")},
        "spec": {
            "group": GROUP, "scope": "Namespaced",
            "names": {"plural": PLURAL, "singular": "shop", "kind": "Shop", "listKind": "ShopList"},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "required": ["spec"], "properties": {"spec": spec, "status": status}}},
                "additionalPrinterColumns": [{"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"}],
            }],
        },
    })
}

fn shop() -> Template {
    let variables = ["LOG_LEVEL", "DATABASE", "REGION", "FEATURES"];
    let environment: serde_json::Map<String, Value> = variables
        .into_iter()
        .map(|name| (name.to_owned(), "postgres.databases.svc.cluster.local:5432".into()))
        .collect();
    Template::new(&json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": "Shop",
        "metadata": {
            "name": NAME, "labels": {"app.kubernetes.io/name": "shop", "app.kubernetes.io/part-of": "load"},
            "annotations": {"example.com/mark": MARK},
        },
        "spec": {
            "image": "registry.example.com/shop/server:1.2.3", "host": "shop.example.com", "replicas": 3,
            "listeners": [{"name": "http", "port": 8080}, {"name": "metrics", "port": 9090}, {"name": "sync", "port": 7000, "protocol": "UDP"}],
            "environment": environment, "store": {"size": "10Gi"},
        },
    }))
}
