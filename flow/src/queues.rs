//! The fair queues of one level, without a clock of their own.
//!
//! A progress meter `R` runs as a server would that gives each queue with work the same part of the seats. A queue's `next` is where
//! `R` stands when its next request begins there; the request that would end first there is begun first here.
//!
//! Source: KEP-1040, "Fair Queuing for Server Requests", and upstream's `queueset`.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::{Queuing, Response};

/// How long a request is taken to last until it is known.
const ESTIMATE_S: f64 = 0.003;

/// What a request costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Held while it is answered.
    pub seats: u32,
    /// Held for `lingers` after the answer, for what the answer sets off.
    pub final_seats: u32,
    pub lingers: Duration,
}

impl Work {
    pub const ONE: Work = Work { seats: 1, final_seats: 0, lingers: Duration::ZERO };

    fn width(&self) -> f64 {
        f64::from(self.seats.max(self.final_seats))
    }

    /// In seats and seconds.
    fn total(&self) -> f64 {
        f64::from(self.seats) * ESTIMATE_S + f64::from(self.final_seats) * self.lingers.as_secs_f64()
    }
}

/// A request that waits or is served.
#[derive(Debug)]
struct Entry<T> {
    id: u64,
    arrived: f64,
    work: Work,
    ticket: T,
}

#[derive(Debug)]
struct Queue<T> {
    waiting: VecDeque<Entry<T>>,
    waiting_width: f64,
    waiting_work: f64,
    /// Requests that are served.
    serving: usize,
    width: f64,
    next: f64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        let waiting = VecDeque::new();
        Queue { waiting, waiting_width: 0.0, waiting_work: 0.0, serving: 0, width: 0.0, next: 0.0 }
    }
}

impl<T> Queue<T> {
    fn is_active(&self) -> bool {
        !self.waiting.is_empty() || self.serving > 0
    }

    /// A request does not begin before it came.
    fn bound(&mut self) {
        if let Some(oldest) = self.waiting.front() {
            self.next = self.next.max(oldest.arrived);
        }
    }
}

/// A request that begins now.
#[derive(Debug)]
pub(crate) struct Begun<T> {
    pub(crate) ticket: T,
    pub(crate) serving: Serving,
}

/// What a request that is served holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Serving {
    /// `None` where there are no queues.
    queue: Option<usize>,
    began: Duration,
    pub(crate) work: Work,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    Queue,
    Level,
}

#[derive(Debug)]
pub(crate) struct Queues<T> {
    response: Response,
    limit: f64,
    queues: Vec<Queue<T>>,
    turn: usize,
    meter: f64,
    synced: Duration,
    active: usize,
    waiting: usize,
    waiting_width: f64,
    serving: usize,
    width: f64,
    next_id: u64,
}

/// A place in a queue, to be given up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waits {
    queue: usize,
    id: u64,
}

impl<T> Queues<T> {
    pub(crate) fn new(response: Response, limit: f64) -> Queues<T> {
        let mut queues = Queues {
            response,
            limit,
            queues: Vec::new(),
            turn: 0,
            meter: 0.0,
            synced: Duration::ZERO,
            active: 0,
            waiting: 0,
            waiting_width: 0.0,
            serving: 0,
            width: 0.0,
            next_id: 0,
        };
        queues.make_queues();
        queues
    }

    fn make_queues(&mut self) {
        if let Response::Queue(Queuing { queues, .. }) = self.response
            && queues > self.queues.len()
        {
            self.queues.resize_with(queues, Queue::default);
        }
    }

    /// Queues that are too many stay, and get no more requests.
    pub(crate) fn configure(&mut self, now: Duration, response: Response, limit: f64) {
        self.sync(now);
        (self.response, self.limit) = (response, limit);
        self.make_queues();
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Queues in which somebody waits.
    pub(crate) fn waited_in(&self) -> usize {
        self.queues.iter().filter(|queue| !queue.waiting.is_empty()).count()
    }

    pub(crate) fn serving(&self) -> usize {
        self.serving
    }

    pub(crate) fn seats(&self) -> f64 {
        self.width
    }

    /// Seats that are held or waited for.
    pub(crate) fn wanted(&self) -> f64 {
        self.width + self.waiting_width
    }

    /// Lets the meter run up to now, at the rate of what has been since the last time.
    fn sync(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.synced).as_secs_f64();
        self.synced = self.synced.max(now);
        if self.active > 0 {
            #[expect(clippy::cast_precision_loss, reason = "there are few queues")]
            let active = self.active as f64;
            self.meter += passed * self.wanted().min(self.limit) / active;
        }
    }

    fn fits(&self, width: f64) -> bool {
        match self.response {
            Response::Exempt => true,
            // What is wider than all there is waits until it is alone.
            _ if width > self.limit => self.serving == 0,
            _ => self.width + width <= self.limit,
        }
    }

    /// Begins a request if there are seats and nobody waits who would be passed over: `Err` for one that must queue.
    ///
    /// # Errors
    /// What is full, where requests do not queue or the queue is as long as it may be.
    pub(crate) fn arrive(
        &mut self,
        now: Duration,
        hash: u64,
        work: Work,
        ticket: T,
    ) -> Result<Arrived<T>, Full> {
        self.sync(now);
        let Response::Queue(queuing) = self.response else {
            if !self.fits(work.width()) {
                return Err(Full::Level);
            }
            self.serving += 1;
            self.width += work.width();
            return Ok(Arrived::Begun(Begun { ticket, serving: Serving { queue: None, began: now, work } }));
        };
        let at = self.choose(hash, queuing);
        if self.queues[at].waiting.len() >= queuing.length {
            return Err(Full::Queue);
        }
        let id = self.next_id;
        self.next_id += 1;
        let (meter, was_active) = (self.meter, self.queues[at].is_active());
        let queue = &mut self.queues[at];
        if !was_active {
            // Whoever was idle saved up nothing.
            queue.next = meter;
            self.active += 1;
        }
        queue.waiting_width += work.width();
        queue.waiting_work += work.total();
        queue.waiting.push_back(Entry { id, arrived: meter, work, ticket });
        queue.bound();
        self.waiting += 1;
        self.waiting_width += work.width();
        Ok(Arrived::Queued(Waits { queue: at, id }))
    }

    /// The queue of the flow's hand with the least work.
    fn choose(&self, hash: u64, queuing: Queuing) -> usize {
        let work = |at: usize| {
            let queue = &self.queues[at];
            queue.waiting_work + queue.width * ESTIMATE_S
        };
        let mut best: Option<(f64, usize)> = None;
        for at in deal(hash, queuing) {
            let work = work(at);
            if best.is_none_or(|(least, _)| work < least) {
                best = Some((work, at));
            }
        }
        best.map_or(0, |(_, at)| at)
    }

    /// The next request to begin, if there are seats for it.
    pub(crate) fn next(&mut self, now: Duration) -> Option<Begun<T>> {
        self.sync(now);
        if self.waiting == 0 {
            return None;
        }
        let n = self.queues.len();
        let mut best: Option<(f64, usize)> = None;
        for step in 1..=n {
            let at = (self.turn + step) % n;
            let queue = &self.queues[at];
            let Some(oldest) = queue.waiting.front() else { continue };
            let end = queue.next + oldest.work.total();
            if best.is_none_or(|(first, _)| end < first) {
                best = Some((end, at));
            }
        }
        let (_, at) = best?;
        if !self.queues[at].waiting.front().is_some_and(|oldest| self.fits(oldest.work.width())) {
            return None;
        }
        // Others with the same end come first the next time.
        self.turn = at;
        let entry = self.queues[at].waiting.pop_front()?;
        let width = entry.work.width();
        let queue = &mut self.queues[at];
        queue.waiting_width -= width;
        queue.waiting_work -= entry.work.total();
        queue.serving += 1;
        queue.width += width;
        queue.next += entry.work.total();
        queue.bound();
        self.waiting -= 1;
        self.waiting_width -= width;
        self.serving += 1;
        self.width += width;
        let serving = Serving { queue: Some(at), began: now, work: entry.work };
        Some(Begun { ticket: entry.ticket, serving })
    }

    /// Takes a request out of its queue; `false` if it is not there any more.
    pub(crate) fn give_up(&mut self, now: Duration, waits: Waits) -> bool {
        self.sync(now);
        let Some(queue) = self.queues.get_mut(waits.queue) else { return false };
        let Some(at) = queue.waiting.iter().position(|entry| entry.id == waits.id) else { return false };
        let Some(entry) = queue.waiting.remove(at) else { return false };
        queue.waiting_width -= entry.work.width();
        queue.waiting_work -= entry.work.total();
        queue.bound();
        if !queue.is_active() {
            self.active -= 1;
        }
        self.waiting -= 1;
        self.waiting_width -= entry.work.width();
        true
    }

    /// A request was answered; its seats are held until [`Queues::leave`].
    pub(crate) fn answered(&mut self, now: Duration, serving: &Serving) {
        self.sync(now);
        self.serving -= 1;
        let Some(queue) = serving.queue.and_then(|at| self.queues.get_mut(at)) else { return };
        // What it took longer than it was taken to, or less.
        let took = now.saturating_sub(serving.began).as_secs_f64();
        queue.next -= f64::from(serving.work.seats) * (ESTIMATE_S - took);
        queue.bound();
        queue.serving -= 1;
        if !queue.is_active() {
            self.active -= 1;
        }
    }

    pub(crate) fn leave(&mut self, now: Duration, serving: &Serving) {
        self.sync(now);
        let width = serving.work.width();
        self.width -= width;
        if let Some(queue) = serving.queue.and_then(|at| self.queues.get_mut(at)) {
            queue.width -= width;
        }
    }
}

#[derive(Debug)]
pub(crate) enum Arrived<T> {
    Begun(Begun<T>),
    Queued(Waits),
}

/// The hand of a flow: that many different queues, by its hash.
fn deal(hash: u64, Queuing { queues, hand, .. }: Queuing) -> impl Iterator<Item = usize> {
    let mut left = hash;
    let mut dealt: Vec<usize> = Vec::with_capacity(hand);
    (0..hand).map(move |nth| {
        let deck = (queues - nth) as u64;
        // The remainder is less than the number of queues.
        let mut card = usize::try_from(left % deck).unwrap_or_default();
        left /= deck;
        // `dealt` is sorted: each card at or before this one moves it by one.
        let mut at = 0;
        while at < dealt.len() && dealt[at] <= card {
            card += 1;
            at += 1;
        }
        dealt.insert(at, card);
        card
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const QUEUING: Queuing = Queuing { queues: 8, hand: 2, length: 1000 };

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Which of two queues' hands share no queue.
    fn apart() -> (u64, u64) {
        let hand = |hash| deal(hash, QUEUING).collect::<BTreeSet<_>>();
        let other = (1..).find(|other| hand(0).is_disjoint(&hand(*other)));
        (0, other.expect("there is one"))
    }

    #[test]
    fn a_hand_is_of_different_queues_and_all_are_dealt() {
        let mut seen = BTreeSet::new();
        for hash in 0..500 {
            let hand: BTreeSet<_> = deal(hash, QUEUING).collect();
            assert_eq!(hand.len(), QUEUING.hand);
            seen.insert(hand);
        }
        assert_eq!(seen.len(), 8 * 7 / 2);
    }

    /// Serves for `ms` milliseconds, each request for `lasts`, and says how many of each flow were.
    fn serve(queues: &mut Queues<&'static str>, ms: u64, lasts: &dyn Fn(&str) -> u64) -> (usize, usize) {
        let mut served = (0, 0);
        let mut ends: Vec<(u64, Serving)> = Vec::new();
        for now in 0..ms {
            let (ended, go_on): (Vec<_>, Vec<_>) = ends.into_iter().partition(|(end, _)| *end <= now);
            ends = go_on;
            for (_, serving) in ended {
                queues.answered(at(now), &serving);
                queues.leave(at(now), &serving);
            }
            while let Some(begun) = queues.next(at(now)) {
                if begun.ticket == "much" {
                    served.0 += 1
                } else {
                    served.1 += 1
                }
                ends.push((now + lasts(begun.ticket), begun.serving));
            }
        }
        served
    }

    #[test]
    fn who_sends_much_waits_behind_himself() {
        let (much, little) = apart();
        let mut queues = Queues::new(Response::Queue(QUEUING), 4.0);
        for _ in 0..900 {
            queues.arrive(at(0), much, Work::ONE, "much").expect("room");
        }
        for _ in 0..20 {
            queues.arrive(at(0), little, Work::ONE, "little").expect("room");
        }
        let (_, little) = serve(&mut queues, 100, &|_| 10);
        assert_eq!(little, 20, "40 were served, half of them for each");
    }

    #[test]
    fn turns_go_by_work_and_not_by_number() {
        let (much, little) = apart();
        let queuing = Queuing { hand: 1, ..QUEUING };
        let mut queues = Queues::new(Response::Queue(queuing), 4.0);
        for _ in 0..500 {
            queues.arrive(at(0), much, Work::ONE, "much").expect("room");
            queues.arrive(at(0), little + 1, Work::ONE, "little").expect("room");
        }
        let lasts = |ticket: &str| if ticket == "much" { 30 } else { 10 };
        let (long, short) = serve(&mut queues, 600, &lasts);
        assert!(short > 2 * long && short < 4 * long, "{long} that take thrice as long, {short} others");
        let mut queues = Queues::new(Response::Queue(queuing), 8.0);
        let wide = Work { seats: 4, ..Work::ONE };
        for _ in 0..500 {
            queues.arrive(at(0), much, wide, "much").expect("room");
            queues.arrive(at(0), little + 1, Work::ONE, "little").expect("room");
        }
        let (wide, narrow) = serve(&mut queues, 300, &|_| 10);
        assert!(narrow > 3 * wide && narrow < 5 * wide, "{wide} that are four seats wide, {narrow} others");
    }

    #[test]
    fn no_more_seats_are_taken_than_there_are_and_what_is_wider_is_served_alone() {
        let mut queues = Queues::new(Response::Queue(QUEUING), 3.0);
        let wide = Work { seats: 5, ..Work::ONE };
        for work in [Work::ONE, wide, Work::ONE] {
            queues.arrive(at(0), 1, work, "x").expect("room");
        }
        let mut widths = Vec::new();
        for now in 0..3 {
            let begun: Vec<_> = std::iter::from_fn(|| queues.next(at(now))).collect();
            widths.push(queues.seats());
            for begun in begun {
                queues.answered(at(now), &begun.serving);
                queues.leave(at(now), &begun.serving);
            }
        }
        widths.sort_by(f64::total_cmp);
        assert!(widths.ends_with(&[5.0]) && widths[..2].iter().all(|width| *width <= 3.0), "{widths:?}");
        assert!(queues.wanted().abs() < 1e-9 && queues.active == 0);
    }

    #[test]
    fn who_gives_up_is_forgotten_and_a_full_queue_takes_nobody() {
        let mut queues = Queues::new(Response::Queue(Queuing { queues: 1, hand: 1, length: 2 }), 1.0);
        let arrive = |queues: &mut Queues<u32>, n| queues.arrive(at(0), 0, Work::ONE, n);
        let Ok(Arrived::Queued(first)) = arrive(&mut queues, 1) else { panic!("it waits") };
        arrive(&mut queues, 2).expect("room");
        assert_eq!(arrive(&mut queues, 3).map(|_| ()).expect_err("none"), Full::Queue);
        assert!(queues.give_up(at(0), first) && !queues.give_up(at(0), first));
        arrive(&mut queues, 3).expect("room again");
        assert_eq!(queues.next(at(1)).expect("seats").ticket, 2);
        assert!(queues.next(at(1)).is_none());
        let mut full: Queues<u32> = Queues::new(Response::Reject, 1.0);
        let Ok(Arrived::Begun(begun)) = arrive(&mut full, 1) else { panic!("it begins") };
        assert_eq!(arrive(&mut full, 2).map(|_| ()).expect_err("none"), Full::Level);
        full.answered(at(1), &begun.serving);
        assert!(arrive(&mut full, 2).is_err(), "seats are held until they are left");
        full.leave(at(2), &begun.serving);
        arrive(&mut full, 2).expect("a seat");
        let mut exempt: Queues<u32> = Queues::new(Response::Exempt, 0.0);
        for n in 0..1000 {
            arrive(&mut exempt, n).expect("no limit");
        }
    }
}
