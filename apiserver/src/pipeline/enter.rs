//! Room: the body of a mutation, a place among watches and streams, seats.

use std::sync::Arc;

use axum::body::Body;
use skiff_api::Status;
use skiff_flow::Classified;

use super::Pipeline;
use super::entry::{Entered, Entry, Held};
use crate::limits::work::work_of;
use crate::live::Table;
use crate::metrics::Counted;
use crate::place::Place;
use crate::request::{Query, RequestInfo};

impl Pipeline {
    /// Waits for room. The body of a mutation is there before it takes a seat: one that is slow holds up nobody.
    pub(super) async fn enter(
        &self,
        classified: &Classified,
        table: &Table,
        info: &RequestInfo,
        query: &Query,
        body: Body,
        counted: Arc<Counted>,
    ) -> Result<(Entry, Entered), Status> {
        let is_long = info.is_long_running();
        let is_mutation = info.is_resource && !is_long && !matches!(info.verb.as_str(), "get" | "list");
        let (body, room) = if is_mutation {
            let received = self.limits.receive(classified, body).await?;
            (Entered::Whole(received.bytes), received.room)
        } else {
            (Entered::Stream(body), Vec::new())
        };
        let place = if is_long { Some(Arc::new((self.limits.long_running()?, counted))) } else { None };
        // As upstream: streams that are no watches take no seats.
        let served = info.of_node_pods();
        let info = served.as_ref().unwrap_or(info);
        let seat = if is_long && info.verb != "watch" {
            None
        } else {
            Some(
                self.limits
                    .seat(classified, work_of(&self.lister().caches, table, info, query, classified))
                    .await?,
            )
        };
        Ok((Entry { place: Place(place), held: Held { seat, room } }, body))
    }
}
