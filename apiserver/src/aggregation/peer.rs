//! A server behind an APIService, as it is asked: its Service, who vouches for it, and places for requests.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use base64::Engine as _;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use skiff_api::{Object, Status};
use skiff_webhook::{Connector, IDLE_TIMEOUT};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

const DEFAULT_PORT: u16 = 443;
/// Requests of each level to one server at once: who finds no place is told to come again.
const IN_FLIGHT: usize = 100;
/// Watches and streams of each level to one server at once.
const LONG_RUNNING: usize = 2000;
const MAX_IDLE_CONNECTIONS: usize = 25;
/// Levels that places are remembered of.
const MAX_LEVELS: usize = 64;

/// Which port of which Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ServicePort {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) port: u16,
}

impl ServicePort {
    /// Of an APIService; `None` if this server serves it itself.
    pub(super) fn of(service: &Object) -> Option<ServicePort> {
        let reference = &service["spec"]["service"];
        let text = |field: &str| reference[field].as_str().unwrap_or_default().to_owned();
        let port = match reference["port"].as_u64() {
            None => DEFAULT_PORT,
            Some(port) => u16::try_from(port).unwrap_or_default(),
        };
        reference.is_object().then(|| ServicePort { namespace: text("namespace"), name: text("name"), port })
    }

    /// `<namespace>/<name>`
    pub(super) fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Who vouches for a server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// PEM; empty where nobody is named.
    Bundle(Vec<u8>),
    Anybody,
}

impl Trust {
    pub(super) fn of(service: &Object) -> Trust {
        if service["spec"]["insecureSkipTLSVerify"] == true {
            return Trust::Anybody;
        }
        let bundle = service["spec"]["caBundle"].as_str().unwrap_or_default();
        Trust::Bundle(base64::engine::general_purpose::STANDARD.decode(bundle).unwrap_or_default())
    }
}

/// A server behind an APIService.
pub(crate) struct Peer {
    pub(super) to: ServicePort,
    pub(super) trust: Trust,
    /// Why there is none: what its APIService says of TLS cannot be used.
    http: Result<HttpClient<Connector, Body>, String>,
    places: Places,
}

/// Places for requests: no level takes those of another, and no server those of another.
#[derive(Default)]
struct Places(Mutex<HashMap<String, Level>>);

/// The places of one level, by its name.
struct Level {
    short: Arc<Semaphore>,
    long: Arc<Semaphore>,
}

impl Places {
    fn take(&self, level: &str, is_long: bool) -> Option<OwnedSemaphorePermit> {
        let mut levels = self.0.lock();
        if levels.len() >= MAX_LEVELS && !levels.contains_key(level) {
            // Levels come and go; what nobody is in is nobody's.
            levels.retain(|_, level| {
                level.short.available_permits() < IN_FLIGHT || level.long.available_permits() < LONG_RUNNING
            });
        }
        let places = |n| Arc::new(Semaphore::new(n));
        let level = levels
            .entry(level.to_owned())
            .or_insert_with(|| Level { short: places(IN_FLIGHT), long: places(LONG_RUNNING) });
        let places = if is_long { &level.long } else { &level.short };
        places.clone().try_acquire_owned().ok()
    }
}

impl Peer {
    /// `connector` is the way to it, or why there is none.
    pub(super) fn new(to: ServicePort, trust: Trust, connector: Result<Connector, String>) -> Peer {
        let http = connector.map(|connector| {
            HttpClient::builder(TokioExecutor::new())
                .timer(TokioTimer::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_TIMEOUT)
                .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
                .build(connector)
        });
        Peer { to, trust, http, places: Places::default() }
    }

    /// Why no request can be sent, whoever is there.
    pub(super) fn client(&self) -> Result<&HttpClient<Connector, Body>, &str> {
        self.http.as_ref().map_err(String::as_str)
    }

    /// A place for a request.
    ///
    /// # Errors
    /// 429 if the level has all of its places.
    pub(super) fn admit(&self, level: &str, is_long: bool) -> Result<OwnedSemaphorePermit, Status> {
        self.places.take(level, is_long).ok_or_else(|| {
            Status::too_many_requests("too many requests to this API server, please try again later", 1)
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_level_takes_the_places_of_another_and_levels_that_are_gone_take_no_room() {
        let places = Places::default();
        let held: Vec<_> = std::iter::from_fn(|| places.take("a", false)).collect();
        assert_eq!(held.len(), IN_FLIGHT);
        assert!(places.take("a", true).is_some(), "what goes on for long has places of its own");
        let other = places.take("b", false).expect("a place");
        for n in 0..2 * MAX_LEVELS {
            drop(places.take(&n.to_string(), false).expect("a place"));
        }
        assert!(places.0.lock().len() <= MAX_LEVELS);
        assert!(places.take("a", false).is_none(), "what is held is not forgotten");
        drop((held, other));
        assert!(places.take("a", false).is_some());
    }

    #[test]
    fn an_api_service_says_where_it_is_and_who_vouches_for_it() {
        let service = json!({"spec": {"service": {"namespace": "a", "name": "s"}, "caBundle": "eA=="}});
        let to = ServicePort::of(&service).expect("a Service");
        assert_eq!((to.key().as_str(), to.port), ("a/s", 443));
        assert_eq!(Trust::of(&service), Trust::Bundle(b"x".to_vec()));
        assert_eq!(Trust::of(&json!({"spec": {"insecureSkipTLSVerify": true}})), Trust::Anybody);
        assert_eq!(ServicePort::of(&json!({"spec": {}})), None);
    }
}
