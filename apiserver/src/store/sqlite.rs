//! The default store: one SQLite file.
//!
//! ```text
//!  write() ──bounded queue──▶ writer thread ──one transaction, one fsync──▶ WAL
//!                                  │   └─ heartbeats ─▶ held in memory ─(the next transaction, a minute)─▶ WAL
//!                                  │ after the commit
//!                                  ├──▶ answers every caller of the batch
//!                                  └──▶ broadcast ──▶ watches (which read the log when they lag)
//!  get(), range() ─────────▶ what is held, then read connections (WAL readers never wait for the writer)
//! ```
//!
//! The table is a log: one row a change. Group commit: all writes that queued up while the previous commit
//! was being synced go into the next transaction, each compare evaluated in order inside it.
//!
//! A batch in which every write asked for [`Durability::Soon`](super::Durability) is held (`held.rs`); its revisions were
//! reserved before (`reserve.rs`). The next transaction logs what is held, the newest of each key, before its own writes.

use std::collections::VecDeque;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::contract::{
    Batch, KeyValue, MAX_VALUE_BYTES, Op, Range, Ranged, Revision, Store, StoreError, Watch, Write, Written,
};

mod held;
mod log;
mod read;
mod record;
mod reserve;
mod writer;

use held::Held;
use read::Readers;
use writer::{Job, Shared, Writer};

/// How many writes may wait for the writer.
const QUEUE_WRITES: usize = 1024;
/// How long a write waits for a place in the queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// Committed batches kept for watches; a watch further behind reads the log.
const LIVE_BATCHES: usize = 256;
const WATCH_BATCHES: usize = 16;
/// How many changes a lagging watch reads at once.
const CATCH_UP_EVENTS: usize = 500;
/// What is held is logged, and the WAL and the record of the revision are looked after, each time that this many looks for
/// expired keys were taken.
const TEND_TICKS: u32 = 6;
/// So many revisions are compacted however young the last compaction is.
const COMPACT_AT_ONCE: u64 = 1000;

#[derive(Clone, Debug)]
pub struct SqliteOptions {
    pub path: PathBuf,
    /// History older than this is compacted; upstream's default.
    pub keep_history: Duration,
    /// History longer than this many changes is compacted, however young.
    pub keep_revisions: u64,
    /// How often expired keys are looked for.
    pub expiry_interval: Duration,
}

impl SqliteOptions {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        SqliteOptions {
            path: path.into(),
            keep_history: Duration::from_secs(5 * 60),
            keep_revisions: 200_000,
            expiry_interval: Duration::from_secs(10),
        }
    }
}

pub struct SqliteStore {
    path: PathBuf,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    readers: Arc<Readers>,
    held: Arc<Held>,
    /// The newest revision that was given out.
    published: Arc<AtomicU64>,
    live: broadcast::Sender<Arc<Batch>>,
    closed: CancellationToken,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// Held for as long as the store is open: two writers would give out the same revisions.
    lock: Mutex<Option<File>>,
}

impl SqliteStore {
    /// Opens or creates the database and starts its writer. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if the file is not a sound database, [`StoreError::Unreadable`] if its disk does not give it,
    /// [`StoreError::InUse`] if another process
    /// has it open, [`StoreError::RolledBack`] if it has been further than it is.
    pub fn open(options: SqliteOptions) -> Result<SqliteStore, StoreError> {
        let path = options.path.clone();
        let lock = lock_file(&path)?;
        let mut connection = log::open_writer(&path).map_err(|e| log::blame_disk(&path, e))?;
        let failed = |e| log::classify(&path, "read the newest revision", e);
        record::check(&path, log::newest(&connection).map_err(failed)?)?;
        let revision = reserve::begin(&mut connection).map_err(failed)?;

        let published = Arc::new(AtomicU64::new(revision));
        let readers = Arc::new(Readers::open(&path)?);
        let (live, _) = broadcast::channel(LIVE_BATCHES);
        let (jobs, queue) = mpsc::channel(QUEUE_WRITES);
        let held = Arc::new(Held::default());
        let shared = Shared { live: live.clone(), published: published.clone(), held: held.clone() };
        let writer = Writer::new(connection, path.clone(), revision, queue, shared).map_err(failed)?;
        let thread = std::thread::Builder::new()
            .name("skiff-store".into())
            .spawn(move || writer.run())
            .map_err(|e| StoreError::Directory { path: path.clone(), source: Arc::new(e) })?;

        let closed = CancellationToken::new();
        tokio::spawn(maintain(options, jobs.clone(), published.clone(), closed.clone()));
        Ok(SqliteStore {
            path,
            jobs: Mutex::new(Some(jobs)),
            readers,
            held,
            published,
            live,
            closed,
            thread: Mutex::new(Some(thread)),
            lock: Mutex::new(Some(lock)),
        })
    }

    /// Reads every value of a database that nobody has open, and answers the keys of those that are not what was written.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub fn damaged(path: &Path) -> Result<Vec<String>, StoreError> {
        let _lock = lock_file(path)?;
        let connection = log::open_reader(path)?;
        let classify = |e| log::blame_disk(path, log::classify(path, "read all values", e));
        log::damaged(&connection).map_err(classify)
    }

    async fn submit<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Job,
    ) -> Result<T, StoreError> {
        let jobs = self.jobs.lock().clone().ok_or(StoreError::Closed)?;
        let (answer, answered) = oneshot::channel();
        jobs.send_timeout(make(answer), QUEUE_TIMEOUT).await.map_err(|e| match e {
            mpsc::error::SendTimeoutError::Timeout(_) => StoreError::Overloaded,
            mpsc::error::SendTimeoutError::Closed(_) => StoreError::Closed,
        })?;
        drop(jobs);
        answered.await.map_err(|_| StoreError::Closed)?
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        // The writer ends when the last sender of its queue is gone.
        self.closed.cancel();
        self.jobs.lock().take();
    }
}

#[cfg(test)]
impl SqliteStore {
    /// One round of what is done now and then.
    pub(crate) async fn expire(&self) -> Result<(), StoreError> {
        let jobs = self.jobs.lock().clone().ok_or(StoreError::Closed)?;
        expire_all(&jobs, &self.closed).await
    }

    /// Fills the disk, as far as what grows the database notices, or gives it room.
    pub(crate) async fn fill(&self, is_full: bool) -> Result<(), StoreError> {
        let jobs = self.jobs.lock().clone().ok_or(StoreError::Closed)?;
        jobs.send(Job::Fill(is_full)).await.map_err(|_| StoreError::Closed)
    }

    pub(crate) async fn tend(&self) -> Result<(), StoreError> {
        let jobs = self.jobs.lock().clone().ok_or(StoreError::Closed)?;
        jobs.send(Job::Tend).await.map_err(|_| StoreError::Closed)?;
        drop(jobs);
        // One after the other.
        self.expire().await
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.published.load(Ordering::Acquire))
    }

    async fn compacted(&self) -> Result<Revision, StoreError> {
        self.readers.run("read the compacted revision", log::compacted).await
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        if let Some(found) = self.held.get(key) {
            // As any other read of a store that was closed.
            return if self.closed.is_cancelled() { Err(StoreError::Closed) } else { Ok(Some(found)) };
        }
        let key = key.to_owned();
        self.readers.run("read a key", move |connection| log::get(connection, &key)).await
    }

    async fn range(&self, range: Range) -> Result<Ranged, StoreError> {
        let held = self.held.snapshot(&range.prefix);
        self.readers
            .run_checked("read a range", move |connection| log::range(connection, &range, &held))
            .await
    }

    async fn write(&self, write: Write) -> Result<Written, StoreError> {
        if let Op::Put { value, .. } = &write.op
            && value.len() > MAX_VALUE_BYTES
        {
            return Err(StoreError::TooLarge { bytes: value.len(), key: write.key });
        }
        self.submit(|answer| Job::Write(write, answer)).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        // Subscribed before the log is read: nothing falls between the two.
        let live = self.live.subscribe();
        let compacted = self.compacted().await?;
        if after < compacted {
            return Err(StoreError::Compacted { requested: after, compacted });
        }
        let (out, batches) = mpsc::channel(WATCH_BATCHES);
        let (readers, held) = (self.readers.clone(), self.held.clone());
        let follower = Follower { prefix: prefix.to_owned(), after, readers, held, out };
        tokio::spawn(follower.run(live, self.closed.clone()));
        Ok(Watch { batches })
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        loop {
            // One bounded step at a time, so that writes get in between.
            if self.submit(|answer| Job::Compact(revision, answer)).await? {
                return Ok(());
            }
        }
    }

    async fn size_bytes(&self) -> Result<u64, StoreError> {
        Ok(std::fs::metadata(&self.path).map(|m| m.len()).unwrap_or(0))
    }

    async fn close(&self) {
        self.closed.cancel();
        self.jobs.lock().take();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // A panic of the writer was already answered to its callers as `Closed`.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        self.readers.close();
        // Whoever still holds this store only gets errors from it; another process may open the file.
        self.lock.lock().take();
    }
}

/// Feeds one watch: first from the log, then from the live batches, and from the log again when it lags.
struct Follower {
    prefix: String,
    after: Revision,
    readers: Arc<Readers>,
    held: Arc<Held>,
    out: mpsc::Sender<Result<Batch, StoreError>>,
}

impl Follower {
    async fn run(mut self, mut live: broadcast::Receiver<Arc<Batch>>, closed: CancellationToken) {
        if self.catch_up().await.is_err() {
            return;
        }
        loop {
            // All three only wait: a batch is taken whole or not at all.
            let received = tokio::select! {
                () = closed.cancelled() => return,
                () = self.out.closed() => return,
                received = live.recv() => received,
            };
            let went = match received {
                Ok(batch) if batch.revision <= self.after => Ok(()),
                Ok(batch) => self.pass_on(&batch).await,
                Err(broadcast::error::RecvError::Lagged(_)) => self.catch_up().await,
                Err(broadcast::error::RecvError::Closed) => return,
            };
            if went.is_err() {
                return;
            }
        }
    }

    async fn pass_on(&mut self, batch: &Batch) -> Result<(), ()> {
        let events = batch
            .events
            .iter()
            .filter(|e| e.mod_revision > self.after && e.key.starts_with(&self.prefix))
            .cloned()
            .collect();
        self.after = batch.revision;
        self.out.send(Ok(Batch { revision: batch.revision, events })).await.map_err(|_| ())
    }

    async fn catch_up(&mut self) -> Result<(), ()> {
        loop {
            let (prefix, after) = (self.prefix.clone(), self.after);
            let held = self.held.snapshot(&prefix);
            let read = self
                .readers
                .run_checked("read the log for a watch", move |connection| {
                    log::events(connection, &prefix, after, CATCH_UP_EVENTS, &held)
                })
                .await;
            match read {
                Ok(batch) => {
                    let done = batch.events.len() < CATCH_UP_EVENTS;
                    self.after = batch.revision;
                    self.out.send(Ok(batch)).await.map_err(|_| ())?;
                    if done {
                        return Ok(());
                    }
                }
                Err(error) => {
                    let _ = self.out.send(Err(error)).await;
                    return Err(());
                }
            }
        }
    }
}

/// Asks the writer, now and then, to delete what has expired and to compact old history.
async fn maintain(
    options: SqliteOptions,
    jobs: mpsc::Sender<Job>,
    published: Arc<AtomicU64>,
    closed: CancellationToken,
) {
    // Upgraded only while it sends, so that dropping the store ends the writer.
    let weak = jobs.downgrade();
    drop(jobs);
    let mut ticks_to_tend = TEND_TICKS;
    let mut history: VecDeque<(Instant, Revision)> = VecDeque::new();
    let (mut compacted, mut compacted_at) = (0, Instant::now());
    let mut ticks = tokio::time::interval(options.expiry_interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = closed.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let Some(jobs) = weak.upgrade() else { return };
        if let Err(error) = expire_all(&jobs, &closed).await {
            tracing::warn!(%error, "cannot delete what has expired");
        }
        ticks_to_tend -= 1;
        if ticks_to_tend == 0 {
            ticks_to_tend = TEND_TICKS;
            // A full queue means that writes are being made; this can wait.
            let _ = jobs.try_send(Job::Tend);
        }

        let newest = published.load(Ordering::Acquire);
        let now = Instant::now();
        history.push_back((now, newest));
        let mut target = newest.saturating_sub(options.keep_revisions);
        while let Some(&(at, revision)) = history.front()
            && now.duration_since(at) >= options.keep_history
        {
            target = target.max(revision);
            history.pop_front();
        }
        // Few at a time would write the same pages again and again.
        let is_due = target >= compacted + COMPACT_AT_ONCE || compacted_at.elapsed() >= options.keep_history;
        if is_due && target > compacted {
            compact_in_steps(&jobs, target, &closed).await;
            (compacted, compacted_at) = (target, now);
        }
    }
}

/// Deletes all that has expired, some at a time so that writes get in between.
async fn expire_all(jobs: &mpsc::Sender<Job>, closed: &CancellationToken) -> Result<(), StoreError> {
    while !closed.is_cancelled() {
        let (answer, answered) = oneshot::channel();
        jobs.send(Job::Expire(answer)).await.map_err(|_| StoreError::Closed)?;
        if !answered.await.map_err(|_| StoreError::Closed)?? {
            break;
        }
    }
    Ok(())
}

async fn compact_in_steps(jobs: &mpsc::Sender<Job>, target: Revision, closed: &CancellationToken) {
    while !closed.is_cancelled() {
        let (answer, answered) = oneshot::channel();
        if jobs.send(Job::Compact(target, answer)).await.is_err() {
            return;
        }
        match answered.await {
            Ok(Ok(false)) => {}
            Ok(Err(error)) => return tracing::warn!(%error, target, "compaction failed"),
            Ok(Ok(true)) | Err(_) => return,
        }
    }
}

fn lock_file(database: &Path) -> Result<File, StoreError> {
    let fail =
        |path: &Path, e: std::io::Error| StoreError::Directory { path: path.into(), source: Arc::new(e) };
    if let Some(folder) = database.parent() {
        std::fs::create_dir_all(folder).map_err(|e| fail(folder, e))?;
    }
    let path = database.with_extension("lock");
    let file =
        File::options().create(true).truncate(false).write(true).open(&path).map_err(|e| fail(&path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: database.into() }),
        Err(TryLockError::Error(e)) => Err(fail(&path, e)),
    }
}
