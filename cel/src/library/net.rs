//! Addresses and ranges of them.
//!
//! Source: Go's `net/netip` as Kubernetes' libraries use it: no zones, no IPv4 within IPv6.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::print::quoted;
use super::{Function, Host, Library, library, no_overload};
use crate::fault::Fault;
use crate::plan::Call;
use crate::run::Run;
use crate::value::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub(crate) address: IpAddr,
    pub(crate) length: u8,
    /// Of an address of this family.
    pub(crate) bits: u8,
}

pub(super) fn function(name: &str) -> Option<Function> {
    Some(match name {
        "ip" => |call, args, _| match args {
            [Value::Text(text)] => library(Library::Ip(address(text)?)),
            [Value::Library(Library::Cidr(cidr))] => library(Library::Ip(cidr.address)),
            _ => Err(no_overload(call, args)),
        },
        "isIP" => |call, args, _| match args {
            [Value::Text(text)] => Ok(Value::Bool(address(text).is_ok())),
            _ => Err(no_overload(call, args)),
        },
        "ip.isCanonical" => |call, args, _| match args {
            [Value::Text(text)] => Ok(Value::Bool(address(text)?.to_string() == **text)),
            _ => Err(no_overload(call, args)),
        },
        "cidr" => |call, args, _| match args {
            [Value::Text(text)] => library(Library::Cidr(cidr(text)?)),
            _ => Err(no_overload(call, args)),
        },
        "isCIDR" => |call, args, _| match args {
            [Value::Text(text)] => Ok(Value::Bool(cidr(text).is_ok())),
            _ => Err(no_overload(call, args)),
        },
        "family"
        | "isUnspecified"
        | "isLoopback"
        | "isLinkLocalMulticast"
        | "isLinkLocalUnicast"
        | "isGlobalUnicast" => facts,
        "containsIP" => contains_ip,
        "containsCIDR" => contains_cidr,
        "masked" => |call, args, _| match args {
            [Value::Library(Library::Cidr(cidr))] => {
                library(Library::Cidr(Cidr { address: cidr.masked(cidr.address), ..*cidr }))
            }
            _ => Err(no_overload(call, args)),
        },
        "prefixLength" => |call, args, _| match args {
            [Value::Library(Library::Cidr(cidr))] => Ok(Value::Int(i64::from(cidr.length))),
            _ => Err(no_overload(call, args)),
        },
        _ => return None,
    })
}

fn facts<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let [Value::Library(Library::Ip(ip))] = args else { return Err(no_overload(call, args)) };
    Ok(Value::Bool(match &*call.name {
        "family" => return Ok(Value::Int(if ip.is_ipv4() { 4 } else { 6 })),
        "isUnspecified" => ip.is_unspecified(),
        "isLoopback" => ip.is_loopback(),
        "isLinkLocalMulticast" => is_local_multicast(ip),
        "isLinkLocalUnicast" => is_local(ip),
        _ => {
            let is_broadcast = *ip == IpAddr::V4(Ipv4Addr::BROADCAST);
            !(is_broadcast || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || is_local(ip))
        }
    }))
}

fn is_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn is_local_multicast(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    }
}

fn contains_ip<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let (cidr, ip) = match args {
        [Value::Library(Library::Cidr(cidr)), Value::Library(Library::Ip(ip))] => (cidr, *ip),
        [Value::Library(Library::Cidr(cidr)), Value::Text(text)] => {
            // Upstream takes the fault of the address for an argument that is none.
            (cidr, address(text).map_err(|_| Fault::NoSuchOverload)?)
        }
        _ => return Err(no_overload(call, args)),
    };
    Ok(Value::Bool(cidr.contains(ip)))
}

fn contains_cidr<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let (outer, inner) = match args {
        [Value::Library(Library::Cidr(outer)), Value::Library(Library::Cidr(inner))] => (outer, *inner),
        [Value::Library(Library::Cidr(outer)), Value::Text(text)] => (outer, cidr(text)?),
        _ => return Err(no_overload(call, args)),
    };
    Ok(Value::Bool(outer.length <= inner.length && outer.contains(inner.address)))
}

impl Cidr {
    fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.address.is_ipv4() && self.masked(ip) == self.masked(self.address)
    }

    /// An address without the bits that this range leaves open.
    fn masked(&self, ip: IpAddr) -> IpAddr {
        let n_open = u32::from(self.bits - self.length);
        match ip {
            IpAddr::V4(ip) => {
                Ipv4Addr::from_bits(ip.to_bits() & u32::MAX.checked_shl(n_open).unwrap_or(0)).into()
            }
            IpAddr::V6(ip) => {
                Ipv6Addr::from_bits(ip.to_bits() & u128::MAX.checked_shl(n_open).unwrap_or(0)).into()
            }
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// An address, or why it is none, as `netip` says it.
fn parsed(text: &str) -> Result<IpAddr, String> {
    let refused = |why: &str| format!("ParseAddr({}): {why}", quoted(text));
    match text.chars().find(|c| matches!(c, '.' | ':' | '%')) {
        Some('.') => text.parse::<Ipv4Addr>().map(IpAddr::V4).map_err(|_| refused(&v4_fault(text))),
        Some(':') => text.parse::<Ipv6Addr>().map(IpAddr::V6).map_err(|_| refused(&v6_fault(text))),
        Some(_) => Err(refused("missing IPv6 address")),
        None => Err(refused("unable to parse IP")),
    }
}

/// The first thing that is wrong with an IPv4 address.
fn v4_fault(text: &str) -> String {
    let (mut n_fields, mut value, mut n_digits) = (0, 0_u32, 0);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'0'..=b'9' if n_digits == 1 && value == 0 => {
                return "IPv4 field has octet with leading zero".to_string();
            }
            b'0'..=b'9' => {
                value = value * 10 + u32::from(byte - b'0');
                n_digits += 1;
                if value > 255 {
                    return "IPv4 field has value >255".to_string();
                }
            }
            b'.' if n_digits == 0 || at + 1 == text.len() => {
                return format!("IPv4 field must have at least one digit (at {})", quoted(&text[at..]));
            }
            b'.' if n_fields == 3 => return "IPv4 address too long".to_string(),
            b'.' => (n_fields, value, n_digits) = (n_fields + 1, 0, 0),
            _ => return format!("unexpected character (at {})", quoted(&text[at..])),
        }
    }
    "IPv4 address too short".to_string()
}

/// The first thing that is wrong with an IPv6 address.
fn v6_fault(text: &str) -> String {
    let at = |why: &str, rest: &str| format!("{why} (at {})", quoted(rest));
    let mut rest = text;
    if let Some((before, zone)) = text.split_once('%') {
        if zone.is_empty() {
            return "zone must be a non-empty string".to_string();
        }
        rest = before;
    }
    let mut has_gap = rest.starts_with("::");
    rest = if has_gap { &rest[2..] } else { rest };
    let mut n_bytes = 0;
    while n_bytes < 16 {
        let n_digits = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
        let after = &rest[n_digits..];
        match n_digits {
            0 => return at("each colon-separated field must have at least one digit", rest),
            1..=4 => {}
            _ => return at("each group must have 4 or less digits", rest),
        }
        if after.starts_with('.') {
            return match n_bytes {
                n if !has_gap && n != 12 => {
                    at("embedded IPv4 address must replace the final 2 fields of the address", rest)
                }
                13.. => at("too many hex fields to fit an embedded IPv4 at the end of the address", rest),
                _ => v4_fault(rest),
            };
        }
        n_bytes += 2;
        rest = after;
        if rest.is_empty() {
            break;
        }
        let Some(next) = rest.strip_prefix(':') else { return at("unexpected character, want colon", rest) };
        if next.is_empty() {
            return at("colon must be followed by more characters", rest);
        }
        rest = next;
        if let Some(next) = rest.strip_prefix(':') {
            if has_gap {
                return at("multiple :: in address", rest);
            }
            has_gap = true;
            rest = next;
            if rest.is_empty() {
                break;
            }
        }
    }
    match (rest.is_empty(), n_bytes < 16) {
        (false, _) => at("trailing garbage after address", rest),
        (true, true) => "address string too short".to_string(),
        (true, false) => "the :: must expand to at least one field of zeros".to_string(),
    }
}

fn address(text: &str) -> Result<IpAddr, Fault> {
    let quoted = quoted(text);
    // A zone is read as one only where an address stands before it.
    if let Some((before, zone)) = text.split_once('%')
        && !zone.is_empty()
        && before.parse::<Ipv6Addr>().is_ok()
    {
        return Err(Fault::other(format!("IP address {quoted} with zone value is not allowed")));
    }
    let ip = parsed(text).map_err(|why| {
        Fault::other(format!("IP Address {quoted} parse error during conversion from string: {why}"))
    })?;
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(Fault::other(format!("IPv4-mapped IPv6 address {quoted} is not allowed")))
        }
        ip => Ok(ip),
    }
}

fn cidr(text: &str) -> Result<Cidr, Fault> {
    const WHAT: &str = "network address parse error during conversion from string";
    let shown = quoted(text);
    let refused = |why: String| Fault::other(format!("{WHAT}: {WHAT}: netip.ParsePrefix({shown}): {why}"));
    let (ip, length) = text.rsplit_once('/').ok_or_else(|| refused("no '/'".to_string()))?;
    let address = parsed(ip).map_err(refused)?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let bad = || refused(format!("bad bits after slash: {}", quoted(length)));
    if length.is_empty()
        || !length.bytes().all(|byte| byte.is_ascii_digit())
        || length.len() > 1 && length.starts_with('0')
    {
        return Err(bad());
    }
    let length: u64 = length.parse().map_err(|_| bad())?;
    if length > u64::from(bits) {
        return Err(refused("prefix length out of range".to_string()));
    }
    if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
        return Err(Fault::other(format!("{WHAT}: IPv4-mapped IPv6 address {shown} is not allowed")));
    }
    Ok(Cidr { address, length: length as u8, bits })
}
