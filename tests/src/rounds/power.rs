//! The power goes while the API takes writes, again and again.
//!
//! ```text
//!  writers write ─ server held ─ file system shut down ─ server killed ─ mounted again ─ `up` ─ everything compared
//! ```
//!
//! The server is held first: what it acknowledges afterwards could not be true. Heartbeats, which may be a minute old after a cut,
//! are not among what is written.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{Report, median_and_longest};
use crate::TestCluster;
use crate::drills::{FileSystem, PowerDisk, in_own_mounts};
use crate::writers::{Found, Known, Writers, clear, stored};

const N_WRITERS: usize = 4;
/// Acknowledged between two cuts.
const MIN_WRITES: usize = 20;

/// Cuts the power of the disk under a cluster so often on each file system. A start that fails ends the drill.
///
/// # Errors
/// If a cluster or its disk cannot be made, or a cluster cannot be started again.
pub fn power(file_systems: &[FileSystem], n_cuts: usize) -> Result<Report> {
    let mut report = Report::new(&[
        "file system",
        "cuts",
        "writes acknowledged",
        "lost",
        "there twice",
        "of those without an answer",
        "from the start to ready, median and longest, s",
    ]);
    for file_system in file_systems {
        one(&mut report, *file_system, n_cuts)?;
    }
    Ok(report)
}

fn one(report: &mut Report, file_system: FileSystem, n_cuts: usize) -> Result<()> {
    let Tally { known, found, mut starts } = in_own_mounts(|| rounds(file_system, n_cuts))?;
    let Found { n_lost, n_twice, n_strange, n_unknown_there: n_there, n_unknown_missing: n_missing } = found;
    let (median, longest) = median_and_longest(&mut starts);
    report.row(vec![
        file_system.name().to_owned(),
        n_cuts.to_string(),
        (known.n_acknowledged() + n_lost - n_there).to_string(),
        n_lost.to_string(),
        n_twice.to_string(),
        format!("{n_there} there, {n_missing} not"),
        format!("{median}, {longest}"),
    ]);
    let name = file_system.name();
    report.aim(n_lost == 0, || format!("{name}: {n_lost} acknowledged writes are lost"));
    report.aim(n_twice == 0, || format!("{name}: {n_twice} writes are there twice"));
    report.aim(n_strange == 0, || format!("{name}: {n_strange} objects came from nowhere"));
    Ok(())
}

#[derive(Default)]
struct Tally {
    known: Known,
    /// By all looks together.
    found: Found,
    starts: Vec<Duration>,
}

fn rounds(file_system: FileSystem, n_cuts: usize) -> Result<Tally> {
    let name = format!("drill-power-{}", file_system.name());
    let (cluster, disk) = TestCluster::start_prepared(&name, |data| PowerDisk::mount(file_system, data))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut tally = Tally::default();
    for cut in 0..n_cuts {
        let client = runtime.block_on(cluster.client())?;
        let writers = Writers::start(&runtime, &client, cut, N_WRITERS);
        cluster
            .wait_for("writes before a cut", || Ok((writers.n_acknowledged() >= MIN_WRITES).then_some(())))?;
        let server = cluster.server()?;
        let held = server.stop()?;
        disk.cut()?;
        cluster.server()?.kill()?;
        drop(held);
        // Its log is on that disk.
        cluster.forwarder()?.kill()?;
        runtime.block_on(writers.end(&mut tally.known))?;
        disk.give_back()?;
        let start = Instant::now();
        cluster
            .up()
            .with_context(|| format!("starting again after cut {} on {}", cut + 1, file_system.name()))?;
        tally.starts.push(start.elapsed());
        let client = runtime.block_on(cluster.client())?;
        tally.found.add(&tally.known.compare(runtime.block_on(stored(&client))?));
    }
    runtime.block_on(async { clear(&cluster.client().await?).await })?;
    cluster.stop()?;
    Ok(tally)
}
