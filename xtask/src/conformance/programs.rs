//! Upstream's programs, built from the Go modules that `tests/conformance/go.mod` pins.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::command::{cache, on_path, output, root, run};

pub(super) struct Programs {
    /// Everything made for these pins.
    pub(super) dir: PathBuf,
    /// Where Go has unpacked `k8s.io/kubernetes`.
    pub(super) kubernetes: PathBuf,
}

/// The linker flag is upstream's own way to tell a program its version.
enum Kind {
    Program(&'static str),
    Test(&'static str),
}

const STAMP: &str = "k8s.io/component-base/version";
const KUBERNETES: &str = "k8s.io/kubernetes";
/// What agnhost says that it is.
const AGNHOST_VERSION: &str = "test/images/agnhost/VERSION";
const GO_PROGRAMS: [(&str, Kind); 6] = [
    ("agnhost", Kind::Program("k8s.io/kubernetes/test/images/agnhost")),
    ("ginkgo", Kind::Program("github.com/onsi/ginkgo/v2/ginkgo")),
    ("kubectl", Kind::Program("k8s.io/kubernetes/cmd/kubectl")),
    ("regression-issue-74839", Kind::Program("k8s.io/kubernetes/test/images/regression-issue-74839")),
    ("sample-apiserver", Kind::Program("k8s.io/sample-apiserver")),
    ("e2e.test", Kind::Test("k8s.io/kubernetes/test/e2e")),
];
/// Tests of CRI servers, of a module of their own: its dependencies are not those of the suite.
const CRITEST: &str = "sigs.k8s.io/cri-tools/cmd/critest";
/// Small enough to be our own; static, for images that hold nothing else.
const RUST_PROGRAMS: [&str; 2] = ["pause", "nonewprivs"];

impl Programs {
    pub(super) fn bin(&self) -> PathBuf {
        self.dir.join("bin")
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.bin().join(name)
    }
}

/// Upstream's command suite wants these two.
const KUBECTL_PROGRAMS: [(&str, Kind); 2] = [
    ("kubectl", Kind::Program("k8s.io/kubernetes/cmd/kubectl")),
    ("kubectl-convert", Kind::Program("k8s.io/kubernetes/cmd/kubectl-convert")),
];

/// Builds what is not there yet.
pub(super) fn build() -> Result<Programs> {
    let (programs, module, version) = place()?;
    let agnhost = programs.kubernetes.join(AGNHOST_VERSION);
    let agnhost = fs::read_to_string(&agnhost).with_context(|| format!("reading {}", agnhost.display()))?;
    let agnhost = format!("-X main.Version={}", agnhost.trim());
    for (name, kind) in &GO_PROGRAMS {
        once(&programs, name, |to| build_go(&module, &version, &agnhost, kind, to))?;
    }
    for name in RUST_PROGRAMS {
        once(&programs, name, |to| build_rust(&module, name, to))?;
    }
    Ok(programs)
}

/// Builds what upstream's command suite of kubectl needs, if it is not there yet.
pub(super) fn build_kubectl() -> Result<Programs> {
    let (programs, module, version) = place()?;
    for (name, kind) in &KUBECTL_PROGRAMS {
        once(&programs, name, |to| build_go(&module, &version, "", kind, to))?;
    }
    Ok(programs)
}

/// Where Go has unpacked `k8s.io/kubernetes`.
pub(super) fn sources() -> Result<PathBuf> {
    place().map(|(programs, ..)| programs.kubernetes)
}

/// Where the programs of these pins are, the module of the pins, and the version.
fn place() -> Result<(Programs, PathBuf, String)> {
    ensure!(on_path("go"), "go is not on PATH; install it as https://go.dev/doc/install says");
    let module = root().join("tests/conformance");
    let read = |name: &str| {
        let path = module.join(name);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let (pins, sums) = (read("go.mod")?, read("go.sum")?);
    let version =
        version(&pins, KUBERNETES).context("tests/conformance/go.mod requires no k8s.io/kubernetes")?;
    let digest = hex::encode(Sha256::new().chain_update(&pins).chain_update(&sums).finalize());
    let dir = cache()?.join("conformance").join(format!("{version}-{}", &digest[..8]));
    let download = go(&module).args(["mod", "download", "-json", "k8s.io/kubernetes"]).output()?;
    let place: serde_json::Value = serde_json::from_slice(&download.stdout)
        .with_context(|| format!("go mod download: {}", String::from_utf8_lossy(&download.stderr)))?;
    let kubernetes = place["Dir"].as_str().with_context(|| format!("go mod download: {place}"))?.into();
    let programs = Programs { dir, kubernetes };
    fs::create_dir_all(programs.bin()).with_context(|| format!("creating {}", programs.bin().display()))?;
    let version = version.to_owned();
    Ok((programs, module, version))
}

/// Builds the program that asks a CRI server whether it is one, if it is not there yet.
pub(super) fn build_critest(programs: &Programs) -> Result<PathBuf> {
    let module = root().join("tests/conformance/critest");
    let pins = fs::read_to_string(module.join("go.mod")).context("reading critest's go.mod")?;
    let version = version(&pins, "sigs.k8s.io/cri-tools").context("go.mod requires no cri-tools")?;
    let name = format!("critest-{version}");
    once(programs, &name, |to| build_go(&module, version, "", &Kind::Test(CRITEST), to))?;
    Ok(programs.path(&name))
}

fn version<'p>(pins: &'p str, module: &str) -> Option<&'p str> {
    pins.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_whitespace();
        (words.next() == Some(module)).then(|| words.next()).flatten()
    })
}

/// A program that is there is whole: it gets its name last.
fn once(programs: &Programs, name: &str, build: impl Fn(&Path) -> Result<()>) -> Result<()> {
    let path = programs.path(name);
    if path.exists() {
        return Ok(());
    }
    eprintln!("building {name}");
    let start = Instant::now();
    let partial = programs.path(&format!("{name}.partial"));
    build(&partial)?;
    fs::rename(&partial, &path).with_context(|| format!("naming {}", path.display()))?;
    eprintln!("built {name} in {} s", start.elapsed().as_secs());
    Ok(())
}

/// In the background of whatever else this machine builds.
fn go(module: &Path) -> Command {
    let mut go = Command::new("nice");
    go.args(["-n", "19", "go"]).current_dir(module);
    go.env("CGO_ENABLED", "0").env("GOFLAGS", "-buildvcs=false -mod=readonly -p=2");
    go
}

fn build_go(module: &Path, version: &str, flags: &str, kind: &Kind, to: &Path) -> Result<()> {
    let mut flags = format!("-s -w {flags} -X {STAMP}.gitVersion={version}");
    let mut numbers = version.trim_start_matches('v').split('.');
    for name in ["gitMajor", "gitMinor"] {
        flags += &format!(" -X {STAMP}.{name}={}", numbers.next().unwrap_or_default());
    }
    let (verbs, package): (&[&str], _) = match kind {
        Kind::Program(package) => (&["build"], package),
        // Vetting all of upstream takes as long as building it.
        Kind::Test(package) => (&["test", "-c", "-vet=off"], package),
    };
    run(go(module).args(verbs).args(["-trimpath", "-ldflags", &flags, "-o"]).arg(to).arg(package))
}

fn build_rust(module: &Path, name: &str, to: &Path) -> Result<()> {
    let source = module.join("programs").join(format!("{name}.rs"));
    let flags = ["--edition=2024", "-O", "-Ctarget-feature=+crt-static", "-Cpanic=abort", "-Cstrip=symbols"];
    output(Command::new("rustc").args(flags).arg("-o").arg(to).arg(source).current_dir(root())).map(drop)
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn the_version_is_the_one_go_mod_requires() {
        let pins = "require (\n\tk8s.io/kubelet v0.1.0\n\tk8s.io/kubernetes v1.36.3\n)\n";
        assert_eq!(version(pins, "k8s.io/kubernetes"), Some("v1.36.3"));
        assert_eq!(version("require k8s.io/kubernetes v1.2.3\n", "k8s.io/kubernetes"), Some("v1.2.3"));
        assert_eq!(version("module x\n", "x"), None);
    }
}
