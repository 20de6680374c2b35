//! `cargo xtask differ`: the same mutated requests to Skiff's API server and to upstream's, which is started for it with
//! an etcd in a network namespace of their own. Skiff's runs inside `skiff-differ`, without controllers; neither has any.
//! `cargo xtask differ images` judges images instead: [`images`].

pub(crate) mod images;
mod page;

use std::path::PathBuf;

use anyhow::Result;

use crate::bench;
use crate::command::{cargo, program, run as execute};
use crate::peers::{self, Part, Peers, Programs};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    /// Of the API server if nothing is said
    #[command(subcommand)]
    subject: Option<Subject>,
    /// Other seeds make other requests; several, as `1,2,3`, are judged together
    #[arg(long, default_value = "1")]
    seed: String,
    /// Of each seed
    #[arg(long, default_value_t = 5000)]
    requests: usize,
    /// What the requests are about: `main,status,scale,real`, each judged apart
    #[arg(long, default_value = "main")]
    scope: String,
    /// Only these cases, as `--differences` writes them, instead of those of a seed
    #[arg(long)]
    cases: Option<PathBuf>,
    /// Add the requests with upstream's answers to those recorded here, as far as there is room
    #[arg(long)]
    append: Option<PathBuf>,
    /// Only these kinds, as `Pod,Service`
    #[arg(long)]
    kinds: Option<String>,
    /// Write the requests with upstream's answers, to be replayed without a second server
    #[arg(long)]
    record: Option<PathBuf>,
    /// Write what differs, a JSON object a line
    #[arg(long)]
    differences: Option<PathBuf>,
    /// Write the part "API" of docs/differences.md
    #[arg(long)]
    page: bool,
}

#[derive(clap::Subcommand)]
enum Subject {
    /// Compare what comes of odd images with what containerd makes of them
    Images(images::Options),
}

const PARTS: [Part; 2] = [Part::Etcd, Part::ApiServer];

pub(crate) fn run(options: &Options) -> Result<()> {
    if let Some(Subject::Images(options)) = &options.subject {
        return images::run(options);
    }
    let _alone = bench::alone()?;
    let programs = Programs::open()?;
    execute(cargo().args(["build", "-p", "skiff-differ"]))?;
    peers::clean()?;
    let mut peers = Peers::prepare(&programs, &PARTS, None)?;
    peers.launch(&PARTS, || Ok(()))?;
    let mut differ = std::process::Command::new(program("debug")?.with_file_name("skiff-differ"));
    differ.arg("--netns").arg(peers.netns()).arg("--kubeconfig").arg(peers.kubeconfig());
    differ.args(["--seed", &options.seed, "--requests", &options.requests.to_string()]);
    differ.args(["--scope", &options.scope]);
    if let Some(kinds) = &options.kinds {
        differ.args(["--kinds", kinds]);
    }
    for (flag, path) in [
        ("--record", &options.record),
        ("--differences", &options.differences),
        ("--cases", &options.cases),
        ("--append", &options.append),
    ] {
        if let Some(path) = path {
            differ.arg(flag).arg(path);
        }
    }
    let part = page::part("api")?;
    if options.page {
        differ.arg("--page").arg(&part);
    }
    let judged = execute(&mut differ);
    peers.down()?;
    judged?;
    if options.page { page::put("api", &part) } else { Ok(()) }
}
