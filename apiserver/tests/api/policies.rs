//! Admission policies: what they refuse, warn of and change, and what is told of them.

use serde_json::{Value, json};

use crate::custom::{DEFINITIONS, FOOS, definition, establish, foo, until};
use crate::fixture::{Client, Cluster, config_map};
use crate::rbac::{binding, role, settle, user};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/a/configmaps";

/// A policy about a resource, bound to all namespaces.
async fn policy(
    client: &Client,
    kind: &str,
    plural: &str,
    resource: (&str, &str),
    spec: Value,
    binding: Value,
) {
    let mut policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "p"},
        "spec": {"matchConstraints": {"resourceRules": [{
            "apiGroups": [resource.0], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": [resource.1],
        }]}},
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        policy["spec"][field] = value.clone();
    }
    client.post(&format!("{GROUP}/{plural}"), policy).await.created();
    let mut bound = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": format!("{kind}Binding"), "metadata": {"name": "b"},
        "spec": {"policyName": "p"},
    });
    for (field, value) in binding.as_object().into_iter().flatten() {
        bound["spec"][field] = value.clone();
    }
    let bindings = plural.replace("policies", "policybindings");
    client.post(&format!("{GROUP}/{bindings}"), bound).await.created();
}

#[tokio::test]
async fn a_validating_policy_refuses_and_warns_by_its_params() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    let mut limits = config_map("limits", "");
    limits["data"] = json!({"max": "3"});
    client.post(MAPS, limits).await.created();
    let spec = json!({
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConditions": [{"name": "others", "expression": "object.metadata.name != 'limits'"}],
        "variables": [{"name": "size", "expression": "object.data.k.size()"}],
        "validations": [{
            "expression": "variables.size <= int(params.data.max)",
            "messageExpression": "'k is ' + string(variables.size) + ' long'",
        }],
    });
    let params = json!({"validationActions": ["Deny"], "paramRef": {"name": "limits", "parameterNotFoundAction": "Deny"}});
    policy(
        &client,
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
        ("", "configmaps"),
        spec,
        params,
    )
    .await;
    client.post(MAPS, config_map("short", "abc")).await.created();
    let why = client.post(MAPS, config_map("long", "abcd")).await.refused(422, "Invalid");
    assert_eq!(
        why,
        "configmaps \"long\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: k is 4 long"
    );
    let warn = json!([{"op": "replace", "path": "/spec/validationActions", "value": ["Warn"]}]);
    client.patch(&format!("{GROUP}/validatingadmissionpolicybindings/b"), "json", warn).await.ok();
    let warned = client.post(MAPS, config_map("long", "abcd")).await;
    assert_eq!(
        warned.headers["warning"],
        "299 - \"Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': k is 4 long\""
    );
    warned.created();
}

#[tokio::test]
async fn a_policy_is_held_against_the_types_of_custom_resources() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    establish(&client, &definition()).await;
    let spec = json!({"validations": [{"expression": "object.spec.nothing == 1"}, {"expression": "object.spec.replicas < 5"}]});
    let deny = json!({"validationActions": ["Deny"]});
    policy(
        &client,
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
        ("example.com", "foos"),
        spec,
        deny,
    )
    .await;
    let list = format!("{GROUP}/validatingadmissionpolicies");
    let told = until(&client, &list, "p", |_, policy| policy["status"]["observedGeneration"] == 1).await;
    let warnings = told["status"]["typeChecking"]["expressionWarnings"].as_array().expect("warnings");
    assert_eq!(warnings.len(), 1, "{told}");
    assert_eq!(warnings[0]["fieldRef"], "spec.validations[0].expression");
    assert!(
        warnings[0]["warning"].as_str().is_some_and(|why| why.contains("undefined field 'nothing'")),
        "{told}"
    );
    client.delete(&format!("{list}/p")).await.ok();
    client.post(FOOS, foo("one", json!({}))).await.created();
    client.delete(&format!("{DEFINITIONS}/foos.example.com")).await.ok();
}

#[tokio::test]
async fn a_mutating_policy_changes_what_is_stored() {
    let cluster = Cluster::start().await;
    let client = cluster.namespace("a").await;
    let apply = "Object{metadata: Object.metadata{labels: {'by': 'policy'}}}";
    let spec = json!({
        "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": apply}}],
    });
    policy(
        &client,
        "MutatingAdmissionPolicy",
        "mutatingadmissionpolicies",
        ("", "configmaps"),
        spec,
        json!({}),
    )
    .await;
    let created = client.post(MAPS, config_map("m", "v")).await.created();
    assert_eq!(created["metadata"]["labels"]["by"], "policy");
    assert_eq!(client.get(&format!("{MAPS}/m")).await.ok()["metadata"]["labels"]["by"], "policy");
}

/// The messages of a policy could tell its author what stands in its params.
#[tokio::test]
async fn who_writes_a_policy_must_be_allowed_to_read_its_params() {
    const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1";
    let cluster = Cluster::start().await;
    let admin = cluster.namespace("a").await;
    let plurals = ["validatingadmissionpolicies", "mutatingadmissionpolicies"];
    let bindings = plurals.map(|plural| plural.replace("policies", "policybindings"));
    let writes = json!({
        "verbs": ["create", "update", "patch", "get"], "apiGroups": ["admissionregistration.k8s.io"],
        "resources": [plurals[0], plurals[1], bindings[0], bindings[1]],
    });
    let one =
        json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["known"]});
    admin.post(&format!("{ROLES}/clusterroles"), role("author", &json!([writes, one]))).await.created();
    let author = binding("author", "ClusterRole", "author", &user("jane"));
    admin.post(&format!("{ROLES}/clusterrolebindings"), author).await.created();
    let reads = json!([{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["configmaps"]}]);
    admin.post(&format!("{ROLES}/clusterroles"), role("reader", &reads)).await.created();
    let reader = binding("reader", "ClusterRole", "reader", &user("jane"));
    admin.post(&format!("{ROLES}/clusterrolebindings"), reader).await.created();
    settle(&admin).await;
    let jane = cluster.client("jane", &["devs"]);

    for (plural, bindings) in plurals.iter().zip(&bindings) {
        let kind =
            if plural.starts_with('v') { "ValidatingAdmissionPolicy" } else { "MutatingAdmissionPolicy" };
        let policy = |name: &str, params: &str| {
            let apply =
                json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{}"}});
            let mut spec = json!({
                "paramKind": {"apiVersion": "v1", "kind": params},
                "matchConstraints": {"resourceRules": [{
                    "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"],
                }]},
            });
            if plural.starts_with('v') {
                spec["validations"] = json!([{"expression": "true"}]);
            } else {
                spec["reinvocationPolicy"] = "Never".into();
                spec["mutations"] = json!([apply]);
            }
            json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
        };
        let url = format!("{GROUP}/{plural}");
        assert_eq!(
            jane.post(&url, policy("p", "Secret")).await.refused(422, "Invalid"),
            format!(
                "{kind}.admissionregistration.k8s.io \"p\" is invalid: spec.paramKind: Forbidden: user &{{jane  [devs system:authenticated] map[]}} must have \"get\" permission on all objects of the referenced paramKind (kind=Secret, apiVersion=v1)"
            )
        );
        // Of what is not known, everything must be readable.
        jane.post(&url, policy("p", "Nothing")).await.refused(422, "Invalid");
        jane.post(&url, policy("p", "ConfigMap")).await.created();
        let secrets = json!({"spec": {"paramKind": {"kind": "Secret"}}});
        jane.patch(&format!("{url}/p"), "merge", secrets.clone()).await.refused(422, "Invalid");
        admin.patch(&format!("{url}/p"), "merge", secrets).await.ok();
        // What another wrote may stay.
        jane.patch(&format!("{url}/p"), "merge", json!({"spec": {"failurePolicy": "Ignore"}})).await.ok();

        let bound = |name: &str, policy: &str, params: Value| {
            let mut spec = json!({"policyName": policy, "paramRef": params});
            if plural.starts_with('v') {
                spec["validationActions"] = json!(["Deny"]);
            }
            spec["paramRef"]["parameterNotFoundAction"] = "Deny".into();
            json!({
                "apiVersion": "admissionregistration.k8s.io/v1", "kind": format!("{kind}Binding"),
                "metadata": {"name": name}, "spec": spec,
            })
        };
        let url = format!("{GROUP}/{bindings}");
        let secret = json!({"name": "secret", "namespace": "a"});
        assert_eq!(
            jane.post(&url, bound("b", "p", secret.clone())).await.refused(422, "Invalid"),
            format!(
                "{kind}Binding.admissionregistration.k8s.io \"b\" is invalid: spec.paramRef: Forbidden: user &{{jane  [devs system:authenticated] map[]}} does not have \"get\" permission on the object referenced by paramRef"
            )
        );
        let all = bound("b", "p", json!({"selector": {}}));
        let why = jane.post(&url, all).await.refused(422, "Invalid");
        assert!(why.contains("does not have \"list\" permission on the object"), "{why}");
        let of_none = bound("b", "none", json!({"name": "known", "namespace": "a"}));
        let why = jane.post(&url, of_none).await.refused(422, "Invalid");
        assert!(why.contains("unable to get policy none to determine minimum required permissions"), "{why}");
        jane.post(&url, bound("b", "p", json!({"name": "known", "namespace": "a"}))).await.created();
        let other = json!({"spec": {"paramRef": {"name": "secret"}}});
        jane.patch(&format!("{url}/b"), "merge", other.clone()).await.refused(422, "Invalid");
        admin.patch(&format!("{url}/b"), "merge", other).await.ok();
        jane.patch(&format!("{url}/b"), "merge", json!({"metadata": {"labels": {"a": "b"}}})).await.ok();
    }
}
