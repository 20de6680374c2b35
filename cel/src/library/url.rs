//! URLs.
//!
//! Source: Go's `net/url`: `ParseRequestURI` decides what is one, `Parse` what its parts are.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::print::quoted;
use super::{Function, Host, Library, library, no_overload};
use crate::fault::Fault;
use crate::plan::Call;
use crate::run::Run;
use crate::value::{Entries, Key, Map, Text, Value};

#[derive(Clone, Debug, Default)]
pub struct Url {
    pub(crate) text: String,
    scheme: String,
    /// With its port.
    host: String,
    path: String,
    query: String,
}

pub(super) fn function(name: &str) -> Option<Function> {
    Some(match name {
        "url" => |call, args, _| match args {
            [Value::Text(text)] => {
                let url = request_uri(text).map_err(|why| {
                    Fault::other(format!("URL parse error during conversion from string: {why}"))
                })?;
                library(Library::Url(Arc::new(url)))
            }
            _ => Err(no_overload(call, args)),
        },
        "isURL" => |call, args, _| match args {
            [Value::Text(text)] => Ok(Value::Bool(request_uri(text).is_ok())),
            _ => Err(no_overload(call, args)),
        },
        "getScheme" | "getHost" | "getHostname" | "getPort" | "getEscapedPath" | "getQuery" => part,
        _ => return None,
    })
}

fn part<'a>(call: &Call, args: &[Value<'a>], _: &Host<'_>) -> Run<'a> {
    let [Value::Library(Library::Url(url))] = args else { return Err(no_overload(call, args)) };
    Ok(match &*call.name {
        "getScheme" => Value::text(url.scheme.as_str()),
        "getHost" => Value::text(url.host.as_str()),
        "getHostname" => Value::text(host_and_port(&url.host).0),
        "getPort" => Value::text(host_and_port(&url.host).1),
        "getEscapedPath" => Value::text(escaped(&url.path)),
        _ => query(&url.query),
    })
}

/// Reads a URL as a request writes it; a part behind `#` is none of the others.
pub(super) fn request_uri(text: &str) -> Result<Url, String> {
    let refused = |why: String| format!("parse {}: {why}", quoted(text));
    parse(text).map_err(&refused)?;
    let before = text.split_once('#').map_or(text, |(before, _)| before);
    let url = parse(if before.is_empty() { "/" } else { before }).map_err(&refused)?;
    Ok(Url { text: text.to_string(), ..url })
}

fn parse(text: &str) -> Result<Url, String> {
    if text.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
        return Err("net/url: invalid control character in URL".to_string());
    }
    if text.is_empty() {
        return Err("empty url".to_string());
    }
    let mut url = Url::default();
    if text == "*" {
        url.path = text.to_string();
        return Ok(url);
    }
    let (scheme, rest) = scheme(text)?;
    url.scheme = scheme.to_ascii_lowercase();
    let (mut rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    url.query = query.to_string();
    if !rest.starts_with('/') {
        return if url.scheme.is_empty() { Err("invalid URI for request".to_string()) } else { Ok(url) };
    }
    if !url.scheme.is_empty()
        && let Some(after) = rest.strip_prefix("//")
    {
        let (authority, path) = after.find('/').map_or((after, ""), |at| after.split_at(at));
        url.host = authority_host(&url.scheme, authority)?;
        rest = path;
    }
    unescaped(rest)?;
    url.path = rest.to_string();
    Ok(url)
}

fn scheme(text: &str) -> Result<(&str, &str), String> {
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if at > 0 => {}
            b':' if at == 0 => return Err("missing protocol scheme".to_string()),
            b':' => return Ok((&text[..at], &text[at + 1..])),
            _ => return Ok(("", text)),
        }
    }
    Ok(("", text))
}

fn authority_host(scheme: &str, authority: &str) -> Result<String, String> {
    let (user, host) =
        authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    let host = host_of(scheme, host)?;
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&byte);
    match user {
        Some(user) if !user.bytes().all(is_valid) => Err("net/url: invalid userinfo".to_string()),
        Some(user) => unescaped(user).map(|_| host),
        None => Ok(host),
    }
}

fn host_of(scheme: &str, host: &str) -> Result<String, String> {
    let port_fault = |port: &str| format!("invalid port {} after host", quoted(port));
    match host.rfind('[') {
        Some(0) => {
            let end = host.rfind(']').ok_or("missing ']' in host")?;
            let port = &host[end + 1..];
            if !is_port(port) {
                return Err(port_fault(port));
            }
            let name = host[1..end].split("%25").next().unwrap_or_default();
            if name.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(format!("invalid host: ParseAddr({}): unable to parse IP", quoted(name)));
            }
            return unescaped(host);
        }
        Some(_) => return Err("invalid IP-literal".to_string()),
        None => {}
    }
    if let Some(first) = host.find(':') {
        let is_web = matches!(scheme, "http" | "https");
        let at = if is_web { first } else { host.rfind(':').unwrap_or(first) };
        if !is_port(&host[at..]) {
            return Err(port_fault(&host[at..]));
        }
    }
    // Of what is ASCII, hosts hold only some; escapes are for what is not.
    let is_valid =
        |byte: u8| byte >= 0x80 || byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:[]<>\"%".contains(&byte);
    if let Some(bad) = host.bytes().find(|byte| !is_valid(*byte)) {
        return Err(format!("invalid character {} in host name", quoted(&char::from(bad).to_string())));
    }
    for (at, _) in host.match_indices('%') {
        let escape: String = host[at..].chars().take(3).collect();
        if host.as_bytes().get(at + 1).is_some_and(|byte| byte.is_ascii_digit() && *byte < b'8')
            && escape != "%25"
        {
            return Err(format!("invalid URL escape {}", quoted(&escape)));
        }
    }
    unescaped(host)
}

fn is_port(text: &str) -> bool {
    text.is_empty()
        || text.strip_prefix(':').is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
}

fn host_and_port(host: &str) -> (&str, &str) {
    let (name, port) = match host.rfind(':').filter(|at| is_port(&host[*at..])) {
        Some(at) => (&host[..at], &host[at + 1..]),
        None => (host, ""),
    };
    (name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name), port)
}

fn unescaped(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first != b'%' {
            bytes.push(*first);
            rest = after;
            continue;
        }
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let is_hex = |digits: &&str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = digits.filter(is_hex).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let Some(value) = value else {
            let shown = String::from_utf8_lossy(&rest[..rest.len().min(3)]).into_owned();
            return Err(format!("invalid URL escape {}", quoted(&shown)));
        };
        bytes.push(value);
        rest = &after[2..];
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A path as it is written where that is right, and rightly written where not.
fn escaped(path: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte);
    let is_valid = |byte: u8| is_plain(byte) || b"!'()*[]%".contains(&byte);
    if path.bytes().all(is_valid) {
        return path.to_string();
    }
    let plain = unescaped(path).unwrap_or_default();
    let mut out = String::with_capacity(plain.len());
    for byte in plain.bytes() {
        match is_plain(byte) {
            true => out.push(char::from(byte)),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn query<'a>(text: &str) -> Value<'a> {
    let mut found: BTreeMap<String, Vec<Value<'a>>> = BTreeMap::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let plain = |text: &str| unescaped(&text.replace('+', " "));
        if let (Ok(key), Ok(value)) = (plain(key), plain(value)) {
            found.entry(key).or_default().push(Value::text(value));
        }
    }
    let mut map = Entries::default();
    for (key, values) in found {
        map.insert(Key::Text(Text::from(key)), Value::list(values));
    }
    Value::Map(Map::Owned(Arc::new(map)))
}
