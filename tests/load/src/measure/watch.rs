//! Many watchers of one pod that is written again and again: from the write to the event at each of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http::Method;
use serde_json::json;
use tokio::task::JoinSet;

use crate::client::{Lines, MERGE_PATCH, Server};
use crate::figures::Figures;
use crate::meter::{Groups, Meter};
use crate::objects::{self, namespace, pods_path};

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    #[arg(long)]
    namespace: String,
    /// Each on a connection of its own
    #[arg(long, default_value_t = 1000)]
    watchers: usize,
    /// Written at a steady pace
    #[arg(long, default_value_t = 20)]
    writes: usize,
    /// Written back to back after that
    #[arg(long, default_value_t = 100)]
    burst: usize,
}

const PACE: Duration = Duration::from_millis(500);
/// In an annotation, followed by the time of the write in nanoseconds, in so many digits.
const STAMP: &str = "skiff-load-at-";
const DIGITS: usize = 20;
const SETTLE: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// What the watchers and the writer share.
#[derive(Default)]
struct Board {
    delivered: AtomicUsize,
    over: AtomicBool,
}

pub async fn run(server: &Server, groups: &Groups, options: &Options) -> Result<Figures> {
    let writer = server.connect().await?;
    namespace(&writer, &options.namespace).await?;
    let collection = pods_path(&options.namespace);
    writer.post(&collection, objects::stored_pod().named("watched")).await?;
    let version = writer.version_of(&collection).await?;
    let board = Arc::new(Board::default());
    let mut watchers = JoinSet::new();
    let at = format!("{collection}?watch=1&timeoutSeconds=1800&resourceVersion={version}");
    for _ in 0..options.watchers {
        let connection = server.connect().await?;
        let lines = Lines::new(connection.open(Method::GET, &at, "", Bytes::new()).await?);
        watchers.spawn(observe(lines, board.clone()));
    }
    tokio::time::sleep(SETTLE).await;
    let pod = format!("{collection}/watched");
    let mut figures = Figures::default();
    let write = || async {
        let stamp = format!("{STAMP}{:0DIGITS$}", now());
        let body = json!({"metadata": {"annotations": {"skiff-load/at": stamp}}}).to_string();
        writer.fire(Method::PATCH, &pod, MERGE_PATCH, body.into()).await
    };
    let meter = Meter::start(groups)?;
    let mut pace = tokio::time::interval(PACE);
    for _ in 0..options.writes {
        pace.tick().await;
        write().await?;
    }
    settled(&board, options.writes * options.watchers, &mut watchers).await?;
    let burst = std::time::Instant::now();
    for _ in 0..options.burst {
        write().await?;
    }
    settled(&board, (options.writes + options.burst) * options.watchers, &mut watchers).await?;
    figures.set(
        "burst_deliveries_per_s",
        (options.burst * options.watchers) as f64 / burst.elapsed().as_secs_f64(),
    );
    meter.stop(&mut figures)?;
    board.over.store(true, Ordering::Relaxed);
    write().await?;
    let (mut paced, mut in_burst) = (Vec::new(), Vec::new());
    while let Some(observed) = watchers.join_next().await {
        let observed = observed??;
        let (first, second) = observed.split_at(options.writes.min(observed.len()));
        paced.extend_from_slice(first);
        in_burst.extend_from_slice(second);
    }
    figures.percentiles("paced_write_to_event", &mut paced);
    figures.percentiles("burst_write_to_event", &mut in_burst);
    Ok(figures)
}

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()
}

/// Waits until everyone has seen every write; one who has lost its watch will not.
async fn settled(board: &Board, wanted: usize, watchers: &mut JoinSet<Result<Vec<Duration>>>) -> Result<()> {
    while board.delivered.load(Ordering::Relaxed) < wanted {
        if let Some(ended) = watchers.try_join_next() {
            ended?.context("a watcher ended")?;
            bail!("a watcher ended");
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    ensure!(board.delivered.load(Ordering::Relaxed) == wanted, "more events than writes");
    Ok(())
}

/// Answers how old each event was when it came.
async fn observe(mut lines: Lines, board: Arc<Board>) -> Result<Vec<Duration>> {
    let mut ages = Vec::new();
    loop {
        let Some(line) = lines.next().await? else { bail!("the server has ended a watch") };
        let arrived = now();
        if board.over.load(Ordering::Relaxed) {
            return Ok(ages);
        }
        let Some(written) = stamp(line) else { bail!("an event without a stamp") };
        ages.push(Duration::from_nanos(u64::try_from(arrived.saturating_sub(written))?));
        board.delivered.fetch_add(1, Ordering::Relaxed);
    }
}

fn stamp(line: &[u8]) -> Option<u128> {
    let at = line.windows(STAMP.len()).position(|window| window == STAMP.as_bytes())? + STAMP.len();
    std::str::from_utf8(line.get(at..at + DIGITS)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_the_write_is_read_out_of_the_event() {
        let line = format!(r#"{{"annotations":{{"skiff-load/at":"{STAMP}{:0DIGITS$}"}}}}"#, 12_345);
        assert_eq!(stamp(line.as_bytes()), Some(12_345));
        assert_eq!(stamp(b"{}"), None);
        assert_eq!(stamp(STAMP.as_bytes()), None);
    }
}
