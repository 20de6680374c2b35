//! Names: DNS subdomains and labels, qualified names, and generated ones.
//!
//! Source: apimachinery's `validation` package. A `*_fault` function answers upstream's sentence about what is
//! wrong, or `None`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Joins a `generateName` prefix and a random suffix as upstream does: the prefix cut so that both fit in 63
/// characters, then five characters of an alphabet that spells no words. `random` gives values to draw from.
pub fn generate(prefix: &str, mut random: impl FnMut() -> u32) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    const MAX_PREFIX: usize = 63 - 5;
    let mut name: String = prefix.chars().take(MAX_PREFIX).collect();
    for _ in 0..5 {
        name.push(char::from(ALPHABET[random() as usize % ALPHABET.len()]));
    }
    name
}

fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// RFC 1123 label, at most 63 characters.
pub fn dns_label_fault(text: &str) -> Option<String> {
    if text.len() > 63 {
        return Some("must be no more than 63 characters".into());
    }
    (!is_dns_label(text)).then(|| {
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
         and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            .into()
    })
}

/// RFC 1035 label: as [`dns_label_fault`], but starting with a letter. Names of Services.
pub fn dns1035_label_fault(text: &str) -> Option<String> {
    if text.len() > 63 {
        return Some("must be no more than 63 characters".into());
    }
    let starts = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    (!starts || !is_dns_label(text)).then(|| {
        "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
         character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
         validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
            .into()
    })
}

/// RFC 1123 subdomain, at most 253 characters.
pub fn dns_subdomain_fault(text: &str) -> Option<String> {
    if text.len() > 253 {
        return Some("must be no more than 253 characters".into());
    }
    (!text.split('.').all(is_dns_label)).then(|| {
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
         must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            .into()
    })
}

/// A name that only has to fit into a URL path. Names of RBAC objects.
pub fn path_segment_fault(text: &str) -> Option<String> {
    if matches!(text, "." | "..") {
        return Some(format!("may not be '{text}'"));
    }
    ['/', '%'].iter().find(|c| text.contains(**c)).map(|c| format!("may not contain '{c}'"))
}

/// An IP address in the one form that Go writes it in. Names of IPAddress objects.
pub fn ip_address_fault(text: &str) -> Option<String> {
    let without_zeros = |text: &str| {
        let parts = text.split('.').map(|part| match part.trim_start_matches('0') {
            "" if !part.is_empty() => "0",
            rest => rest,
        });
        parts.collect::<Vec<_>>().join(".")
    };
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => {
            Some("must not be an IPv4-mapped IPv6 address".into())
        }
        Ok(ip) if ip.to_string() != text => Some(format!("must be in canonical form ({:?})", ip.to_string())),
        Ok(_) => None,
        Err(_) if without_zeros(text).parse::<Ipv4Addr>().is_ok() => Some("must not have leading 0s".into()),
        Err(_) => Some("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()),
    }
}

/// A network in its canonical form, such as `10.96.0.0/16` or `fd00::/108`.
pub fn cidr_fault(text: &str) -> Option<String> {
    const NONE: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let Some((address, bits)) = text.split_once('/') else { return Some(NONE.into()) };
    let (Ok(address), Ok(bits)) = (address.parse::<IpAddr>(), bits.parse::<u32>()) else {
        return Some(NONE.into());
    };
    let network = match address {
        IpAddr::V4(ip) if bits <= 32 => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(ip) & mask))
        }
        IpAddr::V6(ip) if bits <= 128 => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(ip) & mask))
        }
        _ => return Some(NONE.into()),
    };
    if network != address {
        return Some("must not have bits set beyond the prefix length".into());
    }
    let canonical = format!("{network}/{bits}");
    (canonical != text).then(|| format!("must be in canonical form ({canonical:?})"))
}

fn is_label_text(text: &str) -> bool {
    let edge = |b: u8| b.is_ascii_alphanumeric();
    let inner = |b: u8| edge(b) || matches!(b, b'-' | b'_' | b'.');
    match text.as_bytes() {
        [] => false,
        bytes => bytes.iter().all(|b| inner(*b)) && edge(bytes[0]) && edge(bytes[bytes.len() - 1]),
    }
}

/// A label's or annotation's key: an optional DNS prefix and `/`, then a name.
pub fn qualified_name_fault(text: &str) -> Option<String> {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    if name.contains('/') {
        return Some(
            "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
             with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
             validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix \
             and '/' (e.g. 'example.com/MyName')"
                .into(),
        );
    }
    if let Some(prefix) = prefix {
        if prefix.is_empty() {
            return Some("prefix part must be non-empty".into());
        }
        if let Some(fault) = dns_subdomain_fault(prefix) {
            return Some(format!("prefix part {fault}"));
        }
    }
    if name.is_empty() {
        return Some("name part must be non-empty".into());
    }
    if name.len() > 63 {
        return Some("name part must be no more than 63 characters".into());
    }
    (!is_label_text(name)).then(|| {
        "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
         alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
         '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
            .into()
    })
}

/// A label's value: empty, or at most 63 characters.
pub fn label_value_fault(text: &str) -> Option<String> {
    if text.len() > 63 {
        return Some("must be no more than 63 characters".into());
    }
    (!text.is_empty() && !is_label_text(text)).then(|| {
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
         start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used \
         for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
            .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_name_fits_and_keeps_its_prefix() {
        let name = generate(&"a".repeat(100), || 0);
        assert_eq!(name, format!("{}bbbbb", "a".repeat(58)));
        assert!(generate("web-", || 26).ends_with("99999"));
    }

    #[test]
    fn addresses_are_named_in_one_form_only() {
        for good in ["255.255.255.255", "fe80::42:1dff:fe84:f9e2", "10.96.0.1"] {
            assert_eq!(ip_address_fault(good), None, "{good}");
        }
        assert_eq!(ip_address_fault("010.1.2.3").as_deref(), Some("must not have leading 0s"));
        assert_eq!(ip_address_fault("FE80::0:1").as_deref(), Some("must be in canonical form (\"fe80::1\")"));
        for bad in ["", "a", "1.2.3", "::ffff:1.2.3.4", "1.2.3.4/32"] {
            assert!(ip_address_fault(bad).is_some(), "{bad}");
        }
        for good in ["10.96.0.0/16", "0.0.0.0/0", "fd00::/108", "::/0"] {
            assert_eq!(cidr_fault(good), None, "{good}");
        }
        for bad in ["10.96.0.1/16", "10.96.0.0", "10.96.0.0/33", "FD00::/108", "10.96.0.0/016"] {
            assert!(cidr_fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn names_are_held_to_their_grammar() {
        assert_eq!(dns_subdomain_fault("a.b-c.1"), None);
        for bad in ["", "A", "a_b", "-a", "a-", "a..b", "a/b"] {
            assert!(dns_subdomain_fault(bad).is_some(), "{bad}");
        }
        assert!(dns1035_label_fault("1a").is_some());
        assert_eq!(qualified_name_fault("example.com/My.Name"), None);
        for bad in ["", "/x", "a/b/c", "x y", "a/"] {
            assert!(qualified_name_fault(bad).is_some(), "{bad}");
        }
        assert_eq!(label_value_fault(""), None);
        assert!(label_value_fault("-x").is_some());
    }
}
