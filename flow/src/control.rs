//! Levels in use, requests that wait, seats that are taken.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use crate::config::{Config, Level, Request, Response, Schema};
use crate::dropped::Dropped;
use crate::queues::{Arrived, Full, Queues, Serving, Waits, Work};
use crate::share::{Bounds, Claim, Demand, bounds, limits};

/// The widest that a request is taken to be, as upstream.
const MAX_SEATS: u32 = 10;
/// How much of its level one request may take.
const MAX_PART: f64 = 0.15;

/// No seat came.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "the priority level {level} has no room for another request ({reason}); try again in {retry_after_s} s"
)]
pub struct Refused {
    pub level: String,
    /// As upstream names it in its metrics.
    pub reason: &'static str,
    pub retry_after_s: u64,
}

/// What happened to the requests of one schema.
#[derive(Debug, Default)]
struct Counts {
    dispatched: AtomicU64,
    queue_full: AtomicU64,
    level_full: AtomicU64,
    timed_out: AtomicU64,
    waiting: AtomicU64,
    serving: AtomicU64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchemaReport {
    pub name: String,
    pub dispatched: u64,
    /// By reason.
    pub rejected: [(&'static str, u64); 3],
    pub waiting: u64,
    pub serving: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct LevelReport {
    pub name: String,
    pub is_exempt: bool,
    pub nominal: f64,
    pub min: f64,
    pub max: f64,
    pub current: f64,
    pub seats: f64,
    pub active_queues: usize,
    pub waiting: usize,
    pub serving: usize,
    pub schemas: Vec<SchemaReport>,
}

#[derive(Debug)]
struct Inner {
    queues: Queues<oneshot::Sender<Serving>>,
    demand: Demand,
    dropped: Dropped,
    bounds: Bounds,
    limit: f64,
    response: Response,
}

/// One level, for as long as anything of it goes on.
#[derive(Debug)]
struct LevelState {
    name: String,
    origin: Instant,
    /// The seats that one request may take.
    max_seats: AtomicU32,
    /// Room for the bodies of requests.
    bodies: Arc<Semaphore>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Row {
    schema: Arc<Schema>,
    level: Arc<LevelState>,
    level_uid: String,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Table {
    levels: BTreeMap<String, Arc<LevelState>>,
    rows: Vec<Arc<Row>>,
}

/// The schema and the level of a request.
#[derive(Clone, Debug)]
pub struct Classified {
    row: Arc<Row>,
    hash: u64,
}

impl Classified {
    pub fn level(&self) -> &str {
        &self.row.level.name
    }

    pub fn schema(&self) -> &str {
        &self.row.schema.name
    }

    pub fn level_uid(&self) -> &str {
        &self.row.level_uid
    }

    pub fn schema_uid(&self) -> &str {
        &self.row.schema.uid
    }

    /// The seats that one request of the level may take.
    pub fn max_seats(&self) -> u32 {
        self.row.level.max_seats.load(Ordering::Relaxed)
    }

    /// Room for the bodies of the level's requests.
    pub fn bodies(&self) -> &Arc<Semaphore> {
        &self.row.level.bodies
    }
}

/// All levels, and what is asked of them.
pub struct Control {
    total: f64,
    body_permits: usize,
    origin: Instant,
    table: ArcSwap<Table>,
    /// For what no schema matches, which cannot be: the last is for everybody.
    fallback: Arc<Row>,
    /// Held by whoever changes the table or its limits.
    changing: Mutex<()>,
}

impl Control {
    /// `total_seats` for all levels together, `body_permits` for the bodies of each.
    pub fn new(total_seats: u32, body_permits: usize) -> Control {
        let (total, origin) = (f64::from(total_seats), Instant::now());
        let level = Level::catch_all();
        let fallback = Row {
            schema: Arc::new(Schema::catch_all()),
            level: Arc::new(LevelState::new(&level, bounds(&level, total, total), origin, body_permits)),
            level_uid: String::new(),
            counts: Arc::default(),
        };
        let control = Control {
            total,
            body_permits,
            origin,
            table: ArcSwap::default(),
            fallback: Arc::new(fallback),
            changing: Mutex::new(()),
        };
        control.configure(&Config::read([], []));
        control
    }

    /// Goes over to other objects. Requests that wait at a level that is gone are served by it.
    pub fn configure(&self, config: &Config) {
        let _changing = self.changing.lock();
        let old = self.table.load_full();
        let shares: f64 = config.levels.values().map(|level| level.shares).sum();
        let mut levels = BTreeMap::new();
        for (name, level) in &config.levels {
            let bounds = bounds(level, self.total, shares);
            let state = match old.levels.get(name) {
                Some(state) => state.clone(),
                None => Arc::new(LevelState::new(level, bounds, self.origin, self.body_permits)),
            };
            state.max_seats.store(max_seats(level.response, bounds.nominal), Ordering::Relaxed);
            let mut inner = state.inner.lock();
            (inner.bounds, inner.response) = (bounds, level.response);
            drop(inner);
            levels.insert(name.clone(), state);
        }
        let before: HashMap<&str, &Arc<Row>> =
            old.rows.iter().map(|row| (row.schema.name.as_str(), row)).collect();
        let rows = config.schemas.iter().filter_map(|schema| {
            let level = levels.get(&schema.level)?.clone();
            let same = before.get(schema.name.as_str()).filter(|row| Arc::ptr_eq(&row.level, &level));
            let counts = same.map(|row| row.counts.clone()).unwrap_or_default();
            let level_uid = config.levels.get(&schema.level).map(|level| level.uid.clone());
            Some(Arc::new(Row { schema: schema.clone(), level, level_uid: level_uid?, counts }))
        });
        let table = Table { rows: rows.collect(), levels };
        share_out(&table);
        self.table.store(Arc::new(table));
    }

    /// Shares the seats out anew; to be called every ten seconds.
    pub fn rebalance(&self) {
        let _changing = self.changing.lock();
        share_out(&self.table.load());
    }

    /// The schema of a request: the first that matches, in their order.
    pub fn classify(&self, request: &Request<'_>) -> Classified {
        let table = self.table.load();
        let found = table.rows.iter().find(|row| row.schema.matches(request));
        let row = found.or(table.rows.last()).unwrap_or(&self.fallback).clone();
        let hash = hash(&row.schema.name, row.schema.flow(request));
        Classified { row, hash }
    }

    /// A seat for a request, for as long as it is answered.
    ///
    /// # Errors
    /// [`Refused`] if there is no room to wait in, or no seat within `patience`.
    pub async fn seat(
        &self,
        classified: &Classified,
        work: Work,
        patience: Duration,
    ) -> Result<Seat, Refused> {
        let Row { level, counts, .. } = &*classified.row;
        let mut waiting = match level.arrive(classified.hash, work, counts) {
            Ok(Standing::Seated(serving)) => return Ok(level.seat(serving, counts)),
            Ok(Standing::Waiting(waiting)) => waiting,
            Err(full) => return Err(level.refused(full.reason())),
        };
        match tokio::time::timeout(patience, &mut waiting.told).await {
            Ok(Ok(serving)) => {
                waiting.is_over = true;
                Ok(level.seat(serving, counts))
            }
            Ok(Err(_)) => Err(level.refused("cancelled")),
            Err(_) => match waiting.take_or_give_up() {
                // It came in the last moment.
                Some(serving) => Ok(level.seat(serving, counts)),
                None => {
                    counts.timed_out.fetch_add(1, Ordering::Relaxed);
                    Err(level.refused("time-out"))
                }
            },
        }
    }

    /// What goes on at each level.
    pub fn report(&self) -> Vec<LevelReport> {
        let table = self.table.load();
        let report = |level: &Arc<LevelState>| {
            let inner = level.inner.lock();
            let of_level = table.rows.iter().filter(|row| Arc::ptr_eq(&row.level, level));
            LevelReport {
                name: level.name.clone(),
                is_exempt: inner.response == Response::Exempt,
                nominal: inner.bounds.nominal,
                min: inner.bounds.min,
                max: inner.bounds.max,
                current: inner.limit,
                seats: inner.queues.seats(),
                active_queues: inner.queues.waited_in(),
                waiting: inner.queues.waiting(),
                serving: inner.queues.serving(),
                schemas: of_level.map(|row| row.report()).collect(),
            }
        };
        table.levels.values().map(report).collect()
    }
}

fn max_seats(response: Response, nominal: f64) -> u32 {
    let Response::Queue(queuing) = response else { return MAX_SEATS };
    #[expect(clippy::cast_precision_loss, reason = "a hand is small")]
    let of_hand = (nominal / queuing.hand as f64).floor();
    let seats = (nominal * MAX_PART).ceil().min(of_hand).clamp(1.0, f64::from(MAX_SEATS));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 10")]
    let seats = seats as u32;
    seats
}

fn share_out(table: &Table) {
    let claim = |level: &Arc<LevelState>| {
        let now = level.origin.elapsed();
        let mut inner = level.inner.lock();
        Claim { bounds: inner.bounds, response: inner.response, demand: inner.demand.end_period(now) }
    };
    let claims: Vec<Claim> = table.levels.values().map(claim).collect();
    for (level, limit) in table.levels.values().zip(limits(&claims)) {
        let now = level.origin.elapsed();
        let mut inner = level.inner.lock();
        inner.limit = limit;
        let response = inner.response;
        inner.queues.configure(now, response, limit);
        inner.begin_waiting(now);
    }
}

/// As upstream: the first eight bytes of a digest of both.
fn hash(schema: &str, flow: &str) -> u64 {
    let digest = Sha256::new().chain_update(schema).chain_update([0]).chain_update(flow).finalize();
    digest.iter().take(8).rev().fold(0, |hash, byte| (hash << 8) | u64::from(*byte))
}

impl Row {
    fn report(&self) -> SchemaReport {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &*self.counts;
        SchemaReport {
            name: self.schema.name.clone(),
            dispatched: of(&counts.dispatched),
            rejected: [
                ("queue-full", of(&counts.queue_full)),
                ("concurrency-limit", of(&counts.level_full)),
                ("time-out", of(&counts.timed_out)),
            ],
            waiting: of(&counts.waiting),
            serving: of(&counts.serving),
        }
    }
}

impl Full {
    fn reason(self) -> &'static str {
        match self {
            Full::Queue => "queue-full",
            Full::Level => "concurrency-limit",
        }
    }
}

enum Standing {
    Seated(Serving),
    Waiting(Waiting),
}

impl Inner {
    /// Tells those whose turn it is.
    fn begin_waiting(&mut self, now: Duration) {
        while let Some(begun) = self.queues.next(now) {
            // Who waits gives up before they stop to listen.
            if let Err(serving) = begun.ticket.send(begun.serving) {
                self.queues.answered(now, &serving);
                self.queues.leave(now, &serving);
            }
        }
        self.demand.set(now, self.queues.wanted());
    }
}

impl LevelState {
    fn new(level: &Level, bounds: Bounds, origin: Instant, body_permits: usize) -> LevelState {
        let limit = bounds.nominal - ((bounds.nominal - bounds.min) / 2.0).floor();
        LevelState {
            name: level.name.clone(),
            origin,
            max_seats: AtomicU32::new(max_seats(level.response, bounds.nominal)),
            bodies: Arc::new(Semaphore::new(body_permits)),
            inner: Mutex::new(Inner {
                queues: Queues::new(level.response, limit),
                demand: Demand::default(),
                dropped: Dropped::default(),
                bounds,
                limit,
                response: level.response,
            }),
        }
    }

    fn arrive(self: &Arc<Self>, hash: u64, work: Work, counts: &Arc<Counts>) -> Result<Standing, Full> {
        let (ticket, mut told) = oneshot::channel();
        let now = self.origin.elapsed();
        let mut inner = self.inner.lock();
        let arrived = inner.queues.arrive(now, hash, work, ticket).inspect_err(|full| {
            let count = match full {
                Full::Queue => &counts.queue_full,
                Full::Level => &counts.level_full,
            };
            count.fetch_add(1, Ordering::Relaxed);
        })?;
        inner.begin_waiting(now);
        drop(inner);
        let waits = match arrived {
            Arrived::Begun(begun) => return Ok(Standing::Seated(begun.serving)),
            Arrived::Queued(waits) => waits,
        };
        if let Ok(serving) = told.try_recv() {
            return Ok(Standing::Seated(serving));
        }
        counts.waiting.fetch_add(1, Ordering::Relaxed);
        let (level, counts) = (self.clone(), counts.clone());
        Ok(Standing::Waiting(Waiting { level, counts, waits, told, is_over: false }))
    }

    fn seat(self: &Arc<Self>, serving: Serving, counts: &Arc<Counts>) -> Seat {
        counts.dispatched.fetch_add(1, Ordering::Relaxed);
        counts.serving.fetch_add(1, Ordering::Relaxed);
        Seat { level: self.clone(), counts: counts.clone(), serving }
    }

    fn refused(&self, reason: &'static str) -> Refused {
        let now_s = self.origin.elapsed().as_secs();
        let retry_after_s = self.inner.lock().dropped.note(now_s);
        Refused { level: self.name.clone(), reason, retry_after_s }
    }

    fn answered(&self, serving: &Serving) {
        let now = self.origin.elapsed();
        self.inner.lock().queues.answered(now, serving);
    }

    fn left(&self, serving: &Serving) {
        let now = self.origin.elapsed();
        let mut inner = self.inner.lock();
        inner.queues.leave(now, serving);
        inner.begin_waiting(now);
    }
}

/// A request in a queue.
struct Waiting {
    level: Arc<LevelState>,
    counts: Arc<Counts>,
    waits: Waits,
    told: oneshot::Receiver<Serving>,
    is_over: bool,
}

impl Waiting {
    /// Ends the wait: what was given meanwhile, or nothing.
    fn take_or_give_up(&mut self) -> Option<Serving> {
        self.is_over = true;
        let now = self.level.origin.elapsed();
        let mut inner = self.level.inner.lock();
        // Seats are given under the lock: it still waits, or it was told.
        if inner.queues.give_up(now, self.waits) {
            // Who stood behind a wide one may fit.
            inner.begin_waiting(now);
            return None;
        }
        drop(inner);
        self.told.try_recv().ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.counts.waiting.fetch_sub(1, Ordering::Relaxed);
        if self.is_over {
            return;
        }
        if let Some(serving) = self.take_or_give_up() {
            self.level.answered(&serving);
            self.level.left(&serving);
        }
    }
}

/// The seats of a request that is answered. Dropping it gives them back, though those that linger only later.
#[derive(Debug)]
pub struct Seat {
    level: Arc<LevelState>,
    counts: Arc<Counts>,
    serving: Serving,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.counts.serving.fetch_sub(1, Ordering::Relaxed);
        self.level.answered(&self.serving);
        let lingers = self.serving.work.lingers;
        if !lingers.is_zero()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (level, serving) = (self.level.clone(), self.serving);
            runtime.spawn(async move {
                tokio::time::sleep(lingers).await;
                level.left(&serving);
            });
            return;
        }
        self.level.left(&self.serving);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use serde_json::json;

    use super::*;
    use crate::bootstrap;

    const PATIENCE: Duration = Duration::from_secs(15);

    fn control(total: u32) -> Control {
        let control = Control::new(total, 100);
        let all = bootstrap();
        control.configure(&Config::read(&all.levels, &all.schemas));
        control
    }

    fn of(control: &Control, user: &str) -> Classified {
        let groups = match user {
            "admin" => vec!["system:masters".to_owned()],
            node if node.starts_with("system:node:") => vec!["system:nodes".to_owned()],
            account if account.starts_with("system:serviceaccount:") => {
                vec!["system:serviceaccounts".to_owned(), "system:authenticated".to_owned()]
            }
            _ => vec!["system:authenticated".to_owned()],
        };
        control.classify(&Request {
            user,
            groups: &groups,
            verb: "create",
            is_resource: true,
            group: "",
            resource: "pods",
            subresource: "",
            namespace: "a",
            path: "",
        })
    }

    async fn fill(control: &Control, user: &str) -> Vec<Seat> {
        let (class, mut seats) = (of(control, user), Vec::new());
        while let Some(seat) = control.seat(&class, Work::ONE, PATIENCE).now_or_never() {
            seats.push(seat.expect("a seat"));
        }
        seats
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_a_seat_and_is_refused_only_when_none_comes() {
        let control = control(245);
        let mut held = fill(&control, "jane").await;
        assert!((10..30).contains(&held.len()), "20 of 245 shares, of which it lends 10: {}", held.len());
        let seats = held.len() as u64;
        let class = of(&control, "jane");
        let mut waits = std::pin::pin!(control.seat(&class, Work::ONE, PATIENCE));
        assert!(waits.as_mut().now_or_never().is_none());
        held.pop();
        let seat = waits.await.expect("the seat that was given back");
        let refused = control.seat(&class, Work::ONE, PATIENCE).await.expect_err("none comes");
        assert_eq!((refused.reason, refused.retry_after_s), ("time-out", 1));
        for other in ["admin", "system:node:n", "system:kube-scheduler", "system:serviceaccount:a:b"] {
            let class = of(&control, other);
            drop(control.seat(&class, Work::ONE, PATIENCE).now_or_never().expect("at once").expect("a seat"));
        }
        drop((held, seat));
        let reports = control.report();
        assert!(reports.iter().all(|level| level.serving == 0 && level.waiting == 0), "{reports:?}");
        let default = reports.iter().find(|level| level.name == "global-default").expect("is there");
        let told: Vec<_> = default.schemas.iter().map(|s| (s.dispatched, s.rejected[2], s.serving)).collect();
        assert_eq!(told, [(seats + 1, ("time-out", 1), 0)]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_away_while_waiting_leaves_nothing_behind() {
        let control = control(245);
        let mut held = fill(&control, "jane").await;
        let class = of(&control, "jane");
        let mut waits: Vec<_> = (0..3).map(|_| Box::pin(control.seat(&class, Work::ONE, PATIENCE))).collect();
        assert!(waits.iter_mut().all(|wait| wait.as_mut().now_or_never().is_none()));
        // One is given a seat; if it is the one that goes without having looked, another is.
        held.pop();
        for left in (1..3).rev() {
            drop(waits.remove(0));
            let reports = control.report();
            let level = reports.iter().find(|level| level.name == "global-default").expect("is there");
            assert_eq!((level.serving, level.waiting), (held.len() + 1, left - 1));
        }
        drop((waits, held));
        assert!(control.report().iter().all(|level| level.seats == 0.0 && level.waiting == 0));
    }

    #[tokio::test(start_paused = true)]
    async fn one_user_does_not_keep_another_out() {
        let control = control(245);
        let _held = fill(&control, "jane").await;
        let flood: Vec<_> = {
            let class = of(&control, "jane");
            let waits = (0..1000).map(|_| {
                let class = class.clone();
                let control = &control;
                Box::pin(async move { control.seat(&class, Work::ONE, PATIENCE).await })
            });
            waits.collect()
        };
        let mut flood = flood;
        let refused = flood.iter_mut().filter_map(|wait| wait.as_mut().now_or_never());
        assert_eq!(refused.filter(Result::is_err).count(), 1000 - 6 * 50, "her hand of queues is full");
        let joe = of(&control, "joe");
        let waits = control.seat(&joe, Work::ONE, PATIENCE).now_or_never();
        assert!(waits.is_none(), "joe has queues of his own to wait in");
    }

    #[tokio::test(start_paused = true)]
    async fn seats_are_lent_to_whoever_needs_them_and_come_back() {
        let control = control(245);
        let held = fill(&control, "jane").await;
        let class = of(&control, "jane");
        let mut waits: Vec<_> =
            (0..50).map(|_| Box::pin(control.seat(&class, Work::ONE, Duration::from_secs(60)))).collect();
        waits.retain_mut(|wait| wait.as_mut().now_or_never().is_none());
        tokio::time::advance(Duration::from_secs(10)).await;
        control.rebalance();
        let current = |name: &str| {
            let reports = control.report();
            reports.into_iter().find(|level| level.name == name).expect("is there")
        };
        let default = current("global-default");
        assert!(default.current > 60.0, "{default:?}");
        let lent = current("workload-low").current;
        assert!((10.0..20.0).contains(&lent), "it lends, and not what it does not lend: {lent}");
        let served: Vec<_> = waits.iter_mut().filter_map(|wait| wait.as_mut().now_or_never()).collect();
        assert_eq!(served.len(), waits.len(), "all were given a seat");
        drop((served, held));
        for _ in 0..300 {
            tokio::time::advance(Duration::from_secs(10)).await;
            control.rebalance();
        }
        assert!(current("workload-low").current > lent + 5.0, "{:?}", current("workload-low"));
        assert!(current("global-default").current < 30.0, "{:?}", current("global-default"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_answer_sets_off_holds_its_seats_for_a_while() {
        let control = control(245);
        let class = of(&control, "jane");
        let work = Work { seats: 1, final_seats: 3, lingers: Duration::from_millis(50) };
        drop(control.seat(&class, work, PATIENCE).await.expect("a seat"));
        let seats = || control.report().iter().map(|level| level.seats).sum::<f64>();
        assert!((seats() - 3.0).abs() < 1e-9);
        tokio::time::sleep(Duration::from_millis(51)).await;
        assert!(seats().abs() < 1e-9);
    }

    #[tokio::test(start_paused = true)]
    async fn other_objects_count_for_requests_that_come_after_them() {
        let control = control(245);
        let held = fill(&control, "jane").await;
        let class = of(&control, "jane");
        let mut waits = std::pin::pin!(control.seat(&class, Work::ONE, PATIENCE));
        assert!(waits.as_mut().now_or_never().is_none());
        let level = json!({"metadata": {"name": "catch-all", "uid": "u"}, "spec": {"type": "Limited", "limited": {
            "nominalConcurrencyShares": 5, "limitResponse": {"type": "Reject"},
        }}});
        control.configure(&Config::read([&level], []));
        let class = of(&control, "jane");
        assert_eq!((class.level(), class.level_uid(), class.schema()), ("catch-all", "u", "catch-all"));
        drop(control.seat(&class, Work::ONE, PATIENCE).now_or_never().expect("at once").expect("a seat"));
        drop(held);
        waits.await.expect("the level that is gone serves who waits there");
        assert_eq!(control.report().len(), 2);
    }
}
