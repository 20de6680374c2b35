//! helm: a chart with roles, a definition and its object, hooks and a test is installed, changed, taken back and removed.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Run, Stage, built, file};
use crate::until;

struct Helm<'s> {
    stage: &'s Stage,
    program: PathBuf,
    kubeconfig: PathBuf,
    namespace: &'static str,
}

impl Helm<'_> {
    fn run(&self, args: &[&str]) -> Run {
        let mut all = vec!["-n", self.namespace];
        all.extend(args);
        self.stage.program(&self.program, &all).env("KUBECONFIG", &self.kubeconfig)
    }

    async fn get(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["-n", self.namespace];
        all.extend(args);
        self.stage.get(&all).await
    }

    /// The statuses of a release's revisions, from the first on.
    async fn history(&self) -> Result<Vec<String>> {
        let text = self.run(&["history", "shop", "-o", "json"]).succeeds().await?;
        let all: Vec<Value> = serde_json::from_str(&text)?;
        Ok(all.iter().map(|one| one["status"].as_str().unwrap_or_default().to_owned()).collect())
    }

    /// What the chart's values have made of its objects.
    async fn is_of(&self, replicas: u64, size: u64) -> Result<()> {
        let deployment = self.get(&["deployment", "shop"]).await?;
        let (spec, status) = (&deployment["spec"], &deployment["status"]);
        ensure!(spec["replicas"] == replicas && status["readyReplicas"] == replicas, "{deployment}");
        ensure!(status["updatedReplicas"] == replicas, "{deployment}");
        let env = &spec["template"]["spec"]["containers"][0]["env"];
        ensure!(*env == json!([{"name": "SIZE", "value": size.to_string()}]), "{env}");
        let order = self.get(&["orders.shop.example.com", "shop"]).await?;
        let spec = json!({"size": size, "colour": "red", "lines": [{"sku": "first", "count": 1}, {"sku": "second", "count": size}]});
        ensure!(order["spec"] == spec, "{order}");
        Ok(())
    }
}

async fn story(version: &str, namespace: &'static str) -> Result<()> {
    let stage = Stage::set().await?;
    let helm = Helm { stage: &stage, program: built(version)?, kubeconfig: stage.admin.clone(), namespace };
    let chart = file("chart");
    let (chart, wait) = (chart.as_str(), ["--wait", "--timeout", "60s"]);
    let change = |verb: &'static str, values: &'static str| {
        let mut args = vec![verb, "shop", chart, "--set", values];
        args.extend(wait);
        helm.run(&args)
    };

    // What is refused leaves nothing but the definition, and the release that failed.
    let refused = change("install", "size=100").env("HELM_NAMESPACE", namespace);
    let said = refused.ends_with(1).await?;
    ensure!(said.contains("not found"), "the namespace is not there: {said}");
    stage.kubectl(&["create", "namespace", namespace]).succeeds().await?;
    let said = change("install", "size=100").ends_with(1).await?;
    ensure!(said.contains("no more than 99"), "{said}");
    helm.run(&["uninstall", "shop", "--no-hooks"]).succeeds().await?;
    stage.kubectl(&["-n", namespace, "delete", "secret", "shop-kept"]).succeeds().await?;

    let said = helm.run(&["install", "shop", chart, "--dry-run=server"]).succeeds().await?;
    ensure!(said.contains("nodes: 2, serves orders: true"), "{said}");
    let said = change("install", "size=1").succeeds().await?;
    ensure!(said.contains("STATUS: deployed"), "{said}");
    helm.is_of(1, 1).await?;
    let job = helm.get(&["job", "shop-before"]).await?;
    ensure!(job["status"]["succeeded"] == 1, "{job}");
    let (before, deployment) = (&job["status"]["completionTime"], helm.get(&["deployment", "shop"]).await?);
    let made = &deployment["metadata"]["creationTimestamp"];
    ensure!(
        before.as_str().context("not completed")? <= made.as_str().context("no time")?,
        "{before} {made}"
    );
    let said = helm.run(&["test", "shop", "--timeout", "60s"]).succeeds().await?;
    ensure!(said.contains("Succeeded"), "{said}");

    change("upgrade", "replicas=3,size=2").succeeds().await?;
    helm.is_of(3, 2).await?;
    let job = helm.get(&["job", "shop-after"]).await?;
    ensure!(job["status"]["succeeded"] == 1, "{job}");

    // A hook that fails, fields that never change and objects that are refused are failures, and say why.
    let said = change("upgrade", "replicas=1,size=3,hooks=Failed").ends_with(1).await?;
    ensure!(said.contains("post-upgrade hooks failed"), "{said}");
    let said = change("upgrade", "immutable=b").ends_with(1).await?;
    ensure!(said.contains("field is immutable"), "{said}");
    let said = change("upgrade", "size=-1").ends_with(1).await?;
    ensure!(said.contains("should be greater than or equal to 0"), "{said}");
    let history = helm.history().await?;
    ensure!(history == ["superseded", "deployed", "failed", "failed", "failed"], "{history:?}");

    helm.run(&["rollback", "shop", "1", "--wait", "--timeout", "60s"]).succeeds().await?;
    helm.is_of(1, 1).await?;
    let history = helm.history().await?;
    ensure!(history.last().map(String::as_str) == Some("deployed"), "{history:?}");

    let said = helm.run(&["uninstall", "shop", "--wait", "--timeout", "60s"]).succeeds().await?;
    ensure!(said.contains("kept due to the resource policy"), "{said}");
    let kinds = "deployments,replicasets,services,orders,roles,rolebindings,serviceaccounts,configmaps";
    let left = helm.get(&[kinds, "-l", "app.kubernetes.io/instance=shop"]).await?;
    ensure!(left["items"] == json!([]), "{left}");
    helm.get(&["secret", "shop-kept"]).await?;
    stage.get(&["crd", "orders.shop.example.com"]).await?;
    stage.clear().await
}

#[tokio::test(flavor = "multi_thread")]
async fn helm_3_installs_upgrades_rolls_back_and_uninstalls_a_chart() -> Result<()> {
    story("helm-3", "three").await
}

#[tokio::test(flavor = "multi_thread")]
async fn helm_4_installs_upgrades_rolls_back_and_uninstalls_a_chart() -> Result<()> {
    story("helm-4", "four").await
}

/// Roles of a namespace's administrators grow by what is labelled for them.
const ORDERS: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: orders
  labels: {rbac.authorization.k8s.io/aggregate-to-admin: 'true'}
rules:
- {apiGroups: [shop.example.com], resources: [orders, orders/status], verbs: ['*']}
";

#[tokio::test(flavor = "multi_thread")]
async fn helm_under_an_account_of_a_namespace_installs_what_the_account_may_grant() -> Result<()> {
    let stage = Stage::set().await?;
    let (crds, chart) = (file("chart/crds"), file("chart"));
    stage.kubectl(&["create", "-f", &crds]).succeeds().await?;
    stage.kubectl(&["wait", "--for=condition=Established", "-f", &crds]).succeeds().await?;
    stage.kubectl(&["create", "serviceaccount", "deployer"]).succeeds().await?;
    let bind =
        ["create", "rolebinding", "deployer", "--clusterrole=admin", "--serviceaccount=default:deployer"];
    stage.kubectl(&bind).succeeds().await?;
    let token = stage.kubectl(&["create", "token", "deployer"]).succeeds().await?;
    let kubeconfig = stage.access.kubeconfig_of_token("deployer", token.trim())?;
    let helm = Helm { stage: &stage, program: built("helm-3")?, kubeconfig, namespace: "default" };
    let install =
        ["install", "shop", &chart, "--skip-crds", "--set", "nodes=false", "--wait", "--timeout", "60s"];

    let said = helm.run(&install[..4]).ends_with(1).await?;
    ensure!(said.contains("cannot list resource \"nodes\""), "{said}");
    let said = helm.run(&install).ends_with(1).await?;
    ensure!(said.contains("cannot get resource \"orders\" in API group \"shop.example.com\""), "{said}");
    // Who has some rights may not grant the others.
    let some = ["--verb=get,list,watch,create,delete", "--resource=orders.shop.example.com"];
    stage.kubectl(&["create", "role", "some", some[0], some[1]]).succeeds().await?;
    let bind = ["create", "rolebinding", "some", "--role=some", "--serviceaccount=default:deployer"];
    stage.kubectl(&bind).succeeds().await?;
    let said = helm.run(&install).ends_with(1).await?;
    ensure!(said.contains("attempting to grant RBAC permissions not currently held"), "{said}");
    let lacks = "{APIGroups:[\"shop.example.com\"], Resources:[\"orders\"], Verbs:[\"update\" \"patch\"]}";
    ensure!(said.contains(lacks), "{said}");
    helm.run(&["uninstall", "shop", "--no-hooks"]).succeeds().await?;
    stage.kubectl(&["delete", "secret", "shop-kept"]).succeeds().await?;

    stage.kubectl(&["create", "-f", "-"]).input(ORDERS).succeeds().await?;
    until("the right to grant rights of orders", async || {
        let ask = [
            "auth",
            "can-i",
            "create",
            "orders.shop.example.com",
            "--as=system:serviceaccount:default:deployer",
        ];
        Ok(stage.kubectl(&ask).ends_with(0).await.ok())
    })
    .await?;
    helm.run(&install).succeeds().await?;
    helm.is_of(1, 1).await?;
    helm.run(&["uninstall", "shop", "--wait"]).succeeds().await?;
    stage.clear().await
}
