use serde_json::{Value, json};

use super::*;

fn claim(change: impl FnOnce(&mut Value)) -> PersistentVolumeClaim {
    let mut claim = json!({
        "metadata": {"name": "c", "namespace": "d", "uid": "u",
            "annotations": {PROVISIONER: PROVISIONER_NAME, SELECTED_NODE: "n1"}},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "local",
            "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Pending"},
    });
    change(&mut claim);
    serde_json::from_value(claim).unwrap()
}

fn class(change: impl FnOnce(&mut Value)) -> StorageClass {
    let mut class = json!({"metadata": {"name": "local"}, "provisioner": PROVISIONER_NAME,
        "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": true, "reclaimPolicy": "Delete"});
    change(&mut class);
    serde_json::from_value(class).unwrap()
}

fn made() -> Made {
    Made { path: "/v".into(), capacity_bytes: 1 << 30, limit: "None".into() }
}

fn node(name: &str, change: impl FnOnce(&mut Value)) -> Arc<Node> {
    let mut node = json!({"metadata": {"name": name, "labels": {HOSTNAME: format!("{name}.example")}},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    change(&mut node);
    Arc::new(serde_json::from_value(node).unwrap())
}

fn bound(change: impl FnOnce(&mut Value)) -> PersistentVolume {
    let volume = volume(&claim(|_| {}), &class(|_| {}), &node("n1", |_| {}), &made(), Quantity("1Gi".into()));
    let mut volume = serde_json::to_value(volume).unwrap();
    volume["status"] = json!({"phase": "Bound"});
    change(&mut volume);
    serde_json::from_value(volume).unwrap()
}

#[test]
fn a_claim_is_served_once_it_is_marked_and_its_node_is_chosen() {
    let step = |claim: PersistentVolumeClaim| claim_step(&claim, Some(&class(|_| {})), None);
    let make = ClaimStep::Make { node: "n1".into(), class: Box::new(class(|_| {})) };
    assert_eq!(step(claim(|_| {})), make);
    let without =
        |mark: &str| claim(|c| _ = c["metadata"]["annotations"].as_object_mut().unwrap().remove(mark));
    assert_eq!(step(without(SELECTED_NODE)), ClaimStep::Nothing, "the scheduler has not chosen");
    assert_eq!(step(without(PROVISIONER)), ClaimStep::Nothing, "it may get a volume that is there");
    let immediate = class(|c| c["volumeBindingMode"] = "Immediate".into());
    assert_eq!(claim_step(&without(SELECTED_NODE), Some(&immediate), None), ClaimStep::ChooseNode);
    assert_eq!(
        step(claim(|c| c["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into())),
        ClaimStep::Nothing
    );
    let other = class(|c| c["provisioner"] = "example.com/other".into());
    assert_eq!(claim_step(&claim(|_| {}), Some(&other), None), ClaimStep::Nothing);
    assert_eq!(claim_step(&claim(|_| {}), None, None), ClaimStep::Nothing);
}

type Change = fn(&mut Value);

#[test]
fn what_no_directory_can_be_is_refused_by_its_name() {
    let refused =
        |claim: &PersistentVolumeClaim, class: &StorageClass| match claim_step(claim, Some(class), None) {
            ClaimStep::Refuse(why) => why,
            other => panic!("{other:?}"),
        };
    let asking: [(Change, &str); 5] = [
        (|c| c["spec"]["volumeMode"] = "Block".into(), "Block"),
        (|c| c["spec"]["accessModes"] = json!(["ReadWriteMany"]), "ReadWriteMany"),
        (|c| c["spec"]["accessModes"] = json!(["ReadWriteOnce", "ReadOnlyMany"]), "ReadOnlyMany"),
        (|c| c["spec"]["selector"] = json!({"matchLabels": {"a": "b"}}), "Selector"),
        (|c| c["spec"]["dataSource"] = json!({"kind": "PersistentVolumeClaim", "name": "o"}), "dataSource"),
    ];
    for (change, word) in asking {
        let why = refused(&claim(change), &class(|_| {}));
        assert!(why.contains(word), "{why}");
    }
    assert!(refused(&claim(|_| {}), &class(|c| c["parameters"] = json!({"fs": "xfs"}))).contains("fs"));
    assert!(refused(&claim(|_| {}), &class(|c| c["mountOptions"] = json!(["ro"]))).contains("mountOptions"));
    let once = claim(|c| c["spec"]["accessModes"] = json!(["ReadWriteOncePod"]));
    assert!(matches!(claim_step(&once, Some(&class(|_| {})), None), ClaimStep::Make { .. }));
}

#[test]
fn a_volume_says_whose_it_is_where_it_is_and_who_removes_it() {
    let volume = bound(|_| {});
    let shown = serde_json::to_value(&volume).unwrap();
    assert_eq!(volume.metadata.name.as_deref(), Some("pvc-u"));
    assert_eq!(shown["spec"]["claimRef"]["uid"], "u");
    assert_eq!(shown["spec"]["local"]["path"], "/v");
    assert_eq!(shown["spec"]["capacity"]["storage"], "1Gi");
    let term = &shown["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0];
    assert_eq!(*term, json!({"key": HOSTNAME, "operator": "In", "values": ["n1.example"]}));
    assert_eq!(annotation(&volume.metadata, PROVISIONED_BY), Some(PROVISIONER_NAME));
    assert!(is_ours(&volume) && has_finalizer(&volume.metadata, FINALIZER));
}

#[test]
fn a_claim_that_asks_for_more_has_its_volume_made_larger_if_its_class_allows_it() {
    let more = || {
        claim(|c| {
            c["spec"]["volumeName"] = "pvc-u".into();
            c["spec"]["resources"]["requests"]["storage"] = "2Gi".into();
            c["status"] = json!({"phase": "Bound", "capacity": {"storage": "1Gi"}});
        })
    };
    let volume = bound(|_| {});
    let step =
        |class: &StorageClass, volume: &PersistentVolume| claim_step(&more(), Some(class), Some(volume));
    assert_eq!(step(&class(|_| {}), &volume), ClaimStep::Expand(Box::new(volume.clone())));
    let fixed = class(|c| c["allowVolumeExpansion"] = false.into());
    assert!(matches!(step(&fixed, &volume), ClaimStep::RefuseExpansion(_)));
    let foreign = bound(|v| v["metadata"]["annotations"][PROVISIONED_BY] = "example.com/other".into());
    assert_eq!(step(&class(|_| {}), &foreign), ClaimStep::Nothing);
}

#[test]
fn a_directory_goes_when_its_volume_was_released_and_is_to_be_deleted() {
    let check = |wanted: VolumeStep, change: fn(&mut Value)| assert_eq!(volume_step(&bound(change)), wanted);
    let going: fn(&mut Value) = |v| v["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    assert_eq!(volume_step(&bound(going)), VolumeStep::Watch, "it is in use");
    check(VolumeStep::Watch, |_| {});
    check(VolumeStep::Remove, |v| v["status"]["phase"] = "Released".into());
    check(VolumeStep::Nothing, |v| v["status"]["phase"] = "Available".into());
    check(VolumeStep::Nothing, |v| {
        v["status"]["phase"] = "Released".into();
        v["spec"]["persistentVolumeReclaimPolicy"] = "Retain".into();
    });
    check(VolumeStep::LetGo, |v| {
        v["status"]["phase"] = "Released".into();
        v["spec"]["persistentVolumeReclaimPolicy"] = "Retain".into();
        v["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    });
    check(VolumeStep::Remove, |v| {
        v["status"]["phase"] = "Available".into();
        v["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    });
}

#[test]
fn any_node_is_one_that_is_ready_and_takes_pods() {
    let unfit: [fn(&mut Value); 3] = [
        |n| n["status"]["conditions"][0]["status"] = "False".into(),
        |n| n["spec"]["unschedulable"] = true.into(),
        |n| n["spec"]["taints"] = json!([{"key": "k", "effect": "NoSchedule"}]),
    ];
    let mut nodes: Vec<_> = unfit.into_iter().map(|change| node("unfit", change)).collect();
    let chosen = |nodes: &[Arc<Node>], n| any_node(&claim(|_| {}), None, nodes, n).map(str::to_owned);
    assert_eq!(chosen(&nodes, 0), None);
    nodes.push(node("a", |_| {}));
    assert_eq!(chosen(&nodes, 0).as_deref(), Some("a"));
    nodes.push(node("b", |_| {}));
    assert_eq!(chosen(&nodes, 3), chosen(&nodes, 3), "the same each time");
    assert_ne!(chosen(&nodes, 0), chosen(&nodes, 1), "another after a failure");
    let zoned = class(|c| {
        c["allowedTopologies"] =
            json!([{"matchLabelExpressions": [{"key": HOSTNAME, "values": ["b.example"]}]}]);
    });
    for n in 0..4 {
        assert_eq!(any_node(&claim(|_| {}), Some(&zoned), &nodes, n), Some("b"));
    }
}
