//! Faults between network namespaces. All rules are in a namespace that the test made, in tables of their own.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};

/// Chunks on their way in one direction of one connection, and the size of each.
const MAX_CHUNKS: usize = 64;
const CHUNK_BYTES: usize = 16 * 1024;
/// Connections through one relay.
const MAX_CONNECTIONS: usize = 256;

/// What packets take within a namespace.
#[derive(Clone, Debug)]
pub struct Link {
    netns: PathBuf,
}

/// A number for each table of this process.
static N_TABLES: AtomicU32 = AtomicU32::new(0);

impl Link {
    /// Of a namespace of the test's own, by its path.
    pub fn of(netns: &Path) -> Link {
        Link { netns: netns.to_owned() }
    }

    /// Drops all packets to and from an address; with a port, only those of TCP to and from it.
    pub fn partition(&self, address: Ipv4Addr, port: Option<u16>) -> Result<Partition> {
        let (to, from) = match port {
            Some(port) => (format!("tcp dport {port}"), format!("tcp sport {port}")),
            None => (String::new(), String::new()),
        };
        let drops = format!("ip daddr {address} {to} drop; ip saddr {address} {from} drop;");
        let chains = ["input", "output", "forward"].map(|hook| {
            // Before connection tracking: also what is under way already.
            format!("chain {hook} {{ type filter hook {hook} priority -400; {drops} }}")
        });
        Ok(Partition { _rules: self.rules(&chains.join("\n"))? })
    }

    /// Drops so many of a hundred TCP segments that are sent to an address, whichever they are.
    pub fn lose(&self, to: SocketAddrV4, percent: u8) -> Result<Loss> {
        ensure!(percent < 100, "to lose everything is a partition");
        let (ip, port) = (to.ip(), to.port());
        let chain = format!(
            "chain output {{ type filter hook output priority -400;
             ip daddr {ip} tcp dport {port} numgen random mod 100 < {percent} drop; }}"
        );
        Ok(Loss { _rules: self.rules(&chain)? })
    }

    /// Holds back what new connections to an address carry, in either direction. `target` is another address of the same
    /// server: what waits must get there without being led through itself.
    pub fn delay(&self, to: SocketAddrV4, target: SocketAddrV4, by: Duration) -> Result<Delay> {
        let relay = Relay::start(&self.netns, target, by)?;
        let (ip, port, relayed) = (to.ip(), to.port(), relay.port);
        let chain = format!(
            "chain output {{ type nat hook output priority -150;
             ip daddr {ip} tcp dport {port} redirect to :{relayed}; }}"
        );
        let rules = self.rules(&chain)?;
        Ok(Delay { rules: Some(rules), relay })
    }

    /// Puts chains into a table of their own.
    fn rules(&self, chains: &str) -> Result<Rules> {
        let number = N_TABLES.fetch_add(1, Ordering::Relaxed);
        let table = format!("ip drill-{}-{number}", std::process::id());
        let rules = Rules { netns: self.netns.clone(), table };
        rules.nft(&format!("table {} {{\n{chains}\n}}\n", rules.table))?;
        Ok(rules)
    }
}

/// Packets vanish. Dropping it heals the way.
#[derive(Debug)]
pub struct Partition {
    _rules: Rules,
}

/// Some packets vanish. Dropping it ends that.
#[derive(Debug)]
pub struct Loss {
    _rules: Rules,
}

/// Bytes come late. Dropping it ends that, and the connections that were made meanwhile.
#[derive(Debug)]
pub struct Delay {
    rules: Option<Rules>,
    relay: Relay,
}

impl Delay {
    /// How many connections were led through it.
    pub fn n_connections(&self) -> u32 {
        self.relay.shared.n_connections.load(Ordering::Relaxed)
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        // First the rules: no connection may come to a relay that has ended.
        self.rules.take();
    }
}

/// A table of nft. Dropping it removes it.
#[derive(Debug)]
struct Rules {
    netns: PathBuf,
    table: String,
}

impl Rules {
    fn nft(&self, script: &str) -> Result<()> {
        let mut nft = Command::new("nsenter")
            .arg(format!("--net={}", self.netns.display()))
            .args(["nft", "-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("running nft; install the package nftables")?;
        nft.stdin.take().context("no input")?.write_all(script.as_bytes())?;
        let output = nft.wait_with_output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "nft refused {script:?}: {}", error.trim());
        Ok(())
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        // The namespace may be gone already, and the table with it.
        let _ = self.nft(&format!("delete table {}\n", self.table));
    }
}

/// Accepts connections within a namespace and passes their bytes on, late.
#[derive(Debug)]
struct Relay {
    port: u16,
    shared: Arc<Shared>,
    listener: TcpListener,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    by: Duration,
    ended: AtomicBool,
    n_connections: AtomicU32,
    /// Both sides of each connection, to end them.
    open: Mutex<Vec<TcpStream>>,
}

impl Relay {
    fn start(netns: &Path, target: SocketAddrV4, by: Duration) -> Result<Relay> {
        let namespace = File::open(netns).with_context(|| format!("opening {}", netns.display()))?;
        let shared = Arc::new(Shared {
            target: target.into(),
            by,
            ended: AtomicBool::new(false),
            n_connections: AtomicU32::new(0),
            open: Mutex::default(),
        });
        let (bound, listening) = sync_channel(1);
        let of_thread = shared.clone();
        // A socket belongs to the namespace of the thread that made it, and so do the threads that this one starts.
        let accepting = std::thread::spawn(move || {
            let bind = || -> Result<TcpListener> {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
                Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)
            };
            let listener = bind();
            let kept = listener.as_ref().map_err(|e| anyhow!("{e:#}")).and_then(|l| Ok(l.try_clone()?));
            let is_bound = bound.send(kept).is_ok();
            if let (true, Ok(listener)) = (is_bound, listener) {
                of_thread.accept(&listener);
            }
        });
        let listener =
            listening.recv().context("the relay's thread has ended")?.context("starting the relay")?;
        Ok(Relay { port: listener.local_addr()?.port(), shared, listener, accepting: Some(accepting) })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        // `accept` answers with an error once its socket is shut down.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        let open = std::mem::take(&mut *self.shared.open.lock().unwrap_or_else(PoisonError::into_inner));
        open.iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    }
}

impl Shared {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        while let Ok((outer, _)) = listener.accept() {
            if self.ended.load(Ordering::Acquire) {
                return;
            }
            // What cannot be passed on is closed, as by a server that is not there.
            let _ = self.pass_on(outer);
        }
    }

    fn pass_on(self: &Arc<Self>, outer: TcpStream) -> Result<()> {
        let inner = TcpStream::connect_timeout(&self.target, Duration::from_secs(5))?;
        outer.set_nodelay(true)?;
        inner.set_nodelay(true)?;
        {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            ensure!(open.len() < 2 * MAX_CONNECTIONS, "too many connections");
            open.extend([outer.try_clone()?, inner.try_clone()?]);
        }
        self.n_connections.fetch_add(1, Ordering::Relaxed);
        for (from, to) in [(outer.try_clone()?, inner.try_clone()?), (inner, outer)] {
            let (sender, receiver) = sync_channel(MAX_CHUNKS);
            let by = self.by;
            std::thread::spawn(move || read(from, &sender, by));
            std::thread::spawn(move || write(to, &receiver));
        }
        Ok(())
    }
}

fn read(mut from: TcpStream, sender: &SyncSender<(Instant, Vec<u8>)>, by: Duration) {
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(length) = from.read(&mut chunk) {
        let due = Instant::now() + by;
        // Nothing more comes: the other side is to know, as late as everything.
        if sender.send((due, chunk[..length].to_vec())).is_err() || length == 0 {
            return;
        }
    }
}

fn write(mut to: TcpStream, receiver: &Receiver<(Instant, Vec<u8>)>) {
    while let Ok((due, chunk)) = receiver.recv() {
        // This wait is what the drill is about.
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if chunk.is_empty() || to.write_all(&chunk).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A namespace of the test's own, with an echoing server on all of its addresses.
    struct Place {
        name: String,
        port: u16,
    }

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 99, 7, 1);

    impl Place {
        fn new(name: &str) -> Place {
            let name = format!("drill-{name}-{}", std::process::id());
            ip(&["netns", "add", &name]);
            ip(&["-n", &name, "link", "set", "lo", "up"]);
            ip(&["-n", &name, "address", "add", &format!("{ADDRESS}/32"), "dev", "lo"]);
            let mut place = Place { name, port: 0 };
            let listener = place.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
            place.port = listener.local_addr().unwrap().port();
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let mut other = stream.try_clone().unwrap();
                    std::thread::spawn(move || std::io::copy(&mut stream, &mut other));
                }
            });
            place
        }

        fn path(&self) -> PathBuf {
            Path::new("/run/netns").join(&self.name)
        }

        fn inside<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
            let namespace = File::open(self.path()).unwrap();
            let enter = || {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                run()
            };
            std::thread::scope(|scope| scope.spawn(enter).join().unwrap())
        }

        fn to(&self) -> SocketAddrV4 {
            SocketAddrV4::new(ADDRESS, self.port)
        }

        /// How long an echo took, unless it did not come.
        fn echo(&self) -> std::io::Result<Duration> {
            self.inside(|| {
                let start = Instant::now();
                let mut stream = TcpStream::connect_timeout(&self.to().into(), Duration::from_millis(500))?;
                stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                stream.write_all(b"x")?;
                stream.read_exact(&mut [0])?;
                Ok(start.elapsed())
            })
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            ip(&["netns", "delete", &self.name]);
        }
    }

    fn ip(arguments: &[&str]) {
        assert!(Command::new("ip").args(arguments).status().unwrap().success(), "ip {arguments:?}");
    }

    #[test]
    fn a_partition_stops_everything_until_it_is_healed() {
        let place = Place::new("part");
        place.echo().unwrap();
        let partition = Link::of(&place.path()).partition(ADDRESS, Some(place.port)).unwrap();
        place.echo().unwrap_err();
        drop(partition);
        place.echo().unwrap();
        let partition = Link::of(&place.path()).partition(ADDRESS, None).unwrap();
        place.echo().unwrap_err();
        drop(partition);
        place.echo().unwrap();
    }

    #[test]
    fn a_delay_holds_back_both_directions_and_ends_with_its_guard() {
        let place = Place::new("delay");
        let (by, target) = (Duration::from_millis(60), SocketAddrV4::new(Ipv4Addr::LOCALHOST, place.port));
        let delay = Link::of(&place.path()).delay(place.to(), target, by).unwrap();
        let took = place.echo().unwrap();
        assert!(took >= by * 2, "{took:?}");
        assert_eq!(delay.n_connections(), 1);
        drop(delay);
        let took = place.echo().unwrap();
        assert!(took < by, "{took:?}");
    }

    #[test]
    fn what_is_lost_comes_again_because_tcp_sends_it_again() {
        let place = Place::new("loss");
        let loss = Link::of(&place.path()).lose(place.to(), 99).unwrap();
        place.echo().unwrap_err();
        drop(loss);
        let _loss = Link::of(&place.path()).lose(place.to(), 20).unwrap();
        let n_come = (0..20).filter(|_| place.echo().is_ok()).count();
        assert!(n_come > 10, "{n_come} of 20");
    }
}
