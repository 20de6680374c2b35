//! `cargo xtask conformance`: upstream's own tests against a throw-away cluster.
//!
//! ```text
//!  programs   tests/conformance/go.mod → e2e.test, ginkgo, kubectl, agnhost   once a version, below the cache
//!  images     Debian packages + programs → the local registry                 as registry.k8s.io
//!  suite      ginkgo in the cluster's network namespace
//!  report     report.json → a table, lists of names, a folder for each failure
//! ```

mod images;
mod programs;
mod report;
mod suite;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::command::{cache, cargo, program, run as execute};
use crate::{fixtures, setup};
use suite::{Selection, Suite};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only tests of this SIG, such as `node` or `api-machinery`
    #[arg(long)]
    sig: Option<String>,
    /// Only tests whose name matches this regular expression of Go
    #[arg(long)]
    focus: Option<String>,
    /// Exactly the tests listed in this file, one name a line
    #[arg(long, conflicts_with_all = ["sig", "focus"])]
    file: Option<PathBuf>,
    /// Build programs and images, and run nothing
    #[arg(long)]
    build_only: bool,
    /// Test this program instead of a release build of the work tree
    #[arg(long)]
    skiff: Option<PathBuf>,
    /// End the suite after this many minutes
    #[arg(long, default_value_t = 360)]
    timeout_minutes: u64,
}

const NAME: &str = "conformance";

pub(crate) fn run(options: Options) -> Result<()> {
    let selection = match &options.file {
        Some(path) => Selection::of_file(path)?,
        None => Selection::Matching { sig: options.sig, focus: options.focus },
    };
    setup::run()?;
    let programs = programs::build()?;
    let served = fixtures::serve()?;
    images::publish(&programs, &served)?;
    if options.build_only {
        return Ok(());
    }
    let skiff = match options.skiff {
        Some(path) => std::path::absolute(path)?,
        None => {
            execute(cargo().args(["build", "--release", "-p", "skiff"]))?;
            program("release")?
        }
    };
    let results = fresh_results()?;
    let timeout = Duration::from_secs(options.timeout_minutes * 60);
    // What an interrupted run left would not be a fresh cluster.
    if Path::new("/run/skiff/clusters").join(NAME).exists() {
        down(&skiff)?;
    }
    let ran = up(&skiff, &served.registries).and_then(|()| {
        let suite = Suite {
            programs: &programs,
            netns: Path::new("/run/skiff/clusters").join(NAME).join("net"),
            kubeconfig: data_dir().join("kubeconfig.inside"),
            results: &results,
            timeout,
        };
        eprintln!("the suite runs; its log: {}", results.join(suite::LOG).display());
        suite.run(&selection)
    });
    // Before the cluster's directory goes.
    let kept = keep_server_log(&results);
    down(&skiff)?;
    ran?;
    tell(&results, &selection, &kept?)
}

fn data_dir() -> PathBuf {
    Path::new("/var/lib/skiff/clusters").join(NAME)
}

fn up(skiff: &Path, registries: &Path) -> Result<()> {
    execute(Command::new(skiff).args(["up", "--name", NAME, "--registries"]).arg(registries))
}

fn down(skiff: &Path) -> Result<()> {
    execute(Command::new(skiff).args(["down", "--name", NAME]))
}

/// The last run's results are kept until the next but one.
fn fresh_results() -> Result<PathBuf> {
    let results = cache()?.join("conformance/results");
    let previous = results.with_file_name("results.previous");
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

fn keep_server_log(results: &Path) -> Result<String> {
    let path = data_dir().join("server.log");
    let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let to = results.join("server.log");
    fs::write(&to, &bytes).with_context(|| format!("writing {}", to.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The closing line is the last of what is printed.
fn tell(results: &Path, selection: &Selection, server_log: &str) -> Result<()> {
    let tests = report::read(results)?;
    report::write(results, &tests, server_log)?;
    let missing = match selection {
        Selection::Listed(names) => report::missing(names, &tests),
        Selection::Matching { .. } => Vec::new(),
    };
    let (all, table) = report::table(&tests)?;
    print!("{table}");
    println!("results: {}", results.display());
    for name in &missing {
        println!("did not run: {name}");
    }
    println!("{} passed, {} failed, {} skipped", all.passed, all.failed, all.skipped);
    if all.failed > 0 {
        bail!("{} tests failed; see {}", all.failed, results.join("failures").display());
    }
    if !missing.is_empty() {
        bail!("{} listed tests did not run", missing.len());
    }
    Ok(())
}
