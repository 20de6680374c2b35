//! `cargo xtask bench NAME`: Skiff beside upstream's own programs, in one run on one machine.
//!
//! ```text
//!  sides   skiff up │ peers::Peers            both run at once; one is asked at a time, A B A B …
//!  turns   skiff-load, once for each turn     the same requests for either side
//!  store   docs/benchmarks/NAME.jsonl         every number of the last run
//!  page    docs/benchmarks.md, .svg           drawn anew from all that is stored
//! ```
//!
//! `hollow`, `smoke` and `abuse` have no other side and no turns.
//!
//! Machines differ and are shared, so only ratios within a run mean something. A side that cannot do what is measured is
//! recorded with its own words for why.

mod abuse;
mod api;
mod chart;
mod cluster;
mod hollow;
mod page;
mod sides;
mod smoke;
mod store;
mod turns;
mod wasm;

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use crate::command::cache;
use crate::peers;
use sides::Tools;
pub(crate) use store::{commit, date};
use turns::Book;

#[derive(clap::Args)]
pub(crate) struct Options {
    #[arg(value_enum)]
    name: Name,
    /// How often each side has its turn
    #[arg(long, default_value_t = MIN_PAIRS)]
    pairs: usize,
    /// Measure this program instead of a release build of the work tree
    #[arg(long)]
    skiff: Option<PathBuf>,
    #[command(flatten)]
    hollow: hollow::Size,
    #[command(flatten)]
    abuse: abuse::Size,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Name {
    /// Start, idle cost, pod starts and durable creates of Skiff alone
    Smoke,
    /// Durable creates of pods by 64 clients
    ApiCreate,
    /// Lists of 10,000 and 50,000 pods
    ApiList,
    /// From a write to the event at 1,000 watchers
    ApiWatch,
    /// Reads that a role allows, among 10 and 10,000 bindings of others
    ApiAccess,
    /// Creates and lists of custom resources with a schema, rules and a webhook
    ApiCrd,
    /// Server-side applies of Deployments by four managers
    ApiApply,
    /// Pods on 1,000 and 5,000 nodes that are only objects
    Scheduler,
    /// Memory and CPU of everything, with nothing to do
    Idle,
    /// From the first exec to the first running pod
    Start,
    /// Starts of single pods and of 100 at once
    PodStart,
    /// One more endpoint among 10,000 Services
    ProxySync,
    /// Queries of Services' names
    Dns,
    /// Requests of one Wasm component
    WasmHttp,
    /// Memory of many Wasm components
    WasmDensity,
    /// API latency by verb of Skiff alone, with 1,000 hollow nodes and 30,000 pods
    Hollow,
    /// What one client or pod can do to others; writes docs/reliability.md
    Abuse,
    /// All of the above but `smoke` and `abuse`
    All,
    /// Draw the page and the chart anew, and measure nothing
    Page,
    /// Remove what a run that was killed has left
    Clean,
}

/// Fewer are not stored: a median of less says little.
pub(crate) const MIN_PAIRS: usize = 5;

/// In the order of the page.
const ALL: [Name; 15] = [
    Name::Start,
    Name::Idle,
    Name::ApiCreate,
    Name::ApiList,
    Name::ApiWatch,
    Name::ApiAccess,
    Name::ApiCrd,
    Name::ApiApply,
    Name::Scheduler,
    Name::PodStart,
    Name::ProxySync,
    Name::Dns,
    Name::WasmHttp,
    Name::WasmDensity,
    Name::Hollow,
];

impl Name {
    /// As it is given on the command line.
    fn text(self) -> String {
        use clap::ValueEnum as _;
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(options.pairs > 0, "--pairs must be at least 1");
    match options.name {
        Name::Smoke => {
            let _alone = alone()?;
            clean()?;
            smoke::smoke()
        }
        Name::Page => page::render(),
        Name::Clean => {
            let _alone = alone()?;
            clean()
        }
        Name::Abuse => {
            let _alone = alone()?;
            let tools = Tools::build(options.skiff.as_deref())?;
            clean()?;
            abuse::abuse(&tools, &options.abuse)
        }
        Name::All => measure(&ALL, options),
        name => measure(&[name], options),
    }
}

fn clean() -> Result<()> {
    sides::clean()?;
    peers::clean()
}

/// Two runs at once would measure each other, and each takes what the other has made for something left over.
pub(crate) fn alone() -> Result<File> {
    let folder = cache()?.join("peers");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    file.try_lock().with_context(|| format!("another bench runs; it holds {}", path.display()))?;
    Ok(file)
}

/// A bench that fails does not keep the others from being run; the command fails in the end.
fn measure(names: &[Name], options: &Options) -> Result<()> {
    let _alone = alone()?;
    let tools = Tools::build(options.skiff.as_deref())?;
    clean()?;
    let mut failed = Vec::new();
    for name in names {
        eprintln!("bench {}", name.text());
        let mut book = Book::new(&name.text(), options.pairs);
        if let Err(error) = one(*name, &tools, &mut book, options) {
            eprintln!("bench {} failed: {error:#}", name.text());
            failed.push(name.text());
            continue;
        }
        book.finish(&tools)?;
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

fn one(name: Name, tools: &Tools, book: &mut Book, options: &Options) -> Result<()> {
    match name {
        Name::ApiCreate => api::create(tools, book),
        Name::ApiList => api::list(tools, book),
        Name::ApiWatch => api::watch(tools, book),
        Name::ApiAccess => api::access(tools, book),
        Name::ApiCrd => api::crd(tools, book),
        Name::ApiApply => api::apply(tools, book),
        Name::Scheduler => api::scheduler(tools, book),
        Name::Dns => api::dns(tools, book),
        Name::Idle => cluster::idle(tools, book),
        Name::Start => cluster::start(tools, book),
        Name::PodStart => cluster::pod_start(tools, book),
        Name::ProxySync => cluster::proxy_sync(tools, book),
        Name::WasmHttp => wasm::http(tools, book),
        Name::WasmDensity => wasm::density(tools, book),
        Name::Hollow => hollow::hollow(tools, book, options.hollow),
        Name::Abuse | Name::Smoke | Name::All | Name::Page | Name::Clean => Ok(()),
    }
}
