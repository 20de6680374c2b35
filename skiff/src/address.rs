//! The node's address: found, waited for, and followed.
//!
//! ```text
//!  --node-ip given:  waited for until an interface has it, and never another
//!  else:             that of the default route; waited for, and followed when it becomes another
//! ```
//!
//! Machines boot before their network, and an address that was leased is leased anew.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use skiff_network::{Changes, Uplink};
use tokio::time::Instant;
use tracing::warn;

use crate::complaint::Complaint;
use crate::node::NodeArgs;

/// How long an address must have been there to be taken for the node's: while a link comes up, there may be several in turn.
const STEADY: Duration = Duration::from_secs(2);

/// The address that this node has at the moment, if it has one.
///
/// # Errors
/// If the kernel cannot be asked.
async fn find(args: &NodeArgs) -> Result<Option<Ipv4Addr>> {
    match args.node_ip {
        Some(ip) => Ok(Uplink::of(ip).await.is_ok().then_some(ip)),
        None => by_default_route(),
    }
}

/// The address that packets to elsewhere would leave with. No packet is sent: connecting a UDP socket only asks for
/// the route.
fn by_default_route() -> Result<Option<Ipv4Addr>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("opening a socket")?;
    if socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).is_err() {
        return Ok(None);
    }
    match socket.local_addr().context("asking for an address")?.ip() {
        IpAddr::V4(ip) if !ip.is_unspecified() && !ip.is_loopback() => Ok(Some(ip)),
        _ => Ok(None),
    }
}

/// The node's address, as soon as it has one.
pub(crate) async fn wait(args: &NodeArgs) -> Result<Ipv4Addr> {
    let (mut changes, mut complaint) = (Changes::listen(), Complaint::default());
    loop {
        if let Some(ip) = find(args).await? {
            return Ok(ip);
        }
        if complaint.is_due() {
            match args.node_ip {
                Some(ip) => {
                    warn!("waiting for an interface of this machine to have the address {ip} (--node-ip)")
                }
                None => warn!(
                    "waiting for a default route, to take this node's address from; --node-ip names one where there is none"
                ),
            }
        }
        changes.next().await;
    }
}

/// Follows the address from one that it was.
pub(crate) struct Follow {
    args: NodeArgs,
    changes: Changes,
    last: Ipv4Addr,
    /// Another one that the node has, and since when.
    next: Option<(Ipv4Addr, Instant)>,
}

impl Follow {
    pub(crate) fn from(args: &NodeArgs, last: Ipv4Addr) -> Follow {
        Follow { args: args.clone(), changes: Changes::listen(), last, next: None }
    }

    /// Returns when the node has another address, and that for a while. One that it has lost is still its own until it has
    /// another.
    ///
    /// Cancel-safe: a change that was not returned is found again by the next call.
    pub(crate) async fn next(&mut self) -> Ipv4Addr {
        loop {
            let change = self.changes.next();
            match self.next {
                // Whichever comes first, it is looked at.
                Some((_, since)) => {
                    let _which = tokio::time::timeout_at(since + STEADY, change).await;
                }
                None => change.await,
            }
            let now = Instant::now();
            self.next = match (self.other().await, self.next) {
                (None, _) => None,
                (Some(ip), Some((before, since))) if ip == before => Some((ip, since)),
                (Some(ip), _) => Some((ip, now)),
            };
            if let Some((ip, since)) = self.next
                && now.duration_since(since) >= STEADY
            {
                (self.last, self.next) = (ip, None);
                return ip;
            }
        }
    }

    async fn other(&self) -> Option<Ipv4Addr> {
        // What cannot be asked for now can be at the next look.
        find(&self.args).await.ok().flatten().filter(|ip| *ip != self.last)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use clap::Parser as _;
    use skiff_network::netns;

    use super::*;

    /// A network namespace of the test's own, removed however the test ends.
    struct World {
        _directory: tempfile::TempDir,
        path: PathBuf,
    }

    impl World {
        fn new() -> World {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("net");
            netns::create(&path).unwrap();
            World { _directory: directory, path }
        }

        /// Runs `story` on a thread and a runtime inside.
        fn run<F: Future<Output = ()>>(&self, story: impl FnOnce() -> F + Send + 'static) {
            netns::within(&self.path, || {
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(story());
            })
            .unwrap();
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            let _ = netns::remove(&self.path);
        }
    }

    fn ip(command: &str) {
        let status = Command::new("ip").args(command.split(' ')).status().unwrap();
        assert!(status.success(), "ip {command}");
    }

    fn args(more: &[&str]) -> NodeArgs {
        #[derive(clap::Parser)]
        struct Only {
            #[command(flatten)]
            node: NodeArgs,
        }
        Only::parse_from([&["skiff"], more].concat()).node
    }

    const SOON: Duration = Duration::from_secs(30);

    #[test]
    fn an_address_that_is_not_there_yet_is_waited_for() {
        for more in [&[][..], &["--node-ip", "192.0.2.7"]] {
            let world = World::new();
            world.run(move || async move {
                let args = args(more);
                let waiting = tokio::spawn(async move { wait(&args).await.unwrap() });
                tokio::task::yield_now().await;
                ip("link add eth0 type veth peer name far");
                ip("link set far up");
                ip("link set eth0 up");
                ip("address add 192.0.2.7/24 dev eth0");
                if more.is_empty() {
                    ip("route add default via 192.0.2.1 dev eth0");
                }
                let found = tokio::time::timeout(SOON, waiting).await.expect("it is not found").unwrap();
                assert_eq!(found, Ipv4Addr::new(192, 0, 2, 7));
            });
        }
    }

    #[test]
    fn an_address_that_becomes_another_is_followed_and_one_that_is_lost_is_kept() {
        let world = World::new();
        world.run(|| async {
            ip("link add eth0 type veth peer name far");
            ip("link set far up");
            ip("link set eth0 up");
            ip("address add 192.0.2.7/24 dev eth0");
            ip("route add default via 192.0.2.1 dev eth0");
            let mut follow = Follow::from(&args(&[]), Ipv4Addr::new(192, 0, 2, 7));
            // With the address goes the route over it.
            ip("address del 192.0.2.7/24 dev eth0");
            let lost = tokio::time::timeout(Duration::from_secs(4), follow.next()).await;
            assert!(lost.is_err(), "no address is none to move to");
            ip("address add 198.51.100.9/24 dev eth0");
            ip("route add default via 198.51.100.1 dev eth0");
            let found = tokio::time::timeout(SOON, follow.next()).await.expect("it is not followed");
            assert_eq!(found, Ipv4Addr::new(198, 51, 100, 9));
        });
    }
}
