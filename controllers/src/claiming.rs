//! Whose an object is: an owner takes what it selects and nobody controls, and lets go of what it selects no more.
//!
//! Source: upstream's controller ref managers.

use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource};
use serde_json::json;

use crate::driver::is_not_found;
use crate::lookup::Watched;
use crate::objects::{controller_of, controller_reference, uid};

/// What lies in a namespace, and may have an owner there.
pub(crate) trait Namespaced: Watched + Resource<Scope = NamespaceResourceScope> {}

impl<K: Watched + Resource<Scope = NamespaceResourceScope>> Namespaced for K {}

/// Which of `candidates` are the owner's: what it controls and selects, and what it adopts of what nobody controls.
pub(crate) async fn claim<K: Namespaced, T: Namespaced>(
    client: &Client,
    owner: &K,
    candidates: impl IntoIterator<Item = Arc<T>>,
    selects: impl Fn(&T) -> bool,
    adopts: impl Fn(&T) -> bool,
) -> Result<Vec<Arc<T>>, kube::Error> {
    let namespace = owner.meta().namespace.as_deref().unwrap_or_default();
    let api: Api<T> = Api::namespaced(client.clone(), namespace);
    let is_going = owner.meta().deletion_timestamp.is_some();
    let (mut owned, mut stays) = (Vec::new(), None);
    for object in candidates {
        let name = object.meta().name.as_deref().unwrap_or_default();
        let mut is_adopted = false;
        let reference = match controller_of(object.meta()) {
            Some(reference) if reference.uid != uid(owner.meta()) => continue,
            Some(_) if selects(&object) => {
                owned.push(object);
                continue;
            }
            Some(reference) if !is_going => json!({"$patch": "delete", "uid": reference.uid}),
            None if !is_going && selects(&object) && adopts(&object) => {
                let stays = match stays {
                    Some(stays) => stays,
                    None => *stays.insert(is_there_to_stay(client, owner).await?),
                };
                if !stays {
                    continue;
                }
                is_adopted = true;
                json!(controller_reference(owner))
            }
            _ => continue,
        };
        let patch = json!({"metadata": {"uid": object.meta().uid, "ownerReferences": [reference]}});
        match api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(_) if is_adopted => owned.push(object),
            Err(error) if !is_not_found(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(owned)
}

/// The informer may not know yet that an owner goes: it would take back what the garbage collector has just made it let
/// go of.
async fn is_there_to_stay<K: Namespaced>(client: &Client, owner: &K) -> Result<bool, kube::Error> {
    let namespace = owner.meta().namespace.as_deref().unwrap_or_default();
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let live = api.get_opt(owner.meta().name.as_deref().unwrap_or_default()).await?;
    Ok(live.is_some_and(|o| uid(o.meta()) == uid(owner.meta()) && o.meta().deletion_timestamp.is_none()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use serde_json::Value;
    use skiff_client::view::Pod;

    use super::*;
    use crate::testing::ScriptedApi;

    fn owner(uid: &str, is_going: bool) -> ReplicaSet {
        let deleted = is_going.then_some("2026-01-01T00:00:00Z");
        serde_json::from_value(
            json!({"metadata": {"name": "web", "namespace": "d", "uid": uid, "deletionTimestamp": deleted},
            "spec": {"selector": {"matchLabels": {"a": "1"}}}}),
        )
        .unwrap()
    }

    fn pod(name: &str, label: &str, controller: Option<&str>) -> Arc<Pod> {
        let owners: Vec<Value> = controller
            .map(|uid| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": uid, "controller": true}))
            .into_iter()
            .collect();
        let meta = json!({"name": name, "namespace": "d", "uid": name, "labels": {"a": label}, "ownerReferences": owners});
        Arc::new(serde_json::from_value(json!({"metadata": meta, "spec": {"containers": []}})).unwrap())
    }

    /// What is the owner's, and what was patched how.
    async fn claimed(
        owner: &ReplicaSet,
        live: Option<ReplicaSet>,
        pods: &[Arc<Pod>],
    ) -> (Vec<String>, Vec<(String, Value)>) {
        let api = ScriptedApi::new(move |asked| match asked.path.ends_with("/web") {
            true => live.as_ref().map(|set| serde_json::to_value(set).unwrap()),
            false => Some(json!({"metadata": {}})),
        });
        let selects = |pod: &Pod| pod.metadata.labels.as_ref().unwrap()["a"] == "1";
        let adopts = |pod: &Pod| pod.metadata.name.as_deref() != Some("unwanted");
        let owned = claim(&api.client(), owner, pods.to_vec(), selects, adopts).await.unwrap();
        let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        let patched = api.written().into_iter();
        let patched =
            patched.map(|a| (name(&a.path), a.body["metadata"]["ownerReferences"][0].clone())).collect();
        (owned.iter().map(|pod| pod.metadata.name.clone().unwrap()).collect(), patched)
    }

    #[tokio::test]
    async fn an_owner_takes_what_it_selects_and_lets_go_of_what_it_selects_no_more() {
        let owner = owner("u", false);
        let pods = [
            pod("own", "1", Some("u")),
            pod("changed", "2", Some("u")),
            pod("others", "1", Some("v")),
            pod("orphan", "1", None),
            pod("unwanted", "1", None),
            pod("stranger", "2", None),
        ];
        let (owned, patched) = claimed(&owner, Some(owner.clone()), &pods).await;
        assert_eq!(owned, ["own", "orphan"]);
        let released = ("changed".to_owned(), json!({"$patch": "delete", "uid": "u"}));
        let adopted = ("orphan".to_owned(), json!(controller_reference(&owner)));
        assert_eq!(patched, [released, adopted]);
    }

    #[tokio::test]
    async fn an_owner_on_its_way_out_takes_nothing_and_lets_go_of_nothing() {
        let owner = owner("u", true);
        let pods = [pod("own", "1", Some("u")), pod("changed", "2", Some("u")), pod("orphan", "1", None)];
        assert_eq!(claimed(&owner, Some(owner.clone()), &pods).await, (vec!["own".to_owned()], vec![]));
    }

    #[tokio::test]
    async fn an_owner_that_has_gone_meanwhile_takes_nothing() {
        let pods = [pod("orphan", "1", None)];
        for live in [None, Some(owner("another", false)), Some(owner("u", true))] {
            assert_eq!(claimed(&owner("u", false), live, &pods).await, (vec![], vec![]));
        }
    }
}
