//! Formats of texts.
//!
//! Source: `strfmt` of kube-openapi's `pkg/validation` and its `govalidator`, `pkg/apiserver/validation/formats.go` of
//! apiextensions-apiserver for which of them count; RFC 3339, RFC 4291, RFC 4648.

use std::net::Ipv6Addr;
use std::sync::LazyLock;

use regex::Regex;

use super::mail;
use super::part::Part;

/// The format of a part, if its type has such a one. Others say nothing.
pub(super) fn supported(part: Part<'_>) -> Option<&str> {
    let format = part.checks().format.as_deref().filter(|format| !format.is_empty())?;
    let type_ = match part.types() {
        [type_] => &**type_,
        _ => "",
    };
    let counts = match type_ {
        "" | "string" => is_known(format),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    };
    counts.then_some(format)
}

type Check = fn(&str) -> bool;

fn check_of(format: &str) -> Option<Check> {
    let name: String = format.chars().filter(|c| *c != '-').collect();
    Some(match name.as_str() {
        "bsonobjectid" => |text| text.len() == 24 && is_hex(text),
        "uri" => skiff_cel::is_url,
        "email" => mail::is_address,
        "hostname" => is_hostname,
        "ipv4" => |text| text.contains('.') && (is_ipv4(text) || is_ipv6_loosely(text)),
        "ipv6" => |text| text.contains(':') && text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => is_cidr,
        "mac" => is_mac,
        "uuid" => |text| is_uuid(text, |_| true),
        "uuid3" => |text| is_uuid(text, |digits| digits[12] == b'3'),
        "uuid4" => |text| is_uuid(text, |digits| digits[12] == b'4' && is_variant(digits[16])),
        "uuid5" => |text| is_uuid(text, |digits| digits[12] == b'5' && is_variant(digits[16])),
        "isbn" => |text| is_isbn10(text) || is_isbn13(text),
        "isbn10" => is_isbn10,
        "isbn13" => is_isbn13,
        "creditcard" => is_credit_card,
        "ssn" => is_ssn,
        "hexcolor" => |text| {
            let digits = text.strip_prefix('#').unwrap_or(text);
            matches!(digits.len(), 3 | 6) && is_hex(digits)
        },
        "rgbcolor" => is_rgb,
        "byte" => is_base64,
        "password" => |_| true,
        "date" => is_date,
        "duration" => |text| skiff_cel::duration(text).is_some(),
        "datetime" => is_date_time,
        "k8sshortname" => |text| text.len() <= 63 && is_label(text),
        "k8slongname" => |text| text.len() <= 253 && text.split('.').all(is_label),
        _ => return None,
    })
}

pub(super) fn is_known(format: &str) -> bool {
    check_of(format).is_some()
}

pub(super) fn matches(format: &str, text: &str) -> bool {
    check_of(format).is_none_or(|check| check(text))
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_hostname(text: &str) -> bool {
    static HOSTNAME: LazyLock<Option<Regex>> = LazyLock::new(|| {
        let (any, letter) = (r"a-zA-Z0-9\p{S}\p{L}", r"a-zA-Z\p{L}");
        let label = format!("[{any}]-?[{any}]{{0,62}}");
        let labels = format!(r"(?:[{any}](?:[{any}\-]{{0,61}}[{any}])?\.)+[{letter}]{{2,63}}");
        Regex::new(&format!("^(?:{label}|{labels})$")).ok()
    });
    text.len() <= 255
        && text.split('.').all(|label| label.len() <= 63)
        && HOSTNAME.as_ref().is_some_and(|hostname| hostname.is_match(text))
}

/// A number as addresses have it, which may begin with zeros.
fn octets(text: &str, most: u32) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = text.trim_start_matches('0');
    let number = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    (number <= most).then_some(number)
}

fn is_ipv4(text: &str) -> bool {
    text.split('.').count() == 4 && text.split('.').all(|part| octets(part, 255).is_some())
}

/// The IPv4 address at its end may have zeros before its numbers.
fn is_ipv6_loosely(text: &str) -> bool {
    let Some((head, tail)) = text.rsplit_once(':') else { return false };
    match tail.contains('.') {
        true if is_ipv4(tail) => format!("{head}:0.0.0.0").parse::<Ipv6Addr>().is_ok(),
        true => false,
        false => text.parse::<Ipv6Addr>().is_ok(),
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    if is_ipv4(address) {
        octets(bits, 32).is_some()
    } else {
        is_ipv6_loosely(address) && octets(bits, 128).is_some()
    }
}

fn is_mac(text: &str) -> bool {
    let (separator, n_digits) = match text.as_bytes() {
        [_, _, separator @ (b':' | b'-'), ..] => (*separator, 2),
        [_, _, _, _, b'.', ..] => (b'.', 4),
        _ => return matches!(text.len(), 12 | 16 | 40) && is_hex(text),
    };
    let groups: Vec<&str> = text.split(char::from(separator)).collect();
    let n_bytes = groups.len() * n_digits / 2;
    matches!(n_bytes, 6 | 8 | 20) && groups.iter().all(|group| group.len() == n_digits && is_hex(group))
}

fn is_variant(digit: u8) -> bool {
    matches!(digit, b'8' | b'9' | b'a' | b'b' | b'A' | b'B')
}

/// Dashes may be left out, each by itself.
fn is_uuid(text: &str, is_kind: fn(&[u8]) -> bool) -> bool {
    let (mut digits, mut rest) = (Vec::with_capacity(32), text.as_bytes());
    for (at, n_digits) in [8, 4, 4, 4, 12].into_iter().enumerate() {
        if at > 0 {
            rest = rest.strip_prefix(b"-").unwrap_or(rest);
        }
        let Some((group, after)) = rest.split_at_checked(n_digits) else { return false };
        digits.extend_from_slice(group);
        rest = after;
    }
    rest.is_empty() && digits.iter().all(u8::is_ascii_hexdigit) && is_kind(&digits)
}

fn without_spaces(text: &str) -> Vec<u8> {
    text.bytes().filter(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\x0c' | b'\r' | b'-')).collect()
}

fn is_isbn10(text: &str) -> bool {
    let digits = without_spaces(text);
    let [head @ .., last] = digits.as_slice() else { return false };
    if head.len() != 9 || !head.iter().all(u8::is_ascii_digit) {
        return false;
    }
    let last = match last {
        b'X' => 10,
        digit if digit.is_ascii_digit() => u32::from(digit - b'0'),
        _ => return false,
    };
    let sum: u32 = (1..).zip(head).map(|(factor, digit)| factor * u32::from(digit - b'0')).sum();
    (sum + 10 * last).is_multiple_of(11)
}

fn is_isbn13(text: &str) -> bool {
    let digits = without_spaces(text);
    if digits.len() != 13 || !digits.iter().all(u8::is_ascii_digit) {
        return false;
    }
    let sum: u32 = digits
        .iter()
        .zip([1, 3].iter().cycle())
        .map(|(digit, factor)| u32::from(digit - b'0') * factor)
        .sum();
    sum.is_multiple_of(10)
}

/// By the issuer's digits and length, and Luhn's sum.
fn is_credit_card(text: &str) -> bool {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| digits.starts_with(prefix));
    let is_issued = match digits.len() {
        13 => begins(&["4"]),
        14 => begins(&["300", "301", "302", "303", "304", "305", "36", "38"]),
        15 => begins(&["34", "37", "2131", "1800"]),
        16 => begins(&["4", "51", "52", "53", "54", "55", "6011", "65", "35"]),
        _ => false,
    };
    let sum: u32 = digits
        .bytes()
        .rev()
        .zip([1, 2].iter().cycle())
        .map(|(digit, factor)| match u32::from(digit - b'0') * factor {
            n if n > 9 => n - 9,
            n => n,
        })
        .sum();
    is_issued && sum.is_multiple_of(10)
}

fn is_ssn(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 11
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            3 | 6 => matches!(byte, b'-' | b' '),
            _ => byte.is_ascii_digit(),
        })
}

fn is_rgb(text: &str) -> bool {
    let Some(inner) = text.strip_prefix("rgb(").and_then(|rest| rest.strip_suffix(')')) else { return false };
    let is_space = |c: char| matches!(c, ' ' | '\t' | '\n' | '\x0c' | '\r');
    let parts: Vec<&str> = inner.split(',').map(|part| part.trim_matches(is_space)).collect();
    let is_part = |part: &&str| {
        let digits = part.bytes().all(|byte| byte.is_ascii_digit());
        digits && (!part.starts_with('0') || part.len() == 1) && part.parse::<u8>().is_ok()
    };
    parts.len() == 3 && parts.iter().all(is_part)
}

fn is_base64(text: &str) -> bool {
    let digits = text.strip_suffix("==").or_else(|| text.strip_suffix('=')).unwrap_or(text);
    !text.is_empty()
        && text.len().is_multiple_of(4)
        && digits.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'))
}

fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_formed = bytes.len() == 10
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            4 | 7 => *byte == b'-',
            _ => byte.is_ascii_digit(),
        });
    if !is_formed {
        return false;
    }
    match (text[..4].parse(), text[5..7].parse(), text[8..].parse()) {
        (Ok(year), Ok(month), Ok(day)) => jiff::civil::Date::new(year, month, day).is_ok(),
        _ => false,
    }
}

/// What stands behind a second `T` does not matter, nor what separates fractions of seconds.
fn is_date_time(text: &str) -> bool {
    let text = text.to_lowercase();
    let mut parts = text.split('t');
    let (Some(date), Some(time)) = (parts.next(), parts.next()) else { return false };
    is_date(date) && is_time(time)
}

fn is_time(text: &str) -> bool {
    let Some((time, rest)) = text.split_at_checked(8) else { return false };
    let is_two = |text: &str, most: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && text <= most;
    let bytes = time.as_bytes();
    let is_clock = time.is_ascii()
        && bytes[2] == b':'
        && bytes[5] == b':'
        && is_two(&time[..2], "23")
        && is_two(&time[3..5], "59")
        && is_two(&time[6..], "59");
    let is_zone = |text: &str| match text.as_bytes() {
        b"z" => true,
        [b'+' | b'-', a, b, b':', c, d] => [a, b, c, d].into_iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !is_clock || is_zone(rest) {
        return is_clock;
    }
    let mut chars = rest.chars();
    if chars.next().is_none_or(|c| c == '\n') {
        return false;
    }
    let fraction = chars.as_str();
    let zone = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
    zone.len() < fraction.len() && is_zone(zone)
}

fn is_label(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(is_inner) && !text.starts_with('-') && !text.ends_with('-')
}
