//! An API server in memory: objects by path, watches, merge patches, preconditions.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

struct State {
    version: u64,
    objects: BTreeMap<String, Value>,
    events: broadcast::Sender<(String, String, Value)>,
    requests: Vec<String>,
    /// So many patches are refused with a conflict.
    n_conflicts: usize,
    /// Tokens, and whose they are.
    tokens: BTreeMap<String, String>,
    /// Users, verbs, and subresources of nodes.
    allowed: BTreeSet<[String; 3]>,
}

#[derive(Clone)]
pub(crate) struct FakeApi(Arc<Mutex<State>>);

impl Default for FakeApi {
    fn default() -> Self {
        let state = State {
            version: 1,
            objects: BTreeMap::new(),
            events: broadcast::channel(1024).0,
            requests: Vec::new(),
            n_conflicts: 0,
            tokens: BTreeMap::new(),
            allowed: BTreeSet::new(),
        };
        FakeApi(Arc::new(Mutex::new(state)))
    }
}

/// The kind of things a path is among, such as `/api/v1/pods`, whatever the namespace.
fn collection(path: &str) -> String {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.iter().position(|p| *p == "namespaces") {
        Some(at) if parts.len() > at + 2 => {
            let kept = parts[..at].iter().chain(parts.get(at + 2));
            format!("/{}", kept.copied().collect::<Vec<_>>().join("/"))
        }
        _ => {
            let n_kept = if parts[0] == "api" { 3 } else { 4 };
            format!("/{}", parts[..n_kept.min(parts.len())].join("/"))
        }
    }
}

impl FakeApi {
    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        Client::new(service, "default")
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.0.lock().objects.get(path).cloned()
    }

    /// Of the objects below a path.
    pub(crate) fn paths(&self, below: &str) -> Vec<String> {
        self.0.lock().objects.keys().filter(|path| path.starts_with(below)).cloned().collect()
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.0.lock().requests.clone()
    }

    /// The next patches meet a change that came between.
    pub(crate) fn conflict(&self, n_patches: usize) {
        self.0.lock().n_conflicts = n_patches;
    }

    /// Puts an object there, as another client would.
    pub(crate) fn know(&self, token: &str, user: &str) {
        self.0.lock().tokens.insert(token.to_owned(), user.to_owned());
    }

    pub(crate) fn allow(&self, user: &str, verb: &str, subresource: &str) {
        self.0.lock().allowed.insert([user, verb, subresource].map(str::to_owned));
    }

    /// Fills in what somebody asks about somebody.
    fn review(&self, path: &str, mut body: Value) -> Answer {
        let state = self.0.lock();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        body["status"] = if path.ends_with("/tokenreviews") {
            match state.tokens.get(&text(&body["spec"]["token"])) {
                Some(user) => json!({ "authenticated": true, "user": { "username": user } }),
                None => json!({ "authenticated": false }),
            }
        } else {
            let (spec, asked) = (&body["spec"], &body["spec"]["resourceAttributes"]);
            let asked = [&spec["user"], &asked["verb"], &asked["subresource"]].map(text);
            json!({ "allowed": state.allowed.contains(&asked) })
        };
        success(&body)
    }

    pub(crate) fn put(&self, path: &str, mut object: Value) {
        let mut state = self.0.lock();
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        let known = state.objects.insert(path.to_owned(), object.clone()).is_some();
        let type_ = if known { "MODIFIED" } else { "ADDED" };
        let _ = state.events.send((path.to_owned(), type_.to_owned(), object));
    }

    pub(crate) fn put_pod(&self, pod: Value) {
        let path = format!("/api/v1/namespaces/default/pods/{}", pod["metadata"]["name"].as_str().unwrap());
        self.put(&path, pod);
    }

    /// Asks for a pod's deletion, as `kubectl delete` does.
    pub(crate) fn delete_pod(&self, name: &str, grace: i64) {
        let path = format!("/api/v1/namespaces/default/pods/{name}");
        let mut pod = self.get(&path).unwrap();
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        self.put(&path, pod);
    }

    pub(crate) fn remove(&self, path: &str) {
        let mut state = self.0.lock();
        state.version += 1;
        if let Some(mut object) = state.objects.remove(path) {
            object["metadata"]["resourceVersion"] = json!(state.version.to_string());
            let _ = state.events.send((path.to_owned(), "DELETED".to_owned(), object));
        }
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let query: BTreeMap<String, String> = parts
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.replace("%3D", "=")))
            .collect();
        let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        self.0.lock().requests.push(format!("{} {path}", parts.method));
        match parts.method {
            Method::GET if query.contains_key("watch") => self.watch(&path, &query),
            Method::GET => self.read(&path, &query),
            Method::POST => self.create(&path, body),
            Method::PATCH => self.patch(&path, &body),
            Method::DELETE => self.delete(&path, &body),
            _ => failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        }
    }

    fn read(&self, path: &str, query: &BTreeMap<String, String>) -> Answer {
        let state = self.0.lock();
        if let Some(object) = state.objects.get(path) {
            return success(object);
        }
        let is_item = collection(path) != path && !path.ends_with("s");
        if is_item && !query.contains_key("fieldSelector") && !query.contains_key("limit") {
            return failure(StatusCode::NOT_FOUND, "NotFound");
        }
        let items: Vec<&Value> = state
            .objects
            .iter()
            .filter(|(at, o)| within(at, path) && matches(o, query))
            .map(|(_, o)| o)
            .collect();
        success(
            &json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": state.version.to_string() }, "items": items }),
        )
    }

    fn watch(&self, path: &str, query: &BTreeMap<String, String>) -> Answer {
        let state = self.0.lock();
        let since: u64 = query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
        let receiver = state.events.subscribe();
        // What changed between the list and now.
        let missed: Vec<Bytes> = state
            .objects
            .iter()
            .filter(|(at, o)| within(at, path) && matches(o, query) && version(o) > since)
            .map(|(_, o)| watch_event("MODIFIED", o))
            .collect();
        let (path, query) = (path.to_owned(), query.clone());
        let live = stream::unfold(receiver, move |mut receiver| {
            let (path, query) = (path.clone(), query.clone());
            async move {
                loop {
                    let (at, type_, object) = receiver.recv().await.ok()?;
                    if within(&at, &path) && matches(&object, &query) {
                        return Some((watch_event(&type_, &object), receiver));
                    }
                }
            }
        });
        let lines = stream::iter(missed).chain(live).map(|line| Ok(Frame::data(line)));
        Response::new(BodyExt::boxed_unsync(StreamBody::new(lines)))
    }

    fn create(&self, path: &str, mut body: Value) -> Answer {
        if path.ends_with("reviews") {
            return self.review(path, body);
        }
        if path.ends_with("/token") {
            let in_an_hour = jiff::Timestamp::now() + std::time::Duration::from_secs(3600);
            body["status"] = json!({ "token": "the-token", "expirationTimestamp": in_an_hour.to_string() });
            return success(&body);
        }
        if let Some(prefix) = body["metadata"]["generateName"].as_str() {
            body["metadata"]["name"] = json!(format!("{prefix}{}", self.0.lock().version));
        }
        let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let at = format!("{path}/{name}");
        if self.get(&at).is_some() {
            return failure(StatusCode::CONFLICT, "AlreadyExists");
        }
        if body["metadata"]["uid"].is_null() {
            body["metadata"]["uid"] = json!(format!("uid-{name}"));
        }
        self.put(&at, body);
        success(&self.get(&at).unwrap())
    }

    fn patch(&self, path: &str, patch: &Value) -> Answer {
        let at = path.trim_end_matches("/status");
        let Some(mut object) = self.get(at) else { return failure(StatusCode::NOT_FOUND, "NotFound") };
        let uid = &patch["metadata"]["uid"];
        if !uid.is_null() && *uid != object["metadata"]["uid"] {
            return failure(StatusCode::CONFLICT, "Conflict");
        }
        let left = self.0.lock().n_conflicts.checked_sub(1);
        if let Some(left) = left {
            self.0.lock().n_conflicts = left;
            return failure(StatusCode::CONFLICT, "Conflict");
        }
        let before = object.clone();
        merge(&mut object, patch);
        if object != before {
            self.put(at, object);
        }
        success(&self.get(at).unwrap())
    }

    fn delete(&self, path: &str, options: &Value) -> Answer {
        let Some(object) = self.get(path) else { return failure(StatusCode::NOT_FOUND, "NotFound") };
        let uid = &options["preconditions"]["uid"];
        if !uid.is_null() && *uid != object["metadata"]["uid"] {
            return failure(StatusCode::CONFLICT, "Conflict");
        }
        self.remove(path);
        success(&object)
    }
}

/// Whether the object at `at` is in the collection at `path`.
fn within(at: &str, path: &str) -> bool {
    let (parent, _) = at.rsplit_once('/').unwrap_or_default();
    parent == path || (!path.contains("/namespaces/") && collection(at) == path)
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn matches(object: &Value, query: &BTreeMap<String, String>) -> bool {
    let Some((field, value)) = query.get("fieldSelector").and_then(|s| s.split_once('=')) else {
        return true;
    };
    let found = field.split('.').fold(object, |o, key| &o[key]);
    found == value
}

/// A strategic merge, as far as a nodelet uses it: conditions merge by type, other lists are replaced.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    for (key, value) in patch {
        match (key.as_str(), value) {
            (_, Value::Null) => {
                if let Some(map) = target.as_object_mut() {
                    map.remove(key);
                }
            }
            ("conditions", Value::Array(list)) => {
                if !target[key].is_array() {
                    target[key] = json!([]);
                }
                let known = target[key].as_array_mut().unwrap();
                for item in list {
                    if item["$patch"] == "delete" {
                        known.retain(|k| k["type"] != item["type"]);
                        continue;
                    }
                    match known.iter_mut().find(|k| k["type"] == item["type"]) {
                        Some(found) => *found = item.clone(),
                        None => known.push(item.clone()),
                    }
                }
            }
            (_, Value::Array(list)) => {
                target[key] = list.iter().filter(|item| item["$patch"].is_null()).cloned().collect();
            }
            _ => merge(&mut target[key], value),
        }
    }
}

fn success(object: &Value) -> Answer {
    Response::new(BodyExt::boxed_unsync(Full::new(Bytes::from(object.to_string()))))
}

fn failure(code: StatusCode, reason: &str) -> Answer {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason, "code": code.as_u16() });
    let mut answer = success(&status);
    *answer.status_mut() = code;
    answer
}

/// A line of a watch, in the order in which API servers write it.
fn watch_event(type_: &str, object: &Value) -> Bytes {
    format!("{{\"type\":{},\"object\":{object}}}\n", json!(type_)).into()
}
