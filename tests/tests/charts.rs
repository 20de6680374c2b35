//! Twenty charts of the shapes that public charts have (`tests/charts`), by helm 3 and helm 4 in turns: each is installed, asked by its own
//! tests, upgraded, asked, rolled back, asked and removed, and leaves what its notes say and nothing else.
//!
//! They share one cluster, a few at a time, each in a namespace of its own; at the end the whole-cluster checker looks for what is left.
//! `SKIFF_TEST_CHARTS=blog,queue` runs those alone.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use skiff_tests::{TestCluster, has};

/// One of `tests/charts`. What it does is asked by tests of its own (`templates/`, run by `helm test`).
struct Chart {
    name: &'static str,
    /// The values of the upgrade.
    upgrade: &'static str,
    /// Values that are refused before anything is made, and a word of why.
    refused: Option<[&'static str; 2]>,
    /// What of it stays when its release is removed, as it would anywhere: in its namespace,
    kept: &'static [&'static str],
    /// and outside of it.
    kept_outside: &'static [&'static str],
}

const PLAIN: Chart = Chart { name: "", upgrade: "", refused: None, kept: &[], kept_outside: &[] };

const CHARTS: [Chart; 20] = [
    // Those that take longest begin first.
    Chart { name: "queue", upgrade: "cookie=second,replicas=4", ..PLAIN },
    Chart { name: "ingress", upgrade: "className=others", ..PLAIN },
    Chart { name: "proxy", upgrade: "header=second", ..PLAIN },
    Chart { name: "vault", upgrade: "audience=other", ..PLAIN },
    Chart { name: "migrations", upgrade: "version=2", ..PLAIN },
    Chart {
        name: "database",
        upgrade: "greeting=second,replicas=3",
        // Claims outlive their set, unless it says otherwise.
        kept: &[
            "persistentvolumeclaim/data-r-0",
            "persistentvolumeclaim/data-r-1",
            "persistentvolumeclaim/data-r-2",
        ],
        ..PLAIN
    },
    Chart { name: "tenant", upgrade: "memory=48Mi,pods=5", ..PLAIN },
    Chart { name: "cache", upgrade: "word=second", ..PLAIN },
    Chart {
        name: "operator",
        upgrade: "trees=5",
        // Helm never removes what is in a chart's crds/.
        kept_outside: &["crd/gardens.operator.charts.example.com"],
        ..PLAIN
    },
    Chart { name: "registry", upgrade: "users={ann,bob}", kept: &["persistentvolumeclaim/r"], ..PLAIN },
    Chart { name: "weather", upgrade: "sky=grey", ..PLAIN },
    Chart { name: "admission", upgrade: "forbidden=worse", ..PLAIN },
    Chart { name: "backup", upgrade: "keep=5", ..PLAIN },
    Chart {
        name: "monitoring",
        upgrade: "threshold=2",
        kept_outside: &[
            "crd/monitors.monitoring.charts.example.com",
            "crd/rules.monitoring.charts.example.com",
        ],
        ..PLAIN
    },
    Chart { name: "autoscaled", upgrade: "message=second", ..PLAIN },
    Chart { name: "blog", upgrade: "title=second", ..PLAIN },
    Chart {
        name: "platform",
        upgrade: "shop.enabled=true,global.owner=bob",
        refused: Some(["global.owner=", "minLength"]),
        ..PLAIN
    },
    Chart {
        name: "certificates",
        upgrade: "days=60",
        kept_outside: &["crd/papers.certificates.charts.example.com"],
        ..PLAIN
    },
    Chart { name: "exporter", upgrade: "port=9102", ..PLAIN },
    Chart { name: "wasm", upgrade: "greeting=second,replicas=3", ..PLAIN },
];

/// What every namespace has.
const USUAL: [&str; 2] = ["configmap/kube-root-ca.crt", "serviceaccount/default"];
/// How many charts are under way at a time.
const N_WORKERS: usize = 4;
const TIMEOUT: &str = "--timeout=120s";

/// A chart that is installed as `r` in the namespace that has its name.
struct Release<'c> {
    cluster: &'c TestCluster,
    chart: &'c Chart,
    helm: PathBuf,
    /// Where helm may write.
    home: tempfile::TempDir,
}

impl Release<'_> {
    fn output(&self, args: &[&str]) -> Result<Output> {
        let run = Command::new(&self.helm)
            .args(["--namespace", self.chart.name])
            .args(args)
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .env("HOME", self.home.path())
            .env_remove("HTTPS_PROXY")
            .env_remove("https_proxy")
            .output();
        run.with_context(|| format!("running {}", self.helm.display()))
    }

    fn helm(&self, args: &[&str]) -> Result<()> {
        let run = self.output(args)?;
        let (out, error) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        ensure!(run.status.success(), "helm {} failed: {error}\n{out}{}", args.join(" "), self.scene());
        Ok(())
    }

    fn kubectl(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["--namespace", self.chart.name];
        all.extend(args);
        self.cluster.kubectl(&all)
    }

    /// What there is to see when something went wrong.
    fn scene(&self) -> String {
        let mut scene = String::new();
        let pods = self.kubectl(&["get", "pods", "-o", "name"]).unwrap_or_default();
        for args in [
            ["get", "pods", "-o", "wide"],
            ["get", "events", "--sort-by=.metadata.creationTimestamp", "-o=wide"],
        ] {
            scene += &self.kubectl(&args).unwrap_or_else(|error| format!("{error:#}"));
        }
        for pod in pods.lines() {
            let log = self.kubectl(&["logs", pod, "--all-containers", "--tail=20"]).unwrap_or_default();
            _ = writeln!(scene, "--- {pod}\n{log}");
        }
        scene
    }

    /// What the chart's own tests say.
    fn is_well(&self, when: &str) -> Result<()> {
        self.helm(&["test", "r", TIMEOUT]).with_context(|| format!("after the {when}"))
    }

    fn run(&self) -> Result<()> {
        let path = PathBuf::from("charts").join(self.chart.name);
        let chart = path.to_str().context("a path of another encoding")?;
        self.cluster.kubectl(&["create", "namespace", self.chart.name])?;
        if let Some([values, why]) = self.chart.refused {
            let refused = self.output(&["install", "r", chart, "--set", values])?;
            ensure!(!refused.status.success(), "{values} was taken");
            has(&String::from_utf8_lossy(&refused.stderr), &[why])?;
        }
        self.helm(&["install", "r", chart, "--wait", TIMEOUT])?;
        self.is_well("installation")?;
        self.helm(&["upgrade", "r", chart, "--wait", TIMEOUT, "--set", self.chart.upgrade])?;
        self.is_well("upgrade")?;
        self.helm(&["rollback", "r", "1", "--wait", TIMEOUT])?;
        self.is_well("rollback")?;
        self.helm(&["uninstall", "r", "--wait", TIMEOUT])?;
        self.is_gone()?;
        for object in self.chart.kept_outside {
            self.cluster.kubectl(&["delete", object])?;
        }
        self.cluster.kubectl(&["delete", "namespace", self.chart.name, "--timeout=60s"])?;
        Ok(())
    }

    /// Nothing of the release is left but what it says that it keeps.
    fn is_gone(&self) -> Result<()> {
        let args = ["api-resources", "--namespaced", "--verbs=list,delete", "-o", "name"];
        let gone = self.cluster.wait_for("the release to be gone", || {
            // Kinds come and go with the other charts.
            let kinds = self.cluster.kubectl(&args)?;
            let kinds: Vec<&str> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
            let kinds = kinds.join(",");
            let left = self.kubectl(&["get", &kinds, "-o", "name"])?;
            let mut left: Vec<&str> = left.lines().filter(|line| !USUAL.contains(line)).collect();
            left.sort_unstable();
            ensure!(left == self.chart.kept, "left: {left:?}");
            Ok(Some(()))
        });
        gone.with_context(|| format!("kept should be {:?}", self.chart.kept))
    }
}

#[test]
fn charts_install_become_ready_upgrade_roll_back_and_go_without_a_trace() -> Result<()> {
    let clients = std::env::var_os("SKIFF_TEST_CLIENTS")
        .context("SKIFF_TEST_CLIENTS is not set; run the stories with: cargo xtask test")?;
    let chosen = std::env::var("SKIFF_TEST_CHARTS").unwrap_or_default();
    let chosen: Vec<&str> = chosen.split(',').filter(|name| !name.is_empty()).collect();
    if let Some(unknown) = chosen.iter().find(|name| CHARTS.iter().all(|chart| chart.name != **name)) {
        bail!("SKIFF_TEST_CHARTS names {unknown:?}, which is none of tests/charts");
    }
    let cluster = TestCluster::start("charts-story")?;
    let waiting = CHARTS.iter().enumerate();
    let waiting = waiting.filter(|(_, chart)| chosen.is_empty() || chosen.contains(&chart.name));
    let waiting = Mutex::new(waiting.collect::<Vec<_>>().into_iter());
    let failed = Mutex::new(Vec::new());
    let next = || waiting.lock().map_or(None, |mut charts| charts.next());
    let work = || {
        while let Some((at, chart)) = next() {
            let helm = PathBuf::from(&clients).join(["helm-4", "helm-3"][at % 2]);
            let began = Instant::now();
            let home = tempfile::tempdir();
            let ran = home
                .map_err(anyhow::Error::from)
                .and_then(|home| Release { cluster: &cluster, chart, helm, home }.run());
            eprintln!("{}: {:.0} s", chart.name, began.elapsed().as_secs_f64());
            if let (Err(error), Ok(mut failed)) = (ran, failed.lock()) {
                failed.push(format!("--- {}: {error:#}", chart.name));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..N_WORKERS {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner().unwrap_or_default();
    ensure!(failed.is_empty(), "{} charts failed\n{}", failed.len(), failed.join("\n"));
    cluster.stop()
}
