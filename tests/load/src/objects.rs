//! What is created on servers.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::client::Connection;

/// Stands in an object for the name that each copy gets.
pub const NAME: &str = "@name@";
/// In every pod of [`stored_pod`] once, so that a list can be counted without being parsed.
pub const MARK: &str = "skiff-load-counts-this";
/// Nodes that are only objects.
pub const FAKE_NODE: &str = "skiff-load/fake-node";
const ZONES: usize = 10;

/// An object to be sent many times under different names.
pub struct Template {
    parts: Vec<String>,
}

impl Template {
    pub fn new(object: &Value) -> Template {
        Template { parts: object.to_string().split(NAME).map(str::to_owned).collect() }
    }

    pub fn named(&self, name: &str) -> Bytes {
        self.parts.join(name).into()
    }
}

/// Makes a namespace whose pods can be made at once: where no controller runs, nobody else makes its account.
pub async fn namespace(connection: &Connection, name: &str) -> Result<()> {
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    connection.ensure("/api/v1/namespaces", &object).await?;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    connection.ensure(&format!("/api/v1/namespaces/{name}/serviceaccounts"), &account).await
}

pub fn pods_path(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

/// A pod as a Deployment of two containers would have it, about 3 kB; nobody schedules it.
pub fn stored_pod() -> Template {
    stored(&[("server", 8080), ("proxy", 9090)])
}

/// One of ten such containers, about 12 kB.
pub fn large_pod() -> Template {
    let names = ["server", "proxy", "cache", "queue", "search", "mail", "sync", "index", "audit", "agent"];
    let containers: Vec<(&str, u16)> = names.into_iter().zip(8080..).collect();
    stored(&containers)
}

fn stored(containers: &[(&str, u16)]) -> Template {
    let container = |(name, port): &(&str, u16)| {
        json!({
            "name": name, "image": format!("registry.example.com/shop/{name}:1.2.3"), "imagePullPolicy": "IfNotPresent",
            "command": ["/bin/server", "--listen", format!("0.0.0.0:{port}"), "--config", "/etc/config/server.yaml"],
            "ports": [{"name": "http", "containerPort": port, "protocol": "TCP"}],
            "env": [
                {"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}},
                {"name": "LOG_LEVEL", "value": "info"},
                {"name": "DATABASE", "value": "postgres.databases.svc.cluster.local:5432"},
            ],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "500m", "memory": "256Mi"}},
            "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 10},
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 5},
            "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "runAsNonRoot": true, "runAsUser": 1000, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "config", "mountPath": "/etc/config", "readOnly": true},
                {"name": "scratch", "mountPath": "/tmp"}],
        })
    };
    Template::new(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": NAME,
            "labels": {"app.kubernetes.io/name": "server", "app.kubernetes.io/instance": "server-production",
                "app.kubernetes.io/version": "1.2.3", "app.kubernetes.io/part-of": "shop", "pod-template-hash": "7d9c5b8f6d"},
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "8080",
                "example.com/commit": "0123456789abcdef0123456789abcdef01234567", "example.com/mark": MARK},
        },
        "spec": {
            "schedulerName": "nobody", "terminationGracePeriodSeconds": 30, "automountServiceAccountToken": false,
            "containers": containers.iter().map(container).collect::<Vec<Value>>(),
            "volumes": [{"name": "config", "configMap": {"name": "server-config"}}, {"name": "scratch", "emptyDir": {}}],
        },
    }))
}

/// What the scheduler is asked to respect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Placement {
    Basic,
    Spread,
    Affinity,
    AntiAffinity,
}

/// A small pod for fake nodes only: a side that has a real node must not start it there. It tolerates every taint, since
/// a node life cycle would taint nodes that do not report.
pub fn scheduled_pod(placement: Placement, app: &str) -> Template {
    let mut spec = json!({
        "nodeSelector": {FAKE_NODE: "true"}, "tolerations": [{"operator": "Exists"}],
        "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "registry.example.com/none:1",
            "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}}}],
    });
    let selector = json!({"matchLabels": {"app": app}});
    let term = |topology: &str| json!([{"labelSelector": selector, "topologyKey": topology}]);
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    match placement {
        Placement::Basic => {}
        Placement::Spread => {
            spec["topologySpreadConstraints"] = json!([{"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector}]);
        }
        Placement::Affinity => {
            spec["affinity"] = json!({"podAffinity": {required: term("topology.kubernetes.io/zone")}});
        }
        Placement::AntiAffinity => {
            spec["affinity"] = json!({"podAntiAffinity": {required: term("kubernetes.io/hostname")}});
        }
    }
    Template::new(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME, "labels": {"app": app}}, "spec": spec,
    }))
}

/// One container that waits and ends when it is told to.
pub fn running_pod(image: &str) -> Template {
    Template::new(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME},
        "spec": {
            "automountServiceAccountToken": false, "enableServiceLinks": false, "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": image, "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", "trap exit TERM; sleep 3600 & wait"]}],
        },
    }))
}

/// A pod of an image that needs no command, such as a Wasm component.
pub fn serving_pod(image: &str) -> Template {
    Template::new(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME},
        "spec": {
            "automountServiceAccountToken": false, "enableServiceLinks": false, "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": image, "imagePullPolicy": "IfNotPresent",
                "ports": [{"containerPort": 80}]}],
        },
    }))
}

/// A node that nobody runs, Ready when it is made. It has a range of pod addresses already: a cluster's own range is not
/// made for thousands of nodes, and giving them away is not what is measured.
pub fn fake_node(number: usize) -> Value {
    let name = format!("fake-{number}");
    let range = format!("100.{}.{}.0/24", 64 + number / 256 % 64, number % 256);
    let room = json!({"cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "500Gi"});
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
            "topology.kubernetes.io/zone": format!("zone-{}", number % ZONES),
            "topology.kubernetes.io/region": "region", FAKE_NODE: "true",
        }},
        "spec": {"podCIDR": range, "podCIDRs": [range]},
        "status": {"capacity": room, "allocatable": room, "conditions": [
            {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status"}]},
    })
}

pub fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"ports": [{"name": "p", "port": 80, "protocol": "TCP"}]},
    })
}

/// The endpoints of a Service without a selector.
pub fn slice(service: &str, address: &str, port: u16) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "p", "port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
    })
}

pub fn text(value: &Value, what: &str) -> Result<String> {
    Ok(value.as_str().with_context(|| format!("there is no {what}"))?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(template: &Template, name: &str) -> Value {
        serde_json::from_slice(&template.named(name)).expect("it is JSON")
    }

    #[test]
    fn a_copy_has_its_own_name_and_the_mark_once() {
        let body = stored_pod().named("pod-7");
        let text = String::from_utf8(body.to_vec()).expect("it is text");
        assert_eq!(text.matches(MARK).count(), 1);
        assert!((2_500..4_000).contains(&text.len()), "{} bytes", text.len());
        let large = large_pod().named("pod-7");
        assert!((11_000..14_000).contains(&large.len()), "{} bytes", large.len());
        assert_eq!(parsed(&stored_pod(), "pod-7")["metadata"]["name"], "pod-7");
    }

    #[test]
    fn placements_differ_only_in_what_they_ask_for() {
        let basic = parsed(&scheduled_pod(Placement::Basic, "a"), "p");
        let anti = parsed(&scheduled_pod(Placement::AntiAffinity, "a"), "p");
        assert!(basic["spec"]["affinity"].is_null());
        let term =
            &anti["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0];
        assert_eq!(term["topologyKey"], "kubernetes.io/hostname");
        assert_eq!(term["labelSelector"]["matchLabels"]["app"], basic["metadata"]["labels"]["app"]);
    }

    #[test]
    fn fake_nodes_fill_the_zones_evenly() {
        let zone = |n| fake_node(n)["metadata"]["labels"]["topology.kubernetes.io/zone"].clone();
        assert_eq!(zone(3), zone(13));
        assert_ne!(zone(3), zone(4));
        assert_eq!(fake_node(300)["spec"]["podCIDR"], "100.65.44.0/24");
    }
}
