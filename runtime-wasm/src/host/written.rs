//! Bodies that guests of WASI 0.3 write: responses, and requests of their own.
//!
//! ```text
//!   guest ─ stream, trailers ─▶ store ─▶ [Written] ─▶ hyper
//!                                 │          ▲
//!                                 └── seal ──┘  before the store of a guest is dropped that did not come to its end
//! ```
//!
//! The store's own body ends as if it were whole when its store is dropped: it cannot tell a guest that has closed it from
//! one that trapped. While the store is there it can, and that is when it is asked.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use wasmtime_wasi_http::{Error, WasiBody};

/// What a store hands out at most of a body that its guest has left: a part, and the trailers.
const MAX_LEFT_FRAMES: usize = 4;

enum State {
    /// Its guest runs, or has come to its end.
    Open(WasiBody),
    /// What its guest had written; `is_whole` if the guest had closed it, too.
    Sealed { left: VecDeque<Frame<Bytes>>, is_whole: bool },
}

struct Shared {
    state: State,
    reader: Option<Waker>,
}

pub(crate) struct Written {
    shared: Arc<Mutex<Shared>>,
    hint: SizeHint,
    /// Dropped with the body.
    _over: oneshot::Sender<()>,
}

/// The bodies that one store's guest writes.
#[derive(Default)]
pub(crate) struct Writings {
    open: Vec<Weak<Mutex<Shared>>>,
}

impl Writings {
    /// A body that knows when it was cut, and what ends when nobody reads it any more.
    pub(crate) fn begin(&mut self, body: WasiBody) -> (Written, oneshot::Receiver<()>) {
        self.open.retain(|open| open.strong_count() > 0);
        let hint = body.size_hint();
        let shared = Arc::new(Mutex::new(Shared { state: State::Open(body), reader: None }));
        self.open.push(Arc::downgrade(&shared));
        let (over, is_over) = oneshot::channel();
        (Written { shared, hint, _over: over }, is_over)
    }

    /// The guest is about to be dropped where it is: what it had not closed by now is cut.
    pub(crate) fn seal(&mut self) {
        for shared in self.open.drain(..).filter_map(|open| open.upgrade()) {
            shared.lock().seal();
        }
    }
}

impl Shared {
    fn seal(&mut self) {
        let State::Open(body) = &mut self.state else { return };
        let mut context = Context::from_waker(Waker::noop());
        let mut left = VecDeque::new();
        let is_whole = loop {
            match Pin::new(&mut *body).poll_frame(&mut context) {
                Poll::Ready(Some(Ok(frame))) if left.len() < MAX_LEFT_FRAMES => left.push_back(frame),
                Poll::Ready(None) => break true,
                Poll::Ready(Some(_)) | Poll::Pending => break false,
            }
        };
        self.state = State::Sealed { left, is_whole };
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl Body for Written {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let shared = self.shared.clone();
        let mut shared = shared.lock();
        let polled = match &mut shared.state {
            State::Open(body) => {
                let polled = Pin::new(&mut *body).poll_frame(context);
                self.hint = body.size_hint();
                polled
            }
            State::Sealed { left, is_whole } => Poll::Ready(match (left.pop_front(), &is_whole) {
                (Some(frame), _) => Some(Ok(frame)),
                (None, true) => None,
                (None, false) => Some(Err(Error::ConnectionTerminated)),
            }),
        };
        match &polled {
            Poll::Pending => shared.reader = Some(context.waker().clone()),
            // What comes after the end, if anyone asks, is the end.
            Poll::Ready(None) => shared.state = State::Sealed { left: VecDeque::new(), is_whole: true },
            Poll::Ready(Some(_)) => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.shared.lock().state {
            State::Open(body) => body.is_end_stream(),
            State::Sealed { left, is_whole } => *is_whole && left.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.hint
    }
}

#[cfg(test)]
mod tests {
    use futures::SinkExt;
    use futures::channel::mpsc;
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    type Parts = mpsc::Sender<Result<Frame<Bytes>, Error>>;

    fn channel() -> (Parts, WasiBody) {
        let (parts, body) = mpsc::channel(2);
        (parts, StreamBody::new(body).boxed_unsync())
    }

    fn part() -> Result<Frame<Bytes>, Error> {
        Ok(Frame::data(Bytes::from_static(b"part")))
    }

    async fn rest(mut body: Written) -> (String, bool) {
        let mut text = Vec::new();
        loop {
            match body.frame().await {
                Some(Ok(frame)) => text.extend(frame.into_data().unwrap_or_default()),
                end => return (String::from_utf8(text).unwrap(), end.is_none()),
            }
        }
    }

    #[tokio::test]
    async fn what_a_guest_left_is_cut_and_what_it_closed_before_is_whole() {
        let mut writings = Writings::default();
        let (mut left, body) = channel();
        let (cut, is_over) = writings.begin(body);
        left.send(part()).await.unwrap();
        let (mut closed, body) = channel();
        let (whole, _) = writings.begin(body);
        closed.send(part()).await.unwrap();
        drop(closed);
        writings.seal();
        drop(left);
        assert!(!cut.is_end_stream());
        assert_eq!(rest(cut).await, ("part".to_owned(), false));
        assert_eq!(rest(whole).await, ("part".to_owned(), true));
        is_over.await.unwrap_err();
    }

    #[tokio::test]
    async fn who_waits_for_a_part_hears_that_there_will_be_none() {
        let mut writings = Writings::default();
        let (_left, body) = channel();
        let (cut, _) = writings.begin(body);
        let waiting = tokio::spawn(rest(cut));
        tokio::task::yield_now().await;
        writings.seal();
        assert_eq!(waiting.await.unwrap(), (String::new(), false));
    }
}
