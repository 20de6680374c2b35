//! containerd: its configuration, and images that are there before a clock starts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use super::programs::Programs;
use super::space::Space;
use crate::command::output;
use crate::fixtures::{Image, Served, archive};

/// Within the namespaces.
pub(super) const SOCKET: &str = "/run/containerd/containerd.sock";
const PAUSE: &str = "docker.io/skiff/pause:1";
/// The image that pods run, which Skiff's side takes from the registry by the same name.
const IMAGES: [(&str, &str); 2] = [("library/busybox:1.36", "busybox"), ("skiff/pause:1", "pause")];
const START_TIMEOUT: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// An oom_score_adj cannot be lowered on every machine, and runc fails then.
pub(super) fn configuration(programs: &Programs, dir: &Path) -> Result<PathBuf> {
    let path = dir.join("containerd.toml");
    let text = format!(
        r#"version = 2
root = "{root}"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni}"
conf_dir = "{dir}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#,
        root = dir.join("containerd").display(),
        cni = programs.debian().join("usr/lib/cni").display(),
        dir = dir.display(),
    );
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    let network = json!({"cniVersion": "1.0.0", "name": "peers", "plugins": [{
        "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": super::parts::NODE_POD_CIDR}]],
            "routes": [{"dst": "0.0.0.0/0"}]},
    }]});
    fs::create_dir_all(dir.join("cni"))?;
    fs::write(dir.join("cni/10-peers.conflist"), network.to_string())?;
    Ok(path)
}

/// A data folder of containerd that has the images and nothing else; made once.
pub(super) fn images(programs: &Programs, served: &Served) -> Result<PathBuf> {
    let ready = programs.dir.join("containerd");
    if ready.exists() {
        return Ok(ready);
    }
    programs.require("pause")?;
    let dir = programs.dir.join("images");
    let tree = dir.join("pause.tree");
    fs::create_dir_all(&tree).with_context(|| format!("creating {}", tree.display()))?;
    fs::copy(programs.path("pause"), tree.join("pause"))?;
    let layer = archive(&tree, &dir.join("pause.layer.tar"))?;
    Image::linux(&[&layer], json!({"Entrypoint": ["/pause"]})).push(
        &dir,
        &served.address,
        "skiff/pause",
        "1",
    )?;
    let mut space = Space::make(programs, &super::run_dir()?)?;
    let imported = import(programs, served, &dir, &space);
    let built = space.dir.join("containerd");
    let kept = imported.and_then(|()| copy(&built, &ready.with_extension("partial")));
    space.undo()?;
    kept?;
    fs::rename(ready.with_extension("partial"), &ready).context("naming containerd's images")?;
    Ok(ready)
}

fn import(programs: &Programs, served: &Served, dir: &Path, space: &Space) -> Result<()> {
    let configuration = configuration(programs, &space.dir)?;
    let arguments = arguments(&configuration);
    let containerd = space.start("containerd", &programs.path("containerd"), &arguments)?;
    let end = Instant::now() + START_TIMEOUT;
    while !space.path(SOCKET).exists() {
        if Instant::now() > end {
            bail!("containerd has not started:\n{}", space.log_end("containerd"));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    for (name, file) in IMAGES {
        let file = dir.join(format!("{file}.tar"));
        if file.exists() {
            fs::remove_file(&file)?;
        }
        output(
            Command::new("skopeo")
                .args(["--insecure-policy", "copy", "--src-tls-verify=false"])
                .arg(format!("docker://{}/{name}", served.address))
                .arg(format!("docker-archive:{}:docker.io/{name}", file.display())),
        )?;
        let mut import = space.enter(&programs.debian().join("usr/bin/ctr"));
        output(import.args(["-n", "k8s.io", "images", "import"]).arg(&file))?;
    }
    containerd.end()
}

pub(super) fn arguments(configuration: &Path) -> Vec<String> {
    let path = configuration.to_string_lossy().into_owned();
    ["--config", &path, "--log-level", "warn"].map(str::to_owned).to_vec()
}

/// Gives a new cluster its own copy.
pub(super) fn use_images(images: &Path, dir: &Path) -> Result<()> {
    copy(images, &dir.join("containerd"))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("removing {}", to.display()))?;
    }
    output(Command::new("cp").arg("-a").arg(from).arg(to)).map(drop)
}
