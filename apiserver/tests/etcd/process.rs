//! An etcd of a test's own, on loopback. `cargo xtask test` builds it, and names it in `SKIFF_TEST_ETCD`.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

/// How often ports are chosen anew: another process may be faster.
const ATTEMPTS: usize = 10;
/// Below those that the kernel gives out: a connection to such a port that nobody listens on yet may be given that port for its own
/// end, and meet itself; etcd then finds it taken.
const PORTS: Range<u16> = 10_000..30_000;
const START_TIMEOUT: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Whether what is written is synced.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disk {
    Synced,
    /// For tests that take no process and no machine down.
    Fast,
}

/// One process; dropping it ends it.
pub(crate) struct Etcd {
    /// What only has to outlive the process.
    pub(crate) _folder: tempfile::TempDir,
    program: PathBuf,
    arguments: Vec<String>,
    child: Child,
    /// Where clients reach it.
    pub(crate) address: SocketAddr,
}

impl Etcd {
    /// `None`, with a word about it, where there is no etcd to test with. `more` are flags that count more than the usual ones.
    pub(crate) fn start(disk: Disk, more: &[String]) -> Option<Etcd> {
        let program = program()?;
        for _ in 0..ATTEMPTS {
            let [address, peer] = [free_port(), free_port()];
            let peer = format!("http://{peer}");
            let flags =
                [("name", "one"), ("initial-advertise-peer-urls", &peer), ("listen-peer-urls", &peer)];
            let mut arguments: Vec<String> =
                flags.iter().map(|(name, value)| format!("--{name}={value}")).collect();
            arguments.push(format!("--initial-cluster=one={peer}"));
            arguments.extend(more.iter().cloned());
            if let Some(etcd) = Etcd::spawn(program.clone(), arguments, disk, address, "http") {
                return Some(etcd);
            }
        }
        panic!("etcd does not start");
    }

    /// A cluster of three members, of which one may go away.
    pub(crate) fn start_three() -> Option<Vec<Etcd>> {
        let program = program()?;
        'again: for _ in 0..ATTEMPTS {
            let peers: Vec<String> = (0..3).map(|_| format!("http://{}", free_port())).collect();
            let named = peers.iter().enumerate().map(|(at, peer)| format!("m{at}={peer}"));
            let initial = named.collect::<Vec<_>>().join(",");
            let mut members = Vec::new();
            for (at, peer) in peers.iter().enumerate() {
                let arguments = vec![
                    format!("--name=m{at}"),
                    format!("--initial-advertise-peer-urls={peer}"),
                    format!("--listen-peer-urls={peer}"),
                    format!("--initial-cluster={initial}"),
                ];
                let member = Etcd::spawn(program.clone(), arguments, Disk::Fast, free_port(), "http");
                let Some(member) = member else { continue 'again };
                members.push(member);
            }
            return Some(members);
        }
        panic!("etcd does not start");
    }

    /// One whose clients have to show a certificate: its CA, its own certificate and key are files in PEM.
    pub(crate) fn start_with_tls(ca: &Path, certificate: &Path, key: &Path) -> Option<Etcd> {
        let program = program()?;
        for _ in 0..ATTEMPTS {
            let [address, peer] = [free_port(), free_port()];
            let arguments = vec![
                "--name=one".to_owned(),
                format!("--initial-advertise-peer-urls=http://{peer}"),
                format!("--listen-peer-urls=http://{peer}"),
                format!("--initial-cluster=one=http://{peer}"),
                "--client-cert-auth".to_owned(),
                format!("--trusted-ca-file={}", ca.display()),
                format!("--cert-file={}", certificate.display()),
                format!("--key-file={}", key.display()),
            ];
            if let Some(etcd) = Etcd::spawn(program.clone(), arguments, Disk::Fast, address, "https") {
                return Some(etcd);
            }
        }
        panic!("etcd does not start");
    }

    fn spawn(
        program: PathBuf,
        mut arguments: Vec<String>,
        disk: Disk,
        address: SocketAddr,
        scheme: &str,
    ) -> Option<Etcd> {
        let folder = tempfile::tempdir().expect("a folder");
        arguments.push(format!("--data-dir={}", folder.path().join("data").display()));
        arguments.push(format!("--listen-client-urls={scheme}://{address}"));
        arguments.push(format!("--advertise-client-urls={scheme}://{address}"));
        arguments.push("--log-level=error".into());
        if disk == Disk::Fast {
            arguments.push("--unsafe-no-fsync".into());
        }
        let child = spawn(&program, &arguments);
        let mut etcd = Etcd { _folder: folder, program, arguments, child, address };
        etcd.listens().then_some(etcd)
    }

    /// Waits until it takes connections; `false` where it has ended instead.
    fn listens(&mut self) -> bool {
        let end = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(self.address).is_err() {
            if self.child.try_wait().expect("is a child").is_some() {
                return false;
            }
            assert!(Instant::now() < end, "etcd does not listen");
            std::thread::sleep(LOOK_AGAIN);
        }
        true
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Takes it down as a crash does.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("is killed");
        self.child.wait().expect("is reaped");
    }

    /// Starts it again over its files.
    pub(crate) fn restart(&mut self) {
        self.child = spawn(&self.program, &self.arguments);
        assert!(self.listens(), "etcd does not start again");
    }

    /// Has it stand still; once this returns, every thread of it does.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
        let tasks = PathBuf::from(format!("/proc/{}/task", self.child.id()));
        let is_still = || {
            let mut tasks = std::fs::read_dir(&tasks).expect("it runs").flatten();
            tasks.all(|task| {
                let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
            })
        };
        let end = Instant::now() + START_TIMEOUT;
        while !is_still() {
            assert!(Instant::now() < end, "etcd does not stand still");
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("is signalled");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // One that was killed already is no fault.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> Option<PathBuf> {
    let program = std::env::var_os("SKIFF_TEST_ETCD").map(PathBuf::from);
    if program.is_none() {
        eprintln!("SKIFF_TEST_ETCD is not set, see `cargo xtask test`: nothing is tested");
    }
    program
}

fn spawn(program: &Path, arguments: &[String]) -> Child {
    // It ends with the test, however that ends.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("setpriv, of the package util-linux, starts")
}

fn free_port() -> SocketAddr {
    loop {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, rand::random_range(PORTS)));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
