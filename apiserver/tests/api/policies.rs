//! Admission policies: what they refuse, warn of and change, and what is told of them.

use serde_json::{Value, json};

use crate::custom::{DEFINITIONS, FOOS, definition, establish, foo, until};
use crate::fixture::{Client, Cluster, config_map};

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
