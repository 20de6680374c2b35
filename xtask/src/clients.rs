//! `cargo xtask clients`: stock clients for the stories of `tests/tests/control_plane/clients`, built from the Go modules that
//! `tests/clients` pins, once a version, below the cache. Our own programs there are built each time.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::command::{cache, on_path, root, run};
use crate::fixtures;
use crate::peers::Programs;

/// The programs of others, and their packages.
const PINNED: [(&str, &str); 2] =
    [("helm-3", "helm.sh/helm/v3/cmd/helm"), ("helm-4", "helm.sh/helm/v4/cmd/helm")];
/// Those that benches measure against, which are built for both.
const PEERS: [&str; 2] = ["kube-controller-manager", "kube-scheduler"];
/// Folders of ours.
const OURS: [&str; 2] = ["operator", "notary"];
/// A program of others in a module of its own: its dependencies are not those of the others.
const METRICS_SERVER: &str = "sigs.k8s.io/metrics-server";

/// Builds what is not there; answers the folder of all of them.
pub(crate) fn build() -> Result<PathBuf> {
    ensure!(on_path("go"), "go is not on PATH; install it as https://go.dev/doc/install says");
    let module = root().join("tests/clients");
    let mut digest = Sha256::new();
    for file in ["go.mod", "go.sum"] {
        let path = module.join(file);
        digest.update(fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
    }
    let bin = cache()?.join("clients").join(&hex::encode(digest.finalize())[..8]);
    fs::create_dir_all(&bin).with_context(|| format!("creating {}", bin.display()))?;
    for (name, package) in PINNED {
        if !bin.join(name).exists() {
            go(&module, &bin, name, package)?;
        }
    }
    let peers = Programs::open()?;
    for name in PEERS {
        peers.require(name)?;
        let link = bin.join(name);
        if !link.exists() {
            symlink(peers.path(name), &link).with_context(|| format!("linking {}", link.display()))?;
        }
    }
    for name in OURS {
        go(&module, &bin, name, &format!("./{name}"))?;
    }
    fixtures::program(&bin.join("notary"), "skiff/notary", "v1")?;
    metrics_server()?;
    Ok(bin)
}

/// Its image has upstream's name.
fn metrics_server() -> Result<()> {
    let module = root().join("tests/clients/metrics-server");
    let pins = module.join("go.mod");
    let text = fs::read_to_string(&pins).with_context(|| format!("reading {}", pins.display()))?;
    let version = text.lines().find_map(|line| line.strip_prefix(&format!("require {METRICS_SERVER} ")));
    let version = version.with_context(|| format!("{} requires no {METRICS_SERVER}", pins.display()))?;
    let bin = cache()?.join("clients").join(format!("metrics-server-{version}"));
    fs::create_dir_all(&bin).with_context(|| format!("creating {}", bin.display()))?;
    let built = bin.join("metrics-server");
    if !built.exists() {
        go(&module, &bin, "metrics-server", &format!("{METRICS_SERVER}/cmd/metrics-server"))?;
    }
    fixtures::program(&built, "metrics-server/metrics-server", version)
}

/// In the background of whatever else this machine builds. What has its name is whole.
fn go(module: &Path, bin: &Path, name: &str, package: &str) -> Result<()> {
    eprintln!("building {name}");
    let start = Instant::now();
    let (path, partial) = (bin.join(name), bin.join(format!("{name}.partial")));
    let mut go = Command::new("nice");
    go.args(["-n", "19", "go", "build", "-trimpath", "-ldflags", "-s -w", "-o"]).arg(&partial).arg(package);
    go.env("CGO_ENABLED", "0").env("GOFLAGS", "-buildvcs=false -mod=readonly -p=2");
    run(go.current_dir(module))?;
    fs::rename(&partial, &path).with_context(|| format!("naming {}", path.display()))?;
    eprintln!("built {name} in {} s", start.elapsed().as_secs());
    Ok(())
}
