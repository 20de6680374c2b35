//! `loadBalancerSourceRanges`: who may come in through a load balancer. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

/// An IPv4 range of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Source {
    network: Ipv4Addr,
    prefix: u8,
}

impl Source {
    fn new(address: Ipv4Addr, prefix: u8) -> Source {
        Source { network: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)), prefix }
    }

    pub(crate) fn host(address: Ipv4Addr) -> Source {
        Source::new(address, 32)
    }

    pub(crate) fn network(self) -> Ipv4Addr {
        self.network
    }

    pub(crate) fn prefix(self) -> u8 {
        self.prefix
    }

    pub(crate) fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.network.to_bits()
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

/// The ranges of a Service's spec; `None` if everyone may come in. What is no range at all is left out and handed to
/// `wrong`; IPv6 ranges say nothing about IPv4 clients.
pub(crate) fn allowed(ranges: &[String], mut wrong: impl FnMut(&str)) -> Option<Vec<Source>> {
    let mut sources = Vec::new();
    for text in ranges.iter().map(|r| r.trim()) {
        match parse(text) {
            Some(Some(source)) => sources.push(source),
            Some(None) => {}
            None => wrong(text),
        }
    }
    // Everyone is named, or, as far as IPv4 goes, no one at all: both mean that nothing is asked of a client.
    let open = sources.is_empty() || sources.iter().any(|s| s.prefix == 0);
    (!open).then(|| distinct(sources))
}

/// In order and without those that another one holds, which nft takes for a conflict.
pub(crate) fn distinct(mut sources: Vec<Source>) -> Vec<Source> {
    sources.sort_unstable();
    let mut out: Vec<Source> = Vec::new();
    for source in sources {
        // Sorted, a range comes right after the one that holds it and others that this one holds.
        if !out.last().is_some_and(|wider| wider.contains(source.network)) {
            out.push(source);
        }
    }
    out
}

/// `None`: no range; `Some(None)`: one of IPv6.
pub(crate) fn parse(text: &str) -> Option<Option<Source>> {
    let (address, prefix) = text.split_once('/')?;
    let prefix: u8 = prefix.parse().ok()?;
    if address.parse::<Ipv6Addr>().is_ok() {
        return (prefix <= 128).then_some(None);
    }
    let address: Ipv4Addr = address.parse().ok()?;
    (prefix <= 32).then(|| Some(Source::new(address, prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(ranges: &[&str], wanted: Option<&[&str]>, wanted_wrong: &[&str]) {
        let ranges: Vec<String> = ranges.iter().map(|r| (*r).to_owned()).collect();
        let mut wrong = Vec::new();
        let found = allowed(&ranges, |text| wrong.push(text.to_owned()));
        let found: Option<Vec<String>> = found.map(|f| f.iter().map(Source::to_string).collect());
        assert_eq!(
            found.as_deref(),
            wanted.map(|w| w.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).as_deref()
        );
        assert_eq!(wrong, wanted_wrong);
    }

    #[test]
    fn ranges_are_read_as_upstream_reads_them() {
        check(&[], None, &[]);
        check(&["10.1.2.3/8", " 192.0.2.1/32 "], Some(&["10.0.0.0/8", "192.0.2.1/32"]), &[]);
        check(&["10.0.0.0/8", "0.0.0.0/0"], None, &[]);
        check(&["fd00::/8"], None, &[]);
        check(&["fd00::/8", "10.0.0.0/8"], Some(&["10.0.0.0/8"]), &[]);
        check(
            &["10.0.0.0", "x/8", "10.0.0.0/33", "10.0.0.0/9"],
            Some(&["10.0.0.0/9"]),
            &["10.0.0.0", "x/8", "10.0.0.0/33"],
        );
        check(
            &["10.1.0.0/16", "10.0.0.0/8", "10.0.0.0/8", "10.1.1.1/32", "11.0.0.0/8"],
            Some(&["10.0.0.0/8", "11.0.0.0/8"]),
            &[],
        );
    }
}
