//! The formats of texts and numbers that rules name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::name;

/// What a text must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Label,
    Subdomain,
    SubdomainCaseless,
    SubdomainUnderscore,
    WildcardSubdomain,
    Qualified,
    QualifiedLower,
    LabelValue,
    PathSegment,
    PortName,
    ConfigKey,
    EnvName,
    HeaderName,
    Ip,
    StrictIp,
    Cidr,
    StrictCidr,
    RelativePath,
    UnreservedPath,
    NoBacksteps,
}

const FORMATS: [(&str, Format); 20] = [
    ("label", Format::Label),
    ("subdomain", Format::Subdomain),
    ("subdomain-caseless", Format::SubdomainCaseless),
    ("subdomain-underscore", Format::SubdomainUnderscore),
    ("wildcard-subdomain", Format::WildcardSubdomain),
    ("qualified", Format::Qualified),
    ("qualified-lower", Format::QualifiedLower),
    ("label-value", Format::LabelValue),
    ("path-segment", Format::PathSegment),
    ("port-name", Format::PortName),
    ("config-key", Format::ConfigKey),
    ("env-name", Format::EnvName),
    ("header-name", Format::HeaderName),
    ("ip", Format::Ip),
    ("strict-ip", Format::StrictIp),
    ("cidr", Format::Cidr),
    ("strict-cidr", Format::StrictCidr),
    ("relative-path", Format::RelativePath),
    ("unreserved-path", Format::UnreservedPath),
    ("no-backsteps", Format::NoBacksteps),
];

const NO_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const NO_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

impl Format {
    pub(super) fn named(name: &str) -> Option<Format> {
        FORMATS.iter().find(|(known, _)| *known == name).map(|(_, format)| *format)
    }

    /// What is wrong with a text.
    pub(super) fn fault(self, text: &str) -> Option<String> {
        match self {
            Format::Label => name::dns_label_fault(text),
            Format::Subdomain => name::dns_subdomain_fault(text),
            Format::SubdomainCaseless => name::dns_subdomain_fault(&text.to_lowercase()),
            Format::SubdomainUnderscore => name::dns_subdomain_fault(&text.replace('_', "a")),
            Format::WildcardSubdomain => wildcard_fault(text),
            Format::Qualified => name::qualified_name_fault(text),
            Format::QualifiedLower => name::qualified_name_fault(&text.to_lowercase()),
            Format::LabelValue => name::label_value_fault(text),
            Format::PathSegment => name::path_segment_fault(text),
            Format::PortName => port_name_fault(text),
            Format::ConfigKey => super::super::core::config_key_faults(text).into_iter().next(),
            Format::EnvName => env_name_fault(text),
            Format::HeaderName => header_name_fault(text),
            Format::Ip => ip_fault(text),
            Format::StrictIp => name::ip_address_fault(text),
            Format::Cidr => cidr_fault(text),
            Format::StrictCidr => name::cidr_fault(text),
            Format::RelativePath if text.starts_with('/') => Some("must be a relative path".into()),
            Format::UnreservedPath if text.starts_with('/') => Some("must be a relative path".into()),
            Format::UnreservedPath if text.starts_with("..") && !text.starts_with("../") && text != ".." => {
                Some("must not start with '..'".into())
            }
            Format::RelativePath | Format::UnreservedPath | Format::NoBacksteps => {
                text.split('/').any(|part| part == "..").then(|| "must not contain '..'".into())
            }
        }
    }
}

fn wildcard_fault(text: &str) -> Option<String> {
    let rest = text.strip_prefix("*.");
    if rest.is_some_and(|rest| name::dns_subdomain_fault(rest).is_none()) && text.len() <= 253 {
        return None;
    }
    Some(
        "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower \
         case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used \
         for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            .into(),
    )
}

fn port_name_fault(text: &str) -> Option<String> {
    const MAX_BYTES: usize = 15;
    if text.len() > MAX_BYTES {
        return Some(format!("must be no more than {MAX_BYTES} characters"));
    }
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return Some("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        return Some("must contain at least one letter (a-z)".into());
    }
    if text.contains("--") {
        return Some("must not contain consecutive hyphens".into());
    }
    (text.starts_with('-') || text.ends_with('-')).then(|| "must not begin or end with a hyphen".into())
}

fn env_name_fault(text: &str) -> Option<String> {
    let is_plain = |b: u8| (b' '..=b'~').contains(&b) && b != b'=';
    (text.is_empty() || !text.bytes().all(is_plain)).then(|| {
        "a valid environment variable name must consist only of printable ASCII characters other than '='"
            .into()
    })
}

fn header_name_fault(text: &str) -> Option<String> {
    (text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')).then(|| {
        "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation \
         is '[-A-Za-z0-9]+')"
            .into()
    })
}

/// An address as it has always been read: with leading zeros, which count as decimal.
pub(super) fn parse_ip(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        let (head, tail) = text.rsplit_once(':')?;
        if tail.contains('.') {
            let v4 = parse_v4(tail)?;
            return format!("{head}:{v4}").parse::<Ipv6Addr>().ok().map(mapped);
        }
        return text.parse::<Ipv6Addr>().ok().map(mapped);
    }
    parse_v4(text).map(IpAddr::V4)
}

/// Fields that are older than the strict formats take addresses that are not in their canonical form, but none that others
/// would read differently.
fn ip_fault(text: &str) -> Option<String> {
    if parse_ip(text).is_none() {
        return Some(NO_IP.into());
    }
    match text.parse::<IpAddr>() {
        Err(_) => Some("must not have leading 0s".into()),
        Ok(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => {
            Some("must not be an IPv4-mapped IPv6 address".into())
        }
        Ok(_) => None,
    }
}

fn cidr_fault(text: &str) -> Option<String> {
    let Some((network, _)) = parse_cidr(text) else { return Some(NO_CIDR.into()) };
    let (address, bits) = text.split_once('/').unwrap_or((text, ""));
    match address.parse::<IpAddr>() {
        _ if bits.len() > 1 && bits.starts_with('0') => {
            Some("must not have leading 0s in IP or prefix length".into())
        }
        Err(_) => Some("must not have leading 0s in IP or prefix length".into()),
        Ok(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => {
            Some("must not have an IPv4-mapped IPv6 address".into())
        }
        Ok(ip) if ip != network => Some("must not have bits set beyond the prefix length".into()),
        Ok(_) => None,
    }
}

/// An IPv4 address in the clothes of IPv6 is one.
fn mapped(ip: Ipv6Addr) -> IpAddr {
    ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4)
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    const MAX_DIGITS: usize = 16;
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || part.len() > MAX_DIGITS || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

/// A network: its address without the bits past its prefix, and the prefix.
pub(super) fn parse_cidr(text: &str) -> Option<(IpAddr, u32)> {
    let (address, bits) = text.split_once('/')?;
    if bits.is_empty() || !bits.bytes().all(|b| b.is_ascii_digit()) || bits.len() > 3 {
        return None;
    }
    let bits: u32 = bits.parse().ok()?;
    match parse_ip(address)? {
        IpAddr::V4(ip) if bits <= 32 && !address.contains(':') => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            Some((Ipv4Addr::from(u32::from(ip) & mask).into(), bits))
        }
        IpAddr::V6(ip) if bits <= 128 => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            Some((Ipv6Addr::from(u128::from(ip) & mask).into(), bits))
        }
        IpAddr::V4(ip) if (96..=128).contains(&bits) => Some((ip.into(), bits - 96)),
        _ => None,
    }
}

/// Whether a network lies in another and is smaller.
pub(super) fn is_strict_subset(part: (IpAddr, u32), whole: (IpAddr, u32)) -> bool {
    let same_prefix = match (part.0, whole.0) {
        (IpAddr::V4(part), IpAddr::V4(all)) => {
            let mask = u32::MAX.checked_shl(32 - whole.1).unwrap_or(0);
            u32::from(part) & mask == u32::from(all)
        }
        (IpAddr::V6(part), IpAddr::V6(all)) => {
            let mask = u128::MAX.checked_shl(128 - whole.1).unwrap_or(0);
            u128::from(part) & mask == u128::from(all)
        }
        _ => false,
    };
    same_prefix && whole.1 < part.1
}

/// What is wrong with an address that traffic of Services is sent to: those of the node itself would let whoever writes
/// endpoints reach what listens there for the node alone (CVE-2021-25737).
pub(super) fn endpoint_ip_faults(text: &str) -> Vec<String> {
    let Some(ip) = parse_ip(text) else { return vec!["must be a valid IP address".into()] };
    let (link_local, link_local_multicast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (ip.segments()[0] & 0xffc0 == 0xfe80, ip.segments()[0] & 0xff0f == 0xff02),
    };
    let mut faults = Vec::new();
    if ip.is_unspecified() {
        faults.push(format!("may not be unspecified ({text})"));
    }
    if ip.is_loopback() {
        faults.push("may not be in the loopback range (127.0.0.0/8, ::1/128)".into());
    }
    if link_local {
        faults.push("may not be in the link-local range (169.254.0.0/16, fe80::/10)".into());
    }
    if link_local_multicast {
        faults.push("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".into());
    }
    faults
}

/// The number of a percentage such as `25%`; `None` for what is none.
pub(super) fn percent(text: &str) -> Option<i64> {
    let digits = text.strip_suffix('%')?;
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_node_itself_are_no_endpoints() {
        for ip in [
            "127.0.0.1",
            "127.8.9.1",
            "::1",
            "169.254.169.254",
            "fe80::1",
            "224.0.0.5",
            "ff02::1",
            "0.0.0.0",
            "::",
        ] {
            assert_eq!(endpoint_ip_faults(ip).len(), 1, "{ip}");
        }
        for ip in ["10.0.0.1", "2001:db8::1", "224.0.1.1"] {
            assert!(endpoint_ip_faults(ip).is_empty(), "{ip}");
        }
        // In the clothes of IPv6 it is the same address.
        assert_eq!(endpoint_ip_faults("::ffff:127.0.0.1").len(), 1);
    }

    #[test]
    fn addresses_are_read_with_leading_zeros_and_nothing_else_that_is_odd() {
        assert_eq!(parse_ip("010.0.0.1"), Some("10.0.0.1".parse().unwrap()));
        for text in ["", "1.2.3", "1.2.3.256", "1.2.3.4.5", "a", "1..2.3", " 1.2.3.4", "1.2.3.4/8"] {
            assert_eq!(parse_ip(text), None, "{text}");
        }
        assert_eq!(parse_cidr("192.0.2.9/24"), Some(("192.0.2.0".parse().unwrap(), 24)));
        for text in ["192.0.2.0/33", "192.0.2.0", "/8", "::/129", "1.2.3.4/", "1.2.3.4/-1"] {
            assert_eq!(parse_cidr(text), None, "{text}");
        }
    }

    #[test]
    fn addresses_that_others_read_differently_are_refused() {
        for good in ["10.0.0.1", "2001:DB8::1", "fe80:0:0:0:0:0:0:1", "::"] {
            assert_eq!(ip_fault(good), None, "{good}");
        }
        for bad in ["010.0.0.1", "::ffff:1.2.3.4", "1.2.3", ""] {
            assert!(ip_fault(bad).is_some(), "{bad}");
        }
        for good in ["10.0.0.0/8", "0.0.0.0/0", "2001:DB8::/32", "10.0.0.1/32"] {
            assert_eq!(cidr_fault(good), None, "{good}");
        }
        for bad in ["10.0.0.1/24", "010.0.0.0/8", "10.0.0.0/08", "::ffff:1.2.3.0/120", "10.0.0.0/33"] {
            assert!(cidr_fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn a_part_of_a_network_is_smaller_than_it() {
        let subset =
            |part: &str, whole: &str| is_strict_subset(parse_cidr(part).unwrap(), parse_cidr(whole).unwrap());
        assert!(subset("192.0.2.0/28", "192.0.2.0/24"));
        assert!(subset("10.0.0.0/8", "0.0.0.0/0"));
        assert!(!subset("192.0.2.0/24", "192.0.2.0/24"));
        assert!(!subset("198.51.100.0/28", "192.0.2.0/24"));
        assert!(!subset("2001:db8::/64", "192.0.2.0/24"));
    }

    #[test]
    fn names_of_ports_are_short_words_with_a_letter() {
        for good in ["http", "a1", "1a", "h-2"] {
            assert_eq!(port_name_fault(good), None, "{good}");
        }
        for bad in ["", "1", "a--b", "-a", "a-", "A", "toolongforaportname", "a_b"] {
            assert!(port_name_fault(bad).is_some(), "{bad}");
        }
    }
}
