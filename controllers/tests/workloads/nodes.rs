//! Ranges of pod addresses of nodes that come and go.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Event, Node};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;
use skiff_controllers::{Joining, JoiningOptions, Reached};

use crate::{Plane, until};

/// A cluster that nodes can join, with so many addresses for their pods.
fn joining(cluster_cidr: &str) -> Joining {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).expect("a certificate").pem();
    let server = "https://192.0.2.1:6443".to_owned();
    let (_, reached) = tokio::sync::watch::channel(Reached { server, ips: Vec::new() });
    let options = JoiningOptions {
        reached,
        ca_pem: &certificate,
        ca_key_pem: &key.serialize_pem(),
        reserved_names: Vec::new(),
        cluster_cidr,
        node_prefix: 24,
        service_cidr: None,
    };
    Joining::new(options).expect("good options")
}

async fn add(plane: &Plane, name: &str, range: Option<&str>) {
    let spec = range.map_or_else(|| json!({}), |range| json!({"podCIDR": range, "podCIDRs": [range]}));
    let node = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).expect("a node");
    Api::<Node>::all(plane.client.clone())
        .create(&PostParams::default(), &node)
        .await
        .expect("it is created");
}

/// The ranges of all nodes, by name, of those that have one.
async fn ranges(plane: &Plane) -> Vec<(String, String)> {
    let nodes = Api::<Node>::all(plane.client.clone()).list(&ListParams::default()).await.expect("nodes");
    let range = |node: Node| Some((node.metadata.name?, node.spec?.pod_cidr?));
    nodes.items.into_iter().filter_map(range).collect()
}

async fn have_ranges(plane: &Plane, count: usize) -> BTreeSet<String> {
    let found = until(&format!("{count} ranges"), || async {
        Some(ranges(plane).await).filter(|ranges| ranges.len() == count)
    })
    .await;
    let distinct: BTreeSet<String> = found.iter().map(|(_, range)| range.clone()).collect();
    assert_eq!(distinct.len(), count, "a range is given twice: {found:?}");
    distinct
}

/// The message of an event about a node.
async fn told(plane: &Plane, node: &str, reason: &str) -> String {
    let events: Api<Event> = plane.api();
    until(&format!("{reason} of {node}"), || async {
        let events = events.list(&ListParams::default()).await.ok()?.items;
        let is_wanted = |event: &Event| {
            event.reason.as_deref() == Some(reason) && event.involved_object.name.as_deref() == Some(node)
        };
        events.into_iter().find(is_wanted)?.message
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_for_which_there_is_no_range_are_told_and_get_one_that_is_freed() {
    let plane = Plane::start_with(Some(joining("10.244.0.0/22"))).await;
    for n in 0..4 {
        add(&plane, &format!("n{n}"), None).await;
    }
    let all = have_ranges(&plane, 4).await;
    for name in ["late", "later"] {
        add(&plane, name, None).await;
        let message = told(&plane, name, "CIDRNotAvailable").await;
        assert_eq!(message, format!("Node {name} status is now: CIDRNotAvailable"));
    }
    let nodes = Api::<Node>::all(plane.client.clone());
    for (gone, served) in [("n1", "late"), ("n2", "later")] {
        nodes.delete(gone, &DeleteParams::default()).await.expect("it is deleted");
        until(&format!("a range of {served}"), || async {
            ranges(&plane).await.iter().any(|(name, _)| name == served).then_some(())
        })
        .await;
        assert_eq!(have_ranges(&plane, 4).await, all, "the range that was freed is given again");
    }
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_brings_anothers_range_is_told_so_and_a_third_gets_another() {
    let plane = Plane::start_with(Some(joining("10.244.0.0/23"))).await;
    add(&plane, "first", None).await;
    let first = have_ranges(&plane, 1).await;
    let range = first.first().expect("a range").clone();
    add(&plane, "second", Some(&range)).await;
    let message = told(&plane, "second", "CIDRAssignmentFailed").await;
    assert!(message.contains(&range) && message.contains("node first's already"), "{message}");
    add(&plane, "third", None).await;
    let third = until("the range of the third", || async {
        ranges(&plane).await.into_iter().find(|(name, _)| name == "third").map(|(_, range)| range)
    })
    .await;
    assert_ne!(third, range);
    plane.stop().await;
}
