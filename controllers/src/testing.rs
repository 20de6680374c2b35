//! An API that answers as a test says, and remembers what it was asked.

use std::convert::Infallible;
use std::sync::Arc;

use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::Credentials;

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) content_type: String,
    pub(crate) body: Value,
}

type Answer = Arc<dyn Fn(&Asked) -> Option<Value> + Send + Sync>;

#[derive(Clone)]
pub(crate) struct ScriptedApi {
    answer: Answer,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl ScriptedApi {
    /// What `answer` has no answer to is not found.
    pub(crate) fn new(answer: impl Fn(&Asked) -> Option<Value> + Send + Sync + 'static) -> Self {
        ScriptedApi { answer: Arc::new(answer), asked: Arc::default() }
    }

    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.handle(request).await) }
        });
        Client::new(service, "default")
    }

    /// Whoever asks, the same answers.
    pub(crate) fn credentials(&self) -> Credentials {
        let client = self.client();
        Credentials::new(move |_, _| client.clone())
    }

    /// Everything but reads, in order.
    pub(crate) fn written(&self) -> Vec<Asked> {
        self.asked.lock().iter().filter(|a| a.method != Method::GET).cloned().collect()
    }

    async fn handle(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let content_type = parts.headers.get("content-type").and_then(|v| v.to_str().ok());
        let asked = Asked {
            method: parts.method,
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            content_type: content_type.unwrap_or_default().to_owned(),
            body: serde_json::from_slice(&body).unwrap_or_default(),
        };
        let answer = (self.answer)(&asked);
        self.asked.lock().push(asked);
        let status = if answer.is_some() { 200 } else { 404 };
        let missing = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound",
            "message": "not found", "code": 404});
        let text = answer.unwrap_or(missing).to_string();
        Response::builder()
            .status(status)
            .header("content-type", "application/json")
            .body(Body::from(text.into_bytes()))
            .unwrap()
    }
}
