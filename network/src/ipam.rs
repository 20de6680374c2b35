//! Addresses of pods: one file an address, named after it, holding the sandbox it belongs to.
//!
//! # Guarantees
//! - An address is given to one sandbox at a time, also across restarts.
//! - Asking again for the same sandbox gives the same address.
//! - A released address is given out again as late as possible, so that stale clients do not meet a stranger.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    #[error("cannot {action} the address record {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("all {n_addresses} pod addresses of this node are in use")]
    Exhausted { n_addresses: u32 },
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
    by_sandbox: HashMap<String, Ipv4Addr>,
    taken: BTreeSet<Ipv4Addr>,
    /// Offset of the address given out last.
    last: u32,
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
            let address = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<Ipv4Addr>().ok());
            let sandbox = fs::read_to_string(&path).unwrap_or_default();
            match address {
                Some(address) if range.contains(address) && !sandbox.is_empty() => {
                    state.taken.insert(address);
                    state.last = state.last.max(address.to_bits() - range.network.to_bits());
                    state.by_sandbox.insert(sandbox, address);
                }
                // Half-written or foreign.
                _ => fs::remove_file(&path).map_err(io("remove"))?,
            }
        }
        Ok(Ipam { range, directory: directory.into(), state: Mutex::new(state) })
    }

    pub fn range(&self) -> Range {
        self.range
    }

    pub fn get(&self, sandbox_id: &str) -> Option<Ipv4Addr> {
        self.state.lock().by_sandbox.get(sandbox_id).copied()
    }

    /// All sandboxes that hold an address.
    pub fn sandboxes(&self) -> Vec<String> {
        self.state.lock().by_sandbox.keys().cloned().collect()
    }

    /// The sandbox's address; a new one if it has none.
    pub fn allocate(&self, sandbox_id: &str) -> Result<Ipv4Addr, IpamError> {
        let mut state = self.state.lock();
        if let Some(address) = state.by_sandbox.get(sandbox_id) {
            return Ok(*address);
        }
        // The network, the gateway and the broadcast address are nobody's.
        let n_addresses = self.range.size() - 3;
        let offset = (0..n_addresses)
            .map(|step| 2 + (state.last.max(1) - 1 + step) % n_addresses)
            .find(|offset| !state.taken.contains(&self.range.at(*offset)))
            .ok_or(IpamError::Exhausted { n_addresses })?;
        let address = self.range.at(offset);
        let path = self.directory.join(address.to_string());
        let write = || -> io::Result<()> {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
            file.write_all(sandbox_id.as_bytes())
        };
        write().map_err(|source| IpamError::Io { action: "write", path: path.clone(), source })?;
        state.last = offset;
        state.taken.insert(address);
        state.by_sandbox.insert(sandbox_id.into(), address);
        Ok(address)
    }

    /// Gives an address back. A sandbox without one is no error.
    pub fn release(&self, sandbox_id: &str) -> Result<(), IpamError> {
        let mut state = self.state.lock();
        let Some(address) = state.by_sandbox.remove(sandbox_id) else { return Ok(()) };
        state.taken.remove(&address);
        let path = self.directory.join(address.to_string());
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(IpamError::Io { action: "remove", path, source })
            }
            _ => Ok(()),
        }
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
        let given: Vec<String> = ["a", "b", "c"].map(|s| ipam.allocate(s).unwrap().to_string()).into();
        assert_eq!(given, ["10.42.0.2", "10.42.0.3", "10.42.0.4"]);
        assert_eq!(
            ipam.allocate("a").unwrap().to_string(),
            "10.42.0.2",
            "the same sandbox keeps its address"
        );
        ipam.release("b").unwrap();
        assert_eq!(ipam.allocate("d").unwrap().to_string(), "10.42.0.5");
        assert_eq!(ipam.allocate("e").unwrap().to_string(), "10.42.0.6");
        assert_eq!(ipam.allocate("f").unwrap().to_string(), "10.42.0.3");
        assert!(matches!(ipam.allocate("g"), Err(IpamError::Exhausted { n_addresses: 5 })));
    }

    #[test]
    fn addresses_survive_a_restart() {
        let (directory, before) = ipam("10.42.0.0/24");
        let address = before.allocate("a").unwrap();
        drop(before);
        let after = Ipam::open(Range::parse("10.42.0.0/24").unwrap(), directory.path()).unwrap();
        assert_eq!(after.get("a"), Some(address));
        assert_ne!(after.allocate("b").unwrap(), address);
    }

    #[test]
    fn a_range_that_cannot_hold_pods_is_refused() {
        for cidr in ["", "10.0.0.0", "10.0.0.0/31", "fd00::/64", "10.0.0.0/x"] {
            assert!(Range::parse(cidr).is_err(), "{cidr}");
        }
    }
}
