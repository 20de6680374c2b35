//! Which node a pod gets, and what is said of a pod that gets none.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde_json::{Value, json};

use crate::plane::list;
use crate::{ControlPlane, create, is_bound, is_ending, node, pod, until};

fn asking(cpu: &str) -> Value {
    json!({"containers": [{"name": "c", "image": "image:1", "resources": {"requests": {"cpu": cpu}}}]})
}

fn in_zone(name: &str, zone: &str) -> Value {
    let mut node = node(name);
    node["metadata"]["labels"]["topology.kubernetes.io/zone"] = json!(zone);
    node
}

/// A pod that must be refused, in these words, and says so in its status too.
async fn is_refused(plane: &ControlPlane, name: &str, spec: Value, wanted: &str) -> Result<()> {
    let pods = plane.api::<Pod>();
    create(&pods, pod(name, name, spec)).await?;
    let message = plane.event(name, "FailedScheduling").await?;
    ensure!(message == wanted, "{name}: {message}");
    let told = until(&format!("the condition of {name}"), async || {
        let pod = pods.get(name).await?;
        ensure!(!is_bound(&pod), "{name} is bound");
        let conditions = pod.status.and_then(|s| s.conditions).unwrap_or_default();
        Ok(conditions.into_iter().find(|c| c.type_ == "PodScheduled"))
    })
    .await?;
    ensure!(told.status == "False" && told.reason.as_deref() == Some("Unschedulable"), "{told:?}");
    ensure!(told.message.as_deref() == Some(wanted), "{told:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_fits_nowhere_is_told_why_of_every_node() -> Result<()> {
    let plane = ControlPlane::start().await?;
    create(&plane.api::<Pod>(), pod("filler", "filler", asking("3"))).await?;
    plane.node_of("filler").await?;
    is_refused(
        &plane,
        "big",
        asking("2"),
        "0/1 nodes are available: 1 Insufficient cpu. \
         preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.",
    )
    .await?;
    // No node is as large, however empty.
    is_refused(
        &plane,
        "bigger",
        asking("64"),
        "0/1 nodes are available: 1 Insufficient cpu. \
         preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
    )
    .await?;
    is_refused(
        &plane,
        "choosy",
        json!({"nodeSelector": {"disk": "ssd"}}),
        "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. \
         preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
    )
    .await?;
    let mut kept = node("kept");
    kept["spec"] = json!({"taints": [{"key": "kept-for", "value": "others", "effect": "NoSchedule"}]});
    plane.add_node(kept).await?;
    is_refused(
        &plane,
        "late",
        asking("2"),
        "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s). \
         preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, \
         1 Preemption is not helpful for scheduling.",
    )
    .await?;
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_fitted_nowhere_gets_the_node_that_comes() -> Result<()> {
    let plane = ControlPlane::start().await?;
    create(&plane.api::<Pod>(), pod("big", "big", asking("6"))).await?;
    plane.event("big", "FailedScheduling").await?;
    let mut large = node("large");
    large["status"]["allocatable"]["cpu"] = json!("8");
    plane.add_node(large).await?;
    ensure!(plane.node_of("big").await? == "large");
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_of_a_pod_again_makes_a_series() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let pods = plane.api::<Pod>();
    for name in ["filler-1", "filler-2"] {
        create(&pods, pod(name, name, asking("2"))).await?;
        plane.node_of(name).await?;
    }
    for name in ["one", "two", "three"] {
        create(&pods, pod(name, name, asking("2"))).await?;
    }
    let events = plane.api::<Event>();
    let refusals = async || {
        let is_one = |e: &Event| e.reason.as_deref() == Some("FailedScheduling");
        let mut all = list(&events).await?;
        all.retain(is_one);
        anyhow::Ok(all)
    };
    until("a refusal of each", async || Ok((refusals().await?.len() == 3).then_some(()))).await?;
    // The room is for one. The others are refused in the same words, as what they have become by the first refusal.
    plane.end_pod("filler-1").await?;
    until("a refusal of two more", async || Ok((refusals().await?.len() == 5).then_some(()))).await?;
    plane.end_pod("filler-2").await?;
    let event = until("a series", async || Ok(refusals().await?.into_iter().find(|e| e.series.is_some())));
    let event = event.await?;
    ensure!(event.series.as_ref().and_then(|series| series.count) == Some(2), "{event:?}");
    ensure!(event.action.as_deref() == Some("Scheduling"), "{event:?}");
    ensure!(event.reporting_component.as_deref() == Some("default-scheduler"), "{event:?}");
    ensure!(event.reporting_instance.as_deref() == Some("default-scheduler-host"), "{event:?}");
    ensure!(event.event_time.is_some() && event.first_timestamp.is_none(), "{event:?}");
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_keeps_off_the_node_of_one_it_shuns_until_that_one_is_gone() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let shy = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"labelSelector": {"matchLabels": {"app": "first"}}, "topologyKey": "kubernetes.io/hostname"}]}}});
    create(&plane.api::<Pod>(), pod("first", "first", Value::Null)).await?;
    plane.node_of("first").await?;
    is_refused(
        &plane,
        "shy",
        shy,
        "0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules. \
         preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.",
    )
    .await?;
    plane.end_pod("first").await?;
    ensure!(plane.node_of("shy").await? == "n1");
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_goes_where_one_it_likes_is() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let pods = plane.api::<Pod>();
    create(&pods, pod("first", "first", json!({"nodeName": "n1"}))).await?;
    // Nothing but what it likes would lead it to a node that is nearly full.
    create(&pods, pod("filler", "filler", asking("3"))).await?;
    plane.node_of("filler").await?;
    plane.add_node(node("n2")).await?;
    let near = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"labelSelector": {"matchLabels": {"app": "first"}}, "topologyKey": "kubernetes.io/hostname"}]}}});
    create(&pods, pod("near", "near", near)).await?;
    ensure!(plane.node_of("near").await? == "n1");
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_spread_as_evenly_as_they_ask_whatever_else_they_prefer() -> Result<()> {
    const ZONE: &str = "topology.kubernetes.io/zone";
    let plane = ControlPlane::start().await?;
    // The first node is in no zone, and out of this.
    plane.add_node(in_zone("a1", "a")).await?;
    plane.add_node(in_zone("b1", "b")).await?;
    let spread = json!({
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "spread"}}}],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100,
            "preference": {"matchExpressions": [{"key": ZONE, "operator": "In", "values": ["a"]}]}}]}}});
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for n in 0..6 {
        let name = format!("spread-{n}");
        create(&plane.api::<Pod>(), pod(&name, "spread", spread.clone())).await?;
        *counts.entry(plane.node_of(&name).await?).or_default() += 1;
        let [a, b] = ["a1", "b1"].map(|node| counts.get(node).copied().unwrap_or_default());
        ensure!(a.abs_diff(b) <= 1, "{counts:?}");
    }
    plane.stop().await
}

/// Half of the first node, with a priority.
fn half(class: &str) -> Value {
    let mut spec = asking("2");
    spec["priorityClassName"] = json!(class);
    spec
}

async fn create_class(plane: &ControlPlane, name: &str, value: i32, policy: &str) -> Result<()> {
    let class = json!({"metadata": {"name": name}, "value": value, "preemptionPolicy": policy});
    create(&plane.all::<PriorityClass>(), class).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_more_important_pod_takes_the_place_of_the_least_important_one() -> Result<()> {
    let plane = ControlPlane::start().await?;
    for (class, value) in [("low", 1), ("medium", 10), ("high", 100)] {
        create_class(&plane, class, value, "PreemptLowerPriority").await?;
    }
    let pods = plane.api::<Pod>();
    for (name, class) in [("victim", "low"), ("kept", "medium")] {
        create(&pods, pod(name, name, half(class))).await?;
        plane.node_of(name).await?;
    }
    let uid = create(&pods, pod("preemptor", "preemptor", half("high"))).await?.metadata.uid;
    let victim =
        until("the end of the victim", async || Ok(Some(pods.get("victim").await?).filter(is_ending)));
    let conditions = victim.await?.status.and_then(|s| s.conditions).unwrap_or_default();
    let told = conditions.into_iter().find(|c| c.type_ == "DisruptionTarget").context("no condition")?;
    ensure!(told.status == "True" && told.reason.as_deref() == Some("PreemptionByScheduler"), "{told:?}");
    let why = "default-scheduler: preempting to accommodate a higher priority pod";
    ensure!(told.message.as_deref() == Some(why), "{told:?}");
    let message = plane.event("victim", "Preempted").await?;
    ensure!(message == format!("Preempted by pod {} on node n1", uid.context("no UID")?), "{message}");
    let message = plane.event("preemptor", "FailedScheduling").await?;
    ensure!(message == "0/1 nodes are available: 1 Insufficient cpu.", "{message}");
    // It waits for the room, and nobody else gets it.
    let waiting = until("the nomination", async || {
        let pod = pods.get("preemptor").await?;
        Ok(pod.status.as_ref().and_then(|s| s.nominated_node_name.clone()).map(|node| (node, is_bound(&pod))))
    });
    ensure!(waiting.await? == ("n1".to_owned(), false));
    create(&pods, pod("late", "late", half("medium"))).await?;
    plane.event("late", "FailedScheduling").await?;
    plane.end_pod("victim").await?;
    ensure!(plane.node_of("preemptor").await? == "n1");
    ensure!(!is_bound(&pods.get("late").await?), "the late pod took the room");
    ensure!(!is_ending(&pods.get("kept").await?), "one was enough");
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_not_to_preempt_waits() -> Result<()> {
    let plane = ControlPlane::start().await?;
    create_class(&plane, "polite", 100, "Never").await?;
    let pods = plane.api::<Pod>();
    for name in ["first", "second"] {
        create(&pods, pod(name, name, asking("2"))).await?;
        plane.node_of(name).await?;
    }
    is_refused(
        &plane,
        "polite",
        half("polite"),
        "0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never.",
    )
    .await?;
    plane.end_pod("first").await?;
    ensure!(plane.node_of("polite").await? == "n1");
    ensure!(!is_ending(&pods.get("second").await?));
    plane.stop().await
}
