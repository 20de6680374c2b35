//! `skiff-differ-images`: `cargo xtask differ images` runs it with containerd's programs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use skiff_differ_images::case::Image;
use skiff_differ_images::generate::images;
use skiff_differ_images::judge::{Judge, Judged};
use skiff_differ_images::known::{Explained, explain};
use skiff_differ_images::minimal::minimal;
use skiff_differ_images::report::Report;
use skiff_differ_images::sides::Containerd;

/// The same odd images for Skiff and for containerd
#[derive(Parser)]
#[command(name = "skiff-differ-images", version)]
struct Cli {
    /// The folder with `containerd` and `ctr`
    #[arg(long)]
    containerd: PathBuf,
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
    /// Write the section of the page
    #[arg(long)]
    page: Option<PathBuf>,
    /// Write a small image for each of the known differences that occurs, a JSON object a line
    #[arg(long)]
    known: Option<PathBuf>,
    /// Fail if anything differs that is not known to
    #[arg(long)]
    strict: bool,
    /// Fail if any of the known differences does not occur
    #[arg(long)]
    all_known: bool,
    /// Say why containerd refused what both refuse
    #[arg(long)]
    refusals: bool,
}

/// Memory for everything that is made.
const SIZE: &str = "size=2g,mode=700";

fn main() -> Result<()> {
    let cli = Cli::parse();
    let directory = tempfile::Builder::new().prefix("skiff-differ-images-").tempdir()?;
    let judged = Memory::mount(directory.path()).and_then(|memory| judge(&cli, memory.0));
    directory.close().context("removing the directory of this run")?;
    judged
}

/// Memory that is mounted over a directory in a namespace of this process: all of it ends with us.
struct Memory<'a>(&'a Path);

impl Memory<'_> {
    /// To be called before any other thread exists.
    fn mount(directory: &Path) -> Result<Memory<'_>> {
        let is_root = nix::unistd::geteuid().is_root();
        ensure!(is_root, "layers are unpacked with their owners and devices: run this as root");
        unshare(CloneFlags::CLONE_NEWNS).context("making a mount namespace")?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .context("keeping mounts to ourselves")?;
        mount(Some("judge"), directory, Some("tmpfs"), MsFlags::empty(), Some(SIZE))
            .context("mounting memory")?;
        Ok(Memory(directory))
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        // Then the directory below it can be removed, which is empty.
        let _gone_with_the_namespace = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

fn judge(cli: &Cli, directory: &Path) -> Result<()> {
    let containerd = Containerd::start(&cli.containerd, &directory.join("containerd"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(Box::pin(run(cli, containerd, &directory.join("skiff"))))
}

async fn run(cli: &Cli, containerd: Containerd, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    let judge = Judge::new(containerd, directory).await?;
    let cases = match &cli.cases {
        Some(path) => read(path)?,
        None => images(cli.seed, cli.images),
    };
    let mut report = Report::default();
    let (mut differing, mut examples) = (Vec::new(), BTreeMap::new());
    for image in &cases {
        let judged = judge.judge(image).await?;
        if judged.verdict.agrees() {
            report.agrees(image.theme, &judged);
            continue;
        }
        match explain(&judge, judged.clone()).await? {
            Explained::By(known) => {
                report.is_known(image.theme, &known);
                if let (Some(_), [known]) = (&cli.known, known.as_slice())
                    && !examples.contains_key(known.what)
                {
                    let least = Box::pin(minimal(&judge, judged)).await?;
                    // What is left when it is made smaller may be of another cause.
                    if let Explained::By(by) = explain(&judge, least.clone()).await?
                        && by.iter().map(|by| by.what).eq([known.what])
                    {
                        examples.insert(known.what, least.image);
                    }
                }
            }
            Explained::Not(left) if report.is_new(&left.sort()) => {
                let least = Box::pin(minimal(&judge, *left)).await?;
                differing.push(least.clone());
                report.differs(image.theme, least);
            }
            Explained::Not(left) => {
                differing.push((*left).clone());
                report.differs(image.theme, *left);
            }
        }
    }
    if let Some(path) = &cli.known {
        let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        for image in examples.values() {
            writeln!(file, "{}", serde_json::to_string(image)?)?;
        }
    }
    finish(cli, &report, &differing, judge.n())
}

fn read(path: &Path) -> Result<Vec<Image>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let of = |line: &str| -> Result<Image> {
        let mut value: serde_json::Value = serde_json::from_str(line)?;
        // Lines of `--differences` hold the image among what was seen of it.
        let image = value.get_mut("image").map(serde_json::Value::take).unwrap_or(value);
        Ok(serde_json::from_value(image)?)
    };
    text.lines().map(of).collect()
}

fn finish(cli: &Cli, report: &Report, differing: &[Judged], n_pulled: u64) -> Result<()> {
    for (n, judged) in report.differing() {
        println!("{n:4}  {}\n      {}\n      {}", judged.sort(), judged.image.text(), judged.words());
    }
    if cli.refusals {
        report.refusals().into_iter().for_each(|(n, why)| println!("{n:4}  refused alike: {why}"));
    }
    println!("{}\n{}", report.table(), report.known());
    println!("{n_pulled} images were pulled by either side, smaller ones of those that differ among them");
    if let Some(path) = &cli.differences {
        let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        for judged in differing {
            writeln!(file, "{}", judged.to_json())?;
        }
    }
    if let Some(path) = &cli.page {
        fs::write(path, report.page(cli.seed)).with_context(|| format!("writing {}", path.display()))?;
    }
    if cli.strict && report.n_differing() > 0 {
        bail!("{} images differ in what is not known to", report.n_differing());
    }
    let missing = report.not_seen();
    if cli.all_known && !missing.is_empty() {
        bail!("these do not differ, take them off the list of what is known to: {}", missing.join(", "));
    }
    Ok(())
}
