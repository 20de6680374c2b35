//! A node's certificates: renewed before they end, and, where the node was off for longer, after that; and the authority's.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::{Connections, client};
use crate::complaint::Complaint;
use crate::identity::{Identity, Validity};
use crate::join::{self, Purpose, Trusted};
use crate::pki::write_private;

const RENEW_RETRY: Duration = Duration::from_secs(30);
/// The longest sleep at a time: a machine that was suspended wakes to a later time, and clocks are set.
const RENEW_LOOK: Duration = Duration::from_secs(60);
/// How often to look whether the authority has been given another certificate: what it had is good for years.
const AUTHORITY_LOOK: Duration = Duration::from_secs(600);
/// After a certificate was renewed, and twice as long after each next one that this machine's clock finds no better.
const MIN_RENEW_REST: Duration = Duration::from_secs(60);
const MAX_RENEW_REST: Duration = Duration::from_secs(3600);
const BETWEEN_REJOINS: Duration = Duration::from_secs(5);

/// Keeps one certificate from ending.
pub(super) struct Renewal {
    pub(super) client: Client,
    pub(super) node: String,
    /// The address of the moment, where it is the certificate of the node API.
    pub(super) serves_at: Option<watch::Receiver<Ipv4Addr>>,
    pub(super) after: Option<u64>,
}

impl Renewal {
    fn purpose(&self) -> Purpose {
        self.serves_at.as_ref().map_or(Purpose::Client, |ip| Purpose::Serving(*ip.borrow()))
    }

    pub(super) async fn run(self, identity: &Identity) {
        let mut pace = Pace::new(self.after);
        loop {
            let validity = identity.validity();
            if !pace.is_due(validity, Timestamp::now()) {
                tokio::time::sleep(pace.look_every).await;
                continue;
            }
            let purpose = self.purpose();
            let renewed = async {
                let pair = join::certificate(&self.client, &self.node, &purpose).await?;
                identity.renew(&pair)
            };
            match renewed.await {
                Ok(()) => {
                    info!(?purpose, until = %identity.validity().until, "a certificate was renewed");
                    pace.renewed();
                }
                Err(error) => {
                    let until = validity.until;
                    warn!(?purpose, %until, error = format!("{error:#}"), "a certificate cannot be renewed yet");
                    tokio::time::sleep(RENEW_RETRY).await;
                }
            }
        }
    }
}

/// When to renew. What is asked by the wall clock may be wrong at any time; how often it is done is bounded by the other clock.
struct Pace {
    /// In place of most of a certificate's life.
    after: Option<Duration>,
    look_every: Duration,
    /// Since when this certificate is the newest.
    since: tokio::time::Instant,
    /// How long the next renewal must wait from then on.
    rest: Duration,
    jitter: f64,
}

impl Pace {
    fn new(after_s: Option<u64>) -> Pace {
        let after = after_s.map(Duration::from_secs);
        Pace {
            look_every: after.map_or(RENEW_LOOK, |after| after.min(RENEW_LOOK)),
            after,
            since: tokio::time::Instant::now(),
            rest: Duration::ZERO,
            jitter: rand::random(),
        }
    }

    fn is_due(&mut self, validity: Validity, now: Timestamp) -> bool {
        if let Some(after) = self.after {
            return self.since.elapsed() >= after;
        }
        if validity.is_in_middle(now, SignedDuration::ZERO, self.jitter) {
            self.rest = Duration::ZERO;
            return false;
        }
        self.since.elapsed() >= self.rest
    }

    /// The signer goes by its own clock: what it gives may be as little good by this one as the last was.
    fn renewed(&mut self) {
        self.since = tokio::time::Instant::now();
        self.rest = (self.rest * 2).clamp(MIN_RENEW_REST, MAX_RENEW_REST);
        self.jitter = rand::random();
    }
}

pub(super) async fn serving(
    client: &Client,
    name: &str,
    ip: Ipv4Addr,
    directory: &Path,
) -> Result<Arc<Identity>> {
    let path = directory.join("serving.pem");
    let is_good = |identity: &Arc<Identity>| {
        identity.validity().is_in_middle(Timestamp::now(), SignedDuration::ZERO, 0.0)
    };
    if let Some(kept) = Identity::load(&path)?.filter(is_good)
        && kept.has_address(ip)
    {
        return Ok(kept);
    }
    let pair = join::certificate(client, name, &Purpose::Serving(ip)).await.context("the node API")?;
    Identity::create(&path, &pair)
}

/// Asks for the next certificate with one that has ended: a server that has grace for nodes that were off takes it.
///
/// Not while the two clocks differ. Then it has ended by this one only; what the server signs would be as little good by it, and be
/// asked for again and again.
pub(super) async fn renew_ended(trusted: &Trusted, identity: &Arc<Identity>, name: &str) -> Result<()> {
    join::check_clock(join::clock_ahead(&trusted.server).await?)?;
    let client = client(trusted, identity.clone(), &Connections::default())?;
    let pair = join::certificate(&client, name, &Purpose::Client).await?;
    identity.renew(&pair)?;
    info!(until = %identity.validity().until, "a certificate that had ended was renewed");
    Ok(())
}

/// Whether the clock is wrong or the certificate has ended, nobody here can tell. If it is the clock, it will be set; else the
/// server may have grace for a node that was off for long, or a token lets the node join again.
pub(super) async fn wait_while_ended<
    R: Future<Output = Result<()>>,
    J: Future<Output = Result<(Trusted, Arc<Identity>)>>,
>(
    identity: &Identity,
    renew: impl Fn() -> R,
    join: impl Fn() -> J,
) -> Option<(Trusted, Arc<Identity>)> {
    let mut complaint = Complaint::default();
    loop {
        let (until, now) = (identity.validity().until, Timestamp::now());
        if now < until {
            return None;
        }
        let refused = match renew().await {
            Ok(()) if Timestamp::now() < identity.validity().until => return None,
            Ok(()) => anyhow!("the next certificate has ended as well"),
            Err(refused) => refused,
        };
        match join().await {
            Ok(joined) => return Some(joined),
            Err(error) if complaint.is_due() => {
                warn!(
                    %until, %now, error = format!("{error:#}"), refused = format!("{refused:#}"),
                    "this node's certificate has ended by this machine's clock, and it cannot join again; waiting for the \
                     clock to be set. If the clock is right, start the server with --node-certificate-grace, or the agent \
                     with a new --token"
                );
            }
            Err(_) => {}
        }
        tokio::time::sleep(BETWEEN_REJOINS).await;
    }
}

/// Keeps the newest certificate of the authority that this node has joined: it may have been given another with the same key.
/// Nothing here goes by how long it is good, but people and programs do that read it.
pub(super) async fn keep_authority(mut trusted: Trusted, directory: PathBuf) {
    loop {
        match join::newest_authority(&trusted).await {
            Ok(Some(ca_pem)) => match write_private(&directory.join("ca.crt"), &ca_pem) {
                Ok(()) => {
                    info!("the cluster's authority has another certificate");
                    trusted.ca_pem = ca_pem;
                }
                Err(error) => warn!(error = format!("{error:#}"), "the authority's certificate is not kept"),
            },
            Ok(None) => {}
            Err(error) => debug!(error = format!("{error:#}"), "cannot ask for the authority's certificate"),
        }
        tokio::time::sleep(AUTHORITY_LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// How often a certificate of the server's clock is renewed within a day by a clock that is ahead of it or behind.
    async fn n_renewals(ahead_s: i64) -> usize {
        let (start, life_s) = (tokio::time::Instant::now(), 365 * 86_400);
        let server_now = || 1_800_000_000 + start.elapsed().as_secs().cast_signed();
        let signed = |now_s: i64| Validity { from: at(now_s - 300), until: at(now_s + life_s) };
        let (mut pace, mut validity, mut n) = (Pace::new(None), signed(server_now()), 0);
        while start.elapsed() < Duration::from_secs(86_400) && n < 1000 {
            if pace.is_due(validity, at(server_now() + ahead_s)) {
                validity = signed(server_now());
                pace.renewed();
                n += 1;
            } else {
                tokio::time::sleep(pace.look_every).await;
            }
        }
        n
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_whose_clock_is_off_renews_no_more_than_once_an_hour() {
        assert_eq!(n_renewals(0).await, 0);
        for days in [400, -400] {
            let n = n_renewals(days * 86_400).await;
            assert!((1..=30).contains(&n), "{n} renewals in a day, {days} days off");
        }
    }
}
