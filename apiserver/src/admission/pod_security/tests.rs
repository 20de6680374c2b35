use serde_json::json;

use super::*;

fn evaluated(level: &str, version: &str, pod: &Value) -> Vec<String> {
    let mode = Mode {
        level: Level::parse(level).expect("a level"),
        version: Version::parse(version).expect("a version"),
    };
    let refusals = mode.evaluate(Pod { metadata: &pod["metadata"], spec: &pod["spec"] });
    refusals.iter().map(|refusal| format!("{} ({})", refusal.reason, refusal.detail)).collect()
}

fn pod(container: Value) -> Value {
    let mut container = container;
    container["name"] = "c".into();
    json!({"metadata": {}, "spec": {"containers": [container]}})
}

fn secure() -> Value {
    json!({
        "allowPrivilegeEscalation": false, "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

#[test]
fn a_plain_pod_is_fine_for_baseline_and_not_for_restricted() {
    let plain = pod(json!({}));
    assert!(evaluated("privileged", "latest", &plain).is_empty());
    assert!(evaluated("baseline", "latest", &plain).is_empty());
    assert_eq!(
        evaluated("restricted", "latest", &plain),
        [
            r#"allowPrivilegeEscalation != false (container "c" must set securityContext.allowPrivilegeEscalation=false)"#,
            r#"unrestricted capabilities (container "c" must set securityContext.capabilities.drop=["ALL"])"#,
            r#"runAsNonRoot != true (pod or container "c" must set securityContext.runAsNonRoot=true)"#,
            r#"seccompProfile (pod or container "c" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")"#,
        ]
    );
    assert!(evaluated("restricted", "latest", &pod(json!({"securityContext": secure()}))).is_empty());
}

#[test]
fn what_shares_the_node_is_no_baseline() {
    let mut shared = pod(json!({
        "securityContext": {"privileged": true, "capabilities": {"add": ["SYS_ADMIN", "CHOWN"]}},
        "ports": [{"hostPort": 80}, {"hostPort": 443}, {"hostPort": 0}],
        "livenessProbe": {"httpGet": {"host": "example.com"}},
    }));
    shared["spec"]["hostNetwork"] = true.into();
    shared["spec"]["hostPID"] = true.into();
    shared["spec"]["volumes"] = json!([{"name": "v", "hostPath": {}}, {"name": "w", "emptyDir": {}}]);
    shared["spec"]["securityContext"] = json!({"sysctls": [{"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_rmem"}]});
    let found = evaluated("baseline", "latest", &shared);
    assert_eq!(
        found,
        [
            r#"non-default capabilities (container "c" must not include "SYS_ADMIN" in securityContext.capabilities.add)"#,
            "host namespaces (hostNetwork=true, hostPID=true)",
            r#"hostPath volumes (volume "v")"#,
            r#"hostPort (container "c" uses hostPorts 443, 80)"#,
            r#"probe or lifecycle host (container "c" uses probe or lifecycle host "example.com")"#,
            r#"privileged (container "c" must not set securityContext.privileged=true)"#,
            "forbidden sysctls (kernel.msgmax)",
        ]
    );
    let older = evaluated("baseline", "v1.31", &shared);
    assert!(older.contains(&"forbidden sysctls (kernel.msgmax, net.ipv4.tcp_rmem)".to_owned()), "{older:?}");
    assert!(!older.iter().any(|refusal| refusal.starts_with("probe")), "{older:?}");
}

#[test]
fn a_check_of_restricted_stands_in_for_that_of_baseline() {
    let mut mounts = pod(json!({"securityContext": secure()}));
    mounts["spec"]["volumes"] = json!([{"name": "v", "hostPath": {}}, {"name": "n", "nfs": {}}, {"name": "s", "secret": {}}]);
    assert_eq!(
        evaluated("restricted", "latest", &mounts),
        [r#"restricted volume types (volumes "v", "n" use restricted volume types "hostPath", "nfs")"#]
    );
    let mut adds = pod(json!({"securityContext": secure()}));
    adds["spec"]["containers"][0]["securityContext"]["capabilities"]["add"] = json!(["CHOWN", "NET_BIND_SERVICE"]);
    assert_eq!(
        evaluated("restricted", "v1.22", &adds),
        [r#"unrestricted capabilities (container "c" must not include "CHOWN" in securityContext.capabilities.add)"#]
    );
    assert!(evaluated("restricted", "v1.21", &adds).is_empty(), "not before 1.22");
}

#[test]
fn the_pod_speaks_for_containers_that_say_nothing() {
    let mut of_pod = pod(json!({"securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}));
    of_pod["spec"]["securityContext"] =
        json!({"runAsNonRoot": true, "runAsUser": 0, "seccompProfile": {"type": "Localhost", "localhostProfile": "p"}});
    assert_eq!(evaluated("restricted", "latest", &of_pod), ["runAsUser=0 (pod must not set runAsUser=0)"]);
    of_pod["spec"]["hostUsers"] = false.into();
    assert!(evaluated("restricted", "latest", &of_pod).is_empty(), "root of its own namespace");
    assert_eq!(evaluated("restricted", "v1.34", &of_pod).len(), 1);
    of_pod["spec"]["containers"][0]["securityContext"]["runAsNonRoot"] = false.into();
    of_pod["spec"]["containers"][0]["securityContext"]["seccompProfile"] = json!({"type": "Unconfined"});
    let found = evaluated("restricted", "v1.34", &of_pod);
    assert!(found.contains(&r#"runAsNonRoot != true (container "c" must not set securityContext.runAsNonRoot=false)"#.to_owned()), "{found:?}");
    assert!(found.contains(&r#"seccompProfile (container "c" must not set securityContext.seccompProfile.type to "Unconfined")"#.to_owned()), "{found:?}");
}

#[test]
fn labels_say_what_is_enforced_and_warned_of() {
    let of = |labels: Value| Policy::of(&json!({"metadata": {"labels": labels}}));
    let key = |label: &str| format!("{PREFIX}{label}");
    let (policy, wrong) = of(json!({}));
    assert_eq!((policy.enforce, policy.warn, wrong.len()), (Mode::OPEN, Mode::OPEN, 0));
    let (policy, wrong) = of(json!({key("enforce"): "baseline", key("enforce-version"): "v1.30"}));
    assert_eq!((policy.enforce.to_string(), policy.warn.to_string()), ("baseline:v1.30".into(), "baseline:v1.30".into()));
    assert!(wrong.is_empty());
    let (policy, _) = of(json!({key("enforce"): "baseline", key("warn"): "privileged"}));
    assert_eq!(policy.warn, Mode::OPEN);
    let (policy, wrong) = of(json!({key("enforce"): "no", key("warn"): "no", key("audit-version"): "v2"}));
    assert_eq!((policy.enforce.to_string(), policy.warn), ("restricted:latest".into(), Mode::OPEN));
    let fields: Vec<&str> = wrong.iter().map(|cause| cause.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "metadata.labels[pod-security.kubernetes.io/enforce]",
            "metadata.labels[pod-security.kubernetes.io/audit-version]",
            "metadata.labels[pod-security.kubernetes.io/warn]",
        ]
    );
    for (text, expected) in [("v1.0", true), ("v1.36", true), ("v1.01", false), ("v1.", false), ("1.2", false), ("v1.+1", false)] {
        assert_eq!(Version::parse(text).is_some(), expected, "{text}");
    }
}
