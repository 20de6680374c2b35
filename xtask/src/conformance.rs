//! `cargo xtask conformance`: upstream's own tests against a throw-away cluster; with `--beyond`, those that are not conformance.
//!
//! ```text
//!  programs   tests/conformance/go.mod → e2e.test, ginkgo, kubectl, agnhost   once a version, below the cache
//!  images     Debian packages + programs → the local registry                 as registry.k8s.io
//!  suite      ginkgo in the cluster's network namespace
//!  report     report.json → a table, lists of names, a folder for each failure
//! ```

mod images;
mod page;
mod programs;
mod report;
mod set;
mod suite;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::codegen::pins;
use crate::command::{cache, cargo, output, program, root, run as execute};
use crate::{fixtures, setup, test};
use report::Report;
use set::Set;
use suite::{Selection, Suite};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Upstream's default tests that are not conformance, with lists and a page of their own
    #[arg(long)]
    beyond: bool,
    /// Only tests of this SIG, such as `node` or `api-machinery`
    #[arg(long)]
    sig: Option<String>,
    /// Only tests whose name matches this regular expression of Go
    #[arg(long)]
    focus: Option<String>,
    /// Exactly the tests listed in this file, one name a line
    #[arg(long, conflicts_with_all = ["sig", "focus"])]
    file: Option<PathBuf>,
    /// How many nodes the cluster has
    #[arg(long, default_value_t = 2)]
    nodes: u8,
    /// How many tests run at once [default: four for each core]
    #[arg(long)]
    procs: Option<usize>,
    /// What the cluster is called [default: conformance, or beyond]
    #[arg(long)]
    name: Option<String>,
    /// Build programs and images, critest too, and run nothing
    #[arg(long)]
    build_only: bool,
    /// Test a debug build of the work tree instead of a release build
    #[arg(long)]
    debug: bool,
    /// Test this program instead of a build of the work tree
    #[arg(long, conflicts_with = "debug")]
    skiff: Option<PathBuf>,
    /// Run nothing, and tell anew what the last run came to: its page, with the causes that are listed now
    #[arg(long, conflicts_with_all = ["build_only", "debug", "skiff"])]
    again: bool,
    /// End the suite after this many minutes
    #[arg(long, default_value_t = 360)]
    timeout_minutes: u64,
}

const RUN: &str = "/run/skiff/clusters";

/// Upstream's tree as Go unpacked it, and the folder of `kubectl` and `kubectl-convert`, built if they are not there yet.
pub(crate) fn kubectl() -> Result<(PathBuf, PathBuf)> {
    let programs = programs::build_kubectl()?;
    let bin = programs.bin();
    Ok((programs.kubernetes, bin))
}

/// The OpenAPI document that upstream publishes with its sources.
pub(crate) fn swagger() -> Result<PathBuf> {
    Ok(programs::sources()?.join("api/openapi-spec/swagger.json"))
}

pub(crate) fn run(options: Options) -> Result<()> {
    let set = if options.beyond { &set::BEYOND } else { &set::CONFORMANCE };
    let selection = match &options.file {
        Some(path) => Selection::of_file(path)?,
        None => Selection::Matching { sig: options.sig, focus: options.focus },
    };
    let name = options.name.as_deref().unwrap_or(set.name);
    if options.again {
        let results = results(&set.results(name))?;
        let reports: Vec<PathBuf> =
            suite::reports(&results).into_iter().filter(|path| path.exists()).collect();
        return tell(set, &results, &report::read(&results, &reports)?, &selection, None, options.nodes);
    }
    setup::run()?;
    setup::room()?;
    // Before anything that takes long.
    let _alone =
        alone(name, "its cluster and results are in use; wait for it, or give this run another --name")?;
    let preparing = alone("preparing", "it builds what this one needs too; try again when its suite runs")?;
    let programs = programs::build()?;
    let served = fixtures::serve()?;
    images::publish(&programs, &served)?;
    drop(preparing);
    if options.build_only {
        // For the day when there is a CRI server to ask.
        println!("critest: {}", programs::build_critest(&programs)?.display());
        return Ok(());
    }
    let skiff = match options.skiff {
        Some(path) => std::path::absolute(path)?,
        None if options.debug => test::debug_build()?,
        None => {
            execute(cargo().args(["build", "--release", "-p", "skiff"]))?;
            program("release")?
        }
    };
    let results = fresh_results(&set.results(name))?;
    let timeout = Duration::from_secs(options.timeout_minutes * 60);
    // What an interrupted run left would not be a fresh cluster.
    if Path::new(RUN).join(name).exists() {
        down(&skiff, name)?;
    }
    let ran = up(&skiff, name, &served.registries, options.nodes).and_then(|()| {
        let suite = Suite {
            programs: &programs,
            netns: Path::new(RUN).join(name).join("net"),
            kubeconfig: data_dir(name).join("kubeconfig.inside"),
            results: &results,
            labels: set.labels,
            procs: options.procs.unwrap_or_else(suite::procs),
            timeout,
        };
        eprintln!("the suite runs; its log: {}", results.join(suite::LOG).display());
        suite.run(&selection, &set.list("endless.txt")?)
    });
    // Before the cluster's directory goes.
    let logs = keep_logs(name, &results, options.nodes);
    down(&skiff, name)?;
    let report = report::read(&results, &ran?)?;
    tell(set, &results, &report, &selection, Some(&logs?), options.nodes)
}

/// Runs at once have clusters, results and turns at the registry's images of their own.
fn alone(lock: &str, why: &str) -> Result<File> {
    let folder = cache()?.join("conformance");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let path = folder.join(format!("{lock}.lock"));
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    file.try_lock().with_context(|| format!("another run holds {}: {why}", path.display()))?;
    Ok(file)
}

fn data_dir(name: &str) -> PathBuf {
    Path::new("/var/lib/skiff/clusters").join(name)
}

fn up(skiff: &Path, name: &str, registries: &Path, n_nodes: u8) -> Result<()> {
    let nodes = n_nodes.to_string();
    execute(
        Command::new(skiff).args(["up", "--name", name, "--nodes", &nodes, "--registries"]).arg(registries),
    )
}

fn down(skiff: &Path, name: &str) -> Result<()> {
    execute(Command::new(skiff).args(["down", "--name", name]))
}

fn results(folder: &str) -> Result<PathBuf> {
    Ok(cache()?.join("conformance").join(folder))
}

/// The last run's results are kept until the next but one.
fn fresh_results(folder: &str) -> Result<PathBuf> {
    let results = results(folder)?;
    let previous = results.with_extension("previous");
    if results.exists() {
        if previous.exists() {
            fs::remove_dir_all(&previous).with_context(|| format!("removing {}", previous.display()))?;
        }
        fs::rename(&results, &previous).with_context(|| format!("renaming {}", results.display()))?;
    }
    // Some tests write below their home.
    fs::create_dir_all(results.join("home")).with_context(|| format!("creating {}", results.display()))?;
    Ok(results)
}

/// The logs of the server and of the agents, under the names that they are kept by.
fn keep_logs(name: &str, results: &Path, n_nodes: u8) -> Result<Vec<(String, String)>> {
    let server = ("server.log".to_owned(), data_dir(name).join("server.log"));
    let agents = (2..=n_nodes).map(|n| {
        (format!("agent-{n}.log"), data_dir(name).join("nodes").join(n.to_string()).join("agent.log"))
    });
    let mut kept = Vec::new();
    for (file, path) in [server].into_iter().chain(agents) {
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let to = results.join(&file);
        fs::write(&to, &bytes).with_context(|| format!("writing {}", to.display()))?;
        kept.push((file, String::from_utf8_lossy(&bytes).into_owned()));
    }
    Ok(kept)
}

/// The closing line is the last of what is printed.
fn tell(
    set: &Set,
    results: &Path,
    report: &Report,
    selection: &Selection,
    logs: Option<&[(String, String)]>,
    n_nodes: u8,
) -> Result<()> {
    let Report { tests, n_not_ended } = report;
    // Of a run that is told of anew they are there.
    if let Some(logs) = logs {
        report::write(results, tests, logs)?;
    }
    let rows = report::by_sig(tests);
    let vacuous = set.list("vacuous.txt")?;
    if selection.is_whole() {
        let date = output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
        let commit = output(Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(root()))?;
        let kubernetes = pins::present()?;
        let (date, commit) = (date.trim(), commit.trim());
        let run = page::Run { set, date, commit, kubernetes: &kubernetes, n_nodes };
        let text = page::page(&run, report, &rows, &set.causes()?, vacuous.names())?;
        let path = set.page();
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    let missing = match selection {
        Selection::Listed(names) => report::missing(names, tests),
        Selection::Matching { .. } => Vec::new(),
    };
    let (all, table) = report::table(&rows)?;
    print!("{table}");
    println!("results: {}", results.display());
    for name in &missing {
        println!("did not run: {name}");
    }
    // The ratchet: what has passed before is expected to.
    let passing = set.list("passing.txt")?;
    let (regressions, gains) = report::beside(tests, passing.names());
    for name in &regressions {
        println!("passed before and fails now: {name}");
    }
    for name in gains.iter().filter(|name| !vacuous.names().iter().any(|v| v == *name)) {
        println!("passes now, and is not in passing.txt yet: {name}");
    }
    println!("{} passed, {} failed, {} skipped", all.passed, all.failed, all.skipped);
    if all.failed > 0 {
        bail!("{} tests failed; see {}", all.failed, results.join("failures").display());
    }
    if !missing.is_empty() {
        bail!("{} listed tests did not run", missing.len());
    }
    if *n_not_ended > 0 {
        bail!("{n_not_ended} tests had not ended when the suite's time was over");
    }
    Ok(())
}
