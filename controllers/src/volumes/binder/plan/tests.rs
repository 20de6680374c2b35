use serde_json::{Value, json};

use super::*;

fn claim(change: impl FnOnce(&mut Value)) -> PersistentVolumeClaim {
    let mut claim = json!({
        "metadata": {"name": "c", "namespace": "d", "uid": "u", "annotations": {}},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "slow",
            "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Pending"},
    });
    change(&mut claim);
    serde_json::from_value(claim).unwrap()
}

fn volume(change: impl FnOnce(&mut Value)) -> PersistentVolume {
    let mut volume = json!({
        "metadata": {"name": "v", "annotations": {}},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "slow", "capacity": {"storage": "2Gi"},
            "persistentVolumeReclaimPolicy": "Retain"},
        "status": {"phase": "Available"},
    });
    change(&mut volume);
    serde_json::from_value(volume).unwrap()
}

fn class(provisioner: &str, mode: &str) -> StorageClass {
    let class = json!({"metadata": {"name": "slow"}, "provisioner": provisioner, "volumeBindingMode": mode});
    serde_json::from_value(class).unwrap()
}

/// What is decided about a claim where there is one volume, which it names if `is_named`.
fn step(
    claim: &PersistentVolumeClaim,
    volume: Option<&PersistentVolume>,
    class: Option<&StorageClass>,
) -> ClaimStep {
    let named = volume.filter(|_| !volume_of(claim).is_empty());
    let candidates: Vec<Arc<PersistentVolume>> = volume.iter().map(|v| Arc::new((*v).clone())).collect();
    claim_step(&ClaimSight {
        claim,
        named,
        candidates: &candidates,
        class,
        default_class: Some("default"),
        unscheduled: &[],
    })
}

/// The reason that is told while a claim waits.
fn waits(step: &ClaimStep) -> &str {
    match step {
        ClaimStep::Wait(Some(told)) => told.reason,
        other => panic!("{other:?}"),
    }
}

const LATER: &str = "WaitForFirstConsumer";

#[test]
fn a_claim_is_bound_to_what_fits_at_once_or_once_its_pod_has_a_node() {
    let (fit, any) = (volume(|_| {}), claim(|_| {}));
    let immediate = class("kubernetes.io/no-provisioner", "Immediate");
    assert!(matches!(step(&any, Some(&fit), Some(&immediate)), ClaimStep::Bind(_)));
    assert!(matches!(step(&any, Some(&fit), None), ClaimStep::Bind(_)), "a class need not be there");
    let later = class("kubernetes.io/no-provisioner", LATER);
    assert_eq!(waits(&step(&any, Some(&fit), Some(&later))), "WaitForFirstConsumer");
    let kept = volume(|v| v["spec"]["claimRef"] = json!({"namespace": "d", "name": "c", "uid": "u"}));
    assert!(
        matches!(step(&any, Some(&kept), Some(&later)), ClaimStep::Bind(_)),
        "the scheduler has chosen it"
    );
}

#[test]
fn a_claim_for_which_nothing_is_there_is_told_what_it_waits_for() {
    let any = claim(|_| {});
    assert_eq!(
        step(&any, None, Some(&class("example.com/p", "Immediate"))),
        ClaimStep::Provision("example.com/p".into())
    );
    assert_eq!(waits(&step(&any, None, Some(&class("example.com/p", LATER)))), "WaitForFirstConsumer");
    let chosen = claim(|c| c["metadata"]["annotations"][SELECTED_NODE] = "n".into());
    assert_eq!(
        step(&chosen, None, Some(&class("example.com/p", LATER))),
        ClaimStep::Provision("example.com/p".into())
    );
    let told = |step: ClaimStep| match step {
        ClaimStep::Tell(told) => format!("{}: {}", told.reason, told.message),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        told(step(&any, None, None)),
        "ProvisioningFailed: storageclass.storage.k8s.io \"slow\" not found"
    );
    assert_eq!(
        told(step(&any, None, Some(&class("kubernetes.io/no-provisioner", "Immediate")))),
        "ProvisioningFailed: no volume plugin matched name: kubernetes.io/no-provisioner"
    );
    let of_none = claim(|c| c["spec"]["storageClassName"] = "".into());
    assert_eq!(waits(&step(&of_none, None, None)), "FailedBinding");
    let without = claim(|c| _ = c["spec"].as_object_mut().unwrap().remove("storageClassName"));
    assert_eq!(step(&without, None, None), ClaimStep::AssignClass("default".into()));
}

#[test]
fn pods_that_wait_with_a_claim_are_named() {
    let names = |pods: &[&str]| {
        let pods: Vec<String> = pods.iter().map(|pod| (*pod).to_owned()).collect();
        first_consumer(&pods).message
    };
    assert_eq!(names(&["a"]), "waiting for pod a to be scheduled");
    assert_eq!(names(&["a", "b"]), "waiting for pods a,b to be scheduled");
    assert_eq!(names(&[]), "waiting for first consumer to be created before binding");
}

#[test]
fn a_volume_that_is_asked_for_by_name_is_given_if_it_is_free_and_fits() {
    let by_name = claim(|c| c["spec"]["volumeName"] = "v".into());
    assert!(matches!(step(&by_name, Some(&volume(|_| {})), None), ClaimStep::Bind(_)));
    assert_eq!(step(&by_name, None, None), ClaimStep::Wait(None));
    let small = volume(|v| v["spec"]["capacity"]["storage"] = "1Mi".into());
    assert_eq!(waits(&step(&by_name, Some(&small), None)), "VolumeMismatch");
    let taken = volume(|v| v["spec"]["claimRef"] = json!({"namespace": "d", "name": "other", "uid": "o"}));
    assert_eq!(waits(&step(&by_name, Some(&taken), None)), "FailedBinding");
    let kept = volume(|v| v["spec"]["claimRef"] = json!({"namespace": "d", "name": "c"}));
    assert!(matches!(step(&by_name, Some(&kept), None), ClaimStep::Bind(_)));
}

#[test]
fn a_bound_claim_whose_volume_is_gone_or_anothers_is_lost() {
    let bound = |name: &str| {
        claim(|c| {
            c["metadata"]["annotations"][BIND_COMPLETED] = "yes".into();
            c["spec"]["volumeName"] = name.into();
        })
    };
    let lost = |step: ClaimStep| match step {
        ClaimStep::Lose(told) => told.reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(lost(step(&bound("v"), None, None)), "ClaimLost");
    assert_eq!(lost(step(&bound(""), None, None)), "ClaimLost");
    let others = volume(|v| v["spec"]["claimRef"] = json!({"namespace": "d", "name": "c", "uid": "earlier"}));
    assert_eq!(lost(step(&bound("v"), Some(&others), None)), "ClaimMisbound");
    let own = volume(|v| v["spec"]["claimRef"] = json!({"namespace": "d", "name": "c", "uid": "u"}));
    assert!(
        matches!(step(&bound("v"), Some(&own), None), ClaimStep::Bind(_)),
        "its status may have to be written"
    );
    assert!(matches!(step(&bound("v"), Some(&volume(|_| {})), None), ClaimStep::Bind(_)), "it is bound anew");
}

#[test]
fn a_volume_is_what_its_claim_makes_of_it() {
    let reference = json!({"namespace": "d", "name": "c", "uid": "u"});
    let bound = |change: fn(&mut Value)| {
        let reference = reference.clone();
        volume(move |v| {
            v["spec"]["claimRef"] = reference;
            change(v);
        })
    };
    let own = claim(|c| c["spec"]["volumeName"] = "v".into());
    let elsewhere = claim(|c| c["spec"]["volumeName"] = "other".into());
    assert_eq!(volume_step(&volume(|_| {}), None), VolumeStep::Phase("Available"));
    let kept = volume(|v| v["spec"]["claimRef"] = json!({"namespace": "d", "name": "c"}));
    assert_eq!(volume_step(&kept, None), VolumeStep::Phase("Available"));
    assert_eq!(volume_step(&bound(|_| {}), None), VolumeStep::Release);
    assert_eq!(
        volume_step(&bound(|_| {}), Some(&claim(|c| c["metadata"]["uid"] = "next".into()))),
        VolumeStep::Release
    );
    assert_eq!(volume_step(&bound(|_| {}), Some(&own)), VolumeStep::Phase("Bound"));
    assert_eq!(volume_step(&bound(|_| {}), Some(&claim(|_| {}))), VolumeStep::WakeClaim);
    let block = bound(|v| v["spec"]["volumeMode"] = "Block".into());
    assert!(matches!(volume_step(&block, Some(&claim(|_| {}))), VolumeStep::Mismatch(..)));
    assert_eq!(volume_step(&bound(|_| {}), Some(&elsewhere)), VolumeStep::Unbind);
    let made = bound(|v| {
        v["metadata"]["annotations"][PROVISIONED_BY] = "example.com/p".into();
        v["spec"]["persistentVolumeReclaimPolicy"] = "Delete".into();
    });
    assert_eq!(volume_step(&made, Some(&elsewhere)), VolumeStep::Release, "it was made in vain");
}

#[test]
fn what_cannot_be_reclaimed_says_so_and_what_others_reclaim_is_left_to_them() {
    let reason = |change: fn(&mut Value)| cannot_reclaim(&volume(change)).map(|told| told.reason);
    assert_eq!(reason(|_| {}), None);
    assert_eq!(
        reason(|v| v["spec"]["persistentVolumeReclaimPolicy"] = "Recycle".into()),
        Some("VolumeFailedRecycle")
    );
    assert_eq!(
        reason(|v| v["spec"]["persistentVolumeReclaimPolicy"] = "Delete".into()),
        Some("VolumeFailedDelete")
    );
    assert_eq!(
        reason(|v| {
            v["spec"]["persistentVolumeReclaimPolicy"] = "Delete".into();
            v["metadata"]["annotations"][PROVISIONED_BY] = "example.com/p".into();
        }),
        None
    );
    assert_eq!(
        reason(|v| {
            v["spec"]["persistentVolumeReclaimPolicy"] = "Delete".into();
            v["spec"]["csi"] = json!({"driver": "example.com", "volumeHandle": "h"});
        }),
        None
    );
}

#[test]
fn an_unbound_volume_is_kept_for_the_claim_that_its_maker_named() {
    let reference = json!({"namespace": "d", "name": "c", "uid": "u"});
    let by_maker = volume(|v| v["spec"]["claimRef"] = reference.clone());
    let left = unbound_volume(&by_maker).spec.unwrap().claim_ref.unwrap();
    assert_eq!((left.name.as_deref(), left.uid), (Some("c"), None));
    let by_controller = volume(|v| {
        v["spec"]["claimRef"] = reference.clone();
        v["metadata"]["annotations"][BOUND_BY_CONTROLLER] = "yes".into();
    });
    let left = unbound_volume(&by_controller);
    assert!(
        left.spec.unwrap().claim_ref.is_none()
            && !left.metadata.annotations.unwrap().contains_key(BOUND_BY_CONTROLLER)
    );
}

#[test]
fn a_claim_is_told_what_it_was_given_when_it_is_bound_and_not_again() {
    let pending = claim(|_| {});
    let bound = claim_status(&pending, "Bound", Some(&volume(|_| {}))).expect("it was pending");
    let status = serde_json::to_value(&bound.status).unwrap();
    assert_eq!(status["capacity"]["storage"], "2Gi");
    assert_eq!(status["accessModes"], json!(["ReadWriteOnce"]));
    let larger = volume(|v| v["spec"]["capacity"]["storage"] = "5Gi".into());
    assert_eq!(claim_status(&bound, "Bound", Some(&larger)), None, "what is on it is not as large yet");
    let lost = claim_status(&bound, "Lost", None).expect("it was bound");
    assert!(lost.status.unwrap().capacity.is_none());
}
