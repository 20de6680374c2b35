//! What the provisioner asks of nodes: `volumes/NAME` of the node API, through the API server.
//!
//! - `PUT` with `{"capacityBytes": N}` makes a volume, or makes it larger, and answers where it is.
//! - `DELETE` removes it; one that is not there is removed.
//!
//! # Guarantees
//! - No more of an answer is read, or repeated in an event, than a bound.
//! - A node that cannot be reached (502, 503, 504, 429, no answer in time) is told apart from one that refuses.

use std::future::Future;
use std::time::Duration;

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Collected, Limited};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use thiserror::Error;

/// An answer is a small document.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// Of a refusal's message, which goes into an event.
const MAX_MESSAGE_CHARS: usize = 300;
/// Upstream's `PATH_MAX`.
const MAX_PATH_BYTES: usize = 4096;
/// Making a file system in a file takes a while.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A volume as its node has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Made {
    pub(super) path: String,
    pub(super) capacity_bytes: u64,
    /// What bounds it: `ProjectQuota`, `LoopDevice` or `None`.
    pub(super) limit: String,
}

#[derive(Debug, Error)]
pub(crate) enum NodeError {
    #[error("node {node:?} cannot be reached, trying again: {why}")]
    Unreachable { node: String, why: String },
    #[error("node {node:?} refused: {why}")]
    Refused { node: String, why: String },
    #[error("node {node:?} answered what is no volume: {why}")]
    Odd { node: String, why: &'static str },
}

impl NodeError {
    /// Asking the same node again will most likely not help.
    pub(super) fn is_refusal(&self) -> bool {
        !matches!(self, NodeError::Unreachable { .. })
    }
}

pub(crate) trait NodeVolumes: Send + Sync + 'static {
    /// Makes a volume, or sees to it that it is at least so large.
    fn make(
        &self,
        node: &str,
        volume: &str,
        bytes: u64,
    ) -> impl Future<Output = Result<Made, NodeError>> + Send;

    fn remove(&self, node: &str, volume: &str) -> impl Future<Output = Result<(), NodeError>> + Send;
}

/// By the API server's proxy to nodes.
pub(crate) struct NodeProxy {
    client: Client,
}

impl NodeProxy {
    pub(super) fn new(client: Client) -> NodeProxy {
        NodeProxy { client }
    }

    async fn ask(&self, method: Method, node: &str, volume: &str, body: Vec<u8>) -> Result<Value, NodeError> {
        if ![node, volume].into_iter().all(is_name) {
            return Err(NodeError::Odd { node: cut(node), why: "a name that is none" });
        }
        let unreachable = |why: String| NodeError::Unreachable { node: node.to_owned(), why: cut(&why) };
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v1/nodes/{node}/proxy/volumes/{volume}"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Body::from(body))
            .map_err(|error| unreachable(error.to_string()))?;
        let asked = async {
            let response = self.client.send(request).await.map_err(|error| unreachable(error.to_string()))?;
            let status = response.status();
            let answer = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
            let answer = answer.map(Collected::to_bytes).map_err(|error| unreachable(error.to_string()))?;
            Ok((status, answer))
        };
        let late = || unreachable(format!("no answer within {} seconds", TIMEOUT.as_secs()));
        let (status, answer) = tokio::time::timeout(TIMEOUT, asked).await.map_err(|_| late())??;
        let document: Value = serde_json::from_slice(&answer).unwrap_or_default();
        if status.is_success() {
            return Ok(document);
        }
        let message = document["message"].as_str().unwrap_or_default();
        let why = if message.is_empty() { status.to_string() } else { cut(message) };
        Err(match status {
            StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS => unreachable(why),
            _ => NodeError::Refused { node: node.to_owned(), why },
        })
    }
}

impl NodeVolumes for NodeProxy {
    async fn make(&self, node: &str, volume: &str, bytes: u64) -> Result<Made, NodeError> {
        let body = json!({"capacityBytes": bytes}).to_string().into_bytes();
        let document = self.ask(Method::PUT, node, volume, body).await?;
        made(&document, bytes).map_err(|why| NodeError::Odd { node: node.to_owned(), why })
    }

    async fn remove(&self, node: &str, volume: &str) -> Result<(), NodeError> {
        self.ask(Method::DELETE, node, volume, Vec::new()).await.map(drop)
    }
}

/// The part of a path that a name of a node or a volume may be.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && !text.starts_with('.')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
}

/// What others wrote, fit for an event.
fn cut(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut cut: String = plain.take(MAX_MESSAGE_CHARS + 1).collect();
    if cut.chars().count() > MAX_MESSAGE_CHARS {
        cut.pop();
        cut.push('…');
    }
    cut
}

fn made(document: &Value, wanted: u64) -> Result<Made, &'static str> {
    let path = document["path"].as_str().unwrap_or_default();
    let is_plain = path.starts_with('/')
        && path.len() <= MAX_PATH_BYTES
        && !path.contains(|c: char| c.is_control())
        && !path.split('/').any(|part| part == "..");
    if !is_plain {
        return Err("its path is no absolute one");
    }
    let capacity_bytes = document["capacityBytes"].as_u64().ok_or("it has no capacity")?;
    if capacity_bytes < wanted {
        return Err("it is smaller than what was asked for");
    }
    let limit = document["limit"].as_str().filter(|limit| matches!(*limit, "ProjectQuota" | "LoopDevice"));
    let limit = limit.unwrap_or("None");
    Ok(Made { path: path.to_owned(), capacity_bytes, limit: limit.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Asked, ScriptedApi};

    fn answering(
        answer: impl Fn(&Asked) -> Result<Value, u16> + Send + Sync + 'static,
    ) -> (ScriptedApi, NodeProxy) {
        let api = ScriptedApi::refusing(answer);
        let proxy = NodeProxy::new(api.client());
        (api, proxy)
    }

    #[tokio::test]
    async fn a_node_is_asked_for_a_volume_by_its_name_and_says_where_it_is() {
        let volume = json!({"path": "/var/lib/v", "capacityBytes": 2048, "limit": "LoopDevice"});
        let (api, proxy) = answering(move |_| Ok(volume.clone()));
        let made = proxy.make("n1", "pvc-1", 1024).await.unwrap();
        assert_eq!(
            made,
            Made { path: "/var/lib/v".into(), capacity_bytes: 2048, limit: "LoopDevice".into() }
        );
        proxy.remove("n1", "pvc-1").await.unwrap();
        let asked = api.written();
        assert_eq!(asked[0].path, "/api/v1/nodes/n1/proxy/volumes/pvc-1");
        assert_eq!((&asked[0].method, &asked[0].body), (&Method::PUT, &json!({"capacityBytes": 1024})));
        assert_eq!((&asked[1].method, &asked[1].path), (&Method::DELETE, &asked[0].path));
    }

    #[tokio::test]
    async fn a_node_that_is_away_is_told_apart_from_one_that_refuses() {
        for (code, is_refusal) in
            [(503, false), (504, false), (502, false), (507, true), (409, true), (500, true)]
        {
            let (_, proxy) = answering(move |_| Err(code));
            let error = proxy.make("n1", "pvc-1", 1).await.unwrap_err();
            assert_eq!(error.is_refusal(), is_refusal, "{code}: {error}");
        }
    }

    #[tokio::test]
    async fn what_a_node_answers_that_is_no_volume_is_not_taken_for_one() {
        for odd in [
            json!({}),
            json!({"path": "relative", "capacityBytes": 9}),
            json!({"path": "/a/../../etc", "capacityBytes": 9}),
            json!({"path": "/a\nb", "capacityBytes": 9}),
            json!({"path": "/a", "capacityBytes": 1}),
            json!({"path": "/a"}),
        ] {
            let shown = odd.to_string();
            let (_, proxy) = answering(move |_| Ok(odd.clone()));
            let error = proxy.make("n1", "pvc-1", 2).await.expect_err(&shown);
            assert!(matches!(error, NodeError::Odd { .. }), "{shown}: {error}");
        }
    }

    #[tokio::test]
    async fn a_name_that_would_lead_elsewhere_is_asked_of_nobody() {
        let (api, proxy) = answering(|_| Ok(json!({})));
        for (node, volume) in [("n1/../n2", "v"), ("n1", "../pods"), ("n1", ".."), ("n1", "a%2fb"), ("", "v")]
        {
            proxy.remove(node, volume).await.unwrap_err();
        }
        assert_eq!(api.written(), []);
    }

    #[test]
    fn of_a_foreign_text_a_bounded_part_is_repeated() {
        assert_eq!(cut("a\nb"), "a b");
        assert_eq!(cut(&"x".repeat(10_000)).chars().count(), MAX_MESSAGE_CHARS + 1);
    }
}
