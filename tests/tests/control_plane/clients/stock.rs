//! Upstream's controller manager and scheduler, each controller under an account of its own and with authentication and
//! authorization delegated, stand by while Skiff's lead, take over when those end, and give back.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use serde_json::json;
use tokio::process::{Child, Command};

use super::{Stage, built, end, until_patiently};

/// What upstream's controllers are to do: one of each of what can be seen from outside.
const WORK: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: work}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: work}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: 'i:1'}]}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: work}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web, namespace: work}
spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: few, namespace: work}
spec: {hard: {configmaps: '10'}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: work}
spec:
  replicas: 2
  serviceName: db
  selector: {matchLabels: {app: db}}
  template: {metadata: {labels: {app: db}}, spec: {containers: [{name: c, image: 'i:1'}]}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: each, namespace: work}
spec:
  selector: {matchLabels: {app: each}}
  template: {metadata: {labels: {app: each}}, spec: {containers: [{name: c, image: 'i:1'}]}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: work}
spec:
  ttlSecondsAfterFinished: 3600
  template:
    metadata: {annotations: {hollow.skiff.dev/ends: Succeeded}}
    spec: {restartPolicy: Never, containers: [{name: c, image: 'i:1'}]}
";

const METRICS: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reads-metrics}
rules: [{nonResourceURLs: [/metrics], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reads-metrics}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reads-metrics}
subjects: [{kind: ServiceAccount, name: default, namespace: default}]
";

/// A program of upstream's, its log and where it listens.
struct Component {
    child: Child,
    log: PathBuf,
    port: u16,
}

impl Component {
    fn start(stage: &Stage, name: &str, args: &[&str]) -> Result<Component> {
        let kubeconfig = stage.access.kubeconfig(&format!("system:{name}"), &[])?.display().to_string();
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = stage.folder.path().join(format!("{name}.log"));
        let mut command = Command::new(built(name)?);
        command.args(["--bind-address=127.0.0.1", &format!("--secure-port={port}")]);
        for flag in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
            command.arg(format!("--{flag}={kubeconfig}"));
        }
        command.args(args).env("HOME", stage.folder.path()).env("HTTPS_PROXY", "").env("https_proxy", "");
        command.current_dir(stage.folder.path()).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(std::fs::File::create(&log)?).kill_on_drop(true).spawn()?;
        Ok(Component { child, log, port })
    }

    fn log(&self) -> Result<String> {
        std::fs::read_to_string(&self.log).with_context(|| format!("reading {}", self.log.display()))
    }

    /// The code that it answers a page with, to whom it may be.
    async fn page(&self, stage: &Stage, path: &str, token: Option<&str>) -> Result<String> {
        let url = format!("https://127.0.0.1:{}{path}", self.port);
        let header = format!("Authorization: Bearer {}", token.unwrap_or_default());
        let mut args = vec!["-sk", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code}", &url];
        if token.is_some() {
            args.extend(["-H", &header]);
        }
        stage.program("curl", &args).succeeds().await
    }

    /// Ends it; nothing may have been refused to it.
    async fn end(self) -> Result<()> {
        let log = self.log()?;
        end(self.child).await?;
        let refused: Vec<&str> = log.lines().filter(|line| line.contains("forbidden: User")).collect();
        ensure!(refused.is_empty(), "upstream's lacks rights:\n{}", refused.join("\n"));
        Ok(())
    }
}

async fn holder(stage: &Stage, lease: &str) -> Result<String> {
    let spec = stage.plane.api_in::<Lease>("kube-system").get(lease).await?.spec;
    Ok(spec.and_then(|spec| spec.holder_identity).unwrap_or_default())
}

const BOTH: [&str; 2] = ["kube-controller-manager", "kube-scheduler"];

/// Waits until Skiff's lead, or others do.
async fn led_by(stage: &Stage, is_skiff: bool) -> Result<()> {
    for lease in BOTH {
        until_patiently(&format!("another holder of {lease}"), async || {
            let holder = holder(stage, lease).await?;
            Ok((!holder.is_empty() && (holder == "n1_1") == is_skiff).then_some(()))
        })
        .await?;
    }
    Ok(())
}

async fn rolled_out(stage: &Stage, what: &str, replicas: u32) -> Result<()> {
    stage.kubectl(&["-n", "work", "scale", what, &format!("--replicas={replicas}")]).succeeds().await?;
    stage.kubectl(&["-n", "work", "rollout", "status", what, "--timeout=90s"]).succeeds().await?;
    let ready =
        stage.kubectl(&["-n", "work", "get", what, "-o=jsonpath={.status.readyReplicas}"]).succeeds().await?;
    ensure!(ready == replicas.to_string(), "{ready} of {replicas}");
    Ok(())
}

async fn work(stage: &Stage) -> Result<()> {
    let wait = |what: &'static str, condition: &'static str| {
        stage.kubectl(&["-n", "work", "wait", what, "--for", condition, "--timeout=90s"]).succeeds()
    };
    stage.kubectl(&["apply", "-f", "-"]).input(WORK).succeeds().await?;
    for what in ["deployment/web", "statefulset/db", "daemonset/each"] {
        stage.kubectl(&["-n", "work", "rollout", "status", what, "--timeout=90s"]).succeeds().await?;
    }
    wait("job/once", "condition=Complete").await?;
    wait("pdb/web", "jsonpath={.status.disruptionsAllowed}=1").await?;
    wait("resourcequota/few", "jsonpath={.status.used.configmaps}=1").await?;
    let slices =
        ["-n", "work", "get", "endpointslices", "-o=jsonpath={.items[*].endpoints[*].conditions.ready}"];
    until_patiently("endpoints of both pods", async || {
        Ok((stage.kubectl(&slices).succeeds().await? == "true true").then_some(()))
    })
    .await?;
    rolled_out(stage, "deployment/web", 3).await?;
    // What it owns goes first.
    let foreground = ["-n", "work", "delete", "statefulset/db", "--cascade=foreground", "--timeout=90s"];
    stage.kubectl(&foreground).succeeds().await?;
    let left = stage.get(&["pods", "-n", "work", "-l", "app=db"]).await?;
    ensure!(left["items"] == json!([]), "{left}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn upstreams_controllers_and_scheduler_stand_by_take_over_and_give_back() -> Result<()> {
    let mut stage = Stage::set().await?;
    led_by(&stage, true).await?;
    let root = stage.folder.path().join("ca.crt");
    std::fs::write(&root, stage.access.ca_pem())?;
    let root = format!("--root-ca-file={}", root.display());
    let manager = ["--leader-elect", "--use-service-account-credentials", &root];
    let manager = Component::start(&stage, BOTH[0], &manager)?;
    let scheduler = Component::start(&stage, BOTH[1], &["--leader-elect"])?;

    // Who may see what of them is asked of the server.
    stage.kubectl(&["apply", "-f", "-"]).input(METRICS).succeeds().await?;
    let token = stage.kubectl(&["create", "token", "default"]).succeeds().await?;
    let other = stage.kubectl(&["create", "token", "default", "-n", "kube-system"]).succeeds().await?;
    for component in [&manager, &scheduler] {
        until_patiently("an answer", async || {
            Ok((component.page(&stage, "/healthz", None).await? == "200").then_some(()))
        })
        .await
        .with_context(|| component.log().unwrap_or_default())?;
        ensure!(component.page(&stage, "/metrics", Some(token.trim())).await? == "200");
        ensure!(component.page(&stage, "/metrics", Some(other.trim())).await? == "403");
        ensure!(component.page(&stage, "/metrics", Some("nobody")).await? == "401");
        ensure!(component.log()?.contains("Attempting to acquire leader lease"), "it leads at once");
    }

    stage.plane.stop_leading().await?;
    led_by(&stage, false).await?;
    work(&stage).await?;
    let accounts =
        stage.kubectl(&["-n", "kube-system", "get", "serviceaccounts", "-o=name"]).succeeds().await?;
    for account in ["deployment-controller", "job-controller", "generic-garbage-collector", "node-controller"]
    {
        ensure!(accounts.contains(account), "{account} has no account: {accounts}");
    }

    // And back.
    manager.end().await?;
    scheduler.end().await?;
    stage.plane.lead();
    led_by(&stage, true).await?;
    rolled_out(&stage, "deployment/web", 5).await?;
    stage.kubectl(&["delete", "namespace", "work", "--timeout=90s"]).succeeds().await?;
    stage.clear().await
}
