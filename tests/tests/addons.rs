//! Stories of add-ons that run in the cluster they serve: webhooks of a pod's own, and a stock metrics-server.
//!
//! `cargo xtask test` builds their programs (`tests/clients`) and serves their images.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use skiff_tests::{TestCluster, has};

const NOTARY: &str = "tests/addons/notary.yaml";
const METRICS_SERVER: &str = "tests/addons/metrics-server.yaml";

fn deed(version: &str, name: &str, parties: &str) -> String {
    format!(
        "apiVersion: notary.example.com/{version}\nkind: Deed\nmetadata:\n  name: {name}\nspec:\n  parties: {parties}\n"
    )
}

#[test]
fn webhooks_of_a_pod_mutate_validate_and_convert_and_are_missed_when_it_is_gone() -> Result<()> {
    let cluster = TestCluster::start("addon-notary")?;
    cluster.kubectl(&["apply", "-f", NOTARY])?;
    // The program tells the cluster of its authority before it is ready, as those do that bring an authority of their own.
    cluster.kubectl(&["-n", "notary", "rollout", "status", "deployment/notary", "--timeout=60s"])?;

    let made = cluster
        .wait_for("a deed to be signed", || Ok(cluster.apply_text(&deed("v1", "sale", "[ann, bob]")).ok()))?;
    has(&made, &["deed.notary.example.com/sale created"])?;
    let sale = cluster.get(&["deed", "sale"])?;
    ensure!(sale["spec"]["signedBy"].as_str().is_some_and(|name| !name.is_empty()), "{sale}");

    // The older version is converted on the way in and out.
    cluster.apply_text(&deed("v1alpha1", "lease", "\"carl, dora\""))?;
    let stored = cluster.get(&["deeds.v1.notary.example.com", "lease"])?;
    ensure!(stored["spec"]["parties"] == serde_json::json!(["carl", "dora"]), "{stored}");
    let older = cluster.get(&["deeds.v1alpha1.notary.example.com"])?;
    let parties: Vec<&Value> =
        older["items"].as_array().context("no items")?.iter().map(|item| &item["spec"]["parties"]).collect();
    ensure!(parties == ["carl, dora", "ann, bob"], "{older}");

    let refused = cluster.apply_text_fails(&deed("v1", "alone", "[ann]"))?;
    let message = "admission webhook \"validate.notary.example.com\" denied the request: a deed wants two parties, not 1";
    has(&refused, &["Error from server: error when creating", message])?;
    let warned = cluster
        .kubectl_command(&[
            "patch",
            "deed",
            "sale",
            "--type=merge",
            "-p",
            r#"{"spec":{"parties":["a","b","c"]}}"#,
        ])
        .output()?;
    ensure!(warned.status.success(), "{warned:?}");
    has(&String::from_utf8_lossy(&warned.stderr), &["Warning: more than two parties are unusual"])?;

    // Nobody answers: what must be asked about is refused, and all else goes on.
    cluster.kubectl(&["-n", "notary", "scale", "deployment/notary", "--replicas=0"])?;
    cluster.kubectl(&["-n", "notary", "wait", "--for=delete", "pod", "-l", "app=notary", "--timeout=60s"])?;
    let refused = cluster.apply_text_fails(&deed("v1", "late", "[ann, bob]"))?;
    has(
        &refused,
        &[
            "failed calling webhook \"mutate.notary.example.com\"",
            "https://notary.notary.svc:443/mutate?timeout=10s",
        ],
    )?;
    cluster.kubectl(&["create", "configmap", "other"])?;
    has(&cluster.kubectl(&["get", "deeds.v1.notary.example.com"])?, &["sale", "lease"])?;
    let refused = cluster.kubectl_fails(&["get", "deeds.v1alpha1.notary.example.com"])?;
    has(&refused, &["conversion webhook for notary.example.com/v1, Kind=DeedList failed"])?;

    cluster.kubectl(&["-n", "notary", "scale", "deployment/notary", "--replicas=1"])?;
    cluster.kubectl(&["-n", "notary", "rollout", "status", "deployment/notary", "--timeout=60s"])?;
    cluster.wait_for("the webhooks to be back", || {
        Ok(cluster.apply_text(&deed("v1", "late", "[ann, bob]")).ok())
    })?;
    cluster.kubectl(&["delete", "configmap", "other"])?;
    cluster.kubectl(&["delete", "deeds", "--all"])?;
    cluster.kubectl(&["delete", "-f", NOTARY, "--timeout=60s"])?;
    cluster.stop()
}

#[test]
fn a_stock_metrics_server_reads_the_nodes_and_answers_kubectl_top() -> Result<()> {
    let cluster = TestCluster::start("addon-metrics")?;
    cluster.kubectl(&["apply", "-f", "../samples/mixed"])?;
    // The cluster's own answer until another server takes over, and again when that is gone.
    cluster.kubectl(&["top", "nodes"])?;
    cluster.kubectl(&["apply", "-f", METRICS_SERVER])?;
    let unavailable = cluster.get(&["apiservice", "v1beta1.metrics.k8s.io"])?;
    ensure!(unavailable["spec"]["service"]["name"] == "metrics-server", "{unavailable}");
    // It is ready when it has read every node.
    cluster.kubectl(&[
        "-n",
        "kube-system",
        "rollout",
        "status",
        "deployment/metrics-server",
        "--timeout=90s",
    ])?;
    cluster.kubectl(&[
        "wait",
        "--for=condition=Available",
        "apiservice/v1beta1.metrics.k8s.io",
        "--timeout=60s",
    ])?;
    has(&cluster.kubectl(&["api-resources", "--api-group=metrics.k8s.io"])?, &["NodeMetrics", "PodMetrics"])?;

    let nodes = cluster
        .wait_for("a figure of the node", || Ok(cluster.kubectl(&["top", "nodes", "--no-headers"]).ok()))?;
    let columns: Vec<&str> = nodes.split_whitespace().collect();
    ensure!(columns.len() == 5 && columns[1].ends_with('m') && columns[3].ends_with("Mi"), "{nodes}");
    // Two samples of each container, Linux and Wasm alike.
    let pods = cluster.wait_for("figures of all pods", || {
        let pods = cluster.kubectl(&["top", "pods", "--containers", "--no-headers"]).unwrap_or_default();
        let running = cluster.pods("")?.iter().map(|pod| pod.name.clone()).collect::<Vec<_>>();
        Ok(running.iter().all(|name| pods.contains(name.as_str())).then_some(pods))
    })?;
    for line in pods.lines() {
        let columns: Vec<&str> = line.split_whitespace().collect();
        ensure!(columns.len() == 4 && columns[3].ends_with("Mi"), "{line}");
    }
    cluster.kubectl(&["delete", "-f", METRICS_SERVER, "--timeout=60s"])?;
    cluster.wait_for("the cluster's own metrics", || {
        let own = cluster.kubectl(&["get", "apiservice", "v1beta1.metrics.k8s.io"]).unwrap_or_default();
        Ok((own.contains("Local") && cluster.kubectl(&["top", "nodes"]).is_ok()).then_some(()))
    })?;
    cluster.kubectl(&["delete", "-f", "../samples/mixed", "--timeout=60s"])?;
    cluster.stop()
}
