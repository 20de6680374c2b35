//! What a request holds on its way.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http_body::Frame;
use skiff_flow::Seat;
use tokio::sync::OwnedSemaphorePermit;

use crate::live::Table;
use crate::place::Place;

/// What a request holds while it is answered; a watch only until it has begun.
pub(super) struct Entry {
    pub(super) place: Place,
    /// Held for whoever handles the request.
    pub(super) held: Held,
}

/// Seats, and the room of a body.
pub(super) struct Held {
    #[expect(dead_code, reason = "held, not read")]
    pub(super) seat: Option<Seat>,
    #[expect(dead_code, reason = "held, not read")]
    pub(super) room: Vec<OwnedSemaphorePermit>,
}

/// The body of a request that is admitted.
pub(super) enum Entered {
    /// Of a mutation.
    Whole(Bytes),
    /// Of everything else; most have none.
    Stream(Body),
}

/// What is left of a request's head once it is understood.
pub(super) struct Head {
    pub(super) method: http::Method,
    pub(super) uri: http::Uri,
    pub(super) headers: http::HeaderMap,
    pub(super) extensions: http::Extensions,
    pub(super) table: Arc<Table>,
    pub(super) held: Held,
}

/// A body that keeps its request's place.
pub(super) struct Placed {
    pub(super) body: Body,
    pub(super) _place: Place,
}

impl http_body::Body for Placed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
