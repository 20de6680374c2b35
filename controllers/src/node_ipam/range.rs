//! Ranges within a range.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;

/// Upstream's limit: so many ranges of nodes fit into the cluster's, as a power of two.
const MAX_NODE_BITS: u8 = 16;

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Cidr {
    is_v4: bool,
    first: u128,
    prefix: u8,
}

impl Cidr {
    /// Reads `10.244.0.0/16`; bits behind the prefix do not count.
    pub(crate) fn parse(text: &str) -> Option<Cidr> {
        let (address, prefix) = text.split_once('/')?;
        let (is_v4, number) = match address.parse().ok()? {
            IpAddr::V4(v4) => (true, u128::from(u32::from(v4))),
            IpAddr::V6(v6) => (false, u128::from(v6)),
        };
        let prefix: u8 = prefix.parse().ok()?;
        let host_bits = bits(is_v4).checked_sub(prefix)?;
        let first =
            number.checked_shr(host_bits.into()).unwrap_or(0).checked_shl(host_bits.into()).unwrap_or(0);
        Some(Cidr { is_v4, first, prefix })
    }

    fn last(&self) -> u128 {
        let host_bits = bits(self.is_v4) - self.prefix;
        self.first | 1_u128.checked_shl(host_bits.into()).map_or(u128::MAX, |size| size - 1)
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let (is_v4, number) = match address {
            IpAddr::V4(v4) => (true, u128::from(u32::from(v4))),
            IpAddr::V6(v6) => (false, u128::from(v6)),
        };
        self.is_v4 == is_v4 && (self.first..=self.last()).contains(&number)
    }

    pub(super) fn overlaps(&self, other: &Cidr) -> bool {
        self.is_v4 == other.is_v4 && self.first <= other.last() && other.first <= self.last()
    }
}

fn bits(is_v4: bool) -> u8 {
    if is_v4 { 32 } else { 128 }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match u32::try_from(self.first) {
            Ok(v4) if self.is_v4 => write!(f, "{}/{}", Ipv4Addr::from(v4), self.prefix),
            _ => write!(f, "{}/{}", Ipv6Addr::from(self.first), self.prefix),
        }
    }
}

#[derive(Debug, Error)]
pub enum RangeError {
    #[error("{0:?} is no range of addresses such as 10.244.0.0/16")]
    Syntax(String),
    #[error(
        "nodes cannot have ranges of /{node} out of {cluster}: it must be longer than that, by at most {MAX_NODE_BITS}"
    )]
    Size { cluster: String, node: u8 },
}

/// The cluster's range, cut into one for each node.
#[derive(Clone, Debug)]
pub(crate) struct NodeRanges {
    cluster: Cidr,
    node_prefix: u8,
    /// Not for nodes: the range of services.
    reserved: Option<Cidr>,
}

impl NodeRanges {
    pub(crate) fn new(
        cluster: &str,
        node_prefix: u8,
        service_cidr: Option<&str>,
    ) -> Result<NodeRanges, RangeError> {
        let parse = |text: &str| Cidr::parse(text).ok_or_else(|| RangeError::Syntax(text.to_owned()));
        let reserved = service_cidr.map(parse).transpose()?;
        let cluster = parse(cluster)?;
        let fits = node_prefix <= bits(cluster.is_v4)
            && node_prefix.checked_sub(cluster.prefix).is_some_and(|bits| bits <= MAX_NODE_BITS);
        if !fits {
            return Err(RangeError::Size { cluster: cluster.to_string(), node: node_prefix });
        }
        Ok(NodeRanges { cluster, node_prefix, reserved })
    }

    pub(super) fn len(&self) -> usize {
        1 << (self.node_prefix - self.cluster.prefix)
    }

    pub(super) fn reserved(&self) -> Option<Cidr> {
        self.reserved
    }

    /// The ranges of pods and of Services: no address of them is a machine's own.
    pub(crate) fn taken(&self) -> Vec<Cidr> {
        std::iter::once(self.cluster).chain(self.reserved).collect()
    }

    fn shift(&self) -> u32 {
        u32::from(bits(self.cluster.is_v4) - self.node_prefix)
    }

    /// Which of the ranges a range lies in, or takes in; none where it is not the cluster's.
    pub(super) fn indexes(&self, cidr: &Cidr) -> std::ops::Range<usize> {
        if !cidr.overlaps(&self.cluster) {
            return 0..0;
        }
        let index = |address: u128| {
            let at = (address - self.cluster.first).checked_shr(self.shift()).unwrap_or(0);
            usize::try_from(at).unwrap_or(usize::MAX - 1)
        };
        let first = cidr.first.max(self.cluster.first);
        let last = cidr.last().min(self.cluster.last());
        index(first)..index(last) + 1
    }

    /// The range of an index.
    pub(super) fn at(&self, index: usize) -> Option<Cidr> {
        let offset = u128::try_from(index).ok()?.checked_shl(self.shift()).unwrap_or(0);
        Some(Cidr { first: self.cluster.first + offset, prefix: self.node_prefix, ..self.cluster })
    }
}
