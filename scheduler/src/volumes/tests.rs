use serde_json::{Value, json};

use super::*;
use crate::framework::decide;
use crate::framework::tests::{Held, cluster, info, node, plain, pod, put};

fn claim(name: &str, change: impl FnOnce(&mut Value)) -> Arc<PersistentVolumeClaim> {
    let mut claim = json!({
        "metadata": {"name": name, "namespace": "d", "uid": name, "annotations": {}},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "later",
            "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Pending"},
    });
    change(&mut claim);
    Arc::new(serde_json::from_value(claim).unwrap())
}

fn bound(claim: &mut Value, volume: &str) {
    claim["spec"]["volumeName"] = volume.into();
    claim["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] = "yes".into();
    claim["status"]["phase"] = "Bound".into();
}

/// A volume of a node.
fn volume(name: &str, node: &str, change: impl FnOnce(&mut Value)) -> Arc<PersistentVolume> {
    let here = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [node]});
    let mut volume = json!({
        "metadata": {"name": name, "labels": {}},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "later", "capacity": {"storage": "1Gi"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}}},
        "status": {"phase": "Available"},
    });
    change(&mut volume);
    Arc::new(serde_json::from_value(volume).unwrap())
}

fn class(name: &str, provisioner: &str, change: impl FnOnce(&mut Value)) -> Arc<StorageClass> {
    let mut class = json!({"metadata": {"name": name}, "provisioner": provisioner,
        "volumeBindingMode": "WaitForFirstConsumer"});
    change(&mut class);
    Arc::new(serde_json::from_value(class).unwrap())
}

fn using(claims: &[&str]) -> PodInfo {
    let volumes: Vec<Value> = claims
        .iter()
        .map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}}))
        .collect();
    info(&pod(json!({"volumes": volumes})))
}

struct Fixture(Cluster);

impl Fixture {
    fn new(nodes: &[Held]) -> Fixture {
        let mut cluster = cluster(nodes);
        cluster.storage.set_class("later", Some(&class("later", NO_PROVISIONER, |_| {})));
        cluster.storage.set_class("made", Some(&class("made", "example.com/p", |_| {})));
        Fixture(cluster)
    }

    fn claim(&mut self, claim: &Arc<PersistentVolumeClaim>) -> &mut Fixture {
        self.0.storage.set_claim(&key_of(&**claim), Some(claim));
        self
    }

    fn volume(&mut self, volume: &Arc<PersistentVolume>) -> &mut Fixture {
        let name = volume.metadata.name.clone().unwrap();
        self.0.storage.set_volume(&name, Some(volume));
        self
    }

    /// `NODE: claim=volume claim+` for what is bound and what is made, or why there is none.
    fn decided(&self, pod: &PodInfo) -> String {
        match decide(pod, &self.0, None, |_| 0) {
            Err(why) => why.message,
            Ok(decision) => {
                let name = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
                    meta.name.clone().unwrap_or_default()
                };
                let bound = decision.bindings.to_bind.iter();
                let bound = bound.map(|(c, v)| format!(" {}={}", name(&c.metadata), name(&v.metadata)));
                let made = decision.bindings.to_make.iter().map(|c| format!(" {}+", name(&c.metadata)));
                format!("{}:{}", decision.node.name(), bound.chain(made).collect::<String>())
            }
        }
    }

    #[track_caller]
    fn check(&self, claims: &[&str], wanted: &str) {
        let said = self.decided(&using(claims));
        if said.starts_with("0/") {
            assert!(said.contains(wanted), "{said} lacks {wanted}");
        } else {
            assert_eq!(said, wanted);
        }
    }

    /// The pod counts on the node that is decided on.
    fn assume(&mut self, name: &str, pod: &PodInfo) {
        let decision = decide(pod, &self.0, None, |_| 0).unwrap();
        let (id, bindings) = (decision.node.id, decision.bindings);
        self.0.assume(&ObjectKey::new("d", name), pod, id, bindings);
    }
}

#[test]
fn a_pod_goes_where_the_volumes_are_that_its_claims_have_or_may_get() {
    let mut f = Fixture::new(&[plain("a"), plain("b")]);
    f.claim(&claim("has", |c| bound(c, "v")))
        .volume(&volume("v", "b", |v| v["status"]["phase"] = "Bound".into()));
    f.check(&["has"], "b:");
    f.claim(&claim("wants", |_| {})).volume(&volume("free", "a", |_| {}));
    f.check(&["wants"], "a: wants=free");
    f.check(&["has", "wants"], "1 node(s) didn't match PersistentVolume's node affinity");
    f.check(&["has", "wants"], "1 node(s) didn't find available persistent volumes to bind");
    f.volume(&volume("free-too", "b", |_| {}));
    f.check(&["has", "wants"], "b: wants=free-too");
}

#[test]
fn a_claim_without_a_volume_has_one_made_where_its_class_allows_it() {
    let mut f = Fixture::new(&[plain("a"), plain("b")]);
    f.claim(&claim("c", |c| c["spec"]["storageClassName"] = "made".into()));
    f.check(&["c"], "a: c+");
    let only_b = class("made", "example.com/p", |c| {
        c["allowedTopologies"] =
            json!([{"matchLabelExpressions": [{"key": "kubernetes.io/hostname", "values": ["b"]}]}]);
    });
    f.0.storage.set_class("made", Some(&only_b));
    f.check(&["c"], "b: c+");
    let chosen = claim("c", |c| {
        c["spec"]["storageClassName"] = "made".into();
        c["metadata"]["annotations"][SELECTED_NODE] = "a".into();
    });
    f.claim(&chosen);
    f.check(&["c"], "2 node(s) didn't find available persistent volumes to bind");
}

#[test]
fn what_no_node_can_help_is_said_of_the_pod() {
    let mut f = Fixture::new(&[plain("a")]);
    let tail = "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    f.check(&["c"], &format!("0/1 nodes are available: persistentvolumeclaim \"c\" not found. {tail}"));
    f.claim(&claim("c", |c| c["spec"]["storageClassName"] = "none".into()));
    f.check(&["c"], "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. ");
    f.claim(&claim("c", |c| c["spec"]["volumeName"] = "v".into()));
    f.check(&["c"], "pod has unbound immediate PersistentVolumeClaims");
    f.claim(&claim("c", |c| c["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into()));
    f.check(&["c"], "persistentvolumeclaim \"c\" is being deleted");
    f.claim(&claim("c", |c| bound(c, "v")));
    f.check(&["c"], "persistentvolume \"v\" not found");
    f.claim(&claim("c", |c| {
        bound(c, "v");
        c["status"]["phase"] = "Lost".into();
    }));
    f.check(&["c"], "persistentvolumeclaim \"c\" bound to non-existent persistentvolume \"v\"");
    let own = info(&pod(json!({"volumes": [{"name": "data", "ephemeral": {}}]})));
    let said = f.decided(&own);
    assert!(
        said.contains(
            "waiting for ephemeral volume controller to create the persistentvolumeclaim \"p-data\""
        ),
        "{said}"
    );
}

#[test]
fn what_was_decided_for_one_pod_is_not_given_to_another_until_it_fails() {
    let mut f = Fixture::new(&[plain("a")]);
    f.claim(&claim("first", |_| {})).claim(&claim("second", |_| {})).volume(&volume("v", "a", |_| {}));
    f.assume("x", &using(&["first"]));
    f.check(&["second"], "1 node(s) didn't find available persistent volumes to bind");
    f.check(&["first"], "a: first=v");
    f.0.forget(&ObjectKey::new("d", "x"), "").expect("it was assumed");
    f.check(&["second"], "a: second=v");
}

#[test]
fn pods_that_share_a_claim_follow_the_first() {
    let mut f = Fixture::new(&[node("a", |n| n["status"]["allocatable"]["pods"] = "1".into()), plain("b")]);
    f.claim(&claim("c", |c| c["spec"]["storageClassName"] = "made".into()));
    f.assume("x", &using(&["c"]));
    f.check(&["c"], "1 Too many pods, 1 node(s) didn't find available persistent volumes to bind");
}

#[test]
fn a_claim_of_one_pod_is_refused_to_a_second_wherever_the_first_is() {
    let mut a = plain("a");
    put(&mut a, pod(json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]})));
    let mut f = Fixture::new(&[a, plain("b")]);
    let once = claim("c", |c| {
        c["spec"]["accessModes"] = json!(["ReadWriteOncePod"]);
        bound(c, "v");
    });
    f.claim(&once).volume(&volume("v", "b", |_| {}));
    f.check(&["c"], "ReadWriteOncePod access mode already in-use by another pod");
    f.0.remove(&ObjectKey::new("d", "0-0"));
    f.check(&["c"], "b:");
}

#[test]
fn a_more_important_pod_may_take_a_claim_of_one_pod_over() {
    let spec = json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]});
    let mut a = plain("a");
    put(&mut a, pod(spec.clone()));
    let mut f = Fixture::new(&[a]);
    f.claim(&claim("c", |c| {
        c["spec"]["accessModes"] = json!(["ReadWriteOncePod"]);
        bound(c, "v");
    }));
    f.volume(&volume("v", "a", |_| {}));
    let mut important = spec;
    important["priority"] = 10.into();
    let pod = info(&pod(important));
    let why = decide(&pod, &f.0, None, |_| 0).unwrap_err();
    assert!(matches!(why.nomination, crate::framework::Nomination::Node(_)), "{why:?}");
}

#[test]
fn a_volume_of_a_zone_is_for_nodes_of_that_zone() {
    let zoned = |name: &str, zone: &str| {
        let zone = zone.to_owned();
        node(name, move |n| n["metadata"]["labels"]["topology.kubernetes.io/zone"] = zone.into())
    };
    let mut f = Fixture::new(&[zoned("a", "east"), zoned("b", "west")]);
    let everywhere = volume("v", "a", |v| {
        v["spec"].as_object_mut().unwrap().remove("nodeAffinity");
        v["metadata"]["labels"]["failure-domain.beta.kubernetes.io/zone"] = "north__west".into();
    });
    f.claim(&claim("c", |c| bound(c, "v"))).volume(&everywhere);
    f.check(&["c"], "b:");
    let nowhere = volume("v", "a", |v| {
        v["spec"].as_object_mut().unwrap().remove("nodeAffinity");
        v["metadata"]["labels"]["topology.kubernetes.io/zone"] = "north".into();
    });
    f.volume(&nowhere);
    f.check(&["c"], "2 node(s) had no available volume zone");
}
