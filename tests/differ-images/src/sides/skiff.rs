//! Skiff's side: the crate `images`, and the overlay that `runtime-oci` makes of its layers.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use skiff_images::{Auth, Images, Registries};

use super::Outcome;
use crate::tree::walk;

const PULL_TIMEOUT: Duration = Duration::from_secs(40);

pub struct Skiff {
    directory: PathBuf,
}

impl Skiff {
    pub fn new(directory: &Path) -> Skiff {
        Skiff { directory: directory.to_owned() }
    }

    /// Pulls into a store of its own, so that no image has a layer from another.
    pub async fn pull(&self, reference: &str, password: Option<(&str, &str)>) -> Result<Outcome> {
        let store = self.directory.join("store");
        let images = Images::open(&store, Registries::default()).context("opening Skiff's store")?;
        let auth = password.map(|(username, password)| Auth {
            username: username.to_owned(),
            password: password.to_owned(),
            ..Auth::default()
        });
        let outcome =
            match tokio::time::timeout(PULL_TIMEOUT, images.pull(reference, auth.as_ref(), None)).await {
                Err(_) => Outcome::Refused(format!("no answer within {} s", PULL_TIMEOUT.as_secs())),
                Ok(Err(error)) => Outcome::Refused(error.to_string()),
                Ok(Ok(image)) => {
                    let layers = images.rootfs_layers(&image);
                    let root = self.directory.join("root");
                    tokio::task::spawn_blocking(move || look(&root, &layers)).await??
                }
            };
        drop::<Arc<Images>>(images);
        fs::remove_dir_all(&store).context("removing Skiff's store")?;
        Ok(outcome)
    }
}

/// Mounts as a container's root is, and looks.
fn look(root: &Path, layers: &[PathBuf]) -> Result<Outcome> {
    let [at, upper, work] = ["at", "upper", "work"].map(|name| root.join(name));
    for directory in [&at, &upper, &work] {
        fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    }
    let lower: Vec<String> = layers.iter().rev().map(|layer| layer.display().to_string()).collect();
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
    mount(Some("overlay"), &at, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .context("mounting Skiff's layers")?;
    let tree = walk(&at);
    umount2(&at, MntFlags::MNT_DETACH).context("unmounting Skiff's layers")?;
    fs::remove_dir_all(root).context("removing Skiff's mount point")?;
    tree.map(Outcome::Tree)
}
