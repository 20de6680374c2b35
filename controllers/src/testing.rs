//! An API that answers as a test says, and remembers what it was asked.

use std::convert::Infallible;
use std::sync::Arc;

use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_client::{Discovery, Resources, ServedResource};

use crate::Credentials;

/// The built-in kinds, as if discovery had told of them.
pub(crate) fn discovery() -> Discovery {
    let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    let kinds = skiff_api::Kinds::builtin().stored();
    let served = kinds.iter().map(|kind| ServedResource {
        group: kind.group.clone(),
        version: kind.version.clone(),
        kind: kind.kind.clone(),
        plural: kind.plural.clone(),
        is_namespaced: kind.is_namespaced(),
        verbs: verbs.map(str::to_owned).to_vec(),
        subresources: kind.subresources.clone(),
    });
    Discovery::of(Resources::new(served.collect()))
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) content_type: String,
    pub(crate) body: Value,
}

/// What is answered, or the code of a refusal.
type Answer = Arc<dyn Fn(&Asked) -> Result<Value, u16> + Send + Sync>;

#[derive(Clone)]
pub(crate) struct ScriptedApi {
    answer: Answer,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl ScriptedApi {
    /// What `answer` has no answer to is not found.
    pub(crate) fn new(answer: impl Fn(&Asked) -> Option<Value> + Send + Sync + 'static) -> Self {
        ScriptedApi::refusing(move |asked| answer(asked).ok_or(404))
    }

    /// One that also refuses with other codes.
    pub(crate) fn refusing(answer: impl Fn(&Asked) -> Result<Value, u16> + Send + Sync + 'static) -> Self {
        ScriptedApi { answer: Arc::new(answer), asked: Arc::default() }
    }

    /// What is answered to a request, which is not remembered.
    pub(crate) fn answered(&self, asked: &Asked) -> Option<Value> {
        (self.answer)(asked).ok()
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
        let (status, document) = match answer {
            Ok(document) => (200, document),
            Err(code) => {
                let reason = if code == 404 { "NotFound" } else { "" };
                let refusal = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason,
                    "message": "not found", "code": code});
                (code, refusal)
            }
        };
        let text = document.to_string();
        Response::builder()
            .status(status)
            .header("content-type", "application/json")
            .body(Body::from(text.into_bytes()))
            .unwrap()
    }
}
