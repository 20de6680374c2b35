use serde_json::{Value, json};

use crate::{Kinds, default};

/// The fields and reasons for which an object is refused, as it is written and as it replaces `old`.
fn refused(kind: &str, object: &Value, old: Option<&Value>) -> Vec<(String, &'static str)> {
    let kinds = Kinds::builtin();
    let (group, version_kind) = kind.rsplit_once('/').map_or(("", kind), |(group, kind)| (group, kind));
    let kind = kinds.by_kind(group, "v1", version_kind).unwrap_or_else(|| panic!("no kind {kind}"));
    let defaulted = |object: &Value| {
        let mut object = object.clone();
        object["kind"] = version_kind.into();
        default::apply(kind, &mut object);
        object
    };
    let (object, old) = (defaulted(object), old.map(defaulted));
    let causes = kind.validate(&object, old.as_ref());
    causes.into_iter().map(|cause| (cause.field, cause.reason.trim_start_matches("FieldValue"))).collect()
}

#[track_caller]
fn check(kind: &str, object: Value, wanted: &[(&str, &str)]) {
    let found = refused(kind, &object, None);
    let found: Vec<(&str, &str)> = found.iter().map(|(field, reason)| (field.as_str(), *reason)).collect();
    assert_eq!(found, wanted, "{kind} {object}");
}

fn template(container: &Value) -> Value {
    json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}})
}

#[test]
fn a_controller_whose_selector_does_not_match_its_template_is_refused() {
    let template = template(&json!({"name": "c", "image": "i"}));
    let controller = |selector: Value| json!({"spec": {"selector": selector, "template": template}});
    check("ReplicationController", controller(json!({"a": "b"})), &[]);
    let labels = ("spec.template.metadata.labels", "Invalid");
    check("ReplicationController", controller(json!({"a": "c"})), &[labels]);
    let set = |selector: Value| controller(json!({"matchLabels": selector}));
    check("apps/ReplicaSet", set(json!({"x": "y"})), &[labels]);
    check("apps/DaemonSet", set(json!({"x": "y"})), &[labels]);
}

#[test]
fn nobody_sends_traffic_to_the_node_itself() {
    for ip in ["127.0.0.1", "169.254.169.254", "::1", "fe80::1"] {
        let endpoints = json!({"subsets": [{"addresses": [{"ip": ip}], "ports": [{"port": 80}]}]});
        check("Endpoints", endpoints, &[("subsets[0].addresses[0].ip", "Invalid")]);
        let kind = if ip.contains(':') { "IPv6" } else { "IPv4" };
        let slice = json!({"addressType": kind, "endpoints": [{"addresses": [ip]}]});
        check("discovery.k8s.io/EndpointSlice", slice, &[("endpoints[0].addresses[0]", "Invalid")]);
        let service = json!({"spec": {"ports": [{"port": 80}], "externalIPs": [ip], "externalTrafficPolicy": "Cluster"}});
        check("Service", service, &[("spec.externalIPs[0]", "Invalid")]);
    }
}

#[test]
fn what_may_not_change_does_not() {
    let changed = |kind: &str, old: Value, new: Value, field: &str| {
        assert!(refused(kind, &old, Some(&old)).is_empty(), "{kind}: {:?}", refused(kind, &old, Some(&old)));
        let found = refused(kind, &new, Some(&old));
        assert!(found.iter().any(|(at, _)| at == field), "{kind}: {found:?}");
    };
    changed("apps/ControllerRevision", json!({"data": {"a": 1}}), json!({"data": {"a": 2}}), "data");
    let class = |provisioner: &str| json!({"provisioner": provisioner});
    changed("storage.k8s.io/StorageClass", class("a"), class("b"), "provisioner");
    changed("node.k8s.io/RuntimeClass", json!({"handler": "a"}), json!({"handler": "b"}), "handler");
    let slice = |kind: &str| json!({"addressType": kind, "endpoints": []});
    changed("discovery.k8s.io/EndpointSlice", slice("IPv4"), slice("IPv6"), "addressType");
    let claim = |class: &str| {
        json!({"spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": {"requests": {"storage": "1Gi"}}}})
    };
    changed("PersistentVolumeClaim", claim("a"), claim("b"), "spec");
    let volume = |path: &str| json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": path}}});
    changed("PersistentVolume", volume("/a"), volume("/b"), "spec.persistentvolumesource");
}

#[test]
fn more_than_a_mebibyte_is_too_much_for_a_config_map_or_a_secret() {
    let half = "x".repeat(1 << 19);
    check("ConfigMap", json!({"data": {"a": half, "b": half}}), &[]);
    check("ConfigMap", json!({"data": {"a": half, "b": half, "c": "x"}}), &[("", "TooLong")]);
    check("Secret", json!({"data": {"a": "A".repeat(1_400_000)}}), &[("data", "TooLong")]);
}

#[test]
fn the_rules_of_containers_hold_wherever_there_are_containers() {
    let bad = json!({"name": "C", "image": "i", "ports": [{"containerPort": 0}], "env": [{"name": "a=b"}],
        "livenessProbe": {}, "resources": {"limits": {"cpu": "-1"}}, "volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let spec = template(&bad);
    for (kind, path, object) in [
        ("Pod", "spec", json!({"spec": spec["spec"]})),
        ("PodTemplate", "template.spec", json!({"template": spec})),
        (
            "apps/Deployment",
            "spec.template.spec",
            json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": spec}}),
        ),
        (
            "ReplicationController",
            "spec.template.spec",
            json!({"spec": {"selector": {"a": "b"}, "template": spec}}),
        ),
    ] {
        let found: Vec<String> = refused(kind, &object, None).into_iter().map(|(field, _)| field).collect();
        for field in [
            "name",
            "ports[0].containerPort",
            "env[0].name",
            "livenessProbe",
            "resources.limits[cpu]",
            "volumeMounts[0].name",
        ] {
            let field = format!("{path}.containers[0].{field}");
            assert!(found.contains(&field), "{kind}: {field}: {found:?}");
        }
    }
}

#[test]
fn an_ingress_leads_somewhere_and_a_policy_is_about_somebody() {
    check("networking.k8s.io/Ingress", json!({"spec": {}}), &[("spec", "Invalid")]);
    let rule = json!({"host": "1.2.3.4", "http": {"paths": [{"path": "a", "pathType": "Prefix",
        "backend": {"service": {"name": "s"}}}]}});
    let path = "spec.rules[0].http.paths[0]";
    let (at, backend) = (format!("{path}.path"), format!("{path}.backend"));
    let found = [("spec.rules[0].host", "Invalid"), (at.as_str(), "Invalid"), (backend.as_str(), "Required")];
    check("networking.k8s.io/Ingress", json!({"spec": {"rules": [rule]}}), &found);
    let policy = |peer: Value| json!({"spec": {"podSelector": {}, "ingress": [{"from": [peer]}]}});
    let peer = "spec.ingress[0].from[0]";
    check("networking.k8s.io/NetworkPolicy", policy(json!({})), &[(peer, "Required")]);
    let block = json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/9"]}});
    let except = format!("{peer}.ipBlock.except[0]");
    check("networking.k8s.io/NetworkPolicy", policy(block), &[(except.as_str(), "Invalid")]);
}

#[test]
fn a_volume_of_the_cluster_has_a_size_a_mode_and_one_source() {
    let wanted = [
        ("spec.accessModes", "Required"),
        ("spec.capacity", "Required"),
        ("spec.capacity", "NotSupported"),
        ("spec", "Required"),
    ];
    let found = refused("PersistentVolume", &json!({"spec": {}}), None);
    assert_eq!(found.len(), wanted.len(), "{found:?}");
    assert!(wanted.iter().all(|(field, why)| found.iter().any(|(f, w)| f == field && w == why)), "{found:?}");
}

#[test]
fn rules_of_a_containers_exits_need_its_policy_an_action_and_codes() {
    let pod = |policy: Option<&str>, rule: Value| {
        let mut container = json!({"name": "c", "image": "i", "restartPolicyRules": [rule]});
        if let Some(policy) = policy {
            container["restartPolicy"] = policy.into();
        }
        template(&container)
    };
    let whole = json!({"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}});
    check("Pod", pod(Some("Never"), whole.clone()), &[]);
    check("Pod", pod(None, whole), &[("spec.containers[0].restartPolicy", "Required")]);
    let rule = "spec.containers[0].restartPolicyRules[0]";
    let (action, codes) = (format!("{rule}.action"), format!("{rule}.exitCodes"));
    let operator = format!("{codes}.operator");
    check("Pod", pod(Some("Never"), json!({})), &[(&action, "NotSupported"), (&codes, "Required")]);
    let odd = json!({"action": "RestartAllContainers", "exitCodes": {"operator": "Is"}});
    check("Pod", pod(Some("Never"), odd), &[(&operator, "NotSupported")]);
}

#[test]
fn a_deployment_has_longer_to_get_on_than_its_pods_to_get_ready() {
    let template = template(&json!({"name": "c", "image": "i"}));
    let spec = |ready: i64, deadline: i64| {
        json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template,
            "minReadySeconds": ready, "progressDeadlineSeconds": deadline}})
    };
    check("apps/Deployment", spec(9, 10), &[]);
    check("apps/Deployment", spec(10, 10), &[("spec.progressDeadlineSeconds", "Invalid")]);
}

#[test]
fn a_selector_that_tells_nothing_is_refused_before_the_template_is_looked_at() {
    let bad = template(&json!({"name": "C", "image": "i"}));
    let set = |selector: Value| json!({"spec": {"selector": selector, "template": bad}});
    let wrong = json!({"matchExpressions": [{"key": "a", "operator": "In"}]});
    let values = "spec.selector.matchExpressions[0].values";
    for kind in ["apps/Deployment", "apps/ReplicaSet", "apps/StatefulSet"] {
        check(kind, set(wrong.clone()), &[(values, "Required"), ("spec.selector", "Invalid")]);
    }
    let name = ("spec.template.spec.containers[0].name", "Invalid");
    check("apps/DaemonSet", set(wrong), &[(values, "Required"), name]);
    let labels = ("spec.template.metadata.labels", "Invalid");
    let both = |kind: &str| {
        let found = refused(kind, &set(Value::Null), None);
        [name, labels].iter().all(|(field, why)| found.iter().any(|(f, w)| f == field && w == why))
    };
    assert!(both("apps/ReplicaSet") && both("apps/DaemonSet"));
}

#[test]
fn an_affinity_that_is_not_asked_for_has_no_settings_and_one_that_is_has_all() {
    let service = |affinity: &str, config: Value| json!({"spec": {"ports": [{"port": 80}], "sessionAffinity": affinity, "sessionAffinityConfig": config}});
    check("Service", service("None", json!({"clientIP": {}})), &[]);
    check("Service", service("ClientIP", json!({"clientIP": {}})), &[]);
    let seconds = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    let none = json!({"clientIP": {"timeoutSeconds": 0}});
    check("Service", service("ClientIP", none), &[(seconds, "Invalid")]);
}

#[test]
fn a_rule_of_taints_says_which_devices_and_what() {
    let rule = |spec: Value| json!({"metadata": {"name": "r"}, "spec": spec});
    let taint = |effect: &str| json!({"key": "example.com/k", "value": "v", "effect": effect});
    let kind = "resource.k8s.io/DeviceTaintRule";
    check(kind, rule(json!({"taint": taint("None")})), &[]);
    let selector = json!({"driver": "a_b", "pool": "a//b", "device": "D"});
    let fields = ["driver", "pool", "device"].map(|name| format!("spec.deviceSelector.{name}"));
    let wanted: Vec<(&str, &str)> = fields.iter().map(|field| (field.as_str(), "Invalid")).collect();
    check(kind, rule(json!({"deviceSelector": selector, "taint": taint("NoSchedule")})), &wanted);
    let odd = rule(json!({"taint": taint("Odd")}));
    check(kind, odd.clone(), &[("spec.taint.effect", "NotSupported")]);
    assert!(refused(kind, &odd, Some(&odd)).is_empty(), "what is there may stay");
}

#[test]
fn a_migration_names_a_resource_and_ends_once() {
    let kind = "storagemigration.k8s.io/StorageVersionMigration";
    let of = |resource: Value| json!({"metadata": {"name": "m"}, "spec": {"resource": resource}});
    check(kind, of(json!({"group": "apps", "resource": "deployments"})), &[]);
    check(kind, of(json!({})), &[("spec.resource.resource", "Required")]);
    let wrong = [("spec.resource.resource", "Invalid"), ("spec.resource.group", "Invalid")];
    check(kind, of(json!({"group": "A", "resource": "B"})), &wrong);
    let kinds = Kinds::builtin();
    let migrations = kinds.by_kind("storagemigration.k8s.io", "v1", "StorageVersionMigration").unwrap();
    let with = |version: &str, types: &[&str]| {
        let condition = |type_: &&str| json!({"type": type_, "status": "True", "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let conditions: Vec<Value> = types.iter().map(condition).collect();
        json!({"status": {"resourceVersion": version, "conditions": conditions}})
    };
    let fields = |new: Value, old: Value| {
        migrations.validate_status(&new, &old).into_iter().map(|cause| cause.field).collect::<Vec<_>>()
    };
    assert!(fields(with("5", &["Running"]), with("", &[])).is_empty());
    assert_eq!(fields(with("6", &[]), with("5", &[])), ["status.resourceVersion"]);
    assert_eq!(fields(with("x", &[]), with("", &[])), ["status.resourceVersion"]);
    assert_eq!(fields(with("5", &["Succeeded", "Failed"]), with("5", &[])), ["status.conditions"]);
    assert_eq!(fields(with("5", &[]), with("5", &["Failed"])), ["status.conditions"]);
}
