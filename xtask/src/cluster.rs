//! `cargo xtask up` and `cargo xtask down`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::command::{cargo, output, program, root, run};
use crate::{fixtures, setup};

const NAME: &str = "skiff";
const TRIES: u32 = 60;

pub(crate) fn up(registries: Option<PathBuf>) -> Result<()> {
    setup::run()?;
    setup::kubectl()?;
    run(cargo().args(["build", "--release", "-p", "skiff"]))?;
    let registries = match registries {
        Some(path) => std::path::absolute(path)?,
        None => fixtures::run()?,
    };
    let skiff = program("release")?;
    run(Command::new(&skiff).args(["up", "--name", NAME, "--registries"]).arg(registries))?;
    let kubeconfig = crate::command::cache()?.join("kubeconfig");
    let text = output(Command::new(&skiff).args(["kubeconfig", "--name", NAME]))?;
    write_private(&kubeconfig, &text)?;
    let kubectl = |args: &[&str]| run(Command::new("kubectl").args(args).env("KUBECONFIG", &kubeconfig));
    let samples = root().join("samples/mixed");
    kubectl(&["apply", "-f", &samples.to_string_lossy()])?;
    kubectl(&["rollout", "status", "deployment/mixed-nginx", "--timeout=180s"])?;
    kubectl(&["rollout", "status", "deployment/mixed-wasm", "--timeout=180s"])?;
    kubectl(&["wait", "--for=condition=Ready", "pod/pair", "--timeout=180s"])?;
    let url = ask(&skiff)?;
    println!("mixed answers on {url} from nginx and from Wasm; next:");
    println!(
        "  export KUBECONFIG={}\n  kubectl get pods\n  kubectl logs pair -c side-car",
        kubeconfig.display()
    );
    Ok(())
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    Ok(file.write_all(text.as_bytes())?)
}

/// Asks the published address until both runtimes have answered.
fn ask(skiff: &Path) -> Result<String> {
    let (mut nginx, mut wasm, mut url) = (false, false, String::new());
    for _ in 0..TRIES {
        if let Ok(text) = output(Command::new(skiff).args(["service", "url", "mixed", "--name", NAME])) {
            text.trim().clone_into(&mut url);
            let answer = output(Command::new("curl").args(["-sS", "--max-time", "5", &url]));
            let answer = answer.unwrap_or_default().to_lowercase();
            nginx |= answer.contains("nginx");
            wasm |= answer.contains("wasm");
        }
        if nginx && wasm {
            return Ok(url);
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    bail!("Service mixed at {url:?} after {TRIES} tries: answered from nginx: {nginx}, from Wasm: {wasm}")
}

pub(crate) fn down() -> Result<()> {
    let built = [program("release")?, program("debug")?];
    if Path::new("/run/skiff/clusters").join(NAME).exists() {
        let Some(skiff) = built.iter().find(|path| path.exists()) else {
            bail!("the cluster {NAME} is there but no skiff is built to remove it")
        };
        run(Command::new(skiff).args(["down", "--name", NAME]))?;
    }
    let others = others();
    if others.is_empty() {
        fixtures::stop()?;
    } else {
        println!("other clusters go on, and the fixtures with them: {}", others.join(", "));
    }
    let mut left = left_over(&built);
    left.retain(|line| !others.iter().any(|name| is_of(line, name)));
    if left.is_empty() {
        println!("nothing is left");
        return Ok(());
    }
    bail!("left over:\n  {}", left.join("\n  "))
}

/// Clusters that someone else has started.
fn others() -> Vec<String> {
    let entries = std::fs::read_dir("/run/skiff/clusters").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).filter(|name| name != NAME).collect()
}

/// Whether something is another cluster's: its directories and groups have its name.
fn is_of(line: &str, name: &str) -> bool {
    let ends = |rest: &str| rest.is_empty() || rest == ".json" || rest.starts_with(['/', ' ']);
    [format!("/clusters/{name}"), format!("/skiff-{name}"), format!("--name {name}")]
        .iter()
        .any(|mark| line.split_once(mark.as_str()).is_some_and(|(_, rest)| ends(rest)))
}

fn left_over(built: &[PathBuf]) -> Vec<String> {
    let list = |dir: &str| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut left: Vec<String> = ["/run/skiff/clusters", "/var/lib/skiff/clusters"]
        .into_iter()
        .flat_map(list)
        .map(|path| format!("file {}", path.display()))
        .collect();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    left.extend(points.filter(|at| at.contains("/skiff/")).map(|at| format!("mount {at}")));
    let roots = list("/sys/fs/cgroup")
        .flat_map(|path| [path.clone()].into_iter().chain(list(&path.to_string_lossy())));
    let ours = roots
        .filter(|p| p.is_dir() && p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("skiff")));
    left.extend(ours.map(|path| format!("cgroup {}", path.display())));
    let tables = output(Command::new("nft").args(["list", "tables"])).unwrap_or_default();
    left.extend(tables.lines().filter(|line| line.contains(" skiff")).map(|line| format!("nft {line}")));
    let running =
        list("/proc").filter(|p| std::fs::read_link(p.join("exe")).is_ok_and(|exe| built.contains(&exe)));
    left.extend(running.map(|path| {
        let arguments = std::fs::read(path.join("cmdline")).unwrap_or_default();
        format!("process {} {}", path.display(), String::from_utf8_lossy(&arguments).replace('\0', " "))
    }));
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_another_cluster_is_known_by_its_whole_name() {
        for (line, is) in [
            ("file /run/skiff/clusters/a", true),
            ("mount /var/lib/skiff/clusters/a/oci/x", true),
            ("cgroup /sys/fs/cgroup/memory/skiff-a", true),
            ("process /proc/1 skiff forward --name a", true),
            ("file /var/lib/skiff/clusters/a.json", true),
            ("file /run/skiff/clusters/ab", false),
            ("cgroup /sys/fs/cgroup/skiff-ab", false),
            ("nft table ip skiff_pods", false),
        ] {
            assert_eq!(is_of(line, "a"), is, "{line}");
        }
    }
}
