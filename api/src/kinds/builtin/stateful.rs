//! StatefulSets: a selector, a pod template, and claims for each pod.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::apps::{int_or_percent, is_zero, not_more_than_all};
use super::{not_negative, pod, rules, same_field};
use crate::strategy::Strategy;
use crate::table::cell::{items_at, str_at};
use crate::{Cause, Object, name};

pub(super) struct StatefulSets;

/// What an update of the spec may not change.
const FIXED: [&str; 4] = ["selector", "volumeClaimTemplates", "serviceName", "podManagementPolicy"];

impl Strategy for StatefulSets {
    fn default(&self, object: &mut Object) {
        let strategy = &mut object["spec"]["updateStrategy"];
        if str_at(strategy, "/type").is_empty() {
            strategy["type"] = "RollingUpdate".into();
            if strategy["rollingUpdate"].is_null() {
                strategy["rollingUpdate"] = json!({});
            }
        }
        // Who names the type and nothing else gets nothing else.
        let is_rolling = strategy["type"] == "RollingUpdate" && !strategy["rollingUpdate"].is_null();
        for (field, value) in [("partition", 0), ("maxUnavailable", 1)] {
            if is_rolling && strategy["rollingUpdate"][field].is_null() {
                strategy["rollingUpdate"][field] = value.into();
            }
        }
        let policy = &mut object["spec"]["persistentVolumeClaimRetentionPolicy"];
        for when in ["whenDeleted", "whenScaled"] {
            if policy[when].as_str().is_none_or(str::is_empty) {
                policy[when] = "Retain".into();
            }
        }
        if let Some(claims) = object.pointer_mut("/spec/volumeClaimTemplates").and_then(Value::as_array_mut) {
            claims.iter_mut().for_each(default_claim);
        }
    }

    fn prepare_create(&self, object: &mut Object) {
        object["status"] = json!({"replicas": 0, "availableReplicas": 0});
    }

    fn validate(&self, object: &Object) -> Vec<Cause> {
        let spec = &object["spec"];
        let mut causes = validate_strategy(spec);
        let policy = &spec["persistentVolumeClaimRetentionPolicy"];
        for when in ["whenDeleted", "whenScaled"] {
            let path = format!("spec.persistentVolumeClaimRetentionPolicy.{when}");
            if !matches!(str_at(&policy[when], ""), "Retain" | "Delete") {
                causes.push(Cause::not_supported(path, &policy[when], &["Retain", "Delete"]));
            }
        }
        causes.extend(not_negative(spec, "spec", &["replicas", "minReadySeconds"]));
        causes.extend(not_negative(&spec["ordinals"], "spec.ordinals", &["start"]));
        causes.extend(pod::validate_selector(object, "statefulset"));
        if !rules::is_selector(&spec["selector"]) {
            return causes;
        }
        causes.extend(pod::validate_template(&with_claims(spec), "spec.template"));
        let pod = &spec["template"]["spec"];
        if pod["restartPolicy"] != "Always" && !pod["restartPolicy"].is_null() {
            let field = "spec.template.spec.restartPolicy";
            causes.push(Cause::not_supported(field, &pod["restartPolicy"], &["Always"]));
        }
        if !pod["activeDeadlineSeconds"].is_null() {
            let field = "spec.template.spec.activeDeadlineSeconds";
            causes.push(Cause::forbidden(field, "activeDeadlineSeconds in StatefulSet is not Supported"));
        }
        causes
    }

    /// Names become parts of names of pods, and so of hosts.
    fn validate_create(&self, object: &Object) -> Vec<Cause> {
        let mut causes = Vec::new();
        let own = &object["metadata"]["name"];
        let own_name = own.as_str().unwrap_or_default();
        if let Some(fault) = name::dns_label_fault(own_name)
            && name::dns_subdomain_fault(own_name).is_none()
        {
            causes.push(Cause::invalid("metadata.name", own, &fault));
        }
        let service = &object["spec"]["serviceName"];
        let service_name = service.as_str().filter(|name| !name.is_empty());
        if let Some(fault) = service_name.and_then(name::dns_label_fault) {
            causes.push(Cause::invalid("spec.serviceName", service, &fault));
        }
        causes
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<Cause> {
        let (is, was) = (&new["spec"], &old["spec"]);
        let changed = FIXED.iter().filter(|field| {
            !same_field("io.k8s.api.apps.v1.StatefulSetSpec", field, &is[**field], &was[**field])
        });
        let immutable = |field| Cause::invalid(format!("spec.{field}"), &is[field], "field is immutable");
        changed.map(|field| immutable(*field)).collect()
    }
}

/// A claim template is a whole object, though nobody writes all of it.
fn default_claim(claim: &mut Value) {
    claim["apiVersion"] = "v1".into();
    claim["kind"] = "PersistentVolumeClaim".into();
    if claim["status"]["phase"].as_str().is_none_or(str::is_empty) {
        claim["status"]["phase"] = "Pending".into();
    }
}

fn validate_strategy(spec: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let policy = &spec["podManagementPolicy"];
    if !matches!(str_at(policy, ""), "OrderedReady" | "Parallel") {
        let why = "must be 'OrderedReady' or 'Parallel'";
        causes.push(Cause::invalid("spec.podManagementPolicy", policy, why));
    }
    let (path, strategy) = ("spec.updateStrategy", &spec["updateStrategy"]);
    let rolling = &strategy["rollingUpdate"];
    match str_at(strategy, "/type") {
        "OnDelete" if !rolling.is_null() => {
            let why = "only allowed for updateStrategy 'RollingUpdate'";
            causes.push(Cause::invalid(format!("{path}.rollingUpdate"), rolling, why));
        }
        "OnDelete" => {}
        "RollingUpdate" => {
            causes.extend(not_negative(rolling, &format!("{path}.rollingUpdate"), &["partition"]));
            let (most, path) = (&rolling["maxUnavailable"], format!("{path}.rollingUpdate.maxUnavailable"));
            if !most.is_null() {
                causes.extend(int_or_percent(most, &path));
                if is_zero(most) {
                    causes.push(Cause::invalid(&path, most, "cannot be 0"));
                }
                causes.extend(not_more_than_all(most, &path));
            }
        }
        _ => causes.push(Cause::invalid(path, strategy, "must be 'RollingUpdate' or 'OnDelete'")),
    }
    causes
}

/// The template as its pods will have it: with the volumes of their claims, and without what the controller sets.
fn with_claims(spec: &Value) -> Value {
    let mut template = spec["template"].clone();
    let names: Vec<&str> =
        items_at(spec, "/volumeClaimTemplates").iter().map(|claim| str_at(claim, "/metadata/name")).collect();
    let Some(pod) = template.get_mut("spec").and_then(Value::as_object_mut) else { return template };
    pod.remove("hostname");
    pod.remove("subdomain");
    if !names.is_empty() {
        let mut seen = HashSet::new();
        let claimed = names
            .iter()
            .filter(|name| seen.insert(**name))
            .map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
        let own = pod.get("volumes").and_then(Value::as_array).cloned().unwrap_or_default();
        let others = own.into_iter().filter(|volume| !names.contains(&str_at(volume, "/name")));
        let volumes: Vec<Value> = claimed.chain(others).collect();
        pod.insert("volumes".into(), volumes.into());
    }
    template
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(change: Value) -> Object {
        let container = json!({"name": "c", "image": "i", "imagePullPolicy": "Always",
            "terminationMessagePolicy": "File", "volumeMounts": [{"name": "data", "mountPath": "/data"}]});
        let pod = json!({"restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30,
            "containers": [container]});
        let mut set = json!({"metadata": {"name": "web"}, "spec": {"replicas": 1, "serviceName": "svc",
            "podManagementPolicy": "OrderedReady", "selector": {"matchLabels": {"a": "1"}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}],
            "template": {"metadata": {"labels": {"a": "1"}}, "spec": pod}}});
        for (field, value) in change.as_object().into_iter().flatten() {
            set["spec"][field] = value.clone();
        }
        StatefulSets.default(&mut set);
        set
    }

    /// What a set with such a change is refused for: field and words.
    #[track_caller]
    fn check(change: Value, refused: &[(&str, &str)]) {
        let set = set(change);
        let causes = [StatefulSets.validate(&set), StatefulSets.validate_create(&set)].concat();
        assert_eq!(causes.len(), refused.len(), "{causes:?}");
        for (cause, (field, words)) in causes.iter().zip(refused) {
            assert!(cause.field == *field && cause.message.contains(words), "{field}: {words}: {cause:?}");
        }
    }

    #[test]
    fn a_set_is_refused_for_what_its_controller_could_not_do() {
        check(json!({}), &[]);
        check(
            json!({"podManagementPolicy": "Any"}),
            &[("spec.podManagementPolicy", "must be 'OrderedReady' or 'Parallel'")],
        );
        let negative = "must be greater than or equal to 0";
        check(json!({"replicas": -1}), &[("spec.replicas", negative)]);
        check(json!({"ordinals": {"start": -1}}), &[("spec.ordinals.start", negative)]);
        check(json!({"serviceName": "a.b"}), &[("spec.serviceName", "RFC 1123 label")]);
        check(json!({"revisionHistoryLimit": -1}), &[]);
        let rolling =
            |kind: &str| json!({"updateStrategy": {"type": kind, "rollingUpdate": {"partition": -1}}});
        check(rolling("RollingUpdate"), &[("spec.updateStrategy.rollingUpdate.partition", negative)]);
        check(
            rolling("OnDelete"),
            &[("spec.updateStrategy.rollingUpdate", "only allowed for updateStrategy 'RollingUpdate'")],
        );
        check(rolling("Other"), &[("spec.updateStrategy", "must be 'RollingUpdate' or 'OnDelete'")]);
        let policy = json!({"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Keep"}});
        check(
            policy,
            &[(
                "spec.persistentVolumeClaimRetentionPolicy.whenDeleted",
                "supported values: \"Retain\", \"Delete\"",
            )],
        );
        check(json!({"selector": {}}), &[("spec.selector", "empty selector is invalid for statefulset")]);
    }

    #[test]
    fn containers_may_mount_the_claims_of_their_pod_and_nothing_unknown() {
        check(
            json!({"volumeClaimTemplates": null}),
            &[("spec.template.spec.containers[0].volumeMounts[0].name", "Not found")],
        );
    }

    #[test]
    fn a_strategy_that_is_not_named_rolls_and_one_that_is_gets_no_more_than_was_said() {
        let strategy = |given: Value| set(json!({"updateStrategy": given}))["spec"]["updateStrategy"].clone();
        let rolls = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0, "maxUnavailable": 1}});
        assert_eq!(strategy(Value::Null), rolls);
        assert_eq!(strategy(json!({})), rolls);
        assert_eq!(strategy(json!({"type": "RollingUpdate", "rollingUpdate": {}})), rolls);
        assert_eq!(strategy(json!({"type": "RollingUpdate"}))["rollingUpdate"], Value::Null);
        assert_eq!(strategy(json!({"type": "OnDelete"}))["rollingUpdate"], Value::Null);
    }

    #[test]
    fn a_rollout_takes_some_pods_away_and_not_more_than_all() {
        let rolling = |most: Value| json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": most}}});
        let field = "spec.updateStrategy.rollingUpdate.maxUnavailable";
        check(rolling(json!("50%")), &[]);
        check(rolling(json!(0)), &[(field, "cannot be 0")]);
        check(rolling(json!("101%")), &[(field, "must not be greater than 100%")]);
    }

    #[test]
    fn only_what_needs_no_new_pods_to_be_somebody_else_may_change() {
        let old = set(json!({}));
        for change in
            [json!({"replicas": 5}), json!({"minReadySeconds": 5}), json!({"ordinals": {"start": 1}})]
        {
            assert_eq!(StatefulSets.validate_update(&set(change), &old).len(), 0);
        }
        let selector = json!({"selector": {"matchLabels": {"a": "2"}}});
        for change in [json!({"serviceName": "other"}), json!({"volumeClaimTemplates": []}), selector] {
            let field = format!("spec.{}", change.as_object().unwrap().keys().next().unwrap());
            assert_eq!(StatefulSets.validate_update(&set(change), &old)[0].field, field);
        }
    }

    #[test]
    fn a_client_that_writes_what_is_empty_changes_nothing() {
        let old = set(json!({"serviceName": null}));
        let mut claim = old["spec"]["volumeClaimTemplates"][0].clone();
        assert_eq!(
            (&claim["kind"], &claim["status"]),
            (&json!("PersistentVolumeClaim"), &json!({"phase": "Pending"}))
        );
        claim["spec"]["resources"] = json!({});
        claim["metadata"]["labels"] = json!({});
        let mut same = set(json!({"serviceName": "", "volumeClaimTemplates": [claim]}));
        assert_eq!(StatefulSets.validate_update(&same, &old), []);
        same["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] = "1Gi".into();
        assert_eq!(StatefulSets.validate_update(&same, &old)[0].field, "spec.volumeClaimTemplates");
    }
}
