//! Addresses and host ports of pods: one file an address, named after it, holding the sandbox it belongs to and, a
//! line each, the ports of the node that lead to it.
//!
//! ```text
//!  10.42.0.7:  3f2a…
//!              tcp 9090 8080
//! ```
//!
//! # Guarantees
//! - An address and a host port belong to one sandbox at a time, also across restarts.
//! - Asking again for the same sandbox gives the same address.
//! - A released address is given out again as late as possible, so that stale clients do not meet a stranger.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

/// A port of the node that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The one address of the node that it is open on; `None` for all but loopback.
    pub host_ip: Option<Ipv4Addr>,
    pub host_port: u16,
    pub container_port: u16,
}

/// Protocol, port and address; the addresses of a port are beside each other, `None` first.
type PortKey = (&'static str, u16, Option<Ipv4Addr>);

impl HostPort {
    fn key(&self) -> PortKey {
        (self.protocol, self.host_port, self.host_ip)
    }

    /// Whether one packet could be for both.
    fn meets(&self, other: &PortKey) -> bool {
        let (protocol, port, ip) = *other;
        let same_ip = ip.is_none() || self.host_ip.is_none() || ip == self.host_ip;
        self.protocol == protocol && self.host_port == port && same_ip
    }

    /// Reads what [`HostPort`]'s `Display` writes.
    fn parse(text: &str) -> Option<HostPort> {
        let mut words = text.split(' ');
        let protocol = match words.next()? {
            "tcp" => "tcp",
            "udp" => "udp",
            _ => return None,
        };
        let (host_port, container_port) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let host_ip = match words.next() {
            Some(ip) => Some(ip.parse().ok()?),
            None => None,
        };
        words.next().is_none().then_some(HostPort { protocol, host_ip, host_port, container_port })
    }
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.protocol, self.host_port, self.container_port)?;
        match self.host_ip {
            Some(ip) => write!(f, " {ip}"),
            None => Ok(()),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    #[error("cannot {action} the address record {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("all {n_addresses} pod addresses of this node are in use")]
    Exhausted { n_addresses: u32 },
    #[error("host port {protocol} {port} is taken by the pod sandbox {owner}")]
    HostPortTaken { protocol: &'static str, port: u16, owner: String },
    #[error("{cidr:?} is no usable pod range: {why}")]
    Range { cidr: String, why: &'static str },
}

/// An IPv4 range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub network: Ipv4Addr,
    pub prefix: u8,
}

impl Range {
    pub fn parse(cidr: &str) -> Result<Range, IpamError> {
        let error = |why| IpamError::Range { cidr: cidr.into(), why };
        let (address, prefix) = cidr.split_once('/').ok_or(error("it has no prefix length"))?;
        let address: Ipv4Addr = address.parse().map_err(|_| error("its address is not IPv4"))?;
        let prefix: u8 = prefix.parse().map_err(|_| error("its prefix length is no number"))?;
        if !(8..=30).contains(&prefix) {
            return Err(error("its prefix length is not between 8 and 30"));
        }
        let network = Ipv4Addr::from_bits(address.to_bits() & (u32::MAX << (32 - prefix)));
        Ok(Range { network, prefix })
    }

    pub fn size(self) -> u32 {
        1 << (32 - self.prefix)
    }

    /// The first usable address, which is the bridge's.
    pub fn gateway(self) -> Ipv4Addr {
        self.at(1)
    }

    fn at(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() + offset)
    }

    fn offset(self, address: Ipv4Addr) -> u32 {
        address.to_bits().wrapping_sub(self.network.to_bits())
    }

    /// Whether a pod may have the address: neither the network's, nor the gateway's, nor the broadcast address.
    fn is_for_pods(self, address: Ipv4Addr) -> bool {
        self.contains(address) && (2..self.size() - 1).contains(&self.offset(address))
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & (u32::MAX << (32 - self.prefix)) == self.network.to_bits()
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Ipam {
    range: Range,
    directory: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    by_sandbox: HashMap<String, Held>,
    taken: BTreeSet<Ipv4Addr>,
    /// The sandbox that holds a protocol and port.
    ports: BTreeMap<PortKey, String>,
    /// Offset of the address given out last.
    last: u32,
}

/// What one sandbox holds.
#[derive(Debug)]
struct Held {
    address: Ipv4Addr,
    host_ports: Vec<HostPort>,
}

impl Ipam {
    /// Reads the records in `directory`, which is made if it is missing. Records outside the range, as after a
    /// change of the node's range, are dropped.
    pub fn open(range: Range, directory: &Path) -> Result<Ipam, IpamError> {
        let io = |action| move |source| IpamError::Io { action, path: directory.into(), source };
        fs::create_dir_all(directory).map_err(io("create the directory of"))?;
        let mut state = State::default();
        for entry in fs::read_dir(directory).map_err(io("list"))? {
            let path = entry.map_err(io("list"))?.path();
            let text = match fs::read(&path) {
                Ok(bytes) => String::from_utf8(bytes).unwrap_or_default(),
                // It may well be somebody's: better no start than an address given twice.
                Err(source) => return Err(IpamError::Io { action: "read", path, source }),
            };
            let address = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok());
            let usable = address.filter(|a| range.is_for_pods(*a));
            if !usable.is_some_and(|address| state.read(range, address, &text)) {
                // Half-written or foreign.
                fs::remove_file(&path).map_err(io("remove"))?;
            }
        }
        Ok(Ipam { range, directory: directory.into(), state: Mutex::new(state) })
    }

    pub fn range(&self) -> Range {
        self.range
    }

    pub fn get(&self, sandbox_id: &str) -> Option<Ipv4Addr> {
        self.state.lock().by_sandbox.get(sandbox_id).map(|held| held.address)
    }

    /// All sandboxes that hold an address.
    pub fn sandboxes(&self) -> Vec<String> {
        self.state.lock().by_sandbox.keys().cloned().collect()
    }

    /// The host ports that a sandbox holds.
    pub fn host_ports(&self, sandbox_id: &str) -> Vec<HostPort> {
        self.state.lock().by_sandbox.get(sandbox_id).map(|held| held.host_ports.clone()).unwrap_or_default()
    }

    /// All host ports and the pods' addresses that they lead to, without those of one sandbox.
    pub fn open_ports(&self, except: Option<&str>) -> Vec<(HostPort, Ipv4Addr)> {
        let state = self.state.lock();
        let owned = state.ports.iter().filter(|(_, owner)| Some(owner.as_str()) != except);
        owned
            .filter_map(|(key, owner)| {
                let held = state.by_sandbox.get(owner)?;
                let port = held.host_ports.iter().find(|p| p.key() == *key)?;
                Some((port.clone(), held.address))
            })
            .collect()
    }

    /// The sandbox's address, a new one if it has none, and its host ports. Takes nothing if one of them is
    /// another's.
    pub fn allocate(&self, sandbox_id: &str, host_ports: &[HostPort]) -> Result<Ipv4Addr, IpamError> {
        let mut state = self.state.lock();
        for port in host_ports {
            if let Some(owner) = state.owner(port).filter(|owner| *owner != sandbox_id) {
                let (protocol, port, owner) = (port.protocol, port.host_port, owner.clone());
                return Err(IpamError::HostPortTaken { protocol, port, owner });
            }
        }
        let held = state.by_sandbox.get(sandbox_id);
        if let Some(held) = held.filter(|held| held.host_ports == host_ports) {
            return Ok(held.address);
        }
        let address = match held {
            Some(held) => held.address,
            None => state.free(self.range)?,
        };
        self.write(address, sandbox_id, host_ports)?;
        state.forget_ports(sandbox_id);
        state.hold(self.range, sandbox_id, Held { address, host_ports: host_ports.to_vec() });
        Ok(address)
    }

    /// Gives an address and host ports back. A sandbox without any is no error.
    pub fn release(&self, sandbox_id: &str) -> Result<(), IpamError> {
        let mut state = self.state.lock();
        let Some(address) = state.by_sandbox.get(sandbox_id).map(|held| held.address) else { return Ok(()) };
        let path = self.directory.join(address.to_string());
        match fs::remove_file(&path) {
            // It stays the sandbox's, so that the caller's next attempt finds it.
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(IpamError::Io { action: "remove", path, source });
            }
            _ => {}
        }
        state.forget_ports(sandbox_id);
        state.taken.remove(&address);
        state.by_sandbox.remove(sandbox_id);
        Ok(())
    }

    /// Whole or not at all: half a record would be an address that nobody gives back.
    fn write(&self, address: Ipv4Addr, sandbox_id: &str, host_ports: &[HostPort]) -> Result<(), IpamError> {
        let path = self.directory.join(address.to_string());
        let partial = self.directory.join(format!("{address}.partial"));
        let ports: String = host_ports.iter().map(|port| format!("\n{port}")).collect();
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&partial)?;
            file.write_all(format!("{sandbox_id}{ports}").as_bytes())?;
            fs::rename(&partial, &path)
        };
        write().map_err(|source| IpamError::Io { action: "write", path: path.clone(), source })
    }
}

impl State {
    /// Takes a record in; false for one that is damaged or contradicts another.
    fn read(&mut self, range: Range, address: Ipv4Addr, text: &str) -> bool {
        let mut lines = text.lines();
        let Some(sandbox_id) = lines.next().filter(|id| !id.is_empty()) else { return false };
        let Some(host_ports) = lines.map(HostPort::parse).collect::<Option<Vec<_>>>() else { return false };
        let taken = host_ports.iter().any(|port| self.owner(port).is_some());
        if taken || self.by_sandbox.contains_key(sandbox_id) {
            return false;
        }
        let highest = self.last.max(range.offset(address));
        self.hold(range, sandbox_id, Held { address, host_ports });
        self.last = highest;
        true
    }

    /// Who holds a port that meets this one.
    fn owner(&self, port: &HostPort) -> Option<&String> {
        let first = (port.protocol, port.host_port, None);
        let last = (port.protocol, port.host_port, Some(Ipv4Addr::BROADCAST));
        let others = self.ports.range(first..=last);
        others.filter(|(key, _)| port.meets(key)).map(|(_, owner)| owner).next()
    }

    fn free(&self, range: Range) -> Result<Ipv4Addr, IpamError> {
        // The network, the gateway and the broadcast address are nobody's.
        let n_addresses = range.size() - 3;
        (0..n_addresses)
            .map(|step| range.at(2 + (self.last.max(1) - 1 + step) % n_addresses))
            .find(|address| !self.taken.contains(address))
            .ok_or(IpamError::Exhausted { n_addresses })
    }

    fn hold(&mut self, range: Range, sandbox_id: &str, held: Held) {
        for port in &held.host_ports {
            self.ports.insert(port.key(), sandbox_id.to_owned());
        }
        if self.taken.insert(held.address) {
            self.last = range.offset(held.address);
        }
        self.by_sandbox.insert(sandbox_id.to_owned(), held);
    }

    fn forget_ports(&mut self, sandbox_id: &str) {
        self.ports.retain(|_, owner| owner != sandbox_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipam(cidr: &str) -> (tempfile::TempDir, Ipam) {
        let directory = tempfile::tempdir().unwrap();
        let ipam = Ipam::open(Range::parse(cidr).unwrap(), directory.path()).unwrap();
        (directory, ipam)
    }

    #[test]
    fn addresses_are_given_once_and_reused_last() {
        let (_directory, ipam) = ipam("10.42.0.0/29");
        let given: Vec<String> = ["a", "b", "c"].map(|s| ipam.allocate(s, &[]).unwrap().to_string()).into();
        assert_eq!(given, ["10.42.0.2", "10.42.0.3", "10.42.0.4"]);
        assert_eq!(
            ipam.allocate("a", &[]).unwrap().to_string(),
            "10.42.0.2",
            "the same sandbox keeps its address"
        );
        ipam.release("b").unwrap();
        assert_eq!(ipam.allocate("d", &[]).unwrap().to_string(), "10.42.0.5");
        assert_eq!(ipam.allocate("e", &[]).unwrap().to_string(), "10.42.0.6");
        assert_eq!(ipam.allocate("f", &[]).unwrap().to_string(), "10.42.0.3");
        assert!(matches!(ipam.allocate("g", &[]), Err(IpamError::Exhausted { n_addresses: 5 })));
    }

    #[test]
    fn addresses_survive_a_restart() {
        let (directory, before) = ipam("10.42.0.0/24");
        let address = before.allocate("a", &[]).unwrap();
        drop(before);
        let after = Ipam::open(Range::parse("10.42.0.0/24").unwrap(), directory.path()).unwrap();
        assert_eq!(after.get("a"), Some(address));
        assert_ne!(after.allocate("b", &[]).unwrap(), address);
    }

    fn port(host_port: u16) -> HostPort {
        HostPort { protocol: "tcp", host_ip: None, host_port, container_port: 80 }
    }

    #[test]
    fn a_port_is_one_sandbox_s_on_each_address() {
        let (directory, before) = ipam("10.42.0.0/24");
        let at = |ip: &str| HostPort { host_ip: Some(ip.parse().unwrap()), ..port(9090) };
        let address = before.allocate("a", &[at("127.0.0.1")]).unwrap();
        before.allocate("b", &[at("192.0.2.1")]).unwrap();
        drop(before);
        let after = Ipam::open(Range::parse("10.42.0.0/24").unwrap(), directory.path()).unwrap();
        assert!(after.open_ports(None).contains(&(at("127.0.0.1"), address)));
        for taken in [at("127.0.0.1"), at("192.0.2.1"), port(9090)] {
            assert!(after.allocate("c", &[taken]).is_err());
        }
        after.allocate("c", &[at("192.0.2.2")]).unwrap();
        after.allocate("d", &[HostPort { protocol: "udp", ..port(9090) }]).unwrap();
        assert!(after.allocate("e", &[HostPort { protocol: "udp", ..at("192.0.2.1") }]).is_err());
    }

    #[test]
    fn a_host_port_is_one_sandbox_s_also_after_a_restart() {
        let (directory, before) = ipam("10.42.0.0/24");
        let address = before.allocate("a", &[port(9090), port(9091)]).unwrap();
        drop(before);
        let after = Ipam::open(Range::parse("10.42.0.0/24").unwrap(), directory.path()).unwrap();
        assert_eq!(after.open_ports(None), [(port(9090), address), (port(9091), address)]);
        assert_eq!(after.allocate("a", &[port(9090), port(9091)]).unwrap(), address);
        let taken = after.allocate("b", &[port(8080), port(9091)]).unwrap_err();
        assert_eq!(taken.to_string(), "host port tcp 9091 is taken by the pod sandbox a");
        assert_eq!(after.get("b"), None, "what was refused holds an address");
        after.release("b").unwrap();
        assert_eq!(after.open_ports(Some("a")), []);
        assert_eq!(after.open_ports(None).len(), 2, "the refused sandbox took its ports away");
        after.release("a").unwrap();
        after.allocate("b", &[port(8080), port(9091)]).unwrap();
    }

    #[test]
    fn damaged_and_contradicting_records_are_dropped() {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("10.42.0.2", "a\ntcp 90 80"),
            ("10.42.0.3", ""),
            ("10.42.0.4", "b\ntcp 90"),
            ("10.42.0.6", "d\ntcp 91 80 nowhere"),
            ("10.42.0.1", "gateway"),
            ("10.42.0.5.partial", "c"),
            ("10.43.0.5", "outside"),
        ] {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let ipam = Ipam::open(Range::parse("10.42.0.0/24").unwrap(), directory.path()).unwrap();
        assert_eq!(ipam.sandboxes(), ["a"]);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn threads_that_ask_at_once_get_different_addresses() {
        let (_directory, ipam) = ipam("10.42.0.0/24");
        let given: BTreeSet<Ipv4Addr> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..32)
                .map(|n| {
                    let ipam = &ipam;
                    scope.spawn(move || ipam.allocate(&n.to_string(), &[]).unwrap())
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(given.len(), 32);
    }

    #[test]
    fn a_range_that_cannot_hold_pods_is_refused() {
        for cidr in ["", "10.0.0.0", "10.0.0.0/31", "fd00::/64", "10.0.0.0/x"] {
            assert!(Range::parse(cidr).is_err(), "{cidr}");
        }
    }
}
