//! Upstream's programs: built from the Go modules that `tests/peers` pins, from crates.io and from Debian.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::command::{cache, cargo, on_path, output, root, run};
use crate::fixtures::rootfs;

/// Where the programs of one set of pins are.
#[derive(Clone)]
pub(crate) struct Programs {
    pub(crate) dir: PathBuf,
    kubernetes: String,
    /// The file's name: another version, or one with other features, is another file.
    wasmtime: String,
}

enum Source {
    /// A folder of `tests/peers` and a package.
    Go(&'static str, &'static str),
    /// A folder of a Debian package's files.
    Debian,
    Wasmtime,
    Pause,
}

/// The linker flag is upstream's own way to tell a program its version.
const STAMP: &str = "k8s.io/component-base/version";
const MODULES: [&str; 3] = ["kubernetes", "etcd", "coredns"];
const PACKAGES: [&str; 2] = ["containerd", "containernetworking-plugins"];
/// What `wasmtime serve` needs, what makes it fast, and `wasmtime compile`, without which each of its processes would compile.
const WASMTIME_FEATURES: &str = "run,serve,compile,cranelift,component-model,component-model-async,parallel-compilation,\
                                 pooling-allocator,threads,gc,gc-drc,gc-null";

fn source(program: &str) -> Result<Source> {
    Ok(match program {
        "kube-apiserver" => Source::Go("kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver"),
        "kube-controller-manager" => {
            Source::Go("kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager")
        }
        "kube-scheduler" => Source::Go("kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler"),
        "kubelet" => Source::Go("kubernetes", "k8s.io/kubernetes/cmd/kubelet"),
        "kube-proxy" => Source::Go("kubernetes", "k8s.io/kubernetes/cmd/kube-proxy"),
        "etcd" => Source::Go("etcd", "go.etcd.io/etcd/server/v3"),
        "coredns" => Source::Go("coredns", "github.com/coredns/coredns"),
        "containerd" => Source::Debian,
        "wasmtime" => Source::Wasmtime,
        "pause" => Source::Pause,
        other => bail!("there is no peer {other:?}"),
    })
}

impl Programs {
    /// The place of the present pins; nothing is built yet.
    pub(crate) fn open() -> Result<Programs> {
        let mut digest = Sha256::new();
        for module in MODULES {
            digest.update(read_pins(module, "go.mod")?);
            digest.update(read_pins(module, "go.sum")?);
        }
        let pins = read_pins("kubernetes", "go.mod")?;
        let kubernetes = version(&pins, "k8s.io/kubernetes").context("no version of k8s.io/kubernetes")?;
        let digest = hex::encode(digest.finalize());
        let dir = cache()?.join("peers").join(format!("{kubernetes}-{}", &digest[..8]));
        let features = hex::encode(Sha256::digest(WASMTIME_FEATURES));
        let wasmtime = format!("wasmtime-{}-{}", wasmtime_version()?, &features[..8]);
        Ok(Programs { dir, kubernetes: kubernetes.to_owned(), wasmtime })
    }

    pub(crate) fn path(&self, program: &str) -> PathBuf {
        match program {
            "containerd" => self.debian().join("usr/bin/containerd"),
            "wasmtime" => self.dir.join("bin").join(&self.wasmtime),
            _ => self.dir.join("bin").join(program),
        }
    }

    /// The files of the Debian packages, which are not installed: their services are not for this machine.
    pub(super) fn debian(&self) -> PathBuf {
        self.dir.join("debian")
    }

    /// Builds a program unless it is there. One that is there is whole: it gets its name last.
    pub(crate) fn require(&self, program: &str) -> Result<()> {
        let path = self.path(program);
        if path.exists() {
            return Ok(());
        }
        let bin = self.dir.join("bin");
        fs::create_dir_all(&bin).with_context(|| format!("creating {}", bin.display()))?;
        let partial = bin.join(format!("{program}.partial"));
        eprintln!("building {program}");
        let start = Instant::now();
        match source(program)? {
            Source::Debian => return self.unpack(),
            Source::Go(module, package) => self.go(module, package, &partial)?,
            Source::Wasmtime => self.wasmtime(&partial)?,
            Source::Pause => pause(&partial)?,
        }
        fs::rename(&partial, &path).with_context(|| format!("naming {}", path.display()))?;
        eprintln!("built {program} in {} s", start.elapsed().as_secs());
        Ok(())
    }

    /// In the background of whatever else this machine builds.
    fn go(&self, module: &str, package: &str, to: &Path) -> Result<()> {
        ensure!(on_path("go"), "go is not on PATH; install it as https://go.dev/doc/install says");
        let mut flags = format!("-s -w -X {STAMP}.gitVersion={}", self.kubernetes);
        let mut numbers = self.kubernetes.trim_start_matches('v').split('.');
        for name in ["gitMajor", "gitMinor"] {
            flags += &format!(" -X {STAMP}.{name}={}", numbers.next().unwrap_or_default());
        }
        let mut go = Command::new("nice");
        go.args(["-n", "19", "go", "build", "-trimpath", "-ldflags", &flags, "-o"]).arg(to).arg(package);
        go.env("CGO_ENABLED", "0").env("GOFLAGS", "-buildvcs=false -mod=readonly -p=2");
        run(go.current_dir(pins(module)))
    }

    fn wasmtime(&self, to: &Path) -> Result<()> {
        let (root, target) = (self.dir.join("wasmtime"), self.dir.join("wasmtime.target"));
        let mut install = cargo();
        install.args([
            "install",
            "wasmtime-cli",
            "--locked",
            "--no-default-features",
            "--no-track",
            "--force",
        ]);
        install.args(["--features", WASMTIME_FEATURES, "--version", &format!("={}", wasmtime_version()?)]);
        run(install.arg("--root").arg(&root).env("CARGO_TARGET_DIR", &target))?;
        let built = root.join("bin/wasmtime");
        fs::rename(&built, to).with_context(|| format!("moving {}", built.display()))?;
        fs::remove_dir_all(&target).with_context(|| format!("removing {}", target.display()))
    }

    fn unpack(&self) -> Result<()> {
        let (debs, partial) = (self.dir.join("debs"), self.dir.join("debian.partial"));
        for folder in [&debs, &partial] {
            if folder.exists() {
                fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
            }
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        for package in PACKAGES {
            rootfs::extract(&rootfs::download(&debs, package)?, &partial)?;
        }
        fs::rename(&partial, self.debian()).context("naming the packages' files")
    }

    /// What is measured against, for the record.
    pub(crate) fn versions(&self) -> Result<Vec<(String, String)>> {
        let mut versions = vec![("kubernetes".to_owned(), self.kubernetes.clone())];
        for (module, path) in
            [("etcd", "go.etcd.io/etcd/server/v3"), ("coredns", "github.com/coredns/coredns")]
        {
            let pins = read_pins(module, "go.mod")?;
            let found = version(&pins, path).with_context(|| format!("no version of {path}"))?;
            versions.push((module.to_owned(), found.to_owned()));
        }
        versions.push(("wasmtime".to_owned(), wasmtime_version()?));
        if self.path("containerd").exists() {
            let text = output(Command::new(self.path("containerd")).arg("--version"))?;
            versions.push((
                "containerd".to_owned(),
                text.split(' ').nth(2).unwrap_or_default().trim().to_owned(),
            ));
        }
        Ok(versions)
    }
}

fn pins(module: &str) -> PathBuf {
    root().join("tests/peers").join(module)
}

fn read_pins(module: &str, file: &str) -> Result<String> {
    let path = pins(module).join(file);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

fn version<'a>(pins: &'a str, module: &str) -> Option<&'a str> {
    pins.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_whitespace();
        (words.next() == Some(module)).then(|| words.next()).flatten()
    })
}

/// The one that Skiff is built with.
fn wasmtime_version() -> Result<String> {
    let path = root().join("Cargo.lock");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    locked(&text, "wasmtime").map(str::to_owned).context("Cargo.lock has no wasmtime")
}

fn locked<'a>(lock: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
    rest.split('"').next()
}

/// The first process of a namespace, and that of every pod.
fn pause(to: &Path) -> Result<()> {
    let source = root().join("tests/conformance/programs/pause.rs");
    let flags = ["--edition=2024", "-O", "-Ctarget-feature=+crt-static", "-Cpanic=abort", "-Cstrip=symbols"];
    output(Command::new("rustc").args(flags).arg("-o").arg(to).arg(source).current_dir(root())).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_a_source() {
        for part in super::super::parts::ALL {
            assert!(source(part.program()).is_ok(), "{part:?}");
        }
        assert!(source("nothing").is_err());
    }

    #[test]
    fn the_locked_version_is_of_the_whole_name() {
        let lock =
            "name = \"wasmtime-wasi\"\nversion = \"1.0.0\"\n\nname = \"wasmtime\"\nversion = \"48.0.8\"\n";
        assert_eq!(locked(lock, "wasmtime"), Some("48.0.8"));
        assert_eq!(locked(lock, "wasm"), None);
    }

    #[test]
    fn the_version_is_the_one_that_is_required() {
        let pins = "require (\n\tk8s.io/kubernetes-x v0.1.0\n\tk8s.io/kubernetes v1.36.3\n)\n";
        assert_eq!(version(pins, "k8s.io/kubernetes"), Some("v1.36.3"));
        assert_eq!(version("require a/b v1.2.3\n", "a/b"), Some("v1.2.3"));
        assert_eq!(version(pins, "a/b"), None);
    }
}
