//! What a single client or pod can do to everybody else: each abuse for itself, while an administrator and a pod are asked
//! at a steady pace.
//!
//! ```text
//!  quiet ─▶ abuse begins ─▶ the same time again ─▶ abuse ends ─▶ memory comes back, or does not
//! ```
//!
//! Who asks does so from a thread of its own, with a client of its own, and runs before everybody else; who abuses runs when
//! nobody else here wants to. Both stand for machines elsewhere, whose processors would be their own: what is measured is
//! how long the answer takes, not how long the asker waits to see it.
//!
//! All abuse is bounded in count and time, and goes to the server that was named and to the pod that was made here.

mod attacks;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::client::{Connection, Server, status_of};
use crate::figures::Figures;
use crate::measure::web;
use crate::meter::Groups;
use crate::objects::namespace;

use attacks::Attack;

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Of a pod that serves HTTP
    #[arg(long)]
    address: SocketAddr,
    /// Of each phase
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Of the case that is about what piles up
    #[arg(long, default_value_t = 600)]
    long_seconds: u64,
    /// A case, or all of them; may be given several times
    #[arg(long = "case")]
    cases: Vec<String>,
}

const NAMESPACE: &str = "abuse";
/// Between two questions of either prober.
const PACE: Duration = Duration::from_millis(50);
/// The least of those with which the kernel lets a thread run before all that have none.
const PROBER_PRIORITY: u32 = 1;
/// A question that takes longer counts as having taken this long.
const LONGEST: Duration = Duration::from_secs(10);
/// How long memory may take to come back.
const SETTLE: Duration = Duration::from_secs(120);
const BACK_WITHIN: f64 = 1.2;

pub async fn run(server: &Server, groups: &Groups, options: &Options) -> Result<Vec<Value>> {
    let admin = server.connect().await?;
    namespace(&admin, NAMESPACE).await?;
    schedule(&["--all-tasks", "--idle"], 0, rustix::process::getpid())?;
    let mut cases = Vec::new();
    for attack in Attack::ALL {
        if !options.cases.is_empty() && !options.cases.iter().any(|name| name == attack.name()) {
            continue;
        }
        eprintln!("abuse: {}", attack.name());
        cases.push(one(server, groups, options, attack).await.with_context(|| attack.name())?);
    }
    Ok(cases)
}

async fn one(server: &Server, groups: &Groups, options: &Options, attack: Attack) -> Result<Value> {
    let seconds = if attack.piles_up() { options.long_seconds } else { options.seconds };
    let quiet = probe(server, options.address, options.seconds, || true).await?;
    let before_kib = pss(groups);
    let answers = Answers::default();
    let going = Arc::new(AtomicBool::new(true));
    attack.prepare(server).await?;
    let end = Instant::now() + Duration::from_secs(seconds);
    let abuse = {
        let (server, answers, going) = (server.clone(), answers.clone(), going.clone());
        tokio::spawn(async move { attack.run(&server, end, &answers, &going).await })
    };
    let most_kib = Arc::new(Mutex::new(before_kib));
    let under = probe(server, options.address, seconds, || {
        let now_kib = pss(groups);
        let mut most = most_kib.lock();
        *most = (*most).max(now_kib);
        true
    })
    .await?;
    going.store(false, Ordering::Relaxed);
    abuse.await.context("the abuse")??;
    attack.clean(server).await?;
    let settling = Instant::now();
    let back = |kib: u64| kib as f64 <= before_kib as f64 * BACK_WITHIN;
    while !back(pss(groups)) && settling.elapsed() < SETTLE {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let mut figures = Figures::default();
    for (name, mut times) in [
        ("admin_quiet", quiet.admin),
        ("admin_abused", under.admin),
        ("pod_quiet", quiet.pod),
        ("pod_abused", under.pod),
    ] {
        figures.percentiles(name, &mut times);
    }
    let mib = |kib: u64| kib as f64 / 1024.0;
    figures.set("before_mib", mib(before_kib));
    figures.set("most_mib", mib(*most_kib.lock()));
    figures.set("after_mib", mib(pss(groups)));
    figures.set("failed_probes", under.failed as f64);
    Ok(
        json!({"case": attack.name(), "what": attack.what(), "seconds": seconds, "values": figures.into_value(),
        "answers": answers.into_value()}),
    )
}

/// Has the kernel run a thread, or with `--all-tasks` all those of a process, and those that they make, as a policy says.
fn schedule(policy: &[&str], priority: u32, of: rustix::process::Pid) -> Result<()> {
    let status = Command::new("chrt")
        .args(policy)
        .args(["--pid", &priority.to_string(), &of.as_raw_nonzero().to_string()])
        .status()
        .context("running chrt, of util-linux")?;
    anyhow::ensure!(status.success(), "chrt {}: {status}", policy.join(" "));
    Ok(())
}

fn pss(groups: &Groups) -> u64 {
    groups.pss_kib().values().sum()
}

/// How often an abuser was answered how; 0 is no answer.
#[derive(Clone, Default)]
struct Answers(Arc<Mutex<BTreeMap<String, u64>>>);

impl Answers {
    fn note(&self, answer: &Result<()>) {
        let status = answer.as_ref().map_or_else(status_of, |()| 200);
        self.count(&status.to_string());
    }

    fn count(&self, what: &str) {
        *self.0.lock().entry(what.to_owned()).or_default() += 1;
    }

    fn into_value(self) -> Value {
        json!(*self.0.lock())
    }
}

#[derive(Default)]
struct Probed {
    admin: Vec<Duration>,
    pod: Vec<Duration>,
    failed: usize,
}

/// Asks both for so long. `look` is called about once a second.
async fn probe(
    server: &Server,
    pod: SocketAddr,
    seconds: u64,
    mut look: impl FnMut() -> bool,
) -> Result<Probed> {
    let end = Instant::now() + Duration::from_secs(seconds);
    let server = server.clone();
    let probers = std::thread::Builder::new().name("probers".into()).spawn(move || {
        schedule(&["--fifo"], PROBER_PRIORITY, rustix::thread::gettid())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(ask_both(server, pod, end))
    })?;
    while Instant::now() < end && look() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let probed = tokio::task::spawn_blocking(move || probers.join()).await?;
    probed.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

async fn ask_both(server: Server, pod: SocketAddr, end: Instant) -> Result<Probed> {
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut probed = Probed::default();
        let mut connection = server.connect().await.ok();
        while Instant::now() < end {
            let start = Instant::now();
            let asked = tokio::time::timeout(LONGEST, ask(&server, &mut connection)).await;
            let failed = !matches!(asked, Ok(Ok(())));
            if failed {
                connection = None;
            }
            probed.failed += usize::from(failed);
            probed.admin.push(if failed { LONGEST } else { start.elapsed() });
            tokio::time::sleep(PACE).await;
        }
        probed
    });
    tasks.spawn(async move {
        let mut probed = Probed::default();
        while Instant::now() < end {
            let start = Instant::now();
            let asked = tokio::time::timeout(LONGEST, web::ask_once(pod)).await;
            let failed = !matches!(asked, Ok(Ok(())));
            probed.failed += usize::from(failed);
            probed.pod.push(if failed { LONGEST } else { start.elapsed() });
            tokio::time::sleep(PACE).await;
        }
        probed
    });
    let mut all = Probed::default();
    while let Some(one) = tasks.join_next().await {
        let one = one?;
        all.admin.extend(one.admin);
        all.pod.extend(one.pod);
        all.failed += one.failed;
    }
    Ok(all)
}

/// What an administrator does most: reads something, and writes something small. A lost connection is made anew, and that
/// counts too.
async fn ask(server: &Server, connection: &mut Option<Connection>) -> Result<()> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(server.connect().await?),
    };
    connection.get(&format!("/api/v1/namespaces/{NAMESPACE}")).await?;
    let patch = json!({"metadata": {"annotations": {"probed": format!("{:?}", Instant::now())}}});
    connection.patch(&format!("/api/v1/namespaces/{NAMESPACE}"), &patch).await.map(drop)
}
