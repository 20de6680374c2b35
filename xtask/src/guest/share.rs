//! What the guest is given, and where it writes what came of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::Options;
use crate::command::{cache, cargo, output, program, root, run};

pub(super) struct Share {
    pub(super) dir: PathBuf,
}

impl Share {
    /// `out` is empty afterwards.
    pub(super) fn fill(options: &Options, dir: &Path) -> Result<Share> {
        let share = Share { dir: dir.join("share") };
        if share.dir.exists() {
            fs::remove_dir_all(&share.dir).context("emptying what the guest is given")?;
        }
        fs::create_dir_all(share.out()).context("making a folder for what the guest says")?;
        let skiff = match &options.program {
            Some(path) => path.clone(),
            None => built()?,
        };
        for (from, to) in [(skiff, "skiff"), (kubectl()?, "kubectl")] {
            fs::copy(&from, share.dir.join(to)).with_context(|| format!("copying {}", from.display()))?;
        }
        for folder in ["systemd", "samples", "tests/guest"] {
            copy_tree(&root().join(folder), &share.dir)?;
        }
        copy_tree(&cache()?.join("fixtures/registry"), &share.dir)?;
        fs::write(share.dir.join("only"), options.only.as_deref().unwrap_or_default())?;
        Ok(share)
    }

    pub(super) fn out(&self) -> PathBuf {
        self.dir.join("out")
    }
}

fn copy_tree(from: &Path, into: &Path) -> Result<()> {
    output(Command::new("cp").arg("-r").arg(from).arg(into)).map(drop)
}

/// The optimised program: an emulated processor has nothing to spare.
fn built() -> Result<PathBuf> {
    run(cargo().args(["build", "--release", "-p", "skiff"]))?;
    program("release")
}

fn kubectl() -> Result<PathBuf> {
    let found = output(Command::new("sh").args(["-c", "readlink -f \"$(command -v kubectl)\""]))?;
    Ok(found.trim().into())
}
