//! Which requests of a container are let in: as many at once as it has places and memory for. Others stand in line, and those
//! for whom it takes too long are told so. Neighbours in the same host do not notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::budget::{Budget, Part};

/// Requests of a container that are answered at once.
pub(crate) const MAX_REQUESTS: usize = 128;
/// Those that stand in line; further ones are turned away.
const MAX_WAITING: usize = 1024;
/// How long one stands in line.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often who stands first in line has others asked to give way.
const ASK_PAUSE: Duration = Duration::from_secs(1);
/// How long who stands first waits for as much memory as a request was seen to need. Then less and less has to do: it may be
/// that those who have the rest stay, and that nobody would ever be let in again. Longer than
/// [`super::http::SETTLED_AFTER`], when they give back what they do not need.
const STALLED_AFTER: Duration = Duration::from_secs(6);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Full {
    #[error("{MAX_WAITING} requests wait already")]
    Line,
    #[error("no place and memory for the request within {} s", PATIENCE.as_secs())]
    Patience,
    #[error("the server is ending")]
    Ending,
}

pub(crate) struct Admission {
    budget: Arc<Budget>,
    places: Arc<Semaphore>,
    /// Who holds it stands first.
    line: Semaphore,
    n_waiting: AtomicUsize,
}

/// A request's place and its memory.
pub(crate) struct Place {
    pub(crate) part: Arc<Part>,
    _place: OwnedSemaphorePermit,
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admission {
    pub(crate) fn new(budget: Arc<Budget>) -> Admission {
        Admission {
            budget,
            places: Arc::new(Semaphore::new(MAX_REQUESTS)),
            line: Semaphore::new(1),
            n_waiting: AtomicUsize::new(0),
        }
    }

    /// Waits for a place, in the order of those who came. `ask` is called now and then while there is none.
    pub(crate) async fn enter(&self, ask: impl Fn()) -> Result<Place, Full> {
        if self.n_waiting.load(Ordering::Relaxed) == 0
            && let Some(place) = self.try_enter()
        {
            return Ok(place);
        }
        if self.n_waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            self.n_waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Full::Line);
        }
        let _waiting = Waiting(&self.n_waiting);
        tokio::time::timeout(PATIENCE, self.stand_in_line(ask)).await.map_err(|_| Full::Patience)?
    }

    fn try_enter(&self) -> Option<Place> {
        let place = self.places.clone().try_acquire_owned().ok()?;
        Some(Place { part: Part::admitted(&self.budget)?, _place: place })
    }

    async fn stand_in_line(&self, ask: impl Fn()) -> Result<Place, Full> {
        let _first = self.line.acquire().await.map_err(|_| Full::Ending)?;
        let place = loop {
            ask();
            match tokio::time::timeout(ASK_PAUSE, self.places.clone().acquire_owned()).await {
                Ok(place) => break place.map_err(|_| Full::Ending)?,
                Err(_) => continue,
            }
        };
        let since = Instant::now();
        loop {
            // Before the look: what is given back after it is not missed.
            let freed = self.budget.freed();
            if let Some(part) = Part::admitted(&self.budget) {
                return Ok(Place { part, _place: place });
            }
            ask();
            let is_freed = tokio::time::timeout(ASK_PAUSE, freed).await.is_ok();
            if !is_freed && since.elapsed() >= STALLED_AFTER {
                self.budget.ask_for_less();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_place_waits_for_one_in_turn_and_not_for_ever() {
        let admission = Arc::new(Admission::new(Budget::in_pod(None, None)));
        let mut held = Vec::new();
        for _ in 0..MAX_REQUESTS {
            held.push(admission.enter(|| {}).await.unwrap());
        }
        let order = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let enter = |n: usize| {
            let (admission, order) = (admission.clone(), order.clone());
            tokio::spawn(async move {
                let place = admission.enter(|| {}).await?;
                order.lock().push(n);
                Ok::<_, Full>(place)
            })
        };
        let (first, second, third) = (enter(1), enter(2), enter(3));
        tokio::task::yield_now().await;
        held.truncate(MAX_REQUESTS - 2);
        let (first, second) = (first.await.unwrap(), second.await.unwrap());
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(*order.lock(), [1, 2]);
        assert!(matches!(third.await.unwrap(), Err(Full::Patience)));
        drop((first, second));
        assert!(enter(4).await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_memory_waits_until_some_is_given_back() {
        let budget = Budget::new(4 << 20);
        let admission = Arc::new(Admission::new(budget));
        let mut held = Vec::new();
        // Nothing was seen yet: each is given a quarter.
        for _ in 0..4 {
            held.push(admission.enter(|| {}).await.unwrap());
        }
        let asked = Arc::new(AtomicUsize::new(0));
        let waits = {
            let (admission, asked) = (admission.clone(), asked.clone());
            tokio::spawn(async move { admission.enter(|| _ = asked.fetch_add(1, Ordering::Relaxed)).await })
        };
        while asked.load(Ordering::Relaxed) < 3 {
            tokio::time::advance(ASK_PAUSE).await;
        }
        assert!(!waits.is_finished());
        held.pop();
        assert!(waits.await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_stands_first_for_long_is_let_in_with_less() {
        let budget = Budget::new(4 << 20);
        let admission = Admission::new(budget.clone());
        let stays = Part::alone(&budget);
        stays.started();
        let needed_all = Part::admitted(&budget).unwrap();
        needed_all.pretend_to_need(7 << 19);
        drop(needed_all);
        stays.pretend_to_need(1 << 20);
        let began = Instant::now();
        assert!(admission.enter(|| {}).await.is_ok());
        assert!(began.elapsed() >= STALLED_AFTER && began.elapsed() < PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn the_line_is_not_endless() {
        let admission = Arc::new(Admission::new(Budget::in_pod(None, None)));
        let mut held = Vec::new();
        for _ in 0..MAX_REQUESTS {
            held.push(admission.enter(|| {}).await.unwrap());
        }
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..=MAX_WAITING {
            let admission = admission.clone();
            waiting.spawn(async move { admission.enter(|| {}).await.map(drop) });
        }
        assert!(matches!(waiting.join_next().await.unwrap().unwrap(), Err(Full::Line)));
        waiting.abort_all();
        while waiting.join_next().await.is_some() {}
        assert_eq!(admission.n_waiting.load(Ordering::Relaxed), 0);
    }
}
