//! A controller written with client-go (`tests/clients/operator`), under a service account with a Role: it leads or stands by,
//! follows objects over protobuf and lists that are watches, and writes by server-side apply.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::{PATIENCE, Stage, built, end, file};
use crate::until;

const ACCOUNT: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: operator, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: operator, namespace: default}
rules:
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, create, update]}
- {apiGroups: [''], resources: [configmaps], verbs: [list, watch, create, patch]}
- {apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}
- {apiGroups: [shop.example.com], resources: [orders], verbs: [list, watch]}
- {apiGroups: [shop.example.com], resources: [orders/status], verbs: [patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: operator, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: operator}
subjects: [{kind: ServiceAccount, name: operator, namespace: default}]
";

/// One that runs, and what it has said.
struct Operator {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    said: Vec<Value>,
}

impl Operator {
    fn start(stage: &Stage, kubeconfig: &std::path::Path, identity: &str) -> Result<Operator> {
        let mut command = Command::new(built("operator")?);
        command.args(["default", identity]).env("KUBECONFIG", kubeconfig).env("HOME", stage.folder.path());
        command.env("HTTPS_PROXY", "").env("https_proxy", "").env("KUBE_FEATURE_WatchListClient", "true");
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        Ok(Operator { child, lines, said: Vec::new() })
    }

    /// Waits until it says something that `is` it, from now on or before; answers that.
    async fn says(&mut self, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut at = 0;
        loop {
            if let Some(found) = self.said[at..].iter().find(|said| said.get(what).is_some_and(&is)) {
                return Ok(found[what].clone());
            }
            at = self.said.len();
            let next = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
            let line = next.with_context(|| format!("it does not say {what}: {:#?}", self.said))??;
            let line = line.with_context(|| format!("it has ended without {what}: {:#?}", self.said))?;
            self.said.push(serde_json::from_str(&line).with_context(|| line.clone())?);
        }
    }

    /// Asks it to end, and waits until it has.
    async fn end(mut self) -> Result<Vec<Value>> {
        ensure!(end(self.child).await?.success());
        while let Some(line) = tokio::time::timeout(PATIENCE, self.lines.next_line()).await?? {
            self.said.push(serde_json::from_str(&line)?);
        }
        Ok(self.said)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_go_controller_leads_watches_and_applies_under_an_account_with_a_role() -> Result<()> {
    let stage = Stage::set().await?;
    let crds = file("chart/crds");
    stage.kubectl(&["apply", "-f", &crds]).succeeds().await?;
    stage.kubectl(&["wait", "--for=condition=Established", "-f", &crds]).succeeds().await?;
    stage.kubectl(&["apply", "-f", "-"]).input(ACCOUNT).succeeds().await?;
    let token = stage.kubectl(&["create", "token", "operator"]).succeeds().await?;
    let kubeconfig = stage.access.kubeconfig_of_token("operator", token.trim())?;
    let create = |name: &'static str, value: &'static str| {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": value},
            "metadata": {"name": name, "namespace": "default", "labels": {"copied": ""}}});
        stage.kubectl(&["create", "-f", "-"]).input(&object.to_string())
    };
    create("first", "1").succeeds().await?;

    let mut first = Operator::start(&stage, &kubeconfig, "one")?;
    first.says("leads", |leader| leader == "one").await?;
    let mut second = Operator::start(&stage, &kubeconfig, "two")?;
    second.says("leader", |leader| leader == "one").await?;
    ensure!(first.says("synced", |_| true).await? == 1);
    ensure!(first.says("secrets", |_| true).await? == "Forbidden");
    let is = |name: &'static str, value: &'static str| {
        move |said: &Value| *said == json!({"name": name, "data": {"a": value}})
    };
    first.says("copied", is("first", "1")).await?;
    create("second", "1").succeeds().await?;
    first.says("copied", is("second", "1")).await?;
    first.says("metadata", |name| name == "second-copy").await?;
    until("the event", async || {
        let events = stage.kubectl(&["get", "events.events.k8s.io", "-o=name"]).succeeds().await?;
        let told = stage.kubectl(&["events", "--for=configmap/second"]).succeeds().await?;
        Ok((events.lines().count() >= 2 && told.contains("copied to second-copy")).then_some(()))
    })
    .await?;

    let order = json!({"apiVersion": "shop.example.com/v1", "kind": "Order",
        "metadata": {"name": "o", "namespace": "default"}, "spec": {"size": 7}});
    stage.kubectl(&["create", "-f", "-"]).input(&order.to_string()).succeeds().await?;
    stage
        .kubectl(&["wait", "order/o", "--for=jsonpath={.status.size}=7", "--timeout=30s"])
        .succeeds()
        .await?;
    stage.kubectl(&["scale", "order/o", "--replicas=9"]).succeeds().await?;
    stage
        .kubectl(&["wait", "order/o", "--for=jsonpath={.status.size}=9", "--timeout=30s"])
        .succeeds()
        .await?;

    // What another has changed is that one's, until it is taken by force.
    let change = |name: &'static str, patch: &'static str| stage.kubectl(&["patch", "cm", name, "-p", patch]);
    change("second-copy", r#"{"data":{"a":"mine"}}"#).succeeds().await?;
    change("second", r#"{"data":{"a":"2"}}"#).succeeds().await?;
    let conflict = first.says("conflict", |_| true).await?;
    let conflict = conflict.as_str().unwrap_or_default();
    ensure!(
        conflict.contains("conflict with \"kubectl-patch\"") && conflict.contains(".data.a"),
        "{conflict}"
    );
    change("second", r#"{"metadata":{"annotations":{"force":"true"}}}"#).succeeds().await?;
    first.says("copied", is("second", "2")).await?;

    // Who waits leads as soon as the leader goes.
    let said = first.end().await?;
    for wire in said.iter().filter_map(|said| said.get("wire")) {
        let path = wire["path"].as_str().unwrap_or_default();
        let custom = path.contains("/orders");
        let kind = wire["kind"].as_str().unwrap_or_default();
        let is_secret = path.ends_with("/secrets");
        ensure!(is_secret || kind != "list", "a list that is no watch: {wire}");
        let wanted = match kind {
            _ if custom => "application/json",
            "watch" | "watchlist" => "application/vnd.kubernetes.protobuf",
            _ => continue,
        };
        ensure!(wire["type"].as_str().is_some_and(|found| found.starts_with(wanted)), "{wire}");
    }
    let n_watchlists = said.iter().filter(|said| said["wire"]["kind"] == "watchlist").count();
    ensure!(n_watchlists == 3, "{said:#?}");
    second.says("leads", |leader| leader == "two").await?;
    create("third", "1").succeeds().await?;
    second.says("copied", is("third", "1")).await?;
    stage.kubectl(&["delete", "cm", "third"]).succeeds().await?;
    stage.kubectl(&["wait", "cm/third-copy", "--for=delete", "--timeout=30s"]).succeeds().await?;
    second.end().await?;
    stage.clear().await
}
