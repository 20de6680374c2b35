//! What is wrong with configurations, in upstream's words: those of `LoadAndValidateData` and of `BuiltInAuthorizationOptions`.

use std::path::Path;

use serde_json::{Value, json};

use super::*;

fn document(authorizers: &Value) -> String {
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration", "authorizers": authorizers,
    })
    .to_string()
}

fn webhook(file: &Path, more: &Value) -> Value {
    let mut webhook = json!({
        "timeout": "3s", "subjectAccessReviewVersion": "v1", "failurePolicy": "Deny",
        "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": file},
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        webhook[field] = value.clone();
    }
    json!({"type": "Webhook", "name": "judge", "webhook": webhook})
}

fn refused(text: &str) -> String {
    of_file(text.as_bytes(), &BTreeSet::new()).expect_err("it is wrong").to_string()
}

/// The error of a configuration with one webhook.
fn fault(more: &Value) -> String {
    let file = tempfile::NamedTempFile::new().expect("a file");
    refused(&document(&json!([webhook(file.path(), more)])))
}

#[test]
fn a_file_says_who_is_asked_in_which_order() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let more = json!({"authorizedTTL": "1m", "cacheUnauthorizedRequests": false});
    let authorizers = json!([
        {"type": "Node", "name": "node"}, webhook(file.path(), &more), {"type": "RBAC", "name": "rbac"},
    ]);
    let read = of_file(document(&authorizers).as_bytes(), &BTreeSet::new()).expect("a configuration");
    let [
        Configured::BuiltIn(BuiltIn::Node),
        Configured::Webhook(webhook),
        Configured::BuiltIn(BuiltIn::Rbac),
    ] = read.0.as_slice()
    else {
        panic!("{read:?}")
    };
    assert_eq!((webhook.name.as_str(), webhook.timeout), ("judge", Duration::from_secs(3)));
    assert_eq!((webhook.authorized_ttl, webhook.unauthorized_ttl), (Duration::from_secs(60), Duration::ZERO));
    assert_eq!((webhook.version, webhook.on_error), (Version::V1, Opinion::Deny));
    assert_eq!(webhook.kubeconfig.as_deref(), Some(file.path()));
}

#[test]
fn what_is_no_configuration_is_told() {
    let prefix = "failed to load AuthorizationConfiguration from file: ";
    for (text, why) in [
        ("kind: AuthorizationConfiguration", "Object 'apiVersion' is missing"),
        ("apiVersion: apiserver.config.k8s.io/v1", "Object 'Kind' is missing"),
        (
            "{apiVersion: apiserver.config.k8s.io/v1, kind: AuthorizationConfiguration, authorizer: []}",
            "strict decoding error: unknown field \"authorizer\"",
        ),
        (
            "{apiVersion: apiserver.config.k8s.io/v1, kind: AuthorizationConfiguration, authorizers: [{webhook: {ttl: 1}}]}",
            "strict decoding error: unknown field \"authorizers[0].webhook.ttl\"",
        ),
    ] {
        assert_eq!(refused(text), format!("{prefix}{why}"), "{text}");
    }
    let twice = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers: []\nauthorizers: []\n";
    for text in ["- a", "a: [", "other", twice, "apiVersion: a\nkind: b\n---\napiVersion: a\nkind: b\n"] {
        assert!(refused(text).starts_with(prefix), "{text}");
    }
    assert_eq!(refused(""), "authorizers: Required value: at least one authorization mode must be defined");
    let typed = refused(&document(&json!([{"type": "RBAC", "name": 1}])));
    assert!(typed.contains("cannot unmarshal number into authorizers[0].name"), "{typed}");
}

#[test]
fn what_is_wrong_with_authorizers_is_told_as_upstream_tells_it() {
    let of = |authorizers: Value| refused(&document(&authorizers));
    assert_eq!(of(json!([{"name": "a"}])), "authorizers[0].type: Required value");
    assert_eq!(
        of(json!([{"type": "ABAC", "name": "abac"}])),
        "authorizers[0].type: Unsupported value: \"ABAC\": supported values: \"AlwaysAllow\", \"AlwaysDeny\", \"Node\", \"RBAC\", \"Webhook\""
    );
    let twice = json!([{"type": "RBAC", "name": "rbac"}, {"type": "RBAC", "name": "rbac"}]);
    assert_eq!(of(twice), "authorizers[1].type: Duplicate value: \"RBAC\"");
    assert_eq!(
        of(json!([{"type": "RBAC", "name": "roles"}])),
        "expected name rbac for authorizer RBAC instead of roles"
    );
    assert_eq!(
        of(json!([{"type": "RBAC", "name": "rbac", "webhook": {}}])),
        "authorizers[0].webhook: Invalid value: \"non-null\": may only be specified when type=Webhook"
    );
    assert_eq!(
        of(json!([{"type": "Webhook", "name": "a"}])),
        "authorizers[0].webhook: Required value: required when type=Webhook"
    );
    let required = BTreeSet::from([BuiltIn::Rbac, BuiltIn::Node]);
    let only = document(&json!([{"type": "AlwaysAllow", "name": "alwaysallow"}]));
    let missing = of_file(only.as_bytes(), &required).expect_err("types are missing");
    assert_eq!(missing.to_string(), "missing required types: [Node RBAC]");
}

#[test]
fn what_is_wrong_with_a_webhook_is_told_as_upstream_tells_it() {
    for (more, why) in [
        (json!({"timeout": "0s"}), "timeout: Required value"),
        (json!({"timeout": "31s"}), "timeout: Invalid value: \"31s\": must be > 0s and <= 30s"),
        (json!({"timeout": "-1s"}), "timeout: Invalid value: \"-1s\": must be > 0s and <= 30s"),
        (json!({"authorizedTTL": "-5m"}), "authorizedTTL: Invalid value: \"-5m0s\": must be > 0s"),
        (json!({"subjectAccessReviewVersion": null}), "subjectAccessReviewVersion: Required value"),
        (
            json!({"failurePolicy": "Allow"}),
            "failurePolicy: Unsupported value: \"Allow\": supported values: \"NoOpinion\", \"Deny\"",
        ),
        (json!({"failurePolicy": null}), "failurePolicy: Required value"),
        (
            json!({"matchConditions": [{"expression": "true"}]}),
            "matchConditionSubjectAccessReviewVersion: Required value: required if match conditions are specified",
        ),
        (json!({"connectionInfo": {}}), "connectionInfo.type: Required value"),
        (
            json!({"connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": "a"}}),
            "connectionInfo.kubeConfigFile: Invalid value: \"a\": must be an absolute path",
        ),
        (
            json!({"connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": "/nowhere"}}),
            "connectionInfo.kubeConfigFile: Invalid value: \"/nowhere\": error loading file: stat /nowhere: no such file or directory",
        ),
        (
            json!({"connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": "/"}}),
            "connectionInfo.kubeConfigFile: Invalid value: \"/\": must be a regular file",
        ),
        (
            json!({"matchConditionSubjectAccessReviewVersion": "v1", "matchConditions": [{"expression": " "}]}),
            "matchConditions[0].expression: Required value",
        ),
        (
            json!({"matchConditionSubjectAccessReviewVersion": "v1", "matchConditions": [{"expression": "1"}]}),
            "matchConditions[0].expression: Invalid value: \"1\": must evaluate to bool but got int",
        ),
    ] {
        assert_eq!(fault(&more), format!("authorizers[0].{why}"), "{more}");
    }
    let in_cluster = json!({"connectionInfo": {"type": "InClusterConfig"}});
    let text = document(&json!([webhook(Path::new("/unused"), &in_cluster)]));
    let read = of_file(text.as_bytes(), &BTreeSet::new()).expect("a configuration");
    assert!(read.webhooks().expect_err("not built").to_string().contains("InClusterConfig is not built"));
}

#[test]
fn flags_make_the_same_and_are_refused_as_upstream_refuses_them() {
    let flags = |modes: &[&str], webhook: bool| AuthorizationModes {
        modes: modes.iter().map(|mode| (*mode).to_owned()).collect(),
        webhook_config: webhook.then(|| PathBuf::from("/kubeconfig")),
        ..AuthorizationModes::default()
    };
    let of = |modes: &[&str], webhook| of_modes(&flags(modes, webhook)).map_err(|error| error.to_string());
    assert_eq!(
        of(&["RBAC", "Node"], false),
        Ok(Configuration(vec![Configured::BuiltIn(BuiltIn::Rbac), Configured::BuiltIn(BuiltIn::Node)]))
    );
    let Ok(Configuration(all)) = of(&["Webhook"], true) else { panic!("a webhook") };
    let [Configured::Webhook(webhook)] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!(
        (webhook.name.as_str(), webhook.version, webhook.on_error),
        ("default", Version::V1beta1, Opinion::None)
    );
    for (modes, has_webhook, why) in [
        (&[][..], false, "at least one authorization-mode must be passed"),
        (&["ABAC"][..], false, "authorization-mode \"ABAC\" is not a valid mode"),
        (&["Webhook"][..], false, "authorization-mode Webhook's authorization config file not passed"),
        (&["RBAC"][..], true, "cannot specify --authorization-webhook-config-file without mode Webhook"),
        (
            &["RBAC", "RBAC"][..],
            false,
            "authorization-mode [\"RBAC\" \"RBAC\"] has mode specified more than once",
        ),
    ] {
        assert_eq!(of(modes, has_webhook), Err(why.to_owned()), "{modes:?}");
    }
    let version = AuthorizationModes { webhook_version: "v2".to_owned(), ..flags(&["Webhook"], true) };
    let why = of_modes(&version).expect_err("no such version").to_string();
    assert!(why.starts_with("unsupported webhook authorizer version \"v2\""), "{why}");

    let file = AuthorizationFlags { config: Some("/file".into()), ..AuthorizationFlags::default() };
    assert!(matches!(file.clone().options(), Ok(AuthorizationOptions::File(_))));
    let both = AuthorizationFlags { authorized_ttl: Some(Duration::ZERO), ..file };
    let why = "--authorization-config can not be specified when --authorization-mode or --authorization-webhook-* flags are defined";
    assert_eq!(both.options().expect_err("both").to_string(), why);
}
