use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::testing::{pod, typed};

fn environment_of(
    container: Value,
    sources: &EnvSources,
    services: &[Value],
) -> Result<Vec<(String, String)>, EnvError> {
    let pod = typed(pod("p", json!({ "containers": [container] })));
    let services: Vec<Service> =
        services.iter().map(|s| serde_json::from_value(s.clone()).unwrap()).collect();
    let services = service_environment(services.iter(), "default", true);
    let node_ips = ["10.0.0.1".parse().unwrap()];
    let allocatable = BTreeMap::from([("memory".to_owned(), Quantity("1Gi".to_owned()))]);
    let downward = Downward {
        pod: &pod,
        pod_ips: &["10.1.0.2".to_owned()],
        node_ips: &node_ips,
        allocatable: &allocatable,
    };
    environment(&crate::pod::containers(&pod)[0], sources, &downward, &services)
}

fn value<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a str> {
    env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

fn sources() -> EnvSources {
    let map: ConfigMap = serde_json::from_value(json!({ "data": { "a": "1", "b": "2" } })).unwrap();
    let secret: Secret = serde_json::from_value(json!({ "data": { "password": "cHc=" } })).unwrap();
    EnvSources {
        config_maps: HashMap::from([("map".to_owned(), Some(Arc::new(map))), ("none".to_owned(), None)]),
        secrets: HashMap::from([("secret".to_owned(), Some(Arc::new(secret)))]),
    }
}

#[test]
fn every_source_of_a_variable_is_read() {
    let container = json!({
        "name": "c",
        "resources": { "limits": { "cpu": "1500m" } },
        "envFrom": [{ "prefix": "P_", "configMapRef": { "name": "map" } }],
        "env": [
            { "name": "PLAIN", "value": "x" },
            { "name": "P_a", "value": "over" },
            { "name": "EXPANDED", "value": "$(PLAIN)-$(P_b)-$(KUBERNETES_SERVICE_HOST)-$(NONE)-$$(PLAIN)" },
            { "name": "KEY", "valueFrom": { "configMapKeyRef": { "name": "map", "key": "b" } } },
            { "name": "PASSWORD", "valueFrom": { "secretKeyRef": { "name": "secret", "key": "password" } } },
            { "name": "SKIPPED", "valueFrom": { "secretKeyRef": { "name": "secret", "key": "x", "optional": true } } },
            { "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
            { "name": "CPU", "valueFrom": { "resourceFieldRef": { "resource": "limits.cpu" } } },
            { "name": "MILLI", "valueFrom": { "resourceFieldRef": { "resource": "limits.cpu", "divisor": "1m" } } },
            { "name": "MEMORY", "valueFrom": { "resourceFieldRef": { "resource": "limits.memory", "divisor": "1Mi" } } },
        ],
    });
    let kubernetes = json!({ "metadata": { "name": "kubernetes", "namespace": "default" },
        "spec": { "clusterIP": "10.96.0.1", "ports": [{ "name": "https", "port": 443 }] } });
    let env = environment_of(container, &sources(), &[kubernetes]).unwrap();
    for (name, expected) in [
        ("P_a", "over"),
        ("P_b", "2"),
        ("EXPANDED", "x-2-10.96.0.1-$(NONE)-$(PLAIN)"),
        ("KEY", "2"),
        ("PASSWORD", "pw"),
        ("IP", "10.1.0.2"),
        ("CPU", "2"),
        ("MILLI", "1500"),
        ("MEMORY", "1024"),
        ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
        ("KUBERNETES_PORT_443_TCP", "tcp://10.96.0.1:443"),
        ("KUBERNETES_PORT_443_TCP_ADDR", "10.96.0.1"),
    ] {
        assert_eq!(value(&env, name), Some(expected), "{name}");
    }
    assert_eq!(value(&env, "SKIPPED"), None);
}

#[test]
fn missing_sources_are_named() {
    let of = |source: Value| {
        environment_of(json!({ "name": "c", "env": [{ "name": "X", "valueFrom": source }] }), &sources(), &[])
    };
    let error = |source: Value| of(source).unwrap_err().to_string();
    assert_eq!(
        error(json!({ "configMapKeyRef": { "name": "none", "key": "k" } })),
        "configmap \"none\" not found"
    );
    assert_eq!(
        error(json!({ "configMapKeyRef": { "name": "map", "key": "k" } })),
        "couldn't find key k in ConfigMap default/map"
    );
    assert_eq!(
        error(json!({ "secretKeyRef": { "name": "secret", "key": "k" } })),
        "couldn't find key k in Secret default/secret"
    );
}

#[test]
fn expansion_leaves_what_is_no_reference() {
    let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
    for (input, expected) in [
        ("$(A)", "1"),
        ("$$(A)", "$(A)"),
        ("$A", "$A"),
        ("$(A", "$(A"),
        ("a$", "a$"),
        ("$$", "$"),
        ("$(B)$(A)", "$(B)1"),
    ] {
        assert_eq!(expand(input, lookup), expected, "{input}");
    }
}

#[test]
fn the_downward_apis_maps_are_quoted() {
    let map = BTreeMap::from([("b".to_owned(), "say \"hi\"\n".to_owned()), ("a".to_owned(), "1".to_owned())]);
    assert_eq!(format_map(Some(&map)), "a=\"1\"\nb=\"say \\\"hi\\\"\\n\"");
}
