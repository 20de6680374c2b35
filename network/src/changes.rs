//! What the kernel tells of links, addresses and routes that change.
//!
//! # Caveats
//! - A change is only a reason to look: what is told may be lost, when too much happens at once. Who depends on it looks every
//!   [`LOOK_EVERY`] as well.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use rtnetlink::MulticastGroup;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::warn;

/// How long what others did to links and routes may stay unseen.
pub const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A link that goes down takes many routes with it, and pods come and go together; one look is for all of them.
const GATHER: Duration = Duration::from_millis(500);

/// Reasons to look at the network of the namespace that it was opened in.
#[derive(Debug)]
pub struct Changes {
    told: Arc<Notify>,
    /// When it was last looked, or begun.
    looked: Instant,
    /// Ends with this.
    _listening: JoinSet<()>,
}

impl Changes {
    /// Listens from now on. Where the kernel does not let it, there are still looks.
    pub fn listen() -> Changes {
        let (told, mut listening) = (Arc::new(Notify::new()), JoinSet::new());
        if let Err(error) = listen(told.clone(), &mut listening) {
            let every_s = LOOK_EVERY.as_secs();
            warn!(%error, "the kernel does not tell of links that change; looking every {every_s} s");
        }
        Changes { told, looked: Instant::now(), _listening: listening }
    }

    /// Returns when something may have changed, and every [`LOOK_EVERY`] at the latest.
    ///
    /// Cancel-safe: a reason that was told and not returned is one at the next call, at the latest by the clock.
    pub async fn next(&mut self) {
        tokio::select! {
            // Both only wait.
            () = self.told.notified() => tokio::time::sleep(GATHER).await,
            () = tokio::time::sleep_until(self.looked + LOOK_EVERY) => {}
        }
        self.looked = Instant::now();
    }
}

fn listen(told: Arc<Notify>, listening: &mut JoinSet<()>) -> std::io::Result<()> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route];
    let (connection, handle, mut messages) = rtnetlink::new_multicast_connection(&groups)?;
    listening.spawn(connection);
    // Taken out as they come: however many there are, they are one reason.
    listening.spawn(async move {
        while messages.next().await.is_some() {
            told.notify_one();
        }
        drop(handle);
    });
    Ok(())
}
