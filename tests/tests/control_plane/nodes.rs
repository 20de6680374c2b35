//! Nodes' taints and the pods that do not bear them.
//!
//! That a node is given up when its lease stops takes a grace of 50 s, which `tests/tests/nodes.rs` waits for; from
//! there on a node that says itself that it is not ready goes the same way.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::{ControlPlane, create, is_ending, node, pod, until};

const NOT_READY: &str = "node.kubernetes.io/not-ready";

async fn are_taints(nodes: &Api<Node>, name: &str, wanted: &[&str]) -> Result<()> {
    until(&format!("the taints of {name}: {wanted:?}"), async || {
        let taints = nodes.get(name).await?.spec.and_then(|s| s.taints).unwrap_or_default();
        let mut taints: Vec<_> = taints.iter().map(|t| format!("{}:{}", t.key, t.effect)).collect();
        taints.sort_unstable();
        ensure!(taints == wanted, "they are {taints:?}");
        Ok(Some(()))
    })
    .await
}

async fn report(nodes: &Api<Node>, name: &str, condition: &str, status: &str) -> Result<()> {
    let status = json!({"status": {"conditions": [{"type": condition, "status": status}]}});
    nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(status)).await?;
    Ok(())
}

/// A pod on `n1` that does not bear it for a moment that its node is not ready, and one that does as pods do.
async fn fickle_and_patient(plane: &ControlPlane) -> Result<Api<Pod>> {
    let pods = plane.api::<Pod>();
    let at_once =
        json!({"key": NOT_READY, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0});
    create(&pods, pod("fickle", "p", json!({"tolerations": [at_once]}))).await?;
    create(&pods, pod("patient", "p", json!({}))).await?;
    plane.node_of("fickle").await?;
    plane.node_of("patient").await?;
    Ok(pods)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_or_goes_is_told_of() -> Result<()> {
    let plane = ControlPlane::start().await?;
    plane.add_node(node("n2")).await?;
    let event = plane.event("n2", "RegisteredNode").await?;
    ensure!(event == "Node n2 event: Registered Node n2 in Controller", "{event}");
    plane.all::<Node>().delete("n2", &DeleteParams::default()).await?;
    let event = plane.event("n2", "RemovingNode").await?;
    ensure!(event == "Node n2 event: Removing Node n2 from Controller", "{event}");
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cordoned_node_is_tainted_until_it_is_uncordoned() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let nodes = plane.all::<Node>();
    let cordon = async |on: bool| {
        let change = json!({"spec": {"unschedulable": on.then_some(true)}});
        nodes.patch("n1", &PatchParams::default(), &Patch::Merge(change)).await
    };
    cordon(true).await?;
    are_taints(&nodes, "n1", &["node.kubernetes.io/unschedulable:NoSchedule"]).await?;
    cordon(false).await?;
    are_taints(&nodes, "n1", &[]).await?;
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_tainted_for_each_of_its_troubles_while_it_lasts() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let nodes = plane.all::<Node>();
    report(&nodes, "n1", "DiskPressure", "True").await?;
    report(&nodes, "n1", "MemoryPressure", "True").await?;
    let (disk, memory) =
        ("node.kubernetes.io/disk-pressure:NoSchedule", "node.kubernetes.io/memory-pressure:NoSchedule");
    are_taints(&nodes, "n1", &[disk, memory]).await?;
    report(&nodes, "n1", "DiskPressure", "False").await?;
    are_taints(&nodes, "n1", &[memory]).await?;
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_ready_loses_the_pods_that_do_not_bear_it() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let (nodes, pods) = (plane.all::<Node>(), fickle_and_patient(&plane).await?);
    plane.add_node(node("n2")).await?;
    report(&nodes, "n1", "Ready", "False").await?;
    are_taints(&nodes, "n1", &[&format!("{NOT_READY}:NoExecute"), &format!("{NOT_READY}:NoSchedule")])
        .await?;
    until("an eviction", async || Ok(is_ending(&pods.get("fickle").await?).then_some(()))).await?;
    let conditions = pods.get("fickle").await?.status.and_then(|s| s.conditions).unwrap_or_default();
    let told = conditions.iter().find(|c| c.type_ == "DisruptionTarget").context("it is not told why")?;
    ensure!(told.status == "True" && told.reason.as_deref() == Some("DeletionByTaintManager"), "{told:?}");
    let event = plane.event("fickle", "TaintManagerEviction").await?;
    ensure!(event == "Marking for deletion Pod default/fickle", "{event}");
    ensure!(!is_ending(&pods.get("patient").await?), "five minutes have not passed");
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_pod_is_evicted_where_no_node_is_ready() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let (nodes, pods) = (plane.all::<Node>(), fickle_and_patient(&plane).await?);
    report(&nodes, "n1", "Ready", "False").await?;
    are_taints(&nodes, "n1", &[&format!("{NOT_READY}:NoSchedule")]).await?;
    ensure!(!is_ending(&pods.get("fickle").await?), "there is no better place for it");
    plane.stop().await
}
