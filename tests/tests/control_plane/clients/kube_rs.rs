//! A controller written with kube-rs, which is what the tree itself has: over TLS, under a service account with a Role. It holds
//! custom objects by a finalizer, owns what it makes of them, and cleans up what no owner reference can.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::runtime::controller::{Action, Error};
use kube::runtime::finalizer::{Event, finalizer};
use kube::runtime::{Controller, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Stage, file};
use crate::{is_ending, until};

const FINALIZER: &str = "shop.example.com/ledger";
const ACCOUNT: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: keeper, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: keeper, namespace: default}
rules:
- {apiGroups: [''], resources: [configmaps], verbs: [list, watch, create, patch, delete]}
- {apiGroups: [shop.example.com], resources: [orders], verbs: [list, watch, patch]}
- {apiGroups: [shop.example.com], resources: [orders/status], verbs: [patch]}
- {apiGroups: [shop.example.com], resources: [orders/finalizers], verbs: [update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: keeper, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: keeper}
subjects: [{kind: ServiceAccount, name: keeper, namespace: default}]
";

fn orders(client: &Client) -> (Api<DynamicObject>, ApiResource) {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("shop.example.com", "v1", "Order"));
    (Api::namespaced_with(client.clone(), "default", &resource), resource)
}

/// Of each order: a bill, which it owns, and a line in the ledger, which it does not.
async fn reconcile(order: Arc<DynamicObject>, client: Arc<Client>) -> Result<Action, Failure> {
    let (orders, resource) = orders(&client);
    let maps: Api<ConfigMap> = Api::namespaced((*client).clone(), "default");
    finalizer(&orders, FINALIZER, order, async |event| {
        let apply = PatchParams::apply("keeper").force();
        match event {
            Event::Apply(order) => {
                let name = order.name_any();
                let owner = json!({"apiVersion": resource.api_version, "kind": resource.kind, "name": name,
                    "uid": order.uid(), "controller": true, "blockOwnerDeletion": true});
                let size = &order.data["spec"]["size"];
                for (map, owners) in [(format!("bill-{name}"), json!([owner])), (format!("ledger-{name}"), json!([]))] {
                    let object = json!({"apiVersion": "v1", "kind": "ConfigMap",
                        "metadata": {"name": map, "ownerReferences": owners}, "data": {"size": size.to_string()}});
                    maps.patch(&map, &apply, &Patch::Apply(object)).await?;
                }
                let status = json!({"apiVersion": resource.api_version, "kind": resource.kind, "status": {"size": size}});
                orders.patch_status(&name, &apply, &Patch::Apply(status)).await?;
            }
            Event::Cleanup(order) => {
                let ledger = format!("ledger-{}", order.name_any());
                match maps.delete(&ledger, &DeleteParams::default()).await {
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    deleted => drop(deleted?),
                }
            }
        }
        Ok(Action::await_change())
    })
    .await
}

type Failure = kube::runtime::finalizer::Error<kube::Error>;

/// What is deleted has owners that are gone, and who looks at one twice finds it gone the second time.
fn is_late(error: &Error<Failure, watcher::Error>) -> bool {
    match error {
        Error::ObjectNotFound(_) => true,
        Error::ReconcilerFailed(Failure::RemoveFinalizer(kube::Error::Api(status)), _) => status.code == 404,
        _ => false,
    }
}

/// Runs until it is told to stop; answers how often it had to try again.
async fn run(client: Client, stop: CancellationToken) -> usize {
    let (orders, resource) = orders(&client);
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let config = || watcher::Config::default().streaming_lists();
    let mut outcomes = Controller::new_with(orders, config(), resource)
        .owns(maps, config())
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile, |_, _, _| Action::requeue(Duration::from_millis(100)), Arc::new(client))
        .boxed();
    let mut n_failures = 0;
    while let Some(outcome) = outcomes.next().await {
        if let Err(error) = outcome.map(drop)
            && !is_late(&error)
        {
            eprintln!("the controller: {error}");
            n_failures += 1;
        }
    }
    n_failures
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kube_rs_controller_holds_custom_objects_by_a_finalizer_and_owns_what_it_makes() -> Result<()> {
    let stage = Stage::set().await?;
    let crds = file("chart/crds");
    stage.kubectl(&["create", "-f", &crds]).succeeds().await?;
    stage.kubectl(&["wait", "--for=condition=Established", "-f", &crds]).succeeds().await?;
    stage.kubectl(&["create", "-f", "-"]).input(ACCOUNT).succeeds().await?;
    let token = stage.kubectl(&["create", "token", "keeper"]).succeeds().await?;
    let kubeconfig = stage.access.kubeconfig_of_token("keeper", token.trim())?;
    let client = skiff_hollow::api::connect(&kubeconfig).await?;
    let stop = CancellationToken::new();
    let controller = tokio::spawn(run(client.clone(), stop.clone()));

    let (all, _) = orders(stage.plane.client());
    let maps = stage.plane.api::<ConfigMap>();
    let order = |size: i64| {
        json!({"apiVersion": "shop.example.com/v1", "kind": "Order",
        "metadata": {"name": "o"}, "spec": {"size": size}})
    };
    let apply = async |size| all.patch("o", &PatchParams::apply("buyer"), &Patch::Apply(order(size))).await;
    let is_done = async |size: i64| {
        until(&format!("an order of {size} and its bill"), async || {
            let (order, bill) = (all.get("o").await?, maps.get("bill-o").await?);
            let billed = bill.data.and_then(|data| data.get("size").cloned());
            let is_done = order.data["status"]["size"] == size && billed == Some(size.to_string());
            Ok(is_done.then_some(order))
        })
        .await
    };
    apply(3).await?;
    let made = is_done(3).await?;
    ensure!(made.finalizers() == [FINALIZER], "{made:?}");
    apply(4).await?;
    is_done(4).await?;
    // What it owns comes back.
    let before = maps.get("bill-o").await?.uid();
    maps.delete("bill-o", &DeleteParams::default()).await?;
    until("another bill", async || Ok(maps.get_opt("bill-o").await?.filter(|bill| bill.uid() != before)))
        .await?;

    // While nobody cleans up, the object stays, whatever is deleted.
    stop.cancel();
    ensure!(controller.await? == 0, "it had to try again");
    stage.kubectl(&["delete", "order", "o", "--wait=false"]).succeeds().await?;
    let held = all.get("o").await?;
    ensure!(is_ending(&held) && held.finalizers() == [FINALIZER], "{held:?}");
    ensure!(maps.get_opt("ledger-o").await?.is_some());
    let stop = CancellationToken::new();
    let controller = tokio::spawn(run(client, stop.clone()));
    until("the end of all of it", async || {
        let left = (all.get_opt("o").await?, maps.get_opt("bill-o").await?, maps.get_opt("ledger-o").await?);
        Ok(matches!(left, (None, None, None)).then_some(()))
    })
    .await?;
    stop.cancel();
    ensure!(controller.await.context("the controller")? == 0, "it had to try again");
    stage.clear().await
}
