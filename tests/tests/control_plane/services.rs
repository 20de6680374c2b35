//! Addresses of Services, and the slices that say where they lead.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::{ControlPlane, create, pod, until};

fn balanced(name: &str, port: i32) -> Value {
    json!({"metadata": {"name": name}, "spec": {"type": "LoadBalancer", "ports": [{"port": port}]}})
}

async fn addresses(services: &Api<Service>, name: &str) -> Result<Vec<String>> {
    let balancer = services.get(name).await?.status.and_then(|s| s.load_balancer);
    let ingress = balancer.and_then(|b| b.ingress).unwrap_or_default();
    Ok(ingress.into_iter().filter_map(|i| i.ip).collect())
}

async fn is_addressed(services: &Api<Service>, name: &str) -> Result<()> {
    until(&format!("the address of {name}"), async || {
        Ok((addresses(services, name).await? == ["10.0.0.1"]).then_some(()))
    })
    .await
}

/// The slices of a Service: their addresses, and whether each is ready, in order.
async fn slices(plane: &ControlPlane, service: &str) -> Result<Vec<Vec<(String, bool)>>> {
    let of = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
    let slices = plane.api::<EndpointSlice>().list(&of).await?.items;
    let endpoints = |slice: EndpointSlice| {
        let one = |e: k8s_openapi::api::discovery::v1::Endpoint| {
            let ready = e.conditions.and_then(|c| c.ready) != Some(false);
            e.addresses.into_iter().map(move |a| (a, ready))
        };
        let mut all: Vec<_> = slice.endpoints.into_iter().flatten().flat_map(one).collect();
        all.sort();
        all
    };
    Ok(slices.into_iter().map(endpoints).collect())
}

async fn leads_to(plane: &ControlPlane, service: &str, wanted: &[(&str, bool)]) -> Result<()> {
    let wanted: Vec<(String, bool)> = wanted.iter().map(|(a, r)| ((*a).to_owned(), *r)).collect();
    until(&format!("{service} leads to {wanted:?}"), async || {
        let found = slices(plane, service).await?;
        ensure!(found == [wanted.clone()], "it leads to {found:?}");
        Ok(Some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_is_the_oldest_service_s_and_then_the_next_one_s() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let services = plane.api::<Service>();
    // Age counts in seconds, and names decide within one.
    create(&services, balanced("a", 80)).await?;
    is_addressed(&services, "a").await?;
    create(&services, balanced("b", 80)).await?;
    let refused = plane.event("b", "SyncLoadBalancerFailed").await?;
    let wanted = "Error syncing load balancer: failed to ensure load balancer: \
        port 80/TCP of the nodes is taken by Service default/a";
    ensure!(refused == wanted, "{refused}");
    ensure!(addresses(&services, "b").await?.is_empty());
    ensure!(addresses(&services, "a").await? == ["10.0.0.1"], "the first has lost its address");
    services.delete("a", &DeleteParams::default()).await?;
    is_addressed(&services, "b").await?;
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_service_gets_a_port_that_the_node_listens_on() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let services = plane.api::<Service>();
    let taken = [
        ("ssh", 22, "the node's own SSH"),
        ("api", 6443, "the API server"),
        ("kubelet", 10250, "the node's kubelet API"),
    ];
    for (name, port, holder) in taken {
        create(&services, balanced(name, port)).await?;
        let refused = plane.event(name, "SyncLoadBalancerFailed").await?;
        let wanted = format!("port {port}/TCP of the nodes is taken by {holder}");
        ensure!(refused.ends_with(&wanted), "{refused}");
        ensure!(addresses(&services, name).await?.is_empty(), "{name} has an address");
    }
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_leads_to_the_pods_it_selects_and_says_which_are_ready() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let (services, pods) = (plane.api::<Service>(), plane.api::<Pod>());
    create(
        &services,
        json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}),
    )
    .await?;
    for (name, app, ip) in [("a", "web", "10.1.0.1"), ("b", "web", "10.1.0.2"), ("c", "other", "10.1.0.3")] {
        let pod = create(&pods, pod(name, app, Value::Null)).await?;
        plane.node_of(name).await?;
        plane.report_pod(&pod, ip, true).await?;
    }
    leads_to(&plane, "web", &[("10.1.0.1", true), ("10.1.0.2", true)]).await?;
    plane.report_pod(&pods.get("b").await?, "10.1.0.2", false).await?;
    leads_to(&plane, "web", &[("10.1.0.1", true), ("10.1.0.2", false)]).await?;
    plane.end_pod("b").await?;
    leads_to(&plane, "web", &[("10.1.0.1", true)]).await?;
    services.delete("web", &DeleteParams::default()).await?;
    until("the end of its slice", async || Ok(slices(&plane, "web").await?.is_empty().then_some(()))).await?;
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_written_by_hand_are_mirrored_as_long_as_they_are_there() -> Result<()> {
    let plane = ControlPlane::start().await?;
    create(&plane.api::<Service>(), json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 5432}]}}))
        .await?;
    let endpoints = plane.api::<Endpoints>();
    let at = |ip: &str| json!({"metadata": {"name": "db"}, "subsets": [{"addresses": [{"ip": ip}], "ports": [{"port": 5432}]}]});
    create(&endpoints, at("192.0.2.7")).await?;
    leads_to(&plane, "db", &[("192.0.2.7", true)]).await?;
    endpoints.patch("db", &PatchParams::default(), &Patch::Merge(at("192.0.2.8"))).await?;
    leads_to(&plane, "db", &[("192.0.2.8", true)]).await?;
    endpoints.delete("db", &DeleteParams::default()).await?;
    until("the end of the mirror", async || Ok(slices(&plane, "db").await?.is_empty().then_some(()))).await?;
    plane.stop().await
}

/// Upstream stores such a condition with `null` for its time, and its conformance suite writes one.
#[tokio::test(flavor = "multi_thread")]
async fn a_condition_without_a_time_blinds_nobody_to_other_services() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let services = plane.api::<Service>();
    create(&services, balanced("odd", 80)).await?;
    is_addressed(&services, "odd").await?;
    let condition = json!({"type": "T", "status": "True", "reason": "R", "message": ""});
    let raw: Api<DynamicObject> =
        Api::namespaced_with(services.clone().into_client(), "default", &ApiResource::erase::<Service>(&()));
    let patch = Patch::Merge(json!({"status": {"conditions": [condition]}}));
    let odd = raw.patch_status("odd", &PatchParams::default(), &patch).await?.data;
    ensure!(odd["status"]["conditions"][0].get("lastTransitionTime") == Some(&Value::Null), "{odd}");

    create(&services, balanced("later", 81)).await?;
    is_addressed(&services, "later").await?;
    plane.stop().await
}
