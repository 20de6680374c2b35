//! Where a registry may send us: what a redirect or the realm of a challenge names is a stranger's word.
//!
//! A stranger's word leads to no address of this machine (whatever its links have), of link-local networks or of the cluster's own
//! ranges, neither as a literal nor through a name, unless `registries.yaml` names that very host, or the registry itself is on
//! this machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// A range of addresses, `10.42.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    first: IpAddr,
    bits: u8,
}

impl Range {
    /// `None` if that is no range.
    pub fn parse(text: &str) -> Option<Range> {
        let (address, bits) = text.split_once('/')?;
        let (first, bits): (IpAddr, u8) = (address.parse().ok()?, bits.parse().ok()?);
        let most = if first.is_ipv4() { 32 } else { 128 };
        (bits <= most).then_some(Range { first, bits })
    }

    fn holds(self, address: IpAddr) -> bool {
        match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(self.bits);
                let head = |address: Ipv4Addr| address.to_bits().checked_shr(shift).unwrap_or(0);
                head(first) == head(address)
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(self.bits);
                let head = |address: Ipv6Addr| address.to_bits().checked_shr(shift).unwrap_or(0);
                head(first) == head(address)
            }
            _ => false,
        }
    }
}

/// What strangers may not lead to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reach {
    /// Of pods, services and the like.
    pub(crate) own: Arc<[Range]>,
    /// What this machine's links have.
    pub(crate) addresses: Arc<[IpAddr]>,
    /// `host` or `host:port` of `registries.yaml`, which says itself that they are meant.
    pub(crate) configured: Arc<[String]>,
    /// The registry is on this machine, so that it may name other places here.
    pub(crate) loopback: bool,
    /// Hosts of the proxies that requests go through: wherever they are, the operator has put them there.
    pub(crate) proxies: Arc<[String]>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error(
        "the registry leads to {host}, which is on this node or in the cluster; name it in registries.yaml if that is meant"
    )]
    Inside { host: String },
    #[error("the registry leads to a place that is no http(s) URL")]
    NoUrl,
}

impl Reach {
    /// Whether a place may be asked. Names are looked at again once they are resolved, see [`Guard`].
    pub(crate) fn check(&self, url: &Url) -> Result<(), Refused> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Refused::NoUrl);
        }
        let host = url.host_str().ok_or(Refused::NoUrl)?;
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
        // Names of proxies are resolved for the sake of going through them, not to be led to them.
        let is_inside = literal.is_some_and(|address| self.is_inside(address)) || self.is_proxy(host);
        if is_inside && !self.is_configured(url) {
            return Err(Refused::Inside { host: host.to_owned() });
        }
        Ok(())
    }

    pub(crate) fn is_configured(&self, url: &Url) -> bool {
        self.configured_as(url).is_some()
    }

    /// By what name `registries.yaml` has the host of a place, with its port if it can be.
    pub(crate) fn configured_as(&self, url: &Url) -> Option<&str> {
        let host = url.host_str()?;
        let with_port = url.port_or_known_default().map(|port| format!("{host}:{port}"));
        let find = |name: &str| self.configured.iter().find(|known| *known == name).map(String::as_str);
        with_port.and_then(|name| find(&name)).or_else(|| find(host))
    }

    fn is_proxy(&self, host: &str) -> bool {
        self.proxies.iter().any(|proxy| proxy.eq_ignore_ascii_case(host))
    }

    fn is_inside(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let here = match address {
            IpAddr::V4(v4) => {
                (v4.is_loopback() && !self.loopback)
                    || v4.is_link_local()
                    || v4.is_unspecified()
                    || v4.is_broadcast()
                    || v4.is_multicast()
                    || v4.octets()[0] == 0
            }
            IpAddr::V6(v6) => {
                (v6.is_loopback() && !self.loopback)
                    || v6.is_unicast_link_local()
                    || v6.is_unspecified()
                    || v6.is_multicast()
            }
        };
        here || self.addresses.contains(&address) || self.own.iter().any(|range| range.holds(address))
    }
}

/// The addresses of this machine's links, but of loopback, which is looked at by itself. They are read for each pull: they change.
pub(crate) fn addresses() -> Vec<IpAddr> {
    let links = match nix::ifaddrs::getifaddrs() {
        Ok(links) => links,
        Err(err) => {
            tracing::warn!(
                "this machine's addresses cannot be read, so that registries may lead to them: {err}"
            );
            return Vec::new();
        }
    };
    let address = |link: nix::ifaddrs::InterfaceAddress| {
        let address = link.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    links.filter_map(address).map(|address| address.to_canonical()).filter(|a| !a.is_loopback()).collect()
}

/// Which addresses of this machine a registry may not lead to: none if it is at one of them itself.
pub(crate) fn elsewhere_than(registry: &Url, addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let host = registry.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let is_here = host.parse().is_ok_and(|address: IpAddr| addresses.contains(&address.to_canonical()));
    if is_here { Vec::new() } else { addresses }
}

/// The hosts of the proxies that the environment names, as the HTTP client reads it. Literal addresses are not resolved, so that they
/// need no exception.
pub(crate) fn proxies(variable: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let names = ["http_proxy", "https_proxy", "all_proxy"];
    let values = names.iter().flat_map(|name| [variable(name), variable(&name.to_uppercase())]).flatten();
    let host = |value: String| {
        let url = if value.contains("://") { value } else { format!("http://{value}") };
        let host = Url::parse(&url).ok()?.host_str()?.to_owned();
        let is_name = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_err();
        is_name.then_some(host)
    };
    values.filter_map(host).collect()
}

/// Resolves names for places that strangers named: addresses that are out of reach are not among the answers.
pub(crate) struct Guard(pub(crate) Reach);

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.0.clone();
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
            let is_proxy = reach.is_proxy(&host);
            let allowed: Vec<SocketAddr> =
                found.filter(|found| is_proxy || !reach.is_inside(found.ip())).collect();
            if allowed.is_empty() {
                return Err(Refused::Inside { host }.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_refused(reach: &Reach, url: &str) -> bool {
        reach.check(&Url::parse(url).unwrap()).is_err()
    }

    #[test]
    fn no_literal_address_of_the_node_or_the_cluster_is_reached() {
        let own = ["10.42.0.0/16", "10.43.0.0/16", "fd00:42::/56"].map(|text| Range::parse(text).unwrap());
        let reach = Reach { own: own.into(), ..Reach::default() };
        for url in [
            "http://127.0.0.1/",
            "http://127.9.9.9:5000/x",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://0.0.0.0/",
            "http://[::]/",
            "http://169.254.169.254/latest/meta-data",
            "http://[fe80::1]/",
            "http://224.0.0.1/",
            "https://10.42.3.4/",
            "https://10.43.0.1/api",
            "https://[fd00:42::7]/",
            "http://[::ffff:10.42.0.1]/",
            "ftp://example.com/",
            "file:///etc/passwd",
        ] {
            assert!(is_refused(&reach, url), "{url}");
        }
        for url in [
            "https://example.com/",
            "http://192.168.1.9:5000/",
            "https://10.44.0.1/",
            "https://[2001:db8::1]/",
        ] {
            assert!(!is_refused(&reach, url), "{url}");
        }
    }

    #[test]
    fn what_is_configured_or_on_loopback_as_the_registry_is_may_be_reached() {
        let reach =
            Reach { configured: ["10.0.0.1:5000".into(), "169.254.1.1".into()].into(), ..Reach::default() };
        assert!(!is_refused(&reach, "http://169.254.1.1:99/"));
        assert!(is_refused(&reach, "http://169.254.1.2/"));
        let reach = Reach { loopback: true, ..Reach::default() };
        assert!(!is_refused(&reach, "http://127.0.0.1:5058/token"));
        assert!(is_refused(&reach, "http://169.254.169.254/"));
    }

    #[test]
    fn no_address_of_this_machines_links_is_reached_but_from_a_registry_here() {
        let addresses: Vec<IpAddr> = ["192.168.1.9", "2001:db8::1"].map(|text| text.parse().unwrap()).into();
        let from = |registry: &str| elsewhere_than(&Url::parse(registry).unwrap(), addresses.clone());
        assert!(from("https://192.168.1.9:5000/").is_empty());
        assert_eq!(from("https://example.com/"), addresses);
        let reach = Reach { addresses: addresses.into(), ..Reach::default() };
        for url in ["http://192.168.1.9:5000/", "https://[2001:db8::1]/", "http://[::ffff:192.168.1.9]/"] {
            assert!(is_refused(&reach, url), "{url}");
        }
        assert!(!is_refused(&reach, "http://192.168.1.8:5000/"));
        let named = Reach { configured: ["192.168.1.9:5000".into()].into(), ..reach };
        assert!(!is_refused(&named, "http://192.168.1.9:5000/"));
    }

    #[tokio::test]
    async fn a_proxy_is_gone_through_wherever_it_is_and_never_led_to() {
        let environment = |name: &str| match name {
            "HTTPS_PROXY" => Some("http://me:secret@LOCALHOST:3128/".to_owned()),
            "http_proxy" => Some("proxy.example:8080".to_owned()),
            "ALL_PROXY" => Some("http://10.0.0.1:1".to_owned()),
            "all_proxy" => Some("socks5h://[::1]:1".to_owned()),
            _ => None,
        };
        let found = proxies(environment);
        assert_eq!(found, ["proxy.example", "localhost"]);
        let own = [Range::parse("127.0.0.0/8").unwrap(), Range::parse("::1/128").unwrap()];
        let reach = Reach { own: own.into(), proxies: found.into(), ..Reach::default() };
        assert!(Guard(reach.clone()).resolve("localhost".parse().unwrap()).await.is_ok());
        assert!(is_refused(&reach, "http://localhost:3128/") && is_refused(&reach, "https://Proxy.Example/"));
        assert!(!is_refused(&reach, "https://elsewhere.example/"));
    }

    #[tokio::test]
    async fn a_name_that_leads_to_loopback_is_refused_once_it_is_resolved() {
        let resolve = |reach: Reach| Guard(reach).resolve("localhost".parse().unwrap());
        let Err(refused) = resolve(Reach::default()).await else { panic!("resolved") };
        assert!(refused.to_string().contains("localhost"), "{refused}");
        assert!(resolve(Reach { loopback: true, ..Reach::default() }).await.is_ok());
    }
}
