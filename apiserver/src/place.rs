//! Places among watches and streams.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use crate::metrics::Counted;

/// The place of a watch or stream among the others, held, and counted, for as long as anything of it goes on.
#[derive(Clone)]
pub(crate) struct Place(
    #[expect(dead_code, reason = "held, not read")]
    pub(crate)  Option<Arc<(OwnedSemaphorePermit, Arc<Counted>)>>,
);
