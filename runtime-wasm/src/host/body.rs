//! The bodies of a request and its response, as hyper and the guest see them.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use wasmtime_wasi_http::{Error as HttpError, WasiBody};

use super::heap::Held;
use super::stream::Stream;

pub(crate) const MAX_BODY_BYTES: u64 = 256 << 20;
/// A client that is so far behind with what it sends, or is gone for so long, may have to give way to others.
const SENDS_AFTER: Duration = Duration::from_secs(5);
/// One that takes what it is sent may be further behind: what it has taken shows only once its kernel has room for much.
const TAKES_AFTER: Duration = Duration::from_secs(15);
/// Whoever moves as much makes good for a second.
const BYTES_A_SECOND: u64 = 1 << 10;
/// What a client is given at once of its response.
const PIECE_BYTES: usize = 64 << 10;

/// What a client does about a request and its response, as those see it who wait for its place.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    state: Mutex<State>,
    is_broken: AtomicBool,
    pub(crate) gives_way: Notify,
}

#[derive(Debug, Default)]
struct State {
    sending: Pace,
    taking: Pace,
    /// Since when the client has been gone that was to have the rest of the response.
    gone_since: Option<Instant>,
    /// Since when a client that sends no more has been sent nothing: as a rule it is gone, too.
    half_closed_since: Option<Instant>,
}

/// How far a client is behind in what it does.
#[derive(Debug, Default)]
struct Pace {
    /// Up to `waits_since`.
    behind: Duration,
    /// Since when it has been waited for.
    waits_since: Option<Instant>,
}

impl Pace {
    fn waits(&mut self) {
        self.waits_since.get_or_insert_with(Instant::now);
    }

    /// What was done fast is no reason to be slow afterwards: it makes good for what was slow before, and no more.
    fn moved(&mut self, n_bytes: u64) {
        if let Some(since) = self.waits_since.take() {
            self.behind += since.elapsed();
        }
        self.behind =
            self.behind.saturating_sub(Duration::from_millis(n_bytes.saturating_mul(1000) / BYTES_A_SECOND));
    }

    /// Only while the client is waited for: of what the guest does meanwhile it is innocent.
    fn slow_for(&self, patience: Duration) -> Option<Duration> {
        Some(self.behind + self.waits_since?.elapsed()).filter(|behind| *behind >= patience)
    }
}

impl Exchange {
    /// How far a client is behind that does next to nothing, or how long it has been gone; `None` of any other.
    pub(crate) fn slow_for(&self) -> Option<Duration> {
        let state = self.state.lock();
        let gone = state.gone_since.or(state.half_closed_since).map(|since| since.elapsed());
        let gone = gone.filter(|gone| *gone >= SENDS_AFTER);
        let (sending, taking) = (state.sending.slow_for(SENDS_AFTER), state.taking.slow_for(TAKES_AFTER));
        [sending, taking, gone].into_iter().flatten().max()
    }

    pub(crate) fn is_gone(&self) -> bool {
        let state = self.state.lock();
        state.gone_since.or(state.half_closed_since).is_some()
    }

    pub(crate) fn half_closed(&self, since: Option<Instant>) {
        self.state.lock().half_closed_since = since;
    }

    /// Whether the client broke off or sent what is no body.
    pub(crate) fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Relaxed)
    }
}

/// A request's body on its way to the guest.
pub(crate) struct Upload {
    body: Incoming,
    n_bytes: u64,
    exchange: Arc<Exchange>,
    held: Arc<Held>,
}

impl Upload {
    /// `held`: by the instance that reads it.
    pub(crate) fn new(body: Incoming, exchange: Arc<Exchange>, held: Arc<Held>) -> Upload {
        Upload { body, n_bytes: 0, exchange, held }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let Poll::Ready(frame) = polled else {
            self.exchange.state.lock().sending.waits();
            return Poll::Pending;
        };
        let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
        self.held.came(data.map_or(0, Bytes::len));
        let n_bytes = data.map_or(0, |data| u64::try_from(data.len()).unwrap_or(u64::MAX));
        self.exchange.state.lock().sending.moved(n_bytes);
        self.n_bytes = self.n_bytes.saturating_add(n_bytes);
        Poll::Ready(match frame {
            None => None,
            Some(Ok(_)) if self.n_bytes > MAX_BODY_BYTES => {
                Some(Err(HttpError::HttpRequestBodySize(Some(MAX_BODY_BYTES))))
            }
            Some(Ok(frame)) => Some(Ok(frame)),
            Some(Err(err)) => {
                self.exchange.is_broken.store(true, Ordering::Relaxed);
                Some(Err(HttpError::Hyper(err)))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body on its way to the client.
pub(crate) struct Download {
    body: WasiBody,
    /// Of a client who takes the end of the connection for the end of the body.
    to_the_end: Option<Stream>,
    /// Of a part that is too large to be given at once.
    rest: Bytes,
    /// An error that is to be told once what came before has been sent.
    broken: Option<HttpError>,
    has_ended: bool,
    progress: Arc<AtomicU64>,
    exchange: Arc<Exchange>,
    held: Arc<Held>,
    /// Dropped with the body: the instance is owed no more time by then.
    _over: oneshot::Sender<()>,
}

impl Download {
    pub(crate) fn new(
        body: WasiBody,
        to_the_end: Option<Stream>,
        progress: Arc<AtomicU64>,
        exchange: Arc<Exchange>,
        held: Arc<Held>,
        over: oneshot::Sender<()>,
    ) -> Download {
        let (rest, broken, has_ended) = (Bytes::new(), None, false);
        Download { body, to_the_end, rest, broken, has_ended, progress, exchange, held, _over: over }
    }

    /// The client is given a piece of what there is.
    fn piece(&mut self, mut data: Bytes) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        self.rest = data.split_off(data.len().min(PIECE_BYTES));
        let mut state = self.exchange.state.lock();
        // For this much it has time. It is waited for until there is room for more.
        state.taking.moved(u64::try_from(data.len()).unwrap_or(u64::MAX));
        state.taking.waits();
        drop(state);
        Poll::Ready(Some(Ok(Frame::data(data))))
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if !self.has_ended && !self.is_end_stream() {
            self.exchange.state.lock().gone_since.get_or_insert_with(Instant::now);
        }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if let Some(err) = self.broken.take() {
            if let Some(stream) = &self.to_the_end {
                stream.reset_when_closed();
            }
            self.has_ended = true;
            return Poll::Ready(Some(Err(err)));
        }
        // Who asks for more has room for it: the client has taken what it was given last.
        self.exchange.state.lock().taking.moved(0);
        if !self.rest.is_empty() {
            self.progress.fetch_add(1, Ordering::Relaxed);
            let rest = std::mem::take(&mut self.rest);
            return self.piece(rest);
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        self.progress.fetch_add(1, Ordering::Relaxed);
        match frame {
            Some(Err(err)) => {
                // hyper closes the connection at once and drops what it has not sent. Waiting, it sends it.
                self.broken = Some(err);
                context.waker().wake_by_ref();
                Poll::Pending
            }
            None => {
                self.has_ended = true;
                Poll::Ready(None)
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    self.held.went(data.len());
                    self.piece(data)
                }
                // Trailers, after which there is nothing.
                Err(frame) => {
                    self.has_ended = true;
                    Poll::Ready(Some(Ok(frame)))
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.broken.is_none() && self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let rest = u64::try_from(self.rest.len()).unwrap_or(u64::MAX);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(hint.lower().saturating_add(rest));
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waited(pace: &mut Pace, seconds: u64) {
        pace.waits_since = Instant::now().checked_sub(Duration::from_secs(seconds));
    }

    #[test]
    fn who_was_fast_at_first_may_not_be_slow_for_long() {
        let mut pace = Pace::default();
        pace.moved(64 << 20);
        assert_eq!(pace.slow_for(SENDS_AFTER), None);
        waited(&mut pace, 4);
        assert_eq!(pace.slow_for(SENDS_AFTER), None);
        waited(&mut pace, 6);
        assert!(pace.slow_for(SENDS_AFTER).is_some());
    }

    #[test]
    fn next_to_nothing_now_and_then_is_slow_and_a_little_all_the_time_is_not() {
        let (mut trickles, mut flows) = (Pace::default(), Pace::default());
        for _ in 0..20 {
            waited(&mut trickles, 1);
            trickles.moved(100);
            waited(&mut flows, 1);
            flows.moved(1100);
        }
        // Nobody is slow while it is not waited for.
        assert_eq!(trickles.slow_for(SENDS_AFTER), None);
        trickles.waits();
        flows.waits();
        assert!(trickles.slow_for(SENDS_AFTER).is_some() && flows.slow_for(SENDS_AFTER).is_none());
    }
}
