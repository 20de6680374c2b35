//! What a registry asks for when it refuses: all its `WWW-Authenticate` headers.
//!
//! Source: RFC 9110, 11.6.1; the distribution spec's token authentication.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer(Realm),
}

/// Where a token is to be had, and for what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Realm {
    pub(super) realm: String,
    pub(super) service: String,
    pub(super) scope: String,
}

/// Headers that are looked at, and the bytes of each.
const MAX_HEADERS: usize = 8;
const MAX_HEADER_BYTES: usize = 8192;

/// All challenges that are understood, those of tokens first.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let mut found = Vec::new();
    for header in headers.get_all(WWW_AUTHENTICATE).iter().take(MAX_HEADERS) {
        if let Ok(text) = header.to_str()
            && text.len() <= MAX_HEADER_BYTES
        {
            read(text, &mut found);
        }
    }
    found.sort_by_key(|challenge| *challenge == Challenge::Basic);
    found
}

/// Challenges of one header: `Scheme name=value, name="value", Scheme …`.
fn read(text: &str, found: &mut Vec<Challenge>) {
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return;
        }
        rest = after.trim_start();
        if let Some(value) = rest.strip_prefix('=') {
            let (value, after) = value_of(value.trim_start());
            rest = after;
            if let Some(Challenge::Bearer(realm)) = found.last_mut() {
                match word.to_ascii_lowercase().as_str() {
                    "realm" => realm.realm = value,
                    "service" => realm.service = value,
                    "scope" => realm.scope = value,
                    _ => {}
                }
            }
        } else if word.eq_ignore_ascii_case("bearer") {
            found.push(Challenge::Bearer(Realm::default()));
        } else {
            // What is no scheme of ours is passed over with its parameters, as those of `Basic` are.
            let basic = word.eq_ignore_ascii_case("basic");
            found.extend(basic.then_some(Challenge::Basic));
        }
    }
}

/// A value, quoted or not, and what comes after it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let (mut value, mut escaped) = (String::new(), false);
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, &quoted[at + 1..]),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(headers: &[&'static str]) -> Vec<Challenge> {
        let mut map = HeaderMap::new();
        for header in headers {
            map.append(WWW_AUTHENTICATE, header.parse().unwrap());
        }
        challenges(&map)
    }

    fn bearer(realm: &str, service: &str, scope: &str) -> Challenge {
        let [realm, service, scope] = [realm, service, scope].map(str::to_owned);
        Challenge::Bearer(Realm { realm, service, scope })
    }

    #[test]
    fn challenges_of_all_headers_are_read_and_tokens_come_first() {
        assert_eq!(
            of(&[
                r#"Basic realm="x""#,
                r#"Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push""#
            ]),
            [bearer("https://a/t", "s", "repository:a/b:pull,push"), Challenge::Basic]
        );
        assert_eq!(
            of(&[r#"Bearer realm="https://a/t",service="s", Basic realm="x""#]),
            [bearer("https://a/t", "s", ""), Challenge::Basic]
        );
        assert_eq!(
            of(&[r#"bearer realm=https://a/t, service = "s \"q\"""#]),
            [bearer("https://a/t", "s \"q\"", "")]
        );
        assert_eq!(of(&["Negotiate, BASIC"]), [Challenge::Basic]);
        assert_eq!(of(&[]), []);
    }

    proptest::proptest! {
        #[test]
        fn no_header_makes_it_panic(text in ".{0,80}") {
            read(&text, &mut Vec::new());
        }
    }
}
