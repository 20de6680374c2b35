//! Which addresses the server sends requests to.

use std::net::IpAddr;

/// No loopback, link-local (and so no metadata service), multicast or unspecified addresses.
pub(crate) fn is_allowed(ip: IpAddr, allow_loopback: bool) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => {
            ip.is_unicast_link_local()
                || ip.to_ipv4_mapped().is_some_and(|ip| !is_allowed(ip.into(), allow_loopback))
        }
    };
    !link_local && !ip.is_multicast() && !ip.is_unspecified() && (allow_loopback || !ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_allowed;

    #[test]
    fn requests_are_never_sent_to_this_host_or_its_link() {
        for refused in
            ["127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "::1", "fe80::1", "::ffff:127.0.0.1"]
        {
            assert!(!is_allowed(refused.parse().expect("an address"), false), "{refused}");
        }
        for allowed in ["10.0.0.7", "192.168.1.2", "fd00::1"] {
            assert!(is_allowed(allowed.parse().expect("an address"), false), "{allowed}");
        }
    }
}
