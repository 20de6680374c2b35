//! The way to the API: a bounded number of requests in flight, each timed; what fails for now is tried again.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use rand::Rng as _;
use tokio::sync::Semaphore;

use crate::latency::{Call, Latencies};

const FIRST_RETRY: Duration = Duration::from_millis(100);
const MAX_RETRY: Duration = Duration::from_secs(7);
/// About two minutes, with the delays between them.
const MAX_TRIES: u32 = 20;
/// A request that takes longer than the server itself allows has been lost.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(90);

/// Sends requests. Cloning shares it.
#[derive(Clone)]
pub struct Caller {
    client: Client,
    places: Arc<Semaphore>,
    latencies: Arc<Latencies>,
}

/// Reads a kubeconfig and makes a client of what it names.
pub async fn connect(kubeconfig: &Path) -> Result<Client> {
    // Where several providers are linked, none is the default.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let text = std::fs::read_to_string(kubeconfig)
        .with_context(|| format!("reading the kubeconfig {}", kubeconfig.display()))?;
    let parsed =
        Kubeconfig::from_yaml(&text).with_context(|| format!("{} is no kubeconfig", kubeconfig.display()))?;
    let mut config = kube::Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("{} cannot be used", kubeconfig.display()))?;
    // A refusal is to be seen and counted here, not hidden behind a retry and taken for a slow answer.
    config.default_retry = false;
    // A cluster of a test is never behind a proxy.
    config.proxy_url = None;
    Client::try_from(config).context("making a client of the kubeconfig")
}

impl Caller {
    /// At most `n_places` of its requests are on their way at a time.
    pub fn new(client: Client, n_places: usize, latencies: Arc<Latencies>) -> Caller {
        Caller { client, places: Arc::new(Semaphore::new(n_places)), latencies }
    }

    /// The same client with places of its own, as a kubelet keeps its heartbeats apart from its other requests.
    pub fn apart(&self, n_places: usize) -> Caller {
        Caller { places: Arc::new(Semaphore::new(n_places)), ..self.clone() }
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    pub fn latencies(&self) -> &Latencies {
        &self.latencies
    }

    /// One try.
    pub async fn once<T>(
        &self,
        call: Call,
        request: impl Future<Output = kube::Result<T>>,
    ) -> kube::Result<T> {
        // Nobody closes the semaphore; a place is given back when the request is over, or dropped.
        let _place = self.places.acquire().await;
        let sent_at = Instant::now();
        let answer = match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
            Ok(answer) => answer,
            Err(_) => Err(kube::Error::Service(
                format!("{} {}: no answer in {} s", call.verb, call.resource, REQUEST_TIMEOUT.as_secs())
                    .into(),
            )),
        };
        self.latencies.record(call, sent_at.elapsed(), answer.as_ref().map(|_| ()).map_err(code));
        answer
    }

    /// Tries until there is an answer that another try would not change, but not for ever.
    pub async fn insist<T, F>(&self, call: Call, mut request: impl FnMut() -> F) -> kube::Result<T>
    where
        F: Future<Output = kube::Result<T>>,
    {
        let mut delay = FIRST_RETRY;
        let mut n_tries = 0;
        loop {
            n_tries += 1;
            match self.once(call, request()).await {
                Err(error) if n_tries < MAX_TRIES && may_pass(&error) => {
                    tracing::debug!(verb = call.verb, resource = call.resource, %error, "trying again");
                    // Spread, or those that were refused together come back together.
                    let spread = rand::rng().random_range(0.5..1.5);
                    tokio::time::sleep(delay.mul_f64(spread)).await;
                    delay = (delay * 2).min(MAX_RETRY);
                }
                answer => return answer,
            }
        }
    }
}

/// The status code of a refusal, 0 where there was no answer.
pub(crate) fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    }
}

/// Whether the same request may succeed later.
fn may_pass(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code == 429 || status.code >= 500,
        kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_) => true,
        _ => false,
    }
}

/// Whether an answer says that there is no such object, or another one by its name.
pub(crate) fn is_gone(error: &kube::Error) -> bool {
    matches!(code(error), 404 | 409)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use kube::core::Status;

    use super::*;

    const CALL: Call = Call::new("GET", "pods");

    fn caller() -> Caller {
        let service = tower_stub();
        Caller::new(service, 1, Arc::default())
    }

    /// A client that nothing is sent with.
    fn tower_stub() -> Client {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        Client::try_from(config).unwrap()
    }

    fn refused(code: u16) -> kube::Error {
        kube::Error::Api(Box::new(Status { code, ..Status::default() }))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_for_now_is_tried_again_and_what_is_refused_for_good_is_not() {
        let caller = caller();
        let n_tries = AtomicU32::new(0);
        let answer = caller
            .insist(CALL, || async {
                match n_tries.fetch_add(1, Ordering::Relaxed) {
                    0 => Err(refused(429)),
                    1 => Err(refused(500)),
                    _ => Ok(7),
                }
            })
            .await;
        assert_eq!((answer.unwrap(), n_tries.load(Ordering::Relaxed)), (7, 3));

        let n_tries = AtomicU32::new(0);
        let answer: kube::Result<()> = caller
            .insist(CALL, || async {
                n_tries.fetch_add(1, Ordering::Relaxed);
                Err(refused(403))
            })
            .await;
        assert_eq!((code(&answer.unwrap_err()), n_tries.load(Ordering::Relaxed)), (403, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn tries_are_bounded_and_each_is_counted() {
        let caller = caller();
        let answer: kube::Result<()> = caller.insist(CALL, || async { Err(refused(503)) }).await;
        assert_eq!(code(&answer.unwrap_err()), 503);
        let lines = caller.latencies().take().lines();
        assert_eq!(lines[0].failed.get(&503), Some(&u64::from(MAX_TRIES)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_never_answered_ends() {
        let answer: kube::Result<()> = caller().once(CALL, std::future::pending()).await;
        assert!(answer.unwrap_err().to_string().contains("no answer in 90 s"));
    }
}
