//! `skiff image`: the node's image store.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use skiff_images::{ImageKind, Images, Progress};
use tokio::sync::watch;

use crate::layout::Layout;
use crate::node::open_images;
use crate::progress::Steps;

#[derive(Subcommand, Debug)]
pub(crate) enum ImageCommand {
    /// List the images of this node
    #[command(visible_alias = "list")]
    Ls,
    /// Pull an image
    Pull {
        /// Such as nginx:alpine
        name: String,
    },
    /// Import a Wasm file, or the images of an archive (an OCI layout, or what `docker save` writes)
    Import {
        file: PathBuf,
        /// The name of an image that the file does not name
        #[arg(long, short = 't', visible_alias = "tag")]
        name: Option<String>,
    },
    /// Forget images; the node takes off the disk what no container needs
    Rm {
        #[arg(required = true)]
        names: Vec<String>,
    },
}

pub(crate) async fn run(command: ImageCommand, layout: &Layout) -> Result<()> {
    let images = open_images(layout)?;
    match command {
        ImageCommand::Ls => list(&images),
        ImageCommand::Pull { name } => pull(&images, &name).await?,
        ImageCommand::Import { file, name } => {
            let imported = images.import(&file, name.as_deref()).await.map_err(anyhow::Error::new)?;
            for image in imported {
                println!("{}", image.names.first().unwrap_or(&image.id));
            }
        }
        ImageCommand::Rm { names } => {
            for name in names {
                images.remove(&name).with_context(|| format!("removing {name}"))?;
                println!("{name}");
            }
        }
    }
    Ok(())
}

fn list(images: &Images) {
    println!("{:<50} {:<14} {:<7} {:>10}", "IMAGE", "ID", "KIND", "SIZE");
    for image in images.list() {
        let kind = if matches!(image.kind, ImageKind::Wasm { .. }) { "wasm" } else { "linux" };
        let id: String = image.id.trim_start_matches("sha256:").chars().take(12).collect();
        let names = if image.names.is_empty() { &image.digests } else { &image.names };
        for name in names {
            println!("{name:<50} {id:<14} {kind:<7} {:>10}", size(image.size_bytes));
        }
    }
}

/// In powers of ten, as registries and `docker images` count.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

async fn pull(images: &std::sync::Arc<Images>, name: &str) -> Result<()> {
    let (sender, mut progress) = watch::channel(Progress::default());
    let steps = Steps::new();
    steps.begin(&format!("pulling {name}"));
    let pulling = images.pull(name, None, Some(&sender));
    tokio::pin!(pulling);
    let terminal = std::io::stderr().is_terminal();
    let image = loop {
        tokio::select! {
            // `pulling` is kept between the turns; `changed` only waits.
            image = &mut pulling => break image.map_err(anyhow::Error::new)?,
            Ok(()) = progress.changed(), if terminal => {
                let text = describe(name, &progress.borrow_and_update());
                steps.begin(&text);
            }
        }
    };
    steps.done();
    println!("{} {}", image.id, size(image.size_bytes));
    Ok(())
}

fn describe(name: &str, progress: &Progress) -> String {
    let (done, total) =
        progress.layers.iter().fold((0, 0), |(d, t), l| (d + l.done_bytes, t + l.total_bytes));
    format!("pulling {name}: {} of {}", size(done), size(total))
}
