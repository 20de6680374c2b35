use std::sync::Arc;

use http::{Method, Request, Response};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;

/// An API with room for one Lease.
#[derive(Clone, Default)]
struct FakeApi(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    lease: Option<Value>,
    version: u64,
    is_down: bool,
}

impl FakeApi {
    fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                let (head, body) = request.into_parts();
                let body: Value = serde_json::from_slice(&body.collect_bytes().await?).unwrap_or_default();
                let (code, answer) = api.answer(&head.method, head.uri.path(), body);
                let response =
                    Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()));
                Ok::<_, kube::Error>(response.expect("a response"))
            }
        });
        Client::new(service, "default")
    }

    fn answer(&self, method: &Method, path: &str, body: Value) -> (u16, Value) {
        if path.ends_with("/events") {
            return (201, body);
        }
        assert!(path.starts_with("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"), "{path}");
        let mut state = self.0.lock();
        let refused = |code: u16| {
            let reason = if code == 404 { "NotFound" } else { "Conflict" };
            let status = json!({"kind": "Status", "status": "Failure", "message": "no", "reason": reason, "code": code});
            (code, status)
        };
        if state.is_down {
            return refused(503);
        }
        match (method, &state.lease) {
            (&Method::GET, Some(lease)) => (200, lease.clone()),
            (&Method::GET | &Method::PUT, None) => refused(404),
            (&Method::POST, Some(_)) => refused(409),
            (&Method::PUT, Some(old))
                if body["metadata"]["resourceVersion"] != old["metadata"]["resourceVersion"] =>
            {
                refused(409)
            }
            _ => {
                state.version += 1;
                let mut lease = body;
                lease["metadata"]["resourceVersion"] = state.version.to_string().into();
                state.lease = Some(lease.clone());
                (200, lease)
            }
        }
    }

    fn spec(&self) -> Value {
        self.0.lock().lease.as_ref().map_or(Value::Null, |lease| lease["spec"].clone())
    }

    /// As somebody else's, who will not come back.
    fn hold(&self, holder: &str, renewed: &str) {
        let mut state = self.0.lock();
        state.version += 1;
        let version = state.version.to_string();
        state.lease = Some(json!({
            "metadata": {"name": "job", "namespace": "kube-system", "resourceVersion": version},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": renewed, "leaseTransitions": 4},
        }));
    }

    fn set_down(&self, is_down: bool) {
        self.0.lock().is_down = is_down;
    }
}

/// A candidate that runs, and what it says of its terms.
struct Running {
    said: mpsc::UnboundedReceiver<&'static str>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn start(api: &FakeApi, identity: &str) -> Running {
        let (say, said) = mpsc::unbounded_channel();
        let shutdown = CancellationToken::new();
        let candidate = Candidate { client: api.client(), name: "job", identity: identity.into() };
        let task = tokio::spawn(lead(candidate, shutdown.clone(), move |term| {
            let say = say.clone();
            async move {
                say.send("begins").expect("heard");
                term.cancelled().await;
                say.send("ends").expect("heard");
            }
        }));
        Running { said, shutdown, task }
    }

    /// Waits until it says something; how many seconds that took.
    async fn says(&mut self, what: &str) -> f64 {
        let start = Instant::now();
        let said = timeout(Duration::from_secs(60), self.said.recv()).await.expect("says something");
        assert_eq!(said, Some(what));
        start.elapsed().as_secs_f64()
    }

    async fn says_nothing_for(&mut self, time: Duration) {
        let said = timeout(time, self.said.recv()).await;
        assert!(said.is_err(), "{said:?}");
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.expect("ends");
    }
}

#[tokio::test(start_paused = true)]
async fn one_works_at_a_time_and_a_lead_that_is_given_back_goes_on_soon() {
    let api = FakeApi::default();
    let mut first = Running::start(&api, "first");
    assert!(first.says("begins").await < 1.0);
    let held = api.spec();
    assert_eq!((&held["holderIdentity"], &held["leaseDurationSeconds"]), (&json!("first"), &json!(12)));
    assert_eq!(held["leaseTransitions"], 0);
    let mut second = Running::start(&api, "second");
    second.says_nothing_for(Duration::from_secs(300)).await;
    first.says_nothing_for(Duration::from_millis(1)).await;
    assert_ne!(api.spec()["renewTime"], held["renewTime"]);
    assert_eq!(api.spec()["acquireTime"], held["acquireTime"]);

    first.shutdown.cancel();
    first.says("ends").await;
    first.task.await.expect("ends");
    let given = api.spec();
    assert_eq!((given.get("holderIdentity"), &given["leaseDurationSeconds"]), (None, &json!(1)));
    assert!(second.says("begins").await < 2.0);
    assert_eq!(
        (&api.spec()["holderIdentity"], &api.spec()["leaseTransitions"]),
        (&json!("second"), &json!(1))
    );
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_died_is_followed_when_its_lease_has_run_out_whatever_the_clocks_say() {
    for renewed in ["1970-01-01T00:00:00.000000Z", "2199-01-01T00:00:00.000000Z"] {
        let api = FakeApi::default();
        api.hold("the dead", renewed);
        let mut next = Running::start(&api, "next");
        let waited_s = next.says("begins").await;
        // It looks again at once when the Lease has run out.
        assert!((15.0..15.1).contains(&waited_s), "{renewed}: {waited_s} s");
        assert_eq!(api.spec()["leaseTransitions"], 5);
        next.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_comes_back_under_its_name_works_at_once() {
    let api = FakeApi::default();
    api.hold("same", "2026-01-01T00:00:00.000000Z");
    let mut again = Running::start(&api, "same");
    assert!(again.says("begins").await < 1.0);
    assert_eq!(api.spec()["leaseTransitions"], 4);
    again.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_cannot_renew_stops_before_another_may_begin_and_comes_back() {
    let api = FakeApi::default();
    let mut first = Running::start(&api, "first");
    first.says("begins").await;
    api.set_down(true);
    let stopped_s = first.says("ends").await;
    assert!((8.0..12.0).contains(&stopped_s), "{stopped_s} s");
    first.says_nothing_for(Duration::from_secs(60)).await;
    api.set_down(false);
    first.says("begins").await;
    first.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_whose_lease_was_taken_stops_at_its_next_look() {
    let api = FakeApi::default();
    let mut first = Running::start(&api, "first");
    first.says("begins").await;
    api.hold("a thief", "2026-01-01T00:00:00.000000Z");
    assert!(first.says("ends").await < 2.5);
    first.stop().await;
    assert_eq!(api.spec()["holderIdentity"], "a thief");
}
