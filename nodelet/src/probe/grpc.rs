//! gRPC health probes (`grpc.health.v1.Health/Check`), over a plain HTTP/2 connection: the two
//! messages have one field each, so they are written here by hand.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::backoff::go_duration;
use crate::probe::check::{Outcome, connect, join_host_port};

const MAX_ANSWER: usize = 10 * 1024;
const UNIMPLEMENTED: &str = "12";

pub(crate) async fn probe(host: &str, port: u16, service: &str, timeout: Duration) -> Outcome {
    let address = join_host_port(host, port);
    let stream = match connect(host, port, timeout).await {
        Ok(stream) => stream,
        Err(error) if error.ends_with("i/o timeout") => {
            let within = go_duration(timeout);
            return Outcome::Failure(format!(
                "timeout: failed to connect service {address:?} within {within}: context deadline exceeded"
            ));
        }
        Err(error) => {
            return Outcome::Failure(format!("error: failed to connect service at {address:?}: {error}"));
        }
    };
    match tokio::time::timeout(timeout, check(TokioIo::new(stream), &address, service)).await {
        Err(_) => {
            Outcome::Failure(format!("timeout: health rpc did not complete within {}", go_duration(timeout)))
        }
        Ok(Err(message)) => Outcome::Failure(message),
        Ok(Ok(1)) => Outcome::Success,
        Ok(Ok(status)) => {
            let name = match status {
                0 => "UNKNOWN",
                2 => "NOT_SERVING",
                _ => "SERVICE_UNKNOWN",
            };
            Outcome::Failure(format!("service unhealthy (responded with {name:?})"))
        }
    }
}

async fn check(io: TokioIo<tokio::net::TcpStream>, address: &str, service: &str) -> Result<u8, String> {
    let failed = |error: &dyn std::fmt::Display| format!("error: health rpc probe failed: {error}");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.map_err(|e| failed(&e))?;
    let driver = tokio::spawn(connection);
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", super::agent("probe"))
        .body(Full::new(message(service)))
        .map_err(|e| failed(&e))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
        let headers = response.headers().clone();
        let collected =
            Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|e| failed(&e))?;
        let trailers = collected.trailers().cloned().unwrap_or_default();
        let find = |name: &str| {
            trailers.get(name).or_else(|| headers.get(name)).and_then(|v| v.to_str().ok()).map(str::to_owned)
        };
        let said = find("grpc-message").unwrap_or_default();
        match find("grpc-status").as_deref() {
            Some("0") => Ok(serving_status(&collected.to_bytes())),
            Some(UNIMPLEMENTED) => Err(format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {said}"
            )),
            Some(code) => Err(failed(&format!("rpc error: code = {code} desc = {said}"))),
            None => Err(failed(&"the answer has no grpc-status")),
        }
    };
    let result = answer.await;
    driver.abort();
    result
}

/// A length-prefixed `HealthCheckRequest { service }`.
fn message(service: &str) -> Bytes {
    let mut body = BytesMut::new();
    if !service.is_empty() {
        body.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            body.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        body.put_u8(length as u8);
        body.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(body.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
    framed.put(body);
    framed.freeze()
}

/// `HealthCheckResponse.status`, field 1, a small enum; absent means 0.
fn serving_status(frame: &[u8]) -> u8 {
    match frame.get(5..) {
        Some([0x08, status, ..]) => *status,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_framed_as_grpc_has_them() {
        assert_eq!(&message("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&message("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(serving_status(&[0, 0, 0, 0, 2, 8, 1]), 1);
        assert_eq!(serving_status(&[0, 0, 0, 0, 0]), 0);
    }
}
