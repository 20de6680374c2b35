//! `skiff-differ`: `cargo xtask differ` runs it beside upstream's API server.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use nix::sched::{CloneFlags, setns};
use skiff_differ::ask::ask;
use skiff_differ::case::{Case, Scope};
use skiff_differ::known;
use skiff_differ::mutate::{Corpus, cases};
use skiff_differ::objects::{self, Subject};
use skiff_differ::record::{self, Recorded};
use skiff_differ::report::{Judged, Report, sorts};
use skiff_differ::sides::Side;
use skiff_differ::wide;
use skiff_load::kubeconfig::Access;

/// The same mutated requests to Skiff's API server and to upstream's
#[derive(Parser)]
#[command(name = "skiff-differ", version)]
struct Cli {
    /// Upstream's, of an administrator
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Enter this network namespace first
    #[arg(long)]
    netns: Option<PathBuf>,
    /// Instead of a server: upstream's recorded answers
    #[arg(long, conflicts_with = "kubeconfig")]
    replay: Option<PathBuf>,
    /// Other seeds make other requests; several are judged together
    #[arg(long, value_delimiter = ',', default_value = "1")]
    seed: Vec<u64>,
    /// Of each seed
    #[arg(long, default_value_t = 5000)]
    requests: usize,
    /// What the requests are about; all of these are judged apart
    #[arg(long, value_delimiter = ',', value_enum, default_value = "main")]
    scope: Vec<Scope>,
    /// Only these cases, as `--differences` writes them, instead of those of a seed
    #[arg(long)]
    cases: Option<PathBuf>,
    /// Add the cases with upstream's answers to those recorded here, as far as there is room
    #[arg(long)]
    append: Option<PathBuf>,
    /// Only these kinds
    #[arg(long, value_delimiter = ',')]
    kinds: Vec<String>,
    /// Write the requests with upstream's answers
    #[arg(long)]
    record: Option<PathBuf>,
    /// Write what differs, a JSON object a line
    #[arg(long)]
    differences: Option<PathBuf>,
    /// Write the list of the cases that differ, for the test of the recorded answers
    #[arg(long)]
    known: Option<PathBuf>,
    /// Write its part of the page
    #[arg(long)]
    page: Option<PathBuf>,
    /// How many sorts of differences are printed
    #[arg(long, default_value_t = 40)]
    show: usize,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    if let Some(netns) = &cli.netns {
        // Before any other thread exists, so that all of them are inside.
        let file = File::open(netns).with_context(|| format!("opening {}", netns.display()))?;
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("entering {}", netns.display()))?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(Box::pin(run(&cli)))
}

async fn run(cli: &Cli) -> Result<()> {
    let subjects = objects::all()?;
    let corpus = Corpus::of(&subjects);
    let chosen: Vec<Subject> = subjects
        .iter()
        .filter(|subject| cli.kinds.is_empty() || cli.kinds.contains(&subject.kind.kind))
        .cloned()
        .collect();
    let recorded: Vec<Recorded> = match (&cli.kubeconfig, &cli.replay) {
        (Some(kubeconfig), _) => {
            let (side, refused) = Side::upstream(&Access::read(kubeconfig)?, &subjects).await?;
            refused.iter().for_each(|why| eprintln!("upstream refuses {why}"));
            let cases = match &cli.cases {
                Some(path) => record::read_cases(path)?,
                None => {
                    let of = |seed: &u64, scope: Scope| match scope {
                        Scope::Main => cases(&chosen, &corpus, *seed, cli.requests),
                        wider => wide::cases(&chosen, &corpus, wider, *seed, cli.requests),
                    };
                    let all =
                        cli.seed.iter().flat_map(|seed| cli.scope.iter().map(move |scope| (seed, *scope)));
                    // What another seed has created already would meet what is left of it.
                    let mut created = HashSet::new();
                    all.flat_map(|(seed, scope)| of(seed, scope))
                        .filter(|case| case.scope != Scope::Real || created.insert(case.id()))
                        .collect()
                }
            };
            let answers = ask(&side, &subjects, &cases).await?;
            let pairs = cases.into_iter().zip(answers).filter(|(_, answer)| answer.is_there());
            pairs.map(|(case, answer)| Recorded { case, answer }).collect()
        }
        (None, Some(path)) => {
            let mut recorded = record::read(path)?;
            if let Some(path) = &cli.cases {
                let only: HashSet<String> = record::read_cases(path)?.iter().map(Case::id).collect();
                recorded.retain(|recorded| only.contains(&recorded.case.id()));
            }
            recorded
        }
        (None, None) => bail!("give upstream's --kubeconfig, or recorded answers to --replay"),
    };
    if let Some(path) = &cli.record {
        record::write(path, &recorded)?;
    }
    if let Some(path) = &cli.append {
        let added = record::append(path, &recorded)?;
        println!("{added} of {} cases are new in {}", recorded.len(), path.display());
    }
    let ids: Vec<&str> = chosen.iter().map(|subject| subject.id.as_str()).collect();
    let recorded: Vec<Recorded> =
        recorded.into_iter().filter(|recorded| ids.contains(&recorded.case.subject.as_str())).collect();
    let (side, refused) = Side::skiff(&subjects).await?;
    refused.iter().for_each(|why| eprintln!("Skiff refuses {why}"));
    let cases: Vec<Case> = recorded.iter().map(|recorded| recorded.case.clone()).collect();
    let answers = ask(&side, &subjects, &cases).await?;
    let kinds: HashMap<&str, &str> =
        subjects.iter().map(|subject| (subject.id.as_str(), subject.kind.kind.as_str())).collect();
    let judged: Vec<Judged> = recorded
        .into_iter()
        .zip(answers)
        .map(|(Recorded { case, answer }, skiff)| {
            let kind = kinds.get(case.subject.as_str()).copied().unwrap_or_default().to_owned();
            Judged::new(case, kind, answer, skiff)
        })
        .collect();
    finish(cli, &judged)
}

fn finish(cli: &Cli, judged: &[Judged]) -> Result<()> {
    let report = Report::of(judged);
    let table = report.table();
    for (count, what, example) in sorts(judged).into_iter().take(cli.show) {
        println!("{count:5}  {what}\n       {example}");
    }
    println!("{table}");
    if let Some(path) = &cli.differences {
        let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        for judged in judged.iter().filter(|judged| judged.verdict != skiff_differ::compare::Verdict::Same) {
            writeln!(file, "{}", judged.to_json())?;
        }
    }
    if let Some(path) = &cli.known {
        fs::write(path, known::write(judged)).with_context(|| format!("writing {}", path.display()))?;
    }
    if let Some(path) = &cli.page {
        let text = page(cli, &table, judged);
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// What no work on Skiff would bring to agree, and why.
const NEVER: [(&str, &str); 4] = [
    (
        "Upstream's handlers panic",
        "on a few objects; the connection ends without an answer. Such requests are left out of the figures. Skiff answers 422.",
    ),
    (
        "Random choice",
        "of addresses, ports, identifiers and the ends of generated names: they are made alike before they are compared.",
    ),
    (
        "Words",
        "of messages: those of Go's decoder and of CEL's compiler are its own. Status, reason, fields and their reasons are compared.",
    ),
    (
        "What expressions cost and the types of fields they name",
        "are not known to Skiff: an expression that is one, names what is there and may answer yes or no is taken.",
    ),
];

fn page(cli: &Cli, table: &str, judged: &[Judged]) -> String {
    let seeds: Vec<String> = cli.seed.iter().map(u64::to_string).collect();
    let mut text = format!(
        "## API\n\n\
         Written by `cargo xtask differ --page`: {} mutated requests of the seeds {}, each sent to Skiff's API server and to a real \
         kube-apiserver of the pinned version. \"For the same\" compares status, reason and the fields and reasons of all causes.\n\n\
         {table}\n### What still differs\n\nThe most frequent sorts, with how often they occurred (upstream / Skiff):\n\n",
        judged.len(),
        seeds.join(", ")
    );
    for (count, what, _) in sorts(judged).into_iter().take(100) {
        text += &format!("- {count}: {}\n", what.replace('|', "·"));
    }
    text += "\n### What cannot agree\n\n";
    for (what, why) in NEVER {
        text += &format!("- **{what}** {why}\n");
    }
    text
}
