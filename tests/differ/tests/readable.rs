//! What upstream's API server stores, however odd, is read by the types that Skiff's components watch with: a watch that
//! meets one object which it cannot read delivers nothing of any other.

use std::path::Path;

use k8s_openapi::api::{apps, batch, certificates, coordination, core, discovery, node, policy};
use serde::de::DeserializeOwned;
use serde_json::Value;
use skiff_client::Read;
use skiff_differ::record;

type Reading = fn(&str) -> Result<(), serde_json::Error>;

fn reads<K: DeserializeOwned>(text: &str) -> Result<(), serde_json::Error> {
    serde_json::from_str::<Read<K>>(text).map(drop)
}

/// By `apiVersion` and `kind`: what `Informers::of` and nodelet ask for.
fn readers() -> Vec<(&'static str, &'static str, Reading)> {
    vec![
        ("v1", "ConfigMap", reads::<core::v1::ConfigMap> as Reading),
        ("v1", "Endpoints", reads::<core::v1::Endpoints>),
        ("v1", "LimitRange", reads::<core::v1::LimitRange>),
        ("v1", "Namespace", reads::<core::v1::Namespace>),
        ("v1", "Node", reads::<core::v1::Node>),
        ("v1", "PersistentVolumeClaim", reads::<core::v1::PersistentVolumeClaim>),
        ("v1", "Pod", reads::<core::v1::Pod>),
        ("v1", "ReplicationController", reads::<core::v1::ReplicationController>),
        ("v1", "ResourceQuota", reads::<core::v1::ResourceQuota>),
        ("v1", "Secret", reads::<core::v1::Secret>),
        ("v1", "Service", reads::<core::v1::Service>),
        ("v1", "ServiceAccount", reads::<core::v1::ServiceAccount>),
        ("apps/v1", "ControllerRevision", reads::<apps::v1::ControllerRevision>),
        ("apps/v1", "DaemonSet", reads::<apps::v1::DaemonSet>),
        ("apps/v1", "Deployment", reads::<apps::v1::Deployment>),
        ("apps/v1", "ReplicaSet", reads::<apps::v1::ReplicaSet>),
        ("apps/v1", "StatefulSet", reads::<apps::v1::StatefulSet>),
        ("batch/v1", "CronJob", reads::<batch::v1::CronJob>),
        ("batch/v1", "Job", reads::<batch::v1::Job>),
        (
            "certificates.k8s.io/v1",
            "CertificateSigningRequest",
            reads::<certificates::v1::CertificateSigningRequest>,
        ),
        ("coordination.k8s.io/v1", "Lease", reads::<coordination::v1::Lease>),
        ("discovery.k8s.io/v1", "EndpointSlice", reads::<discovery::v1::EndpointSlice>),
        ("node.k8s.io/v1", "RuntimeClass", reads::<node::v1::RuntimeClass>),
        ("policy/v1", "PodDisruptionBudget", reads::<policy::v1::PodDisruptionBudget>),
    ]
}

/// The recording has `now` for times that two servers choose differently.
fn with_times(mut object: Value) -> String {
    let mut rest = vec![&mut object];
    while let Some(value) = rest.pop() {
        match value {
            Value::String(text) if text == "now" => *text = "2026-01-01T00:00:00Z".into(),
            Value::Array(list) => rest.extend(list),
            Value::Object(map) => rest.extend(map.values_mut()),
            _ => {}
        }
    }
    object.to_string()
}

#[test]
fn what_upstream_stores_no_watch_of_ours_fails_on() {
    let recorded =
        record::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("recorded/answers.jsonl.gz")).unwrap();
    let readers = readers();
    let mut n_read = vec![0_usize; readers.len()];
    let mut failed = Vec::new();
    for one in recorded.into_iter().filter(|one| one.answer.is_accepted()) {
        let object = one.answer.object;
        let is_of = |(version, kind, _): &(&str, &str, Reading)| {
            object["apiVersion"] == *version && object["kind"] == *kind
        };
        let Some(at) = readers.iter().position(is_of) else { continue };
        n_read[at] += 1;
        if let Err(error) = readers[at].2(&with_times(object)) {
            failed.push(format!("{}: {error}", one.case.text()));
        }
    }
    let missing: Vec<_> = readers.iter().zip(&n_read).filter(|(_, n)| **n == 0).map(|(r, _)| r.1).collect();
    assert!(missing.is_empty(), "nothing recorded of {missing:?}");
    assert!(failed.is_empty(), "{} cannot be read:\n{}", failed.len(), failed.join("\n"));
}
