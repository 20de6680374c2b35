//! Where the sources of k8s-openapi are that this build uses.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use serde_json::Value;

const CRATE: &str = "k8s-openapi";

/// The sources of all types of the version of Kubernetes that is enabled, in order.
pub(crate) fn files() -> Result<Vec<PathBuf>, String> {
    let (version, kubernetes) = enabled()?;
    let folder = by_metadata(&version).or_else(|| by_registry(&version)).ok_or_else(|| {
        format!("the sources of {CRATE} {version} are neither where `cargo metadata --offline` says nor in cargo's registry; run `cargo fetch`")
    })?;
    let folder = folder.join("src").join(&kubernetes);
    let mut files = Vec::new();
    collect(&folder, &mut files).map_err(|e| format!("listing {}: {e}", folder.display()))?;
    files.sort();
    Ok(files)
}

/// Of the crate, and of Kubernetes as the crate names its folder: `0.29.0` and `v1_36`.
///
/// Its build script tells the second as a number that the dependency's name and version are part of the name of:
/// `DEP_K8S_OPENAPI_0.29.0_VERSION=74752`.
fn enabled() -> Result<(String, String), String> {
    let (version, number) = env::vars()
        .find_map(|(name, value)| {
            let version = name.strip_prefix("DEP_K8S_OPENAPI_")?.strip_suffix("_VERSION")?;
            Some((version.replace('_', "."), value.parse::<u32>().ok()?))
        })
        .ok_or_else(|| format!("{CRATE} does not tell its version any more"))?;
    Ok((version, format!("v{}_{}", number >> 16, number >> 8 & 0xff)))
}

/// Cargo itself knows them best, wherever they come from: a registry, a vendored folder, a patch. It does not say if
/// packages are not there that this build does without, such as those of tests.
fn by_metadata(version: &str) -> Option<PathBuf> {
    let mut cargo = Command::new(env::var_os("CARGO")?);
    cargo.args(["metadata", "--offline", "--locked", "--format-version=1", "--filter-platform"]);
    let said = cargo.arg(env::var_os("TARGET")?).output().ok().filter(|said| said.status.success())?;
    let said: Value = serde_json::from_slice(&said.stdout).ok()?;
    let package = said["packages"]
        .as_array()?
        .iter()
        .find(|package| package["name"] == CRATE && package["version"] == version)?;
    Path::new(package["manifest_path"].as_str()?).parent().map(Path::to_owned)
}

/// Where cargo unpacks what it downloads.
fn by_registry(version: &str) -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))?;
    let registries = fs::read_dir(home.join("registry/src")).ok()?;
    let folders = registries.flatten().map(|entry| entry.path().join(format!("{CRATE}-{version}")));
    folders.into_iter().find(|folder| folder.is_dir())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}
