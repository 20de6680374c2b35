//! `wasi:http/handler` of WASI 0.3: one request, answered by one instance.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::HOST;
use http::request::Parts;
use http::uri::{Authority, Scheme};
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::sync::oneshot;
use wasmtime_wasi_http::p3::Request as GuestRequest;
use wasmtime_wasi_http::p3::bindings::Service;
use wasmtime_wasi_http::{FieldMap, WasiHttpView};

use super::body::Upload;
use super::guest::Running;
use super::http::Answered;

/// How long a response may stand still after the last of its guest's tasks has ended.
const STILL: Duration = Duration::from_secs(60);

/// The guest's tasks go on after it has returned its response, and so does what it had the host copy.
pub(crate) async fn handle(
    running: &mut Running,
    service: &Service,
    request: Request<Upload>,
    answer: impl FnOnce(Answered) + Send,
    progress: Arc<AtomicU64>,
) -> wasmtime::Result<()> {
    let handled = running.store.run_concurrent(async |accessor| {
        let (parts, body) = request.into_parts();
        let (authority, path) = (authority(&parts), parts.uri.path_and_query().cloned());
        let headers =
            accessor.with(|mut access| FieldMap::new_immutable(access.get().http().hooks, parts.headers));
        let (request, read) =
            GuestRequest::new(parts.method, Some(Scheme::HTTP), authority, path, headers, None, body);
        let is_over = match service.handle(accessor, request).await? {
            Err(code) => {
                answer(Err(format!("{code:?}")));
                None
            }
            Ok(response) => {
                let response = accessor.with(|mut access| response.into_http(&mut access, read))?;
                let (parts, body) = response.into_parts();
                let (body, is_over) = accessor.with(|mut access| access.get().writings().begin(body));
                answer(Ok(Response::from_parts(parts, body.boxed_unsync())));
                Some(is_over)
            }
        };
        poll_fn(|context| accessor.poll_no_interesting_tasks(context)).await;
        match is_over {
            Some(is_over) => read_to_its_end(is_over, &progress).await,
            None => Ok(()),
        }
    });
    handled.await?
}

/// HTTP/2 has it in the request itself, and HTTP/1 in a header.
fn authority(parts: &Parts) -> Option<Authority> {
    let host = || parts.headers.get(HOST)?.to_str().ok()?.parse().ok();
    parts.uri.authority().cloned().or_else(host)
}

async fn read_to_its_end(mut is_over: oneshot::Receiver<()>, progress: &AtomicU64) -> wasmtime::Result<()> {
    loop {
        let before = progress.load(Ordering::Relaxed);
        // Nothing is ever sent: whoever could is dropped.
        if tokio::time::timeout(STILL, &mut is_over).await.is_ok() {
            return Ok(());
        }
        if progress.load(Ordering::Relaxed) == before {
            return Err(wasmtime::Error::msg("no task of the component is left that would end its response"));
        }
    }
}
