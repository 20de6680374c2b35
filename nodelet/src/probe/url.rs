//! Paths of probes and redirects, made fit for a request as upstream's HTTP client makes them.
//!
//! What a pod's spec calls a path may be none: with a query, with a fragment, without a leading slash, with blanks or
//! letters that a request line cannot have. Upstream takes it for a URL if it can be one, and for a plain path that is
//! escaped as a whole if it cannot.

/// What is asked for: a path with a leading slash, perhaps a query, without a fragment.
pub(super) fn of_probe(text: &str) -> String {
    let (path, query) = match parse(text) {
        Some(parts) => parts,
        None => (escape(text.as_bytes(), is_path), None),
    };
    let slash = if path.starts_with('/') { "" } else { "/" };
    match query {
        Some(query) => format!("{slash}{path}?{query}"),
        None => format!("{slash}{path}"),
    }
}

/// Path and query, escaped; `None` if the text is no URL.
fn parse(text: &str) -> Option<(String, Option<String>)> {
    if text.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
        return None;
    }
    let text = text.split_once('#').map_or(text, |(before, _)| before);
    let (path, query) = match text.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (text, None),
    };
    // An authority would be replaced by the pod's.
    let path = match path.strip_prefix("//") {
        Some(rest) => rest.find('/').map_or("", |at| &rest[at..]),
        None => path,
    };
    if path.split('/').next().is_some_and(|first| first.contains(':')) {
        return None;
    }
    let decoded = unescape(path.as_bytes())?;
    // One that is escaped well already stays as it is.
    let path = match path.bytes().all(|byte| is_path(byte) || b"!'()*[]%".contains(&byte)) {
        true => path.to_owned(),
        false => escape(&decoded, is_path),
    };
    // Upstream sends a query as it is; what a request line cannot have must be escaped.
    Some((
        path,
        query.map(|query| {
            escape(query.as_bytes(), |byte| is_path(byte) || b"!'()*[]%?|\\^{}".contains(&byte))
        }),
    ))
}

fn is_path(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte)
}

fn escape(bytes: &[u8], stays: impl Fn(u8) -> bool) -> String {
    let mut out = String::new();
    for byte in bytes {
        match stays(*byte) {
            true => out.push(char::from(*byte)),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// `None` if a percent sign is not followed by two hexadecimal digits.
fn unescape(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(rest.len());
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%' {
            let digits = tail.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
            out.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = &tail[2..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    Some(out)
}

/// Scheme, authority and the rest of a location that names a host; `None` if it is relative to where it came from.
pub(super) fn split(location: &str) -> Option<(Option<&str>, &str, &str)> {
    let (scheme, rest) = match location.split_once("://") {
        Some((scheme, rest)) if is_scheme(scheme) => (Some(scheme), rest),
        _ => (None, location.strip_prefix("//")?),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let authority = rest[..end].rsplit_once('@').map_or(&rest[..end], |(_, host)| host);
    Some((scheme, authority, &rest[end..]))
}

fn is_scheme(text: &str) -> bool {
    text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// A location without a host, seen from `base`, a path with perhaps a query (RFC 3986, section 5.2).
pub(super) fn resolve(base: &str, location: &str) -> String {
    let base_path = base.split('?').next().unwrap_or_default();
    if location.is_empty() || location.starts_with('#') {
        return base.to_owned();
    }
    if location.starts_with('?') {
        return of_probe(&format!("{base_path}{location}"));
    }
    let (path, query) = match location.split_once('?') {
        Some((path, query)) => (path, format!("?{query}")),
        None => (location, String::new()),
    };
    let merged = match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("{}/{path}", base_path.rsplit_once('/').map_or("", |(directory, _)| directory)),
    };
    of_probe(&format!("{}{query}", without_dots(&merged)))
}

fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut ends_in_directory = false;
    for part in path.split('/').skip(1) {
        ends_in_directory = matches!(part, "." | "..");
        match part {
            "." => {}
            ".." => drop(kept.pop()),
            part => kept.push(part),
        }
    }
    let end = if ends_in_directory && !kept.is_empty() { "/" } else { "" };
    format!("/{}{end}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probes_path_is_asked_for_as_upstream_asks() {
        for (path, asked) in [
            ("", "/"),
            ("healthz", "/healthz"),
            ("/a b", "/a%20b"),
            ("/\u{e9}", "/%C3%A9"),
            ("/x?y=a|b", "/x?y=a|b"),
            ("/#/frag", "/"),
            ("/x?q=\"quoted\"", "/x?q=%22quoted%22"),
            ("/x?q=a b", "/x?q=a%20b"),
            ("/a%2Fb", "/a%2Fb"),
            ("/100%", "/100%25"),
            ("/100%?x=1", "/100%25%3Fx=1"),
            ("//host/x", "/x"),
            ("/a!(b)*", "/a!(b)*"),
            ("/a\"b", "/a%22b"),
        ] {
            assert_eq!(of_probe(path), asked, "{path:?}");
            assert!(of_probe(path).parse::<http::Uri>().is_ok(), "{path:?}");
        }
    }
}
