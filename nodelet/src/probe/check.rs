//! One look at a container, by whatever means its probe names.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use skiff_cri::v1::ExecSyncRequest;
use skiff_cri::{Code, Cri};
use tokio::net::TcpStream;

use crate::backoff::go_duration;
use crate::env::expand;
use crate::probe::{grpc, http};

const MAX_OUTPUT: usize = 10 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    /// It answered, but not as it should; counts as success.
    Warning(String),
    Failure(String),
}

/// Runs the probe once. An error says that the probe could not be made at all.
pub(crate) async fn run(
    cri: &dyn Cri,
    pod_ip: &str,
    container: &Container,
    container_id: &str,
    probe: &Probe,
) -> Result<Outcome, String> {
    let timeout = Duration::from_secs(u64::from(probe.timeout_seconds.unwrap_or(1).unsigned_abs().max(1)));
    if let Some(exec) = &probe.exec {
        let command = static_command(exec.command.as_deref().unwrap_or_default(), container);
        return exec_probe(cri, container_id, command, timeout).await;
    }
    if let Some(get) = &probe.http_get {
        let target = http::Target::new(get, container, pod_ip, "probe")?;
        return Ok(http::probe(&target, timeout).await);
    }
    if let Some(tcp) = &probe.tcp_socket {
        let port = resolve_port(&tcp.port, container)?;
        let host = tcp.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip);
        return Ok(match connect(host, port, timeout).await {
            Ok(_) => Outcome::Success,
            Err(message) => Outcome::Failure(message),
        });
    }
    if let Some(grpc) = &probe.grpc {
        let port = u16::try_from(grpc.port).map_err(|_| format!("invalid port number: {}", grpc.port))?;
        return Ok(grpc::probe(pod_ip, port, grpc.service.as_deref().unwrap_or_default(), timeout).await);
    }
    Err("missing probe handler".to_owned())
}

/// Only variables with plain values are known to a probe's command, as upstream has it.
fn static_command(command: &[String], container: &Container) -> Vec<String> {
    let value = |name: &str| container.env.iter().flatten().find(|e| e.name == name)?.value.clone();
    command.iter().map(|arg| expand(arg, value)).collect()
}

async fn exec_probe(
    cri: &dyn Cri,
    container_id: &str,
    command: Vec<String>,
    timeout: Duration,
) -> Result<Outcome, String> {
    let shown = command.join(" ");
    let request = ExecSyncRequest {
        container_id: container_id.to_owned(),
        cmd: command,
        timeout: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
    };
    let timed_out =
        || Outcome::Failure(format!("command timed out: {shown:?} timed out after {}", go_duration(timeout)));
    // The runtime ends the command itself; waiting a little longer lets it say so.
    match tokio::time::timeout(timeout + Duration::from_secs(2), cri.exec_sync(request)).await {
        Err(_) => Ok(timed_out()),
        Ok(Err(error)) if error.code == Code::DeadlineExceeded => Ok(timed_out()),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(done)) if done.exit_code == 0 => Ok(Outcome::Success),
        Ok(Ok(done)) => {
            let mut output = [done.stdout, done.stderr].concat();
            output.truncate(MAX_OUTPUT);
            Ok(Outcome::Failure(String::from_utf8_lossy(&output).into_owned()))
        }
    }
}

/// The number of a port that is given as a number or by its name in the container.
pub(crate) fn resolve_port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            match container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name)) {
                Some(port) => port.container_port,
                None => name
                    .parse()
                    .map_err(|_| format!("couldn't find port {name:?} in container {:?}", container.name))?,
            }
        }
    };
    u16::try_from(number).ok().filter(|n| *n > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

/// Connects, or says why not as Go's dialer does.
pub(crate) async fn connect(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, String> {
    let address = join_host_port(host, port);
    match tokio::time::timeout(timeout, TcpStream::connect(&address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("dial tcp {address}: connect: {}", io_reason(&error))),
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

fn io_reason(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        ErrorKind::ConnectionReset => "connection reset by peer".to_owned(),
        ErrorKind::HostUnreachable => "no route to host".to_owned(),
        ErrorKind::NetworkUnreachable => "network is unreachable".to_owned(),
        ErrorKind::TimedOut => "connection timed out".to_owned(),
        _ => error.to_string(),
    }
}

pub(crate) fn join_host_port(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}
