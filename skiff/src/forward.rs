//! The forwarder of a throw-away cluster: on the host, it publishes the cluster's API and LoadBalancer Services on
//! loopback addresses; inside the cluster, it lets the node's own processes reach registries as if from the host.
//!
//! Sockets belong to the namespace of the thread that made them, wherever they are used: one thread inside the
//! cluster's namespace makes the inner sockets, everything else runs on the host.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use nix::sched::{CloneFlags, setns};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use serde_json::json;
use skiff_client::{Informer, Informers, ObjectKey, Read, WorkQueue, key_of};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::agent::{self, Connections};
use crate::cluster::{API_PORT, Cluster, EGRESS, NODE_IP, logs};
use crate::identity::Identity;
use crate::join::Trusted;
use crate::open_files;
use crate::upkeep::Certificates;

/// Connections that one published port may have open.
const MAX_CONNECTIONS: usize = 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A request line and the headers of a proxy request.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Runs until SIGTERM.
pub(crate) async fn run(name: &str) -> Result<()> {
    open_files::raise()?;
    let cluster = Arc::new(Cluster::open(name)?);
    let inside = Inside::enter(&cluster.netns())?;
    let shutdown = CancellationToken::new();
    for node in cluster.nodes() {
        let egress = Inside::enter(&node.netns)?.listener(EGRESS.into()).await;
        let egress = egress.with_context(|| format!("listening on node {}", node.name))?;
        tokio::spawn(serve_egress(egress, cluster.egress_credentials()));
    }
    let address = SocketAddr::from((cluster.api_address(), API_PORT));
    let api = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
    tokio::spawn(publish(api, inside.clone(), SocketAddr::from((NODE_IP, API_PORT)), shutdown.clone()));

    let kube = administrator(&cluster, &shutdown)?;
    let informers = Informers::new(kube, shutdown.clone());
    tokio::spawn(bound_logs(cluster.logs(), shutdown.clone()));
    let publisher = Publisher {
        services: informers.of::<Service>(),
        queue: WorkQueue::default(),
        published: BTreeMap::new(),
        cluster,
        inside,
        informers,
    };
    publisher.run().await;
    shutdown.cancel();
    Ok(())
}

/// Nobody else looks after what the cluster's processes write.
async fn bound_logs(logs: Vec<PathBuf>, stop: CancellationToken) {
    const LOOK_EVERY: Duration = Duration::from_secs(30);
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            // Both only wait.
            _ = looks.tick() => {}
            () = stop.cancelled() => return,
        }
        for log in logs.clone() {
            let shown = log.display().to_string();
            let bounded = tokio::task::spawn_blocking(move || logs::bound(&log)).await;
            if let Ok(Err(error)) = bounded {
                warn!(log = shown, %error, "a log cannot be set aside");
            }
        }
    }
}

/// A client whose certificate, and that of the kubeconfig on the host, is good for as long as the cluster runs.
fn administrator(cluster: &Arc<Cluster>, shutdown: &CancellationToken) -> Result<Client> {
    let pki = Arc::new(cluster.pki()?);
    let identity = Identity::fixed(&pki.administrator()?)?;
    let server = cluster.server_url().parse().context("the API's address")?;
    let client =
        agent::client(&Trusted { server, ca_pem: pki.ca_pem() }, identity.clone(), &Connections::default())?;
    let mut certificates = Certificates::default();
    certificates.signed_by(pki.clone(), || ());
    let kept = cluster.clone();
    certificates.add("administrator", move |_| {
        let admin = pki.administrator()?;
        identity.renew(&admin)?;
        kept.write_kubeconfig(&pki, &admin)?;
        admin.validity()
    });
    let (_address, ip) = watch::channel(cluster.api_address());
    tokio::spawn(certificates.keep(ip, shutdown.clone()));
    Ok(client)
}

/// Makes sockets inside a network namespace.
#[derive(Clone)]
struct Inside {
    wanted: mpsc::Sender<oneshot::Sender<io::Result<OwnedFd>>>,
}

impl Inside {
    fn enter(netns: &Path) -> Result<Inside> {
        let namespace = std::fs::File::open(netns).with_context(|| format!("opening {}", netns.display()))?;
        let (wanted, mut asked) = mpsc::channel::<oneshot::Sender<io::Result<OwnedFd>>>(64);
        std::thread::Builder::new().name("inside".into()).spawn(move || {
            let entered = setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET);
            while let Some(answer) = asked.blocking_recv() {
                let made = entered.map_err(io::Error::from).and_then(|()| {
                    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                    Ok(socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?)
                });
                // Who asked may have given up.
                let _ = answer.send(made);
            }
        })?;
        Ok(Inside { wanted })
    }

    async fn socket(&self) -> io::Result<TcpSocket> {
        let (answer, made) = oneshot::channel();
        let gone = |_| io::Error::other("the thread inside the cluster's namespace has ended");
        self.wanted.send(answer).await.map_err(|_| gone(()))?;
        let socket = made.await.map_err(|_| gone(()))??;
        Ok(TcpSocket::from_std_stream(socket.into()))
    }

    async fn listener(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let socket = self.socket().await?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(128)
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.socket().await?;
        tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(address)).await?
    }
}

/// Passes every connection of a listener on to an address inside.
async fn publish(listener: TcpListener, inside: Inside, to: SocketAddr, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            // Both only wait.
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let mut outer = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%to, %error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let inside = inside.clone();
        tokio::spawn(async move {
            match inside.connect(to).await {
                Ok(mut inner) => {
                    let _ = (outer.set_nodelay(true), inner.set_nodelay(true));
                    if let Err(error) = copy_bidirectional(&mut outer, &mut inner).await {
                        debug!(%to, %error, "a connection broke");
                    }
                }
                Err(error) => debug!(%to, %error, "nothing answers inside the cluster"),
            }
            drop(place);
        });
    }
}

/// An HTTP proxy for the node's own processes: it listens on the namespace's loopback, which only pods on the node's
/// network reach, and those do not know the password.
async fn serve_egress(listener: TcpListener, credentials: String) {
    let expected = base64::engine::general_purpose::STANDARD.encode(credentials);
    let expected: Arc<str> = format!("Basic {expected}").into();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let expected = expected.clone();
        tokio::spawn(async move {
            if let Err(error) = egress(stream, &expected).await {
                debug!(%error, "an outgoing connection ended");
            }
            drop(place);
        });
    }
}

async fn egress(mut inner: TcpStream, expected: &str) -> io::Result<()> {
    let head = tokio::time::timeout(CONNECT_TIMEOUT, read_head(&mut inner)).await??;
    let Some(target) = target(&head) else {
        return inner.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    };
    let (head, shown) = without_credentials(&head);
    if shown.as_deref() != Some(expected.as_bytes()) {
        let refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate: Basic\r\ncontent-length: 0\r\n\r\n";
        return inner.write_all(refusal).await;
    }
    let dialled = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&target.address)).await;
    let mut outer = match dialled {
        Ok(Ok(outer)) => outer,
        failed => {
            debug!(address = target.address, ?failed, "cannot reach it from the host");
            return inner.write_all(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n").await;
        }
    };
    if target.tunnel {
        inner.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
        let end = head.windows(4).position(|w| w == b"\r\n\r\n").map_or(head.len(), |at| at + 4);
        outer.write_all(&head[end..]).await?;
    } else {
        // Servers take the absolute form of a request target as well (RFC 9112, 3.2.2).
        outer.write_all(&head).await?;
    }
    copy_bidirectional(&mut inner, &mut outer).await?;
    Ok(())
}

async fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut buffer = [0; 2048];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        let length = stream.read(&mut buffer).await?;
        if length == 0 || head.len() + length > MAX_HEAD_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "no request, or one with a head that is too long",
            ));
        }
        head.extend_from_slice(&buffer[..length]);
    }
    Ok(head)
}

#[derive(Debug, PartialEq)]
struct Target {
    address: String,
    /// `CONNECT`: bytes pass untouched.
    tunnel: bool,
}

/// A request's head without its Proxy-Authorization, which is not the origin's to see, and that header's value.
fn without_credentials(head: &[u8]) -> (Vec<u8>, Option<Vec<u8>>) {
    const NAME: &[u8] = b"proxy-authorization:";
    let end = head.windows(4).position(|w| w == b"\r\n\r\n").map_or(head.len(), |at| at + 2);
    let (mut kept, mut shown) = (Vec::with_capacity(head.len()), None);
    for line in head[..end].split_inclusive(|b| *b == b'\n') {
        match line.get(..NAME.len()) {
            Some(name) if name.eq_ignore_ascii_case(NAME) => {
                shown = Some(line[NAME.len()..].trim_ascii().to_vec());
            }
            _ => kept.extend_from_slice(line),
        }
    }
    kept.extend_from_slice(&head[end..]);
    (kept, shown)
}

/// Where a proxy request wants to go.
fn target(head: &[u8]) -> Option<Target> {
    let line = std::str::from_utf8(head.split(|b| *b == b'\r').next()?).ok()?;
    let mut words = line.split(' ');
    let (method, uri) = (words.next()?, words.next()?);
    if method == "CONNECT" {
        return Some(Target { address: uri.to_owned(), tunnel: true });
    }
    let authority = uri.strip_prefix("http://")?.split(['/', '?']).next()?;
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let address = if has_port { authority.to_owned() } else { format!("{authority}:80") };
    Some(Target { address, tunnel: false })
}

/// Gives each LoadBalancer Service a loopback address, and listens on its ports there.
struct Publisher {
    cluster: Arc<Cluster>,
    inside: Inside,
    informers: Informers,
    services: Informer<Service>,
    queue: WorkQueue<ObjectKey>,
    published: BTreeMap<ObjectKey, Published>,
}

struct Published {
    address: Ipv4Addr,
    cluster_ip: Ipv4Addr,
    ports: BTreeMap<u16, CancellationToken>,
}

impl Publisher {
    async fn run(mut self) {
        let queue = self.queue.clone();
        self.services.on_change(move |change| {
            if let Some(service) = change.object() {
                queue.add(key_of(&**service));
            }
        });
        let mut stop = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(stop) => stop,
            Err(error) => {
                warn!(%error, "cannot listen for signals");
                return;
            }
        };
        tokio::select! {
            () = self.services.synced() => {}
            _ = stop.recv() => return,
        }
        loop {
            let key = tokio::select! {
                // Both are cancel-safe.
                key = self.queue.get() => key,
                _ = stop.recv() => return,
            };
            let Some(key) = key else { return };
            match self.reconcile(&key).await {
                Ok(()) => self.queue.forget(&key),
                Err(error) => {
                    warn!(service = %key, error = format!("{error:#}"), "cannot publish a service; trying again");
                    self.queue.retry(key.clone());
                }
            }
            self.queue.done(&key);
        }
    }

    async fn reconcile(&mut self, key: &ObjectKey) -> Result<()> {
        let service = self.services.get(key);
        let Some((cluster_ip, ports)) = service.as_deref().and_then(wanted) else {
            if let Some(gone) = self.published.remove(key) {
                gone.ports.values().for_each(CancellationToken::cancel);
            }
            if service.as_deref().is_some_and(|s| assigned_of(s).is_some() && !is_balanced(s)) {
                self.write_status(key, json!({"loadBalancer": null})).await?;
            }
            return Ok(());
        };
        let assigned = service.as_deref().and_then(assigned_of);
        let address = self.address_for(key, assigned)?;
        let entry = self.published.entry(key.clone()).or_insert_with(|| Published {
            address,
            cluster_ip,
            ports: BTreeMap::new(),
        });
        if entry.cluster_ip != cluster_ip {
            entry.ports.values().for_each(CancellationToken::cancel);
            entry.ports.clear();
            entry.cluster_ip = cluster_ip;
        }
        entry.ports.retain(|port, stop| {
            let keep = ports.contains(port);
            if !keep {
                stop.cancel();
            }
            keep
        });
        for port in ports {
            if entry.ports.contains_key(&port) {
                continue;
            }
            let at = SocketAddr::from((address, port));
            let listener = TcpListener::bind(at).await.with_context(|| format!("listening on {at}"))?;
            let stop = CancellationToken::new();
            let to = SocketAddr::from((cluster_ip, port));
            tokio::spawn(publish(listener, self.inside.clone(), to, stop.clone()));
            entry.ports.insert(port, stop);
            info!(service = %key, %at, "published");
        }
        if assigned != Some(address) {
            let ingress = json!([{"ip": address, "ipMode": "Proxy"}]);
            self.write_status(key, json!({"loadBalancer": {"ingress": ingress}})).await?;
        }
        Ok(())
    }

    async fn write_status(&self, key: &ObjectKey, status: serde_json::Value) -> Result<()> {
        let services: Api<Read<Service>> = Api::namespaced(self.informers.client().clone(), &key.namespace);
        let patch = Patch::Merge(json!({"status": status}));
        match services.patch_status(&key.name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }

    /// The address a service has, or the lowest that is free.
    fn address_for(&self, key: &ObjectKey, assigned: Option<Ipv4Addr>) -> Result<Ipv4Addr> {
        if let Some(published) = self.published.get(key) {
            return Ok(published.address);
        }
        let mut taken: BTreeSet<Ipv4Addr> = self.published.values().map(|p| p.address).collect();
        let others = self.services.filter(|other, _| other != key);
        taken.extend(others.iter().filter_map(|s| assigned_of(s)));
        let ours = |ip: &Ipv4Addr| ip.octets()[..2] == self.cluster.loopback(0, 0).octets()[..2];
        if let Some(assigned) = assigned.filter(|ip| ours(ip) && !taken.contains(ip)) {
            return Ok(assigned);
        }
        (1..=255u8)
            .flat_map(|third| (1..=254u8).map(move |fourth| (third, fourth)))
            .map(|(third, fourth)| self.cluster.loopback(third, fourth))
            .find(|ip| !taken.contains(ip))
            .context("all loopback addresses of this cluster are in use")
    }
}

fn assigned_of(service: &Service) -> Option<Ipv4Addr> {
    let ingress = service.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()?;
    ingress.first()?.ip.as_ref()?.parse().ok()
}

fn is_balanced(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.type_.as_deref()) == Some("LoadBalancer")
}

/// The cluster address and the TCP ports of a Service that is to be published.
fn wanted(service: &Service) -> Option<(Ipv4Addr, BTreeSet<u16>)> {
    let spec = service.spec.as_ref()?;
    // Another class is for another load balancer.
    if !is_balanced(service) || spec.load_balancer_class.is_some() {
        return None;
    }
    let cluster_ip = spec.cluster_ip.as_ref()?.parse().ok()?;
    let tcp = |p: &&k8s_openapi::api::core::v1::ServicePort| p.protocol.as_deref().unwrap_or("TCP") == "TCP";
    let ports = spec.ports.iter().flatten().filter(tcp).filter_map(|p| u16::try_from(p.port).ok()).collect();
    Some((cluster_ip, ports))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_request_is_passed_on_without_its_password() {
        let head = b"GET http://a/ HTTP/1.1\r\nProxy-Authorization: Basic abc\r\nhost: a\r\n\r\nproxy-authorization: body";
        let (kept, shown) = without_credentials(head);
        assert_eq!(shown.as_deref(), Some(&b"Basic abc"[..]));
        let kept = String::from_utf8(kept).unwrap();
        assert_eq!(kept, "GET http://a/ HTTP/1.1\r\nhost: a\r\n\r\nproxy-authorization: body");
        assert_eq!(without_credentials(b"GET http://a/ HTTP/1.1\r\n\r\n").1, None);
    }

    #[test]
    fn a_proxy_request_says_where_it_wants_to_go() {
        let check = |head: &str, wanted: Option<(&str, bool)>| {
            let found = target(head.as_bytes()).map(|t| (t.address, t.tunnel));
            assert_eq!(found, wanted.map(|(a, t)| (a.to_owned(), t)), "{head}");
        };
        check("CONNECT docker.io:443 HTTP/1.1\r\n\r\n", Some(("docker.io:443", true)));
        check("GET http://127.0.0.1:5000/v2/ HTTP/1.1\r\nhost: x\r\n\r\n", Some(("127.0.0.1:5000", false)));
        check("GET http://example.com/ HTTP/1.1\r\n\r\n", Some(("example.com:80", false)));
        check("GET /v2/ HTTP/1.1\r\n\r\n", None);
        check("\r\n\r\n", None);
    }
}
