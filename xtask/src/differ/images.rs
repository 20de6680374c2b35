//! `cargo xtask differ images`: odd images for Skiff's crate `images` and for Debian's containerd, which is not installed but
//! taken out of its package. All of it runs within `skiff-differ-images`, in namespaces and memory of its own.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::page;
use crate::command::{cargo, program, run as execute};
use crate::peers::Programs;
use crate::setup;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Another seed makes other images
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 300)]
    images: usize,
    /// Judge the images of this file instead, a JSON object a line
    #[arg(long)]
    cases: Option<PathBuf>,
    /// Write what differs, a JSON object a line
    #[arg(long)]
    differences: Option<PathBuf>,
    /// Write the part "Images" of docs/differences.md
    #[arg(long)]
    page: bool,
}

/// The folder with containerd and its `ctr`, taken out of Debian's package if need be.
pub(crate) fn containerd() -> Result<PathBuf> {
    let programs = Programs::open()?;
    programs.require("containerd")?;
    let path = programs.path("containerd");
    path.parent().map(PathBuf::from).context("containerd has no folder")
}

pub(super) fn run(options: &Options) -> Result<()> {
    setup::run()?;
    let containerd = containerd()?;
    execute(cargo().args(["build", "-p", "skiff-differ-images"]))?;
    let mut differ = std::process::Command::new(program("debug")?.with_file_name("skiff-differ-images"));
    differ.arg("--containerd").arg(containerd);
    differ.args(["--seed", &options.seed.to_string(), "--images", &options.images.to_string()]);
    for (flag, path) in [("--cases", &options.cases), ("--differences", &options.differences)] {
        if let Some(path) = path {
            differ.arg(flag).arg(path);
        }
    }
    let part = page::part("images")?;
    if options.page {
        differ.arg("--page").arg(&part);
    }
    execute(&mut differ)?;
    if options.page { page::put("images", &part) } else { Ok(()) }
}
