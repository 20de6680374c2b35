//! Answers on `healthCheckNodePort`: whether this node has endpoints of a Service whose external traffic stays on the
//! node that it comes to.
//!
//! Source: kube-proxy's behaviour: 200 with endpoints, 503 without, and their number as JSON and as a weight.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, warn};

use super::plan::HealthCheck;

/// One listener an address and port; they end when this does.
pub(super) struct HealthServers {
    addresses: Vec<Ipv4Addr>,
    servers: BTreeMap<u16, Server>,
    connections: Arc<Semaphore>,
}

struct Server {
    check: watch::Sender<HealthCheck>,
    _stop: DropGuard,
}

/// Of all ports together; load balancers ask seldom.
const MAX_CONNECTIONS: usize = 64;
const MAX_REQUEST_BYTES: usize = 8 * 1024;
const TIMEOUT: Duration = Duration::from_secs(5);
/// Without free file descriptors, accepting fails at once, again and again.
const ACCEPT_REST: Duration = Duration::from_millis(100);

impl HealthServers {
    pub(super) fn new(addresses: Vec<Ipv4Addr>) -> HealthServers {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        HealthServers { addresses, servers: BTreeMap::new(), connections }
    }

    /// Starts and stops servers as the checks ask. A port that is in use is tried again with the next change.
    pub(super) async fn serve(&mut self, checks: &BTreeMap<u16, HealthCheck>) {
        self.servers.retain(|port, _| checks.contains_key(port));
        for (port, check) in checks {
            if let Some(server) = self.servers.get(port) {
                server.check.send_replace(check.clone());
                continue;
            }
            match self.start(*port, check).await {
                Ok(server) => {
                    self.servers.insert(*port, server);
                }
                Err(error) => {
                    let HealthCheck { namespace, name, .. } = check;
                    warn!(%error, port, "the health check of Service {namespace}/{name} cannot be answered");
                }
            }
        }
    }

    async fn start(&self, port: u16, check: &HealthCheck) -> io::Result<Server> {
        let (sender, receiver) = watch::channel(check.clone());
        let stop = CancellationToken::new();
        let guard = stop.clone().drop_guard();
        for address in &self.addresses {
            let listener = TcpListener::bind(SocketAddr::from((*address, port))).await?;
            tokio::spawn(accept(listener, receiver.clone(), self.connections.clone(), stop.clone()));
        }
        Ok(Server { check: sender, _stop: guard })
    }
}

async fn accept(
    listener: TcpListener,
    check: watch::Receiver<HealthCheck>,
    connections: Arc<Semaphore>,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            // Both only wait.
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let Ok(permit) = connections.clone().try_acquire_owned() else { continue };
                let check = check.borrow().clone();
                tokio::spawn(async move {
                    if let Ok(Err(error)) = tokio::time::timeout(TIMEOUT, answer(stream, &check)).await {
                        debug!(%error, "a health check ended early");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                debug!(%error, "accepting a health check");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

/// One request, one answer, whatever the path: as upstream.
async fn answer(mut stream: TcpStream, check: &HealthCheck) -> io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let n_bytes = stream.read(&mut buffer).await?;
        if n_bytes == 0 || request.len() + n_bytes > MAX_REQUEST_BYTES {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..n_bytes]);
    }
    stream.write_all(response(check).as_bytes()).await?;
    stream.shutdown().await
}

fn response(check: &HealthCheck) -> String {
    let HealthCheck { namespace, name, n_local_endpoints } = check;
    let body = json!({
        "service": {"namespace": namespace, "name": name},
        "localEndpoints": n_local_endpoints,
        "serviceProxyHealthy": true,
    })
    .to_string();
    let status = if *n_local_endpoints > 0 { "200 OK" } else { "503 Service Unavailable" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
         X-Load-Balancing-Endpoint-Weight: {n_local_endpoints}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(n_local_endpoints: usize) -> HealthCheck {
        HealthCheck { namespace: "d".into(), name: "s".into(), n_local_endpoints }
    }

    async fn ask(port: u16) -> io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn a_node_is_healthy_for_a_service_while_it_has_endpoints() {
        // A port that was free a moment ago.
        let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = probe.local_addr().unwrap().port();
        drop(probe);
        let mut servers = HealthServers::new(vec![Ipv4Addr::LOCALHOST]);
        servers.serve(&[(port, check(2))].into()).await;
        let answer = ask(port).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("X-Load-Balancing-Endpoint-Weight: 2\r\n"), "{answer}");
        servers.serve(&[(port, check(0))].into()).await;
        let answer = ask(port).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
        assert!(answer.contains(r#""localEndpoints":0"#), "{answer}");
        servers.serve(&BTreeMap::new()).await;
        let closed = async {
            while ask(port).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(TIMEOUT, closed).await.expect("the port stays open");
    }
}
